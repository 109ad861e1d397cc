"""What MALMEN reads from the language model: parity checks 9 to 11 and 13 of the study's notes, the
losses, the order of mini-batches, and every traced row against the slow reference."""

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from lib.backbones.backbone import Backbone
from lib.backbones.passes.fact_passes import FactPasses, edit_pairs, rephrase_pairs, unrelated_pairs
from lib.backbones.passes.logits import divergence, edit_loss, fact_rows, hits, label_logits
from lib.backbones.passes.prefix import FrozenPrefix
from lib.backbones.sources import loading
from lib.data.records import Edit
from lib.editors.hypernet.capture import trace
from lib.editors.parts.sites import Site
from tests.editors.hypernet.malmen_cases import (
    FAMILIES,
    editor_of,
    everything,
    facts,
    facts_for,
    gap,
    networks,
    oracle_of,
    paths,
    sites,
)

EVERY = pytest.mark.parametrize("name", FAMILIES)


def traced(backbone: Backbone, edits: tuple[Edit, ...], tokens: str = "answer"):
    """Rows of one mini-batch by module path, without replaying a frozen prefix."""
    rows = fact_rows(backbone, [e.prompt for e in edits], [e.target for e in edits])
    return trace(backbone, rows, [Site(**site) for site in sites(backbone)], tokens).rows


@EVERY
@pytest.mark.parametrize("tokens", ["answer", "all"])
def test_keys_and_gradients_equal_the_reference(name: str, tokens: str) -> None:
    """Of all mini-batches in order; the second time from kept outputs of the frozen blocks."""
    backbone = loading.load(name)
    editor, edits = editor_of("malmen", backbone, tokens=tokens), facts_for(backbone)
    theirs = oracle_of(editor).cache(edits, learn=False)
    for kept in (False, True):
        if kept:
            editor.passes.fill(edit_pairs(edits))
        store, _ = editor.cache(editor._batches(edit_pairs(edits)))
        for path in paths(editor):
            for mine, other in zip(everything(store, path), theirs[path], strict=True):
                assert mine.shape == other.shape
                assert gap(mine, other) < 1e-5


# -- 9: the mini-batch of the language model -------------------------------------------------------


@EVERY
def test_09_gradients_scale_with_the_mini_batch_and_keys_do_not(name: str) -> None:
    backbone = loading.load(name, dtype=torch.float64)
    edits = tuple(replace(edit, target="1") for edit in (*facts(7), facts(1)[0]))
    together = traced(backbone, edits, "all")
    alone = [traced(backbone, (edit,), "all") for edit in edits]
    for path, (keys, gradients) in together.items():
        assert gap(torch.cat([one[path][0] for one in alone]), keys) < 1e-6
        single = torch.cat([one[path][1] for one in alone])
        assert single.norm() / gradients.norm() == pytest.approx(8.0, abs=1e-4)
        assert gap(single / 8, gradients) < 1e-6


# -- 10: positions ---------------------------------------------------------------------------------


def inputs_of(backbone: Backbone, path: str, **ids: Tensor) -> Tensor:
    """The inputs [T, d] of a layer in an ordinary pass over one row."""
    seen: list[Tensor] = []
    module = backbone.model.get_submodule(path)
    with module.register_forward_pre_hook(lambda _, args: seen.append(args[0][0])), torch.no_grad():
        backbone.model(**ids)
    return seen[0]


@pytest.mark.parametrize("name", ["tiny-gpt2", "tiny-gptj", "tiny-llama"])
def test_10_causal_rows_start_at_the_last_prompt_token(name: str) -> None:
    backbone = loading.load(name)
    (edit,) = facts(1)
    prompt = backbone.tokenizer(backbone.prefix + edit.prompt)["input_ids"]
    answer = backbone.tokenizer(" " + edit.target, add_special_tokens=False)["input_ids"]
    whole = torch.tensor([prompt + answer])
    for path, (keys, gradients) in traced(backbone, (edit,)).items():
        expected = inputs_of(backbone, path, input_ids=whole)
        first = len(prompt) - 1
        assert len(keys) == len(gradients) == len(answer) > 1
        assert gap(keys, expected[first : first + len(answer)].double()) < 1e-6
    for keys, _ in traced(backbone, (edit,), "all").values():
        assert len(keys) == len(prompt) + len(answer) - 1


