"""The knowledge pass against a plain reference, its cache, and its recovery from a torn line."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from lib.backbones import knowledge
from lib.backbones.knowledge import answered, known_facts
from lib.backbones.sources import loading, tiny
from lib.data import datasets, streams
from lib.data.embedded.triples import Fact
from lib.errors import BackboneError, UsageError
from lib.runs import resources

FACTS = [
    Fact("capital", "Norland", ("Aster",), "invented"),
    Fact("capital", "Sorland", ("Brask",), "invented"),
    Fact("capital", "Province of Ostmark", ("Tilse",), "invented"),
    Fact("country", "Lake Onn", ("Norland", "Sorland"), "invented"),
    Fact("native_language", "Ilse Viri", ("Fennisch",), "invented"),
]


def backbone(kind, seed=0):
    build = {"causal": tiny.tiny_llama, "seq2seq": tiny.tiny_t5}[kind]
    torch.manual_seed(seed)
    model, tokenizer = build(seed=seed)
    content = f"tiny-{kind}-{seed}"
    return SimpleNamespace(
        name=f"tiny-{kind}",
        family=SimpleNamespace(kind=kind),
        model=model.eval().requires_grad_(False),
        tokenizer=tokenizer,
        dtype=torch.float32,
        device=torch.device("cpu"),
        content=content,
        arithmetic={"content": content},
        prefix="",
        eos_id=tokenizer.eos_token_id,
        pad_id=tokenizer.pad_token_id or 0,
    )


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("STUDY_CACHE", str(tmp_path))
    return tmp_path / "knowledge"


@pytest.fixture(autouse=True)
def one_thread():
    """Tiny matrices gain nothing from threads and lose seconds to them on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("kind", ["causal", "seq2seq"])
def test_answers_equal_one_plain_forward_pass_each(kind):
    from lib.backbones.encoding import prompt_ids, target_ids

    bb = backbone(kind)
    found = known_facts(bb, FACTS, cap=None)
    assert set(found.forms) == set(knowledge.FORMS[kind])
    for fact in FACTS:
        for form in found.forms:
            prompt = prompt_ids(bb, fact.prompt(form))
            targets = [target_ids(bb, value) for value in fact.objects]
            targets = [t[:-1] if t[-1] == bb.eos_id else t for t in targets]
            full = []
            for target in targets:
                if kind == "causal":
                    logits = bb.model(torch.tensor([prompt + target])).logits[0]
                    predicted = logits[len(prompt) - 1 : -1]
                else:
                    start = bb.model.config.decoder_start_token_id
                    predicted = bb.model(
                        input_ids=torch.tensor([prompt]),
                        decoder_input_ids=torch.tensor([[start, *target[:-1]]]),
                    ).logits[0]
                full.append(predicted.argmax(-1).tolist() == target)
            top = int(predicted[0].argmax())
            answer = found.answers[fact.identity][form]
            assert answer.top == bb.tokenizer.decode([top])
            if form == "canonical":  # questions are compared without case
                assert answer.full == any(full)
                assert answer.first == (top in {t[0] for t in targets})


def test_a_model_that_always_says_the_object_knows_it(monkeypatch):
    bb = backbone("causal")
    fact = FACTS[0]
    from lib.backbones.encoding import target_ids

    ids = target_ids(bb, fact.object)[:-1]

    def says(_self, prompts, _targets):
        logits = torch.zeros(len(prompts), len(ids), len(bb.tokenizer))
        for place, token in enumerate(ids):
            logits[:, place, token] = 1
        return logits

    monkeypatch.setattr(knowledge._Pass, "_logits", says)
    found = known_facts(bb, [fact], cap=None, forms=("canonical",))
    answer = found.answers[fact.identity]["canonical"]
    assert answer.first and answer.full and answer.typed
    assert found.knows(fact) is True and found.knows(FACTS[1]) is None
    assert found.first_token(fact.object) == ids[0]


def test_questions_are_compared_without_case():
    bb = backbone("causal")
    asking = knowledge._Pass(bb, FACTS)
    upper = bb.tokenizer("B", add_special_tokens=False)["input_ids"]
    lower = bb.tokenizer("b", add_special_tokens=False)["input_ids"]
    assert asking._same(lower, upper, True) and not asking._same(lower, upper, False)


