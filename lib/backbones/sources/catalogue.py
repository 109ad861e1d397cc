"""The backbones that the study knows: where each comes from and what it stands in for."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lib.backbones.sources import conversions, tiny


@dataclass(frozen=True)
class Package:
    """Weights inside a package archive; `convert(archive, folder)` writes a model folder."""

    asset: str
    convert: Callable[[Path, Path], None]
    what: str


@dataclass(frozen=True)
class Hub:
    """A repository on the model hub at a revision ("main": no commit of it is known to us);
    `tokenizer` is the repository of its tokenizer, if that is another one, at its main."""

    repository: str
    revision: str = "main"
    tokenizer: str | None = None

    def conversion(self, name: str, folder: str = "models") -> str:
        """The shell command that writes pickled weights as safetensors, on the user's own machine,
        to where the backbone `name` is found."""
        place = f"{folder}/{name.removeprefix('hub:').replace('/', '-')}"
        code = (
            f"import transformers as t; n, d = '{self.repository}', '{place}'; "
            "m = getattr(t, t.AutoConfig.from_pretrained(n).architectures[0]); "
            "m.from_pretrained(n, use_safetensors=False, dtype='auto').save_pretrained(d); "
            f"t.AutoTokenizer.from_pretrained('{self.tokenizer or self.repository}')"
            ".save_pretrained(d)"
        )
        return f'.venv/bin/python -c "{code}" && export STUDY_MODELS=$PWD/{folder}'


@dataclass(frozen=True)
class Random:
    """Seeded random weights; `build(seed, num_labels)` gives model and tokenizer."""

    build: Callable[[int, int | None], tuple[PreTrainedModel, PreTrainedTokenizerBase]]


@dataclass(frozen=True)
class Entry:
    """One backbone: its sources in the order in which they are tried, and its facts.

    `prefix` starts every prompt. `num_labels` is the size of a new classification head (None:
    the checkpoint brings its own).
    """

    name: str
    sources: tuple[Package | Hub | Random | Path, ...]
    prefix: str = ""
    num_labels: int | None = None
    substitution: str | None = None


def _hub(
    name: str,
    repository: str,
    tokenizer: str | None = None,
    revision: str = "main",
    **facts: object,
) -> Entry:
    # Where no revision is given, no commit could be looked up when this was written. Every run
    # records the commit that was loaded and the hash of what was in it.
    return Entry(name, sources=(Hub(repository, revision, tokenizer),), **facts)


def _random(name: str, build: Callable, **facts: object) -> Entry:
    return Entry(name, sources=(Random(build),), substitution="random weights", **facts)


ENTRIES: dict[str, Entry] = {
    entry.name: entry
    for entry in (
        Entry(
            "smollm2-135m",
            sources=(
                Package(
                    "smollm2",
                    conversions.smollm2,
                    "SmolLM2-135M-Instruct, 4-bit weights (Q4_1 GGUF) dequantised to float32",
                ),
            ),
            # Its pretraining documents were separated by this token, and the first position
            # serves as attention sink: without it the model knows a tenth fewer facts.
            prefix="<|endoftext|>",
            substitution=(
                "SmolLM2-135M-Instruct (Llama architecture, dequantised from 4 bits) "
                "instead of the paper's causal language model"
            ),
        ),
        Entry(
            "minilm-l6",
            sources=(
                Package(
                    "minilm",
                    conversions.minilm,
                    "all-MiniLM-L6-v2, the original float32 weights",
                ),
            ),
            num_labels=2,
            substitution="all-MiniLM-L6-v2 (BERT, 6 layers of width 384) instead of BERT-base",
        ),
        Entry(
            "flan-t5-small",
            sources=(
                Package(
                    "flan_t5_small",
                    conversions.flan_t5_small,
                    "a title-tuned flan-t5-small, 8-bit weights (ONNX) dequantised to float32",
                ),
            ),
            substitution=(
                "a title-tuned flan-t5-small (the architecture of t5-small-ssm-nq, dequantised "
                "from 8 bits) instead of the paper's T5"
            ),
        ),
        _hub(
            "t5-small-ssm-nq",
            "google/t5-small-ssm-nq",
            revision="4371c64b6f65176f6663af43066bd094597b1116",
        ),
        _hub("t5-large-ssm-nq", "google/t5-large-ssm-nq"),
        _hub("t5-xl-ssm-nq", "google/t5-xl-ssm-nq"),
        _hub("bert-base", "google-bert/bert-base-uncased", num_labels=2),
        _hub("gpt2", "openai-community/gpt2"),
        _hub("gpt2-xl", "openai-community/gpt2-xl"),
        # Fine-tuned by GRACE's recipe on biographies, their prompts and web text.
        _hub("gpt2-xl-grace", "tomh/gpt2xl-grace", tokenizer="openai-community/gpt2-xl"),
        _hub("gpt-j-6b", "EleutherAI/gpt-j-6b"),
        _hub("llama-2-7b", "meta-llama/Llama-2-7b-hf"),
        _hub("scotus-bert", "tomh/scotus-bert", tokenizer="google-bert/bert-base-cased"),
        # SERAC's scope classifier, and its counterfactual model for Llama 2.
        _hub("distilbert-base-cased", "distilbert/distilbert-base-cased", num_labels=0),
        _hub("llama-160m", "JackFram/llama-160m"),
        _random("tiny-gpt2", lambda seed, _: tiny.tiny_gpt2(seed)),
        _random("tiny-gptj", lambda seed, _: tiny.tiny_gptj(seed)),
        _random("tiny-llama", lambda seed, _: tiny.tiny_llama(seed), prefix="<|endoftext|>"),
        _random("tiny-qwen2", lambda seed, _: tiny.tiny_qwen2(seed)),
        _random("tiny-gpt-neox", lambda seed, _: tiny.tiny_gpt_neox(seed)),
        _random("tiny-t5", lambda seed, _: tiny.tiny_t5(seed)),
        _random("tiny-t5-relu", lambda seed, _: tiny.tiny_t5(seed, gated=False)),
        _random("tiny-bert", tiny.tiny_bert, num_labels=4),
        _random(
            "tiny-distilbert",
            tiny.tiny_distilbert,
            num_labels=4,
        ),
    )
}