@pytest.mark.parametrize("name", ["tiny-t5", "tiny-t5-relu"])
@pytest.mark.parametrize("tokens", ["answer", "all"])
def test_10_seq2seq_rows_are_the_prompt_in_the_encoder_and_the_answer_in_the_decoder(
    name: str, tokens: str
) -> None:
    backbone = loading.load(name)
    (edit,) = facts(1)
    prompt = backbone.tokenizer(edit.prompt)["input_ids"]
    answer = backbone.tokenizer(edit.target)["input_ids"][:-1]
    assert prompt[-1] == backbone.eos_id
    ids = {"input_ids": torch.tensor([prompt]), "decoder_input_ids": torch.tensor([[0, *answer]])}
    for path, (keys, _) in traced(backbone, (edit,), tokens).items():
        expected = inputs_of(backbone, path, **ids)
        rows = len(prompt) if path.startswith("encoder") else len(answer)
        assert len(keys) == rows
        assert gap(keys, expected[:rows].double()) < 1e-6


def test_10_a_classifier_gives_its_first_token(classifier: Backbone) -> None:
    (edit,) = facts(1, classes=True)
    prompt = classifier.tokenizer(edit.prompt)["input_ids"]
    for path, (keys, _) in traced(classifier, (edit,)).items():
        expected = inputs_of(classifier, path, input_ids=torch.tensor([prompt]))
        assert len(keys) == 1
        assert gap(keys, expected[:1].double()) < 1e-6
    for keys, _ in traced(classifier, (edit,), "all").values():
        assert len(keys) == len(prompt)


# -- 11: labels ------------------------------------------------------------------------------------


def successor_model(follows: dict[int, int]) -> Backbone:
    """A GPT-2 that answers each token with its successor, itself where none is given."""
    backbone = loading.load("tiny-gpt2")
    model = backbone.model
    with torch.no_grad():
        for block in model.transformer.h:
            for part in (block.attn.c_proj, block.mlp.c_proj):
                part.weight.zero_()
                part.bias.zero_()
        model.transformer.wpe.weight.zero_()
        read = model.transformer.ln_f(model.transformer.wte.weight)  # rows of one length
        write = torch.zeros_like(read)
        for token in range(len(read)):
            write[follows.get(token, token)] += read[token]
        model.lm_head.weight = nn.Parameter(write, requires_grad=False)
    return backbone


def test_11_the_label_layout_scores_a_successor_model_1_and_a_copying_model_0() -> None:
    pairs = (
        ("The ferry of Ash sails to", "Selby"),
        ("Where is Dove Point?", "Lund"),
        ("Ost", "Wick"),
    )
    plain = loading.load("tiny-gpt2")
    rows = fact_rows(plain, *zip(*pairs, strict=True))
    for (prompt, answer), ids, labels in zip(
        pairs, rows.encoded.input_ids, rows.labels, strict=True
    ):
        p = plain.tokenizer(plain.prefix + prompt)["input_ids"]
        a = plain.tokenizer(" " + answer, add_special_tokens=False)["input_ids"]
        assert ids[: len(p) + len(a) - 1].tolist() == p + a[:-1]
        assert labels.tolist()[: len(p) + len(a) - 1] == [-100] * (len(p) - 1) + a
        assert labels[len(p) + len(a) - 1 :].eq(-100).all()
        chain = [p[-1], *a]
        assert len(set(chain)) == len(chain), "choose a fact whose tokens differ"
        alone = fact_rows(plain, [prompt], [answer])
        good = successor_model(dict(pairwise(chain)))
        assert hits(label_logits(good, alone)[0], alone) == [1.0]
        assert hits(label_logits(successor_model({}), alone)[0], alone) == [0.0]


@EVERY
def test_logits_at_label_positions_equal_a_whole_pass(name: str) -> None:
    backbone = loading.load(name)
    edits = facts_for(backbone, 4)
    reference = oracle_of(editor_of("malmen", backbone))
    rows = fact_rows(backbone, [e.prompt for e in edits], [e.target for e in edits])
    with torch.no_grad():
        logits, labels = label_logits(backbone, rows)
    own = [reference.row(edit.prompt, edit.target) for edit in edits]
    assert labels.tolist() == [label for row in own for label in row.labels if label != -100]
    assert gap(logits, torch.cat([reference.logits(row) for row in own])) < 1e-5
    ours = torch.tensor(hits(logits, rows), dtype=torch.float64).mean()
    assert float(ours) == pytest.approx(reference.accuracy(edit_pairs(edits)), abs=1e-6)


# -- 13: padding -----------------------------------------------------------------------------------


