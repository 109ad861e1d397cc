"""Every model repository of the catalogue as published, but tiny: the file sets, the names of the
tensors, the numbers of blocks and of heads that settings name; random weights of narrow layers."""

import functools
import io
import json
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file, save
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    DistilBertConfig,
    DistilBertModel,
    GPT2Config,
    GPT2LMHeadModel,
    GPTJConfig,
    GPTJForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    T5Config,
    T5ForConditionalGeneration,
)

from lib.backbones.sources import tiny
from lib.backbones.sources.catalogue import ENTRIES, Hub
from lib.storage.hub import CONVERTER, INDEX, WEIGHTS
from tests.fake_hub.server import Repository

PICKLED = "pytorch_model.bin"
PULL = 3  # number of the converter's pull request
PIECES = 300  # of a T5 tokenizer, before its hundred sentinels
# What a first layer of embeddings may be called "gamma" and "beta" in: the original BERT files.
OLD_NAMES = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}

# The commits that the catalogue names.
PINNED = {
    source.repository: source.revision
    for entry in ENTRIES.values()
    for source in entry.sources
    if isinstance(source, Hub) and source.revision != "main"
}

Files = dict[str, bytes]


@functools.cache
def repositories() -> dict[str, Repository]:
    """All of them by name."""
    gpt2, bert = (
        _saved(tiny.causal_tokenizer(["<|endoftext|>"], "<|endoftext|>")),
        _saved(tiny.bert_tokenizer()),
    )
    llama = _saved(_llama_tokenizer()) | {"tokenizer.model": b"pieces"}
    pieces = _sentence_pieces()
    t5 = {
        "google/t5-small-ssm-nq": _t5(8, 8, "gated-gelu"),
        "google/t5-large-ssm-nq": _t5(24, 24, "relu"),
        "google/t5-xl-ssm-nq": _t5(24, 24, "gated-gelu"),
    }
    return {
        **{name: _pickled(name, _saved(model), pieces) for name, model in t5.items()},
        "openai-community/gpt2": Repository(_bare(_saved(_gpt2(12))) | gpt2),
        "openai-community/gpt2-xl": Repository(_bare(_saved(_gpt2(48))) | gpt2),
        "tomh/gpt2xl-grace": _pickled("tomh/gpt2xl-grace", _saved(_gpt2(48)), {}),
        "EleutherAI/gpt-j-6b": _pickled("EleutherAI/gpt-j-6b", _saved(_gptj(28)), gpt2),
        "meta-llama/Llama-2-7b-hf": Repository(_sharded(_saved(_llama(32))) | llama, gated=True),
        "JackFram/llama-160m": _pickled("JackFram/llama-160m", _saved(_llama(12)), llama),
        "google-bert/bert-base-uncased": Repository(_renamed(_saved(_classifier(12, 2))) | bert),
        "google-bert/bert-base-cased": Repository(_renamed(_saved(_classifier(12, 2))) | bert),
        "tomh/scotus-bert": _pickled("tomh/scotus-bert", _saved(_classifier(12, 11)), {}),
        "distilbert/distilbert-base-cased": Repository(_saved(_distilbert(6)) | bert),
    }


def _pickled(name: str, files: Files, more: Files) -> Repository:
    """Pickled weights at main; the converter's pull request holds safetensors beside them."""
    tensors, rest = _tensors(files), {n: c for n, c in files.items() if n != WEIGHTS} | more
    written = io.BytesIO()
    torch.save(tensors, written)
    main = rest | {PICKLED: written.getvalue()}
    offered = main | {WEIGHTS: files[WEIGHTS]}
    return Repository(
        main,
        {f"refs/pr/{PULL}": offered, "refs/pr/1": main | {WEIGHTS: b"not the converter's"}},
        {1: "somebody", PULL: CONVERTER},
        commit=PINNED.get(name, ""),
    )


def _tensors(files: Files) -> dict[str, torch.Tensor]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, WEIGHTS)
        path.write_bytes(files[WEIGHTS])
        return {name: tensor.clone() for name, tensor in load_file(path).items()}


def _with(files: Files, tensors: Mapping[str, torch.Tensor]) -> Files:
    return files | {WEIGHTS: save(dict(tensors), {"format": "pt"})}


def _bare(files: Files) -> Files:
    """GPT-2 as published: names without the model's prefix, and the attention masks."""
    tensors = {n.removeprefix("transformer."): t for n, t in _tensors(files).items()}
    blocks = {name.split(".")[1] for name in tensors if name.startswith("h.")}
    masks = {f"h.{block}.attn.bias": torch.ones(1, 1, 4, 4) for block in blocks}
    return _with(files, tensors | masks)


def _renamed(files: Files) -> Files:
    """BERT as published: with the names that its first code had."""
    tensors = {}
    for name, tensor in _tensors(files).items():
        old = next((old for old in OLD_NAMES if name.endswith(old)), None)
        kept = name if old is None else name.removesuffix(old) + OLD_NAMES[old]
        if not name.startswith("classifier."):
            tensors[kept] = tensor
    return _with(files, tensors)


