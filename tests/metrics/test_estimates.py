"""From records to intervals: units, batches, one interval for one number, and honest coverage."""

import itertools
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from scipy import stats

from lib.metrics import estimates, scales
from lib.metrics.estimates import by_fact, counted, difference, estimate, with_units
from lib.metrics.intervals import RESAMPLES, for_few

PAPERS = Path(__file__).parents[2] / "papers"


def study(right: np.ndarray, *, seed: int = 0, order: list[int] | None = None) -> pd.DataFrame:
    """Edits [batches, size] at the end and right after their batch, a rephrase and an unrelated
    question each, as runs write them; `order` names the fact of each edit."""
    rows = []
    for number, value in enumerate(right.ravel()):
        fact = f"fact {number if order is None else order[number]}"
        shared = {"run": f"r{seed}", "setting": "s", "seed": seed, "edit_index": number,
                  "prompt": f"about {fact}", "decoded": float(value)}  # fmt: skip
        for subset, moment, record in (
            ("edits", "before", f"{fact}#0"), ("edits", "own", f"{fact}#0"),
            ("edits", "end", f"{fact}#0"), ("holdout", "end", f"{fact}#1"),
            ("near", "end", f"near {fact}"),
        ):  # fmt: skip
            about = f"near {fact}" if subset == "near" else fact
            batch = number // right.shape[1] if subset == "edits" else number // 7
            rows.append({**shared, "subset": subset, "moment": moment, "record": record,
                         "fact": about, "batch": batch})  # fmt: skip
    return with_units(pd.DataFrame(rows))


def at_end(rows: pd.DataFrame, subset: str = "edits") -> pd.DataFrame:
    return rows[(rows["subset"] == subset) & (rows["moment"] == "end")]


def draw(batches: int, size: int, spread: float, generator: np.random.Generator) -> np.ndarray:
    """Right or wrong [batches, size], with a random effect that the edits of a batch share."""
    shared = generator.normal(0, spread, (batches, 1))
    return generator.random((batches, size)) < 1 / (1 + np.exp(-1.5 - shared))