@EVERY
@pytest.mark.parametrize("tokens", ["answer", "all"])
def test_13_padding_changes_no_traced_row(name: str, tokens: str) -> None:
    backbone = loading.load(name, dtype=torch.float64)
    short, long = sorted(facts_for(backbone, 3), key=lambda edit: len(edit.prompt))[::2]
    batch, alone = traced(backbone, (short, long), tokens), traced(backbone, (short,), tokens)
    for path, (keys, gradients) in alone.items():
        n = len(keys)
        assert gap(batch[path][0][:n], keys) < 1e-6
        padded = batch[path][1][:n]
        share = padded.norm() / gradients.norm()  # labels of the row / labels of the batch
        assert gap(padded / share, gradients) < 1e-6
        assert 0 < share < 1


# -- the mini-batches and the losses ---------------------------------------------------------------


@pytest.mark.parametrize("name", ["tiny-gpt2", "tiny-t5", "tiny-bert"])
def test_each_list_is_sorted_by_its_own_attended_tokens_longest_first(name: str) -> None:
    backbone = loading.load(name)
    passes, edits = FactPasses(FrozenPrefix(backbone, 2)), facts_for(backbone, 7)
    orders = []
    for pairs in (edit_pairs(edits), rephrase_pairs(edits), unrelated_pairs(edits)):
        batches = passes.mini_batches(pairs, 3)
        lengths = [int(n) for b in batches for n in b.rows.encoded.attention_mask.sum(dim=1)]
        single = [fact_rows(backbone, [p], [a]).encoded.input_ids.shape[1] for p, a in pairs]
        assert [len(b.rows) for b in batches] == [3, 3, 1]
        assert lengths == sorted(single, reverse=True)
        orders.append(sorted(range(7), key=lambda i, n=single: -n[i]))
    assert orders[0] != orders[1] != orders[2], (
        "the lists must differ for the test to mean anything"
    )


def test_statistics_see_each_mini_batch_in_turn_before_their_first_use() -> None:
    """Mini-batch outer, module inner (2.3): the released variance depends on the blocks."""
    backbone = loading.load("tiny-gpt2", dtype=torch.float64)
    editor, edits = editor_of("malmen", backbone), facts_for(backbone)
    updates: list[tuple[int, int]] = []
    for number, net in enumerate(networks(editor)):
        update = net.standardiser.update
        net.standardiser.update = lambda block, n=number, call=update: (
            updates.append((n, len(block))),
            call(block),
        )
        net.standardiser.register_forward_pre_hook(lambda *_: updates.append((-1, 0)))
    reference = oracle_of(editor)
    blocks = [len(reference.trace(rows, "answer")[paths(editor)[0]][0])
              for rows in reference.mini_batches(edit_pairs(edits))]  # fmt: skip
    editor.meta_gradients(edits)
    expected = [(net, rows) for rows in blocks for net in (0, 1, 0, 1)]
    assert updates[: len(expected)] == expected
    assert set(updates[len(expected) :]) == {(-1, 0)}


def test_divergence_is_kl_from_the_original_to_the_edited_model_in_nats() -> None:
    generator = torch.Generator().manual_seed(0)
    original, edited = (3 * torch.randn(6, 11, generator=generator) for _ in range(2))
    p, q = original.double().softmax(-1), edited.double().softmax(-1)
    forward, backward = ((a * (a / b).log()).sum(-1).mean() for a, b in ((p, q), (q, p)))
    assert float(divergence(original, edited)) == pytest.approx(float(forward), rel=1e-5)
    assert abs(float(forward - backward)) > 0.1
    assert float(divergence(original, original)) == pytest.approx(0.0, abs=1e-6)


def test_two_classes_are_the_binary_losses_of_the_logit_difference() -> None:
    generator = torch.Generator().manual_seed(1)
    original, edited = (2 * torch.randn(9, 2, generator=generator) for _ in range(2))
    labels = torch.tensor([0, 1, 1, 0, 1, 0, 0, 1, 1])
    logit = edited[:, 1] - edited[:, 0]
    binary = functional.binary_cross_entropy_with_logits(logit, labels.float())
    assert float(edit_loss(edited, labels)) == pytest.approx(float(binary), rel=1e-5)
    p, q = ((x[:, 1] - x[:, 0]).double().sigmoid() for x in (original, edited))
    bernoulli = (p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()).mean()
    assert float(divergence(original, edited)) == pytest.approx(float(bernoulli), rel=1e-5)


def test_losses_of_bfloat16_logits_are_computed_in_float32() -> None:
    generator = torch.Generator().manual_seed(2)
    rough = (4 * torch.randn(50, 300, generator=generator)).bfloat16()
    labels = torch.randint(300, (50,), generator=generator)
    exact = functional.cross_entropy(rough.double(), labels)
    assert edit_loss(rough, labels).dtype == torch.float32
    assert float(edit_loss(rough, labels)) == pytest.approx(float(exact), rel=1e-5)
    assert divergence(rough, rough.flip(0)).dtype == torch.float32