def _sharded(files: Files) -> Files:
    """The weights in two files with an index."""
    tensors = _tensors(files)
    names = sorted(tensors)
    halves = {
        f"model-0000{number}-of-00002.safetensors": names[number - 1 :: 2] for number in (1, 2)
    }
    index = {
        "metadata": {"total_size": sum(tensor.nbytes for tensor in tensors.values())},
        "weight_map": {name: part for part, held in halves.items() for name in held},
    }
    parts = {
        part: save({name: tensors[name] for name in held}, {"format": "pt"})
        for part, held in halves.items()
    }
    rest = {name: content for name, content in files.items() if name != WEIGHTS}
    return rest | parts | {INDEX: json.dumps(index).encode()}


def _saved(saved: PreTrainedModel | PreTrainedTokenizerBase) -> Files:
    with tempfile.TemporaryDirectory() as folder:
        saved.save_pretrained(folder)
        return {path.name: path.read_bytes() for path in Path(folder).iterdir()}


def _llama_tokenizer() -> PreTrainedTokenizerBase:
    tokenizer = tiny.causal_tokenizer(["<unk>", "<s>", "</s>"], "</s>")
    tokenizer.bos_token = "<s>"
    return tokenizer


def _sentence_pieces() -> Files:
    """The files of a published T5 tokenizer: pieces, and no tokenizer.json."""
    import sentencepiece

    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(_sentences()),
        model_writer=written,
        vocab_size=PIECES,
        model_type="unigram",
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        hard_vocab_limit=False,
        character_coverage=1.0,
        minloglevel=2,
        num_threads=1,
    )
    sentinels = [f"<extra_id_{number}>" for number in range(100)]
    tokens = {"eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
    config = {"tokenizer_class": "T5Tokenizer", "extra_ids": 100, **tokens}
    return {
        "spiece.model": written.getvalue(),
        "tokenizer_config.json": json.dumps(
            config | {"additional_special_tokens": sentinels}
        ).encode(),
        "special_tokens_map.json": json.dumps(
            tokens | {"additional_special_tokens": sentinels}
        ).encode(),
    }


def _sentences() -> Iterable[str]:
    from tests.fake_hub import data

    yield from tiny.TEXT
    for number in range(200):
        fact = data.fact(number)
        yield f"{fact.question} {fact.answer} {fact.other} {fact.rephrase}"


def _gpt2(blocks: int) -> PreTrainedModel:
    config = GPT2Config(
        vocab_size=tiny.VOCABULARY, n_positions=1024, n_embd=16, n_layer=blocks, n_head=2,
        initializer_range=0.2, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    return tiny.seeded(lambda: GPT2LMHeadModel(config), 0)


def _gptj(blocks: int) -> PreTrainedModel:
    config = GPTJConfig(
        vocab_size=tiny.VOCABULARY, n_positions=1024, n_embd=16, n_layer=blocks, n_head=2,
        rotary_dim=4, initializer_range=0.2, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    return tiny.seeded(lambda: GPTJForCausalLM(config), 0)


def _llama(blocks: int) -> PreTrainedModel:
    config = LlamaConfig(
        vocab_size=tiny.VOCABULARY, hidden_size=16, intermediate_size=24, num_hidden_layers=blocks,
        num_attention_heads=2, max_position_embeddings=1024, initializer_range=0.2,
        bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    return tiny.seeded(lambda: LlamaForCausalLM(config), 0)


def _t5(encoder: int, decoder: int, form: str) -> PreTrainedModel:
    config = T5Config(
        vocab_size=PIECES + 128, d_model=16, d_kv=8, d_ff=24, num_layers=encoder,
        num_decoder_layers=decoder, num_heads=2, feed_forward_proj=form, initializer_factor=1.0,
        tie_word_embeddings=False, pad_token_id=0, eos_token_id=1, decoder_start_token_id=0,
    )  # fmt: skip
    model = tiny.seeded(lambda: T5ForConditionalGeneration(config), 0)
    with torch.no_grad():  # T5 v1.1 has an output matrix of its own
        own = model.shared.weight.detach().clone().roll(1, 0)
    model.lm_head.weight = torch.nn.Parameter(own)
    return model


def _classifier(blocks: int, labels: int) -> PreTrainedModel:
    config = BertConfig(
        vocab_size=tiny.VOCABULARY, hidden_size=16, num_hidden_layers=blocks,
        num_attention_heads=2, intermediate_size=24, num_labels=labels, initializer_range=0.2,
    )  # fmt: skip
    return tiny.seeded(lambda: BertForSequenceClassification(config), 0)


def _distilbert(blocks: int) -> PreTrainedModel:
    config = DistilBertConfig(
        vocab_size=tiny.VOCABULARY, dim=16, n_layers=blocks, n_heads=2, hidden_dim=24,
        initializer_range=0.2,
    )  # fmt: skip
    return tiny.seeded(lambda: DistilBertModel(config), 0)
