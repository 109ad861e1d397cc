"""Tiny random models of every architecture, and tokenizers trained on the spot: no network.

They know nothing; they have the module tree, the tying, the padding and the special tokens of
their big relatives, so that every editor can be checked on every architecture in seconds.
"""

from collections.abc import Callable, Iterable

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertModel,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    DistilBertModel,
    GPT2Config,
    GPT2LMHeadModel,
    GPTJConfig,
    GPTJForCausalLM,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    T5ForConditionalGeneration,
)

from lib.backbones.sources.conversions import t5_config

VOCABULARY = 420  # 256 bytes, a few special tokens, and merges for the commonest letter groups
BLOCKS = 6
POSITIONS = 512

TEXT = (
    "The old lighthouse stands on the northern shore of the island, and the keeper walks down to "
    "the harbour every morning.",
    "Which river runs through the town where the painter Mara Lindqvist was born?",
    "A small company in the valley makes bells, clocks and wooden toys for the winter market.",
    "who wrote the first letter to the king after the war had ended",
    "Name: Tobin Vale. Country: Norland. The capital city of Norland is called Aster.",
    "The language that most people in the hills speak is not the language of the court.",
    "In 1907 the railway between the two cities was opened, 23 years later than planned.",
)


def byte_level_tokenizer(
    special: Iterable[str],
) -> tuple[Tokenizer, dict[str, int]]:
    """A byte-level BPE tokenizer of TEXT, and the ids of its special tokens.

    Special tokens come first, in the given order. Every string can be encoded and decoded back.
    """
    special = list(special)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        min_frequency=2,
        special_tokens=[AddedToken(token, special=True, normalized=False) for token in special],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXT, trainer)
    return tokenizer, {token: tokenizer.token_to_id(token) for token in special}


def causal_tokenizer(special: Iterable[str], eos: str) -> PreTrainedTokenizerFast:
    """A tokenizer that adds nothing by itself; the pad token is the end token, as in practice."""
    tokenizer, _ = byte_level_tokenizer(special)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=eos, pad_token=eos, model_max_length=POSITIONS
    )


def t5_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer with T5's special ids (pad 0, end 1, unknown 2) that appends the end token."""
    special = ("<pad>", "</s>", "<unk>")
    tokenizer, ids = byte_level_tokenizer(special)
    tokenizer.post_processor = processors.Sequence(
        [
            processors.ByteLevel(trim_offsets=False),
            processors.TemplateProcessing(
                single="$A </s>",
                pair="$A </s> $B </s>",
                special_tokens=[("</s>", ids["</s>"])],
            ),
        ]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        model_max_length=POSITIONS,
    )


def bert_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer that frames a text as [CLS] text [SEP]."""
    special = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
    tokenizer, ids = byte_level_tokenizer(special)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", ids["[CLS]"]), ("[SEP]", ids["[SEP]"])],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
        model_max_length=POSITIONS,
    )


def seeded(build: Callable[[], PreTrainedModel], seed: int) -> PreTrainedModel:
    """What `build` returns under its own seed; the caller's random state is left alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build().eval()