def test_a_second_pass_reads_the_cache_and_a_torn_line_is_asked_again(cache, monkeypatch):
    bb = backbone("causal")
    first = known_facts(bb, FACTS, cap=None)
    (path,) = cache.glob("*.jsonl")
    whole = path.read_bytes()
    asked = []
    run = knowledge._Pass.run
    monkeypatch.setattr(
        knowledge._Pass, "run", lambda self, units: asked.append(len(units)) or run(self, units)
    )
    assert known_facts(bb, FACTS, cap=None) == first and not asked
    path.write_bytes(whole[:-9])  # as if killed inside the last line
    assert known_facts(bb, FACTS, cap=None) == first and asked == [1]
    assert known_facts(bb, FACTS, cap=None) == first and asked == [1]
    path.write_bytes(whole[: whole.index(b"\n") + 1] + b"\x00garbage\n[1]\n{}\n")
    assert known_facts(bb, FACTS, cap=None).content == first.content
    assert asked[-1] == len(FACTS) * 2 - 1


def test_a_killed_pass_keeps_what_it_has_done(cache, monkeypatch):
    bb = backbone("causal")
    monkeypatch.setattr(knowledge, "_UNITS", 3)
    piece = knowledge._Pass._piece
    calls = []

    def dies(self, units, prompts):
        calls.append(len(units))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return piece(self, units, prompts)

    monkeypatch.setattr(knowledge._Pass, "_piece", dies)
    with pytest.raises(KeyboardInterrupt):
        known_facts(bb, FACTS, cap=None)
    (path,) = cache.glob("*.jsonl")
    assert path.read_bytes().count(b"\n") == 3
    resumed = known_facts(bb, FACTS, cap=None)
    assert sum(calls[2:]) == len(FACTS) * 2 - 3
    path.unlink()
    monkeypatch.undo()
    assert known_facts(backbone("causal"), FACTS, cap=None).answers == resumed.answers


def test_the_cap_limits_facts_and_a_larger_cap_only_adds(cache):
    bb = backbone("causal")
    small = known_facts(bb, FACTS, cap=2)
    assert set(small.answers) == {fact.identity for fact in FACTS[:2]}
    (path,) = cache.glob("*.jsonl")
    lines = path.read_bytes()
    large = known_facts(bb, FACTS, cap=4)
    assert path.read_bytes().startswith(lines)
    assert {name: large.answers[name] for name in small.answers} == small.answers


def test_another_backbone_has_its_own_answers(cache):
    known_facts(backbone("causal", 0), FACTS, cap=1)
    known_facts(backbone("causal", 1), FACTS, cap=1)
    assert len(list(cache.glob("*.jsonl"))) == 2


def test_wrong_use_is_named():
    bb = backbone("causal")
    with pytest.raises(UsageError, match="at least 1"):
        known_facts(bb, FACTS, cap=0)
    bb.family = SimpleNamespace(kind="classifier")
    with pytest.raises(BackboneError, match="causal or seq2seq"):
        known_facts(bb, FACTS, cap=1)


def test_the_logits_are_those_of_the_model():
    bb = backbone("causal")
    prompts, targets = [[5, 6, 7], [8, 9, 10]], [[11, 12], [13, 14]]
    found = knowledge._Pass(bb, FACTS)._logits(prompts, targets)
    whole = torch.tensor([p + t[:-1] for p, t in zip(prompts, targets, strict=True)])
    with torch.no_grad():
        expected = bb.model(input_ids=whole).logits[:, -2:]
    assert torch.equal(found, expected.float())


def test_facts_that_the_backbone_answers_are_left_out_of_a_stream_that_asks(monkeypatch):
    """Every token has to be the first choice."""
    model, dataset = loading.load("tiny-llama"), datasets.load("invented")
    asked = list(dataset.edits[:6])
    read, taught = knowledge._read, {asked[1].prompt, asked[4].prompt}

    def taught_some(backbone, edits):
        found = read(backbone, edits)
        rows = zip(edits, found.ids, found.argmax, strict=True)
        best = [ids if e.prompt in taught else (*ids[:-1], -1) for e, ids, _ in rows]
        return replace(found, argmax=best)

    assert answered(model, asked[:1]) == set()  # its weights are random
    monkeypatch.setattr(knowledge, "_read", taught_some)
    assert answered(model, asked[1:]) == {asked[1].identity, asked[4].identity}
    assert answered(model, asked) == {asked[1].identity, asked[4].identity}  # from the cache
    never, always = asked[:2], asked[2:]
    monkeypatch.setattr(
        resources, "answered", lambda backbone, edits: {edit.identity for edit in edits[2:]}
    )
    spec = {"stream": {"template": "Question: {}"}}
    left = resources.unanswered(replace(dataset, edits=tuple(asked)), spec, model)
    assert [edit.identity for edit in left.edits] == [edit.identity for edit in never]
    assert left.left_out[-1] == f"{len(always)} facts that the backbone answers before any edit"
    assert left.near == streams.pool(replace(dataset, edits=tuple(asked)), "near", 6)
