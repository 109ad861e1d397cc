"""The smaller tables of COMEBA-HK's page: paired differences, shares, costs."""

import pandas as pd

from lib.metrics import costs
from lib.metrics.estimates import difference
from lib.report import page, tables
from lib.report.claims.verdict import amount, paired
from lib.report.pages import index
from lib.runs.study import Study
from papers import common
from papers.comeba_hk import figures
from papers.comeba_hk.scores import (
    INTENDED,
    MOMENTS,
    OWN,
    WITHOUT,
    consecutive,
    editors_of,
    place,
    scored,
)


@tables.regenerated("hooks")
def hook_effect(study: Study) -> pd.DataFrame:
    """E6: COMEBA-HK minus an editor without hook layers on the same rows, per setting.

    That is the paper's ablation, or MEMIT where a setting has no ablation.
    """
    columns, rows = study.document["tables"]["main"]["columns"], []
    for setting in study.settings:
        _, protocol = place(study, setting)
        records, known = scored(study, setting), editors_of(study, setting)
        records = records[(records["moment"] == MOMENTS[protocol]) & records["score"].notna()]
        other = next((name for name in (WITHOUT, "MEMIT") if known.get(name) == ""), WITHOUT)
        for editor in (OWN, INTENDED):
            row = {"setting": study.title(setting), "editor": editor, "minus": other}
            for column in columns:
                part = records[records["subset"] == column["subset"]]
                both = [part[part["editor"] == name] for name in (editor, other)]
                row[column["metric"]] = _amount(*both)
            if known.get(editor) == "":
                rows.append(row)
    return common.kept(study, "comeba_hk-hooks", pd.DataFrame(rows))


def _amount(a: pd.DataFrame, b: pd.DataFrame) -> str:
    gap = paired(a, b, "score")
    return amount(gap) if gap.n else tables.MISSING


@tables.regenerated("answer-in-scope")
def answer_effect(study: Study, editor: str = OWN) -> pd.DataFrame:
    """Teacher-forced accuracy with the answer's tokens in the scope statistic, minus without."""
    rows = []
    for setting in study.settings:
        _, protocol = place(study, setting)
        records = scored(study, setting)
        mine = records[(records["editor"] == editor) & (records["moment"] == MOMENTS[protocol])]
        for subset, name in (("edits", "edited prompts"), ("holdout", "rephrases")):
            part = mine[mine["subset"] == subset].dropna(
                subset=["answer_accuracy", "prompt_accuracy"]
            )
            if part.empty:
                continue
            with_answer, alone = (
                part[c].astype(float) for c in ("answer_accuracy", "prompt_accuracy")
            )
            gap = difference(part.assign(read=with_answer), part.assign(read=alone), "read")
            rows.append(
                {
                    "setting": study.title(setting), "prompts": name,
                    "prompt and answer": f"{with_answer.mean():.2f}",
                    "prompt alone": f"{alone.mean():.2f}", "difference": amount(gap),
                }
            )  # fmt: skip
    return common.kept(study, "comeba_hk-answer-in-scope", pd.DataFrame(rows))


def initial_alpha(study: Study, setting: str) -> float | None:
    """The threshold that COMEBA-HK starts from, if its configuration names one."""
    entry = study.document["settings"][setting]["editors"].get(OWN) or {}
    return entry.get("config", {}).get("alpha")


@tables.regenerated("scope", settings=consecutive)
def scope_shares(study: Study, setting: str) -> pd.DataFrame:
    """What the scope check does to prompts of every kind, as shares with intervals."""
    found = figures.shares(study.observations(setting))
    return common.kept(study, f"comeba_hk-scope-{setting}", found)


READ = 2.0  # seconds: a preparation below it did not collect statistics of any size


def preparation(study: Study) -> str:
    """The README's one number beside what the key statistics took here, as an HTML table."""
    known = common.reported("comeba_hk").iloc[0]
    longest: dict[str, float] = {}
    for manifest in study.manifests(sweep=None).values():
        name, seconds = manifest["backbone"]["name"], manifest["seconds"]["fit"]
        longest[name] = max(longest.get(name, 0.0), seconds)
    told = f"{known['value']:g} {known['unit']} ({known['source']})"
    here = "; ".join(
        f"{index.duration(s)} on {name}"
        if s >= READ
        else f"{s:.1f} s on {name}: little text, or statistics found in the cache"
        for name, s in longest.items()
    )
    rows = [(known["title"], f"{known['model']}: {told}", here or "no finished run")]
    heads = ("what", "reported", "longest preparation of a run here")
    return page.html_table(heads, rows, "The one number that could be seen")


def costs_of(study: Study, setting: str) -> pd.DataFrame:
    """Rows of `costs.costs_by_editor` and of `costs.inference`, with `slowdown` (1: none)."""
    records = study.records(setting)
    timed = costs.inference(records, study.manifests(setting))
    timed = timed.assign(slowdown=1 + timed["overhead"])
    spent = costs.costs_by_editor(records, study.steps(setting))
    filled = [part for part in (spent, timed) if len(part)]
    return pd.concat(filled, ignore_index=True) if filled else spent
