"""A fast tokenizer that splits sources and targets differently and numbers them alike.

Translation models cut each language with a model of its own, over one shared vocabulary. Targets
are encoded by `tokenizer(text_target=...)`; ids of either side are decoded alike.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

TARGET_FILE = "target_tokenizer.json"
# Far below the scores of real pieces, which lie between -25 and 0: chosen only if nothing else
# covers a letter.
FOREIGN = -1e4


class TwoSidedTokenizer(PreTrainedTokenizerFast):
    """`tokenizer_object` splits sources, `target_object` (or the file `target_file`) targets."""

    vocab_files_names: ClassVar[dict[str, str]] = {
        "tokenizer_file": "tokenizer.json",
        "target_file": TARGET_FILE,
    }

    def __init__(
        self,
        *arguments: object,
        target_object: Tokenizer | None = None,
        target_file: str | None = None,
        **options: object,
    ) -> None:
        super().__init__(*arguments, **options)
        self._source = self._tokenizer
        self._target = target_object or Tokenizer.from_file(target_file)

    @classmethod
    def convert_to_native_format(cls, **options: object) -> dict[str, object]:
        """Both files are read as they are; transformers would take one of them apart."""
        return options

    # Called by transformers around `text_target`.
    def _switch_to_target_mode(self) -> None:
        self._tokenizer = self._target

    def _switch_to_input_mode(self) -> None:
        self._tokenizer = self._source

    def _save_pretrained(
        self,
        save_directory: str,
        file_names: tuple[str, ...],
        *arguments: object,
        **options: object,
    ) -> tuple[str, ...]:
        file = str(Path(save_directory) / TARGET_FILE)
        self._target.save(file)
        return super()._save_pretrained(save_directory, (*file_names, file), *arguments, **options)


def unigram_side(
    vocabulary: Mapping[str, int], scores: Mapping[str, float], charsmap: bytes, *, end: str
) -> Tokenizer:
    """One side: SentencePiece's unigram `scores` of its pieces, numbered by `vocabulary`, after
    SentencePiece's table of replaced letters, `charsmap`; every text ends with `end`.

    Ids have no gaps, one piece is "<unk>". Pieces of the other side are kept, so that they can be
    decoded; they split nothing that this side's pieces can.
    """
    pieces = [(p, scores.get(p, FOREIGN)) for p in sorted(vocabulary, key=vocabulary.__getitem__)]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=vocabulary["<unk>"]))
    tokenizer.normalizer = normalizers.Sequence(
        [
            normalizers.Precompiled(charsmap),
            normalizers.Strip(),
            normalizers.Replace(Regex(" {2,}"), " "),
        ]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="always")
    tokenizer.post_processor = ending_with(end, vocabulary[end])
    return tokenizer


def ending_with(end: str, number: int) -> TemplateProcessing:
    """What appends the end mark `end`, with the id `number`, to every text."""
    return TemplateProcessing(
        single=f"$A {end}", pair=f"$A {end} $B {end}", special_tokens=[(end, number)]
    )