def tiny_gpt2(seed: int = 0) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    """GPT-2: tied output matrix, Conv1D layers, learned positions."""
    tokenizer = causal_tokenizer(["<|endoftext|>"], eos="<|endoftext|>")
    config = GPT2Config(
        vocab_size=len(tokenizer),
        n_positions=POSITIONS,
        n_embd=32,
        n_layer=BLOCKS,
        n_head=4,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        initializer_range=0.2,
        bos_token_id=tokenizer.eos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return seeded(lambda: GPT2LMHeadModel(config), seed), tokenizer


def tiny_gptj(seed: int = 0) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    """GPT-J: attention and MLP in parallel, rotary positions, own output matrix with bias."""
    tokenizer = causal_tokenizer(["<|endoftext|>"], eos="<|endoftext|>")
    config = GPTJConfig(
        vocab_size=len(tokenizer),
        n_positions=POSITIONS,
        n_embd=32,
        n_layer=BLOCKS,
        n_head=4,
        rotary_dim=4,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        initializer_range=0.2,
        bos_token_id=tokenizer.eos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return seeded(lambda: GPTJForCausalLM(config), seed), tokenizer


def tiny_llama(
    seed: int = 0,
    kind: tuple[type[PreTrainedConfig], type[PreTrainedModel]] = (LlamaConfig, LlamaForCausalLM),
) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    """Llama as SmolLM2 has it: gated MLP, grouped keys and values, tied output matrix. `kind`:
    another configuration and model of the same shape."""
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    tokenizer = causal_tokenizer(special, eos="<|im_end|>")
    config = kind[0](
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=BLOCKS,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=POSITIONS,
        initializer_range=0.2,
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return seeded(lambda: kind[1](config), seed), tokenizer


def tiny_qwen2(seed: int = 0) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    """Qwen2: Llama's shape, with biases on queries, keys and values."""
    model, tokenizer = tiny_llama(seed, (Qwen2Config, Qwen2ForCausalLM))
    with torch.no_grad():  # drawn as zeros, which would hide a bias that is lost
        for name, bias in model.named_parameters():
            if name.endswith("proj.bias"):
                bias.copy_(0.1 * torch.sin(torch.arange(len(bias)) + 1.0))
    return model, tokenizer


def tiny_gpt_neox(seed: int = 0) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    """GPT-NeoX as Pythia has it: attention and MLP in parallel, one matrix for queries, keys and
    values, partly rotary positions, own output matrix."""
    tokenizer = causal_tokenizer(["<|endoftext|>"], eos="<|endoftext|>")
    config = GPTNeoXConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=BLOCKS,
        num_attention_heads=4,
        max_position_embeddings=POSITIONS,
        initializer_range=0.2,
        use_parallel_residual=True,
        bos_token_id=tokenizer.eos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return seeded(lambda: GPTNeoXForCausalLM(config), seed), tokenizer


def tiny_t5(
    seed: int = 0, *, gated: bool = True
) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    """T5 with 4 + 4 blocks: v1.1 (gated, own output matrix) or v1.0 (ReLU, tied)."""
    tokenizer = t5_tokenizer()
    config = t5_config(
        vocab_size=len(tokenizer), d_model=32, d_kv=8, d_ff=64, layers=4, heads=4, gated=gated
    )

    def build() -> PreTrainedModel:
        model = T5ForConditionalGeneration(config)
        if not config.scale_decoder_outputs:
            # The constructor ties both matrices whatever the configuration says.
            own = torch.randn(config.vocab_size, config.d_model) * config.d_model**-0.5
            model.lm_head.weight = nn.Parameter(own)
        return model

    model = seeded(build, seed)
    with torch.no_grad():
        # At the usual scale a random decoder hardly listens to its encoder: every prompt would
        # get the same answer.
        for block in model.decoder.block:
            block.layer[1].EncDecAttention.q.weight.mul_(3)
            block.layer[1].EncDecAttention.o.weight.mul_(3)
    return model, tokenizer


def tiny_bert(
    seed: int = 0, num_labels: int = 4
) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    """BERT with a classification head, or without one if `num_labels` is 0."""
    tokenizer = bert_tokenizer()
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=BLOCKS,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=POSITIONS,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        initializer_range=0.3,
        pad_token_id=tokenizer.pad_token_id,
    )
    heads = BertModel, BertForSequenceClassification
    return _encoder(config, heads, num_labels, seed), tokenizer


def tiny_distilbert(
    seed: int = 0, num_labels: int = 4
) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    """DistilBERT with a classification head, or without one if `num_labels` is 0."""
    tokenizer = bert_tokenizer()
    config = DistilBertConfig(
        vocab_size=len(tokenizer),
        dim=32,
        n_layers=BLOCKS,
        n_heads=4,
        hidden_dim=64,
        max_position_embeddings=POSITIONS,
        dropout=0.0,
        attention_dropout=0.0,
        seq_classif_dropout=0.0,
        initializer_range=0.3,
        pad_token_id=tokenizer.pad_token_id,
    )
    heads = DistilBertModel, DistilBertForSequenceClassification
    return _encoder(config, heads, num_labels, seed), tokenizer


def _encoder(
    config: BertConfig | DistilBertConfig,
    heads: tuple[type[PreTrainedModel], type[PreTrainedModel]],
    num_labels: int,
    seed: int,
) -> PreTrainedModel:
    """The first of `heads` if `num_labels` is 0, else the second with so many classes."""
    bare, classifier = heads
    if num_labels == 0:
        return seeded(lambda: bare(config), seed)
    config.num_labels = num_labels
    return seeded(lambda: classifier(config), seed)
