"""Questions that follow from an edit: as published, composed of facts, scored beside the edits."""

import dataclasses

import pandas as pd
import pytest

from lib.backbones.sources import loading
from lib.data import invented
from lib.data.embedded import facts
from lib.data.embedded.triples import Fact, FactStore
from lib.data.published import counterfact, zsre
from lib.data.records import Edit, Probe, Stream
from lib.data.streams import PromptStyle, record_stream
from lib.errors import RecordError
from lib.evaluation.evaluator import Evaluator, Protocol
from lib.evaluation.protocol import run_sequence
from tests.conftest import make

STORE = FactStore(
    (
        Fact("country_capital", "Ostmark", ("Calder",), "invented"),
        Fact("country_capital", "Westmark", ("Selby",), "invented"),
        Fact("country_capital", "Twinmark", ("Holm", "Wick"), "invented"),
        Fact("country_capital", "New Ostmark", ("Calder",), "invented"),
        Fact("country_region", "Ostmark", ("Elsewhere",), "invented"),
        Fact("official_language", "Ostmark", ("Ostish",), "invented"),
    ),
    (),
)
QUILL = Fact("country", "Quill Island", ("Ostmark",), "invented")


def test_a_statement_goes_on_to_the_new_objects_capital():
    onward = facts.onward_facts(STORE)
    (probe,) = facts.composed(QUILL, "Westmark", onward)
    assert probe.prompt == "Quill Island is located in a country whose capital is the city of"
    assert (probe.target, probe.kind) == ("Selby", "portability")
    (probe,) = facts.composed(
        dataclasses.replace(QUILL, relation="capital_of", objects=("Westmark",)), "Ostmark", onward
    )
    assert probe.prompt.endswith("is the capital of a country that lies on the continent of")
    assert probe.target == "Elsewhere"


@pytest.mark.parametrize(
    ("fact", "new"),
    [
        (QUILL, "Nowhere"),  # nothing is known of the new object
        (QUILL, "Twinmark"),  # two capitals
        (QUILL, "New Ostmark"),  # the same capital as before: nothing follows
        (Fact("native_language", "Ada", ("Ostish",), "invented"), "Westish"),  # no hop
    ],
)
def test_nothing_is_asked_where_nothing_follows(fact, new):
    assert facts.composed(fact, new, facts.onward_facts(STORE)) == ()


@pytest.mark.parametrize("relation", facts.HOPS)
def test_every_hop_replaces_the_end_of_its_wording(relation):
    hop = facts.HOPS[relation]
    statement = Fact(relation, "Quill", ("Ostmark",), "invented").prompt(hop.form)
    assert statement.endswith(hop.ending) and "country" in hop.onward


ROME = {
    "requested_rewrite": {
        "prompt": "{} moors at", "subject": "The Heron",
        "target_new": {"str": "Calder"}, "target_true": {"str": "Selby"},
    },
    "paraphrase_prompts": ["The Heron ties up at"], "neighborhood_prompts": ["The Gull moors at"],
}  # fmt: skip
TRIMMED = {"src": "Where does The Heron moor?", "alt": "Calder", "subject": "The Heron"}
ASKED = {"New Question": "Which river passes The Heron's berth?", "New Answer": "the Ash"}


@pytest.mark.parametrize(("read", "row"), [(counterfact._edit, ROME), (zsre._edit, TRIMMED)])
def test_published_records_bring_their_question(read, row):
    (probe,) = read({**row, "portability": ASKED}, "r0").portability
    assert (probe.prompt, probe.target) == (ASKED["New Question"], "the Ash")
    assert probe.identity == "r0:portability" and read(row, "r0").portability == ()
    with pytest.raises(RecordError, match="New Answer"):
        read({**row, "portability": {"New Question": "Which river?"}}, "r0")
    with pytest.raises(RecordError, match="'portability' is not an object"):
        read({**row, "portability": ["Which river?"]}, "r0")


def test_a_true_target_drops_what_follows_from_the_false_one():
    asked = (Probe("p", "Which river?", "the Ash", "portability"),)
    record = Edit("r", "The Heron moors at", "Calder", "The Heron", (), (), "", "Selby", asked)
    assert PromptStyle("Q: {}").edit(record).portability[0].prompt == "Q: Which river?"
    assert PromptStyle(true_targets=True).edit(record).portability == ()


def stream(n_edits: int = 4) -> Stream:
    chosen = record_stream(
        invented.statements(), n_edits=n_edits, batch_size=2, seed=1, n_portability=1
    )
    return dataclasses.replace(chosen, general=invented.general(2))


def test_rows_wait_for_their_edit_and_a_beginning_keeps_its_own():
    whole = stream()
    assert whole.owners["portability"] == (0, 1, 2, 3)
    first = whole.beginning(2)
    assert first.portability == whole.portability[:2] and first.owners["portability"] == (0, 1)
    assert dataclasses.replace(whole, portability=(), owners={}).content != whole.content


def moments(protocol: Protocol) -> pd.Series:
    """How many rows each subset has at each moment of a run."""
    chosen, editor, records = stream(6), make("ft", loading.load("tiny-gpt2")), []
    run_sequence(
        editor, chosen, protocol, Evaluator(editor, chosen, protocol),
        write_record=records.append, write_step=lambda step: None, after_batch=lambda n: None,
    )  # fmt: skip
    return pd.DataFrame(records).groupby(["moment", "n_edits", "subset"]).size()


def test_checkpoints_are_named_by_their_batch_and_may_ask_general_ability():
    found = moments(Protocol(checkpoints=(1,), decode=False))
    assert found["checkpoint"].to_dict() == {
        (2, "edits"): 2, (2, "holdout"): 2, (2, "near"): 4, (2, "upstream"): 2,
        (2, "portability"): 2,
    }  # fmt: skip
    assert found["end", 6, "portability"] == 6 and found["before", 0, "portability"] == 6
    general = found["before", 0, "general"]
    asked = moments(Protocol(checkpoints=(2,), general_between=True, decode=False))
    assert asked["checkpoint", 4, "general"] == general == asked["end", 6, "general"]
    assert set(asked["checkpoint"].index.get_level_values("n_edits")) == {4}
