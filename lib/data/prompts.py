"""How a record's fields become prompts and targets: one choice for a stream and for the facts
that an editor is trained on."""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from lib.data.records import Edit, Probe
from lib.errors import UsageError

NQ_MARK = "nq question: "


@dataclass(frozen=True)
class PromptStyle:
    """`template` wraps every prompt ("Question: {}\\nAnswer:"). `true_targets`: edit towards the
    true answer where a record has one. Upstream questions: `question_mark` ends them with "?",
    `keep_mark` leaves the zsRE files' "nq question: " in front of them (MALMEN, ref 4),
    `upstream_template` wraps them in place of `template`, where edits are statements.

    Raises UsageError for a template without exactly one {}.
    """

    template: str = "{}"
    true_targets: bool = False
    question_mark: bool = False
    keep_mark: bool = False
    upstream_template: str = ""

    def __post_init__(self) -> None:
        for template in (self.template, self.upstream_template or "{}"):
            if template.count("{}") != 1:
                raise UsageError(f"a prompt template needs exactly one {{}}: {template!r}")

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> "PromptStyle":
        """The style among a stream's options."""
        return cls(**{f.name: options[f.name] for f in fields(cls) if f.name in options})

    def wrap(self, prompt: str) -> str:
        """The prompt in its template."""
        return self.template.format(prompt)

    def edit(self, record: Edit) -> Edit:
        """The record with prompt, rephrases and target as this style wants them."""
        true = self.true_targets and record.target_true
        return replace(
            record,
            prompt=self.wrap(record.prompt),
            rephrases=tuple(self.wrap(text) for text in record.rephrases),
            target=record.target_true if true else record.target,
            # What follows from the file's target does not follow from the true one.
            portability=() if true else tuple(self.probe(probe) for probe in record.portability),
        )

    def probe(self, probe: Probe) -> Probe:
        """The probe with its prompt as this style wants it."""
        text = probe.prompt
        if probe.kind == "upstream":
            text = text if self.keep_mark else text.removeprefix(NQ_MARK)
            text += "?" if self.question_mark and not text.endswith("?") else ""
            if self.upstream_template:
                return replace(probe, prompt=self.upstream_template.format(text))
        return replace(probe, prompt=self.wrap(text))

    def key(self, prompt: str) -> str:
        """What a wrapped prompt asks: equal for two that differ by the mark, by case or by the
        closing question mark alone."""
        head, tail = self.template.split("{}")
        asked = prompt[len(head) : len(prompt) - len(tail)]
        return asked.removeprefix(NQ_MARK).casefold().rstrip(" ?")