def test_rows_know_their_fact_their_batch_and_who_answers_for_them() -> None:
    rows = study(np.ones((3, 2)))
    assert (rows["unit"] == "fact " + rows["edit_index"].astype(str)).all()
    assert (rows["edit_batch"] == rows["edit_index"] // 2).all()  # not the batch of an evaluation
    answerable = rows[rows["by_batch"]]
    assert set(answerable["subset"]) == {"edits", "holdout"}
    assert set(answerable["moment"]) == {"own", "end"}
    single = with_units(rows.drop(columns=list(estimates.UNITS)).assign(moment="own"))
    assert single["by_batch"].all()  # single rounds: the batch answers for all that belongs to it
    pool = rows.drop(columns=list(estimates.UNITS)).assign(edit_index=-1)
    assert (with_units(pool)["edit_batch"] == -1).all() and not with_units(pool)["by_batch"].any()
    assert with_units(rows) is rows
    nothing = with_units(pd.DataFrame(columns=["run", "editor"]))
    assert nothing.empty and set(estimates.UNITS) <= set(nothing)


@pytest.mark.parametrize(("batches", "unit"), [(10, "batch"), (9, "fact (9 batches)")])
def test_ten_batches_are_units_and_nine_are_not(batches: int, unit: str) -> None:
    rows = study(draw(batches, 6, 1.0, np.random.default_rng(2)))
    for subset in ("edits", "holdout"):
        found = estimate(at_end(rows, subset), "decoded")
        assert found.unit == unit and found.n == found.facts == 6 * batches
        assert found.clusters == (batches if batches == 10 else found.n)
    assert estimate(at_end(rows, "near"), "decoded").unit == "fact"
    assert estimate(rows[rows["moment"] == "before"], "decoded").unit == "fact"


def test_batches_of_one_edit_are_facts_and_agreement_is_counted_in_facts() -> None:
    one = study(draw(20, 1, 0.0, np.random.default_rng(0)))
    assert estimate(at_end(one), "decoded").unit == "fact"
    agreeing = estimate(at_end(study(np.ones((12, 10)))), "decoded")
    assert agreeing.unit == "fact" and agreeing.clusters == 120 and agreeing.low > 0.96


def by_loops(rows: pd.DataFrame, column: str, unit: str) -> tuple[float, float]:
    """A percentile bootstrap of whole units by plain loops, widened for few."""
    groups = [part[column].tolist() for _, part in rows.groupby(unit)]
    generator, means = np.random.default_rng(11), []
    for _ in range(4 * RESAMPLES):
        drawn = [groups[i] for i in generator.integers(0, len(groups), len(groups))]
        values = list(itertools.chain.from_iterable(drawn))
        means.append(sum(values) / len(values))
    level = for_few(0.95, len(groups))
    return tuple(np.quantile(means, [(1 - level) / 2, (1 + level) / 2]))


def test_intervals_over_batches_agree_with_a_slow_reference() -> None:
    rows = at_end(study(draw(30, 5, 1.0, np.random.default_rng(4))))
    found, slow = estimate(rows, "decoded"), by_loops(rows, "decoded", "edit_batch")
    assert found.unit == "batch"
    assert (found.low, found.high) == pytest.approx(slow, abs=0.03)  # BCa against percentile
    other = rows.assign(decoded=np.random.default_rng(1).random(len(rows)))
    gap = rows.assign(gap=rows["decoded"].to_numpy() - other["decoded"].to_numpy())
    pair, slow = difference(rows, other, "decoded"), by_loops(gap, "gap", "edit_batch")
    assert pair.unit == "batch" and pair.mean == pytest.approx(gap["gap"].mean())
    assert (pair.low, pair.high) == pytest.approx(slow, abs=0.03)


def test_intervals_over_batches_cover_what_a_new_order_would_give() -> None:
    """Batches share a random effect: intervals over ten batches cover the true mean about as often
    as they say, intervals over the facts in them far less often."""
    generator, spread, trials = np.random.default_rng(3), 1.5, 300
    effects = generator.normal(0, spread, 400_000)
    truth = float((1 / (1 + np.exp(-1.5 - effects))).mean())
    hits = {"batch": 0, "fact": 0}
    for _ in range(trials):
        rows = at_end(study(draw(10, 10, spread, generator)))
        for unit, part in (("batch", rows), ("fact", rows.assign(by_batch=False))):
            found = estimate(part, "decoded")
            hits[unit] += found.low <= truth <= found.high
    assert 0.91 <= hits["batch"] / trials <= 0.99
    assert hits["fact"] / trials < 0.8


def test_p_over_batches_is_the_t_test_of_their_means_and_keeps_its_level() -> None:
    generator, trials = np.random.default_rng(12), 300
    rows = at_end(study(draw(10, 10, 1.5, generator)))
    other = rows.assign(decoded=draw(10, 10, 1.5, generator).ravel().astype(float))
    means = [part.groupby("edit_batch")["decoded"].mean() for part in (rows, other)]
    found = difference(rows, other, "decoded")
    assert found.p == pytest.approx(stats.ttest_rel(*means).pvalue) and not found.at_floor
    significant = {"batch": 0, "fact": 0}
    for _ in range(trials):  # two editors that are alike, each with batches of its own luck
        one, two = (draw(10, 10, 1.5, generator).ravel().astype(float) for _ in range(2))
        pair = rows.assign(decoded=one), rows.assign(decoded=two)
        for unit, sides in (("batch", pair), ("fact", [p.assign(by_batch=False) for p in pair])):
            significant[unit] += difference(*sides, "decoded").p < 0.05
    assert significant["batch"] / trials < 0.09 and significant["fact"] / trials > 0.15
    sure = difference(
        rows.assign(decoded=1.0), rows.assign(decoded=other["decoded"] / 3), "decoded"
    )
    assert sure.p < 1e-4  # flipping the signs of ten batches could not say so


def test_a_fact_in_several_batches_gets_the_wider_interval() -> None:
    generator = np.random.default_rng(6)
    right = draw(10, 4, 1.5, generator)
    orders = [generator.permutation(40).tolist() for _ in range(3)]
    rows = pd.concat([at_end(study(right, seed=k, order=o)) for k, o in enumerate(orders)])
    found = estimate(rows, "decoded")
    facts = estimate(rows.assign(by_batch=False), "decoded")
    apart = estimate(rows.assign(unit=rows["record"] + rows["seed"].astype(str)), "decoded")
    assert apart.unit == "batch" and apart.clusters == 30 and facts.clusters == 40
    wider = max((facts, apart), key=lambda one: one.high - one.low)
    assert (found.low, found.high) == (wider.low, wider.high)
    assert found.n == 120 and found.facts == 40
    assert counted(found).startswith("n = 120 rows of 40 facts")


def test_phrasings_of_a_fact_in_batches_of_their_own_fall_back_to_facts() -> None:
    rows = at_end(
        study(draw(5, 8, 0.5, np.random.default_rng(8)), order=[i % 10 for i in range(40)])
    )
    rows = rows.assign(record=rows["record"] + rows["edit_index"].astype(str))
    found = estimate(rows, "decoded")
    assert (found.n, found.facts, found.clusters) == (40, 10, 10)
    assert found.unit == "fact (5 batches)" and counted(found) == "n = 40 rows of 10 facts"


def test_pairs_meet_on_the_same_prompts_and_the_coarser_batches_count() -> None:
    right = draw(30, 2, 1.0, np.random.default_rng(9))
    fine, coarse = at_end(study(right)), at_end(study(right.reshape(10, 6)[::-1]))
    found = difference(fine, coarse, "decoded")
    assert found.unit == "batch" and found.clusters == 10 and found.n == 60
    before = study(right)
    before = before[before["moment"] == "before"].assign(decoded=0.0)
    gained = difference(fine, before, "decoded")
    assert gained.unit == "batch" and gained.mean == pytest.approx(fine["decoded"].mean())
    missing = fine.assign(decoded=fine["decoded"].where(fine["edit_index"] > 4))
    assert difference(fine, missing, "decoded").n == 55
    assert difference(fine, coarse.assign(prompt="else"), "decoded").n == 0


def test_different_prompts_about_a_fact_meet_fact_by_fact() -> None:
    rows = study(draw(12, 3, 0.5, np.random.default_rng(5)))
    one, other = (by_fact(at_end(rows, name)) for name in ("edits", "holdout"))
    found = difference(one, other.assign(decoded=0.0), "decoded")
    assert found.n == found.facts == 36 and found.unit == "batch"
    assert found.mean == pytest.approx(at_end(rows)["decoded"].mean())


def test_every_score_has_a_scale_and_an_undeclared_one_is_refused() -> None:
    assert scales.scale_of("answer_nll").better == "lower" and scales.scale_of("decoded").binary
    rows = at_end(study(np.ones((2, 2)))).rename(columns={"decoded": "liking"})
    with pytest.raises(ValueError, match="'liking' is not declared: add it to SCALES"):
        estimate(rows, "liking")


@pytest.mark.parametrize("path", sorted(PAPERS.glob("*/page.yaml")), ids=lambda p: p.parent.name)
def test_claims_call_the_direction_better_that_is_declared(path: Path) -> None:
    page = yaml.safe_load(path.read_text("utf-8"))
    seen = 0
    for claim in (*page["claims"], *page["findings"]):
        metrics, better = claim.get("metric", {}), claim.get("better", "higher")
        if isinstance(metrics, str):
            metrics = {"": metrics} if metrics else {}
        for group, metric in metrics.items():
            wanted = better.get(group) if isinstance(better, dict) else better
            assert scales.scale_of(metric).better == wanted, claim["key"]
            seen += 1
    assert seen or path.parent.name in ("side_by_side", "malmen")


def test_an_interval_is_students_where_a_score_is_normal() -> None:
    rows = at_end(study(np.ones((12, 5))))
    effects = np.repeat(np.random.default_rng(0).normal(0.5, 0.1, 12), 5)
    found = estimate(rows.assign(decoded=effects), "decoded")
    half = stats.t.ppf(0.975, 11) * effects[::5].std(ddof=1) / math.sqrt(12)
    middle = effects.mean()
    assert (found.low, found.high) == pytest.approx((middle - half, middle + half), abs=0.015)
