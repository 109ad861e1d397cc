"""A reproducibility study of model editing, and its editors for models and facts of one's own.

    model = lib.load("smollm2-135m")
    facts = [lib.Edit("The capital of Norland is the city of", "Aster", subject="Norland")]
    with lib.edit(model, "MEMIT", facts) as edited:
        print(edited.generate("People in Norland's capital,"))

The names below are imported when they are asked for: `import lib` alone loads nothing.
"""

__version__ = "0.5.0"

_HOMES = {
    "Edit": "facts", "edits": "facts", "load": "models", "edit": "editing", "open": "editing",
    "Edited": "editing", "compare": "comparing", "Comparison": "comparing",
    "list_editors": "lists", "list_models": "lists",
}  # fmt: skip
__all__ = [*_HOMES]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(f"{__name__}.api.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
