"""MELO's report: its tables, claims and notes, built from the runs of a `Study`."""

import pandas as pd
from safetensors.numpy import load_file

from lib import claims, figures, index_page, metrics, tables
from lib.papers import common
from lib.papers.common import reason, substitutions
from lib.reported import reported_value
from lib.study import Study

__all__ = [
    "decoded_table", "judged", "official_averages", "saved_index", "scored", "substitutions",
    "summary", "sweep_plot", "table2",
]  # fmt: skip


def scored(study: Study, setting: str | None = None, sweep: str | None = "") -> pd.DataFrame:
    """Records with `f1_released` (the official F1, 0 where nothing overlaps) and the subset
    `released_holdout`: the edited prompts, which the released code scored as "holdout"."""
    records = study.records(setting, sweep)
    if records.empty:
        return records.assign(f1_released=[], subset=[], moment=[], n_edits=[])
    records = records.assign(f1_released=records["f1_ids_released"].fillna(0.0))
    again = records[(records["subset"] == "edits") & (records["moment"] != "own")]
    return pd.concat([records, again.assign(subset="released_holdout")], ignore_index=True)


def table2(study: Study) -> tables.Table:
    """The zsRE column group of Table 2, reported beside reproduced."""
    layout, known = study.document["tables"]["table2"], common.reported("melo")
    cells = []
    for name, setting in study.document["settings"].items():
        place = setting["reported"]
        if not setting.get("enabled", True) or place is None:
            continue
        records, swaps = scored(study, name), substitutions(study, name)
        for row, entry in layout["rows"].items():
            for column in layout["columns"]:
                number = None
                if "reported_as" in entry and "reported" in column:
                    number = reported_value(
                        known,
                        item=layout["item"],
                        **place,
                        method=entry["reported_as"],
                        metric=column["reported"],
                    )
                cells.append(
                    tables.measure(
                        records,
                        column["column"],
                        item=layout["item"],
                        metric=column["metric"],
                        editor=row,
                        setting=name,
                        subset=column["subset"],
                        reported=number,
                        n_reported=layout["n_reported"][place["dataset"]],
                        resolution=0.005,
                        shown_setting=setting["title"],
                        substitutions=swaps,
                        error=reason(study, name, row, entry),
                    )
                )
    notes = [f"{row}: {e['note']}." for row, e in layout["rows"].items() if "note" in e]
    notes.append(
        "F1 as the official code scores it: sets of token ids, end mark included (an unrelated "
        "answer still gets about 0.3 to 0.5)."
    )
    return tables.build_table(
        cells,
        caption="Table 2, zsRE columns: scores after the last edit.",
        notes=notes,
        csv_path=study.folder / "tables" / "melo-table2.csv",
    )


def decoded_table(study: Study, setting: str) -> tables.Table:
    """What the edited models really answer, beside teacher-forced scores, in one setting."""
    layout, chosen = study.document["tables"]["decoded"], study.document["settings"][setting]
    records, swaps = scored(study, setting), substitutions(study, setting)
    cells = [
        tables.measure(
            records,
            column["column"],
            item=layout["item"],
            metric=column["metric"],
            editor=editor,
            setting=setting,
            subset=column["subset"],
            shown_setting=chosen["title"],
            substitutions=swaps,
            error=reason(study, setting, editor, {}),
        )
        for editor in chosen["editors"]
        for column in layout["columns"]
    ]
    return tables.build_table(
        cells,
        caption="Greedy decoding from the prompt alone, after the last edit.",
        csv_path=study.folder / "tables" / f"melo-decoded-{setting}.csv",
    )


def official_averages(study: Study, setting: str) -> pd.DataFrame:
    """Edit success, held-out generality and locality averaged as the official code does.

    One row without overlap zeroes its batch, and batches are averaged instead of rows.
    """
    records = scored(study, setting)
    if records.empty:
        return pd.DataFrame()
    rows = []
    end = records[records["moment"] == "end"]
    for (editor, subset), part in end.groupby(["editor", "subset"], sort=False):
        batches = [b["f1_ids_released"].tolist() for _, b in part.groupby(["run", "batch"])]
        rows.append(
            {
                "editor": editor,
                "subset": subset,
                "mean of rows": metrics.mean_of_rows([b.tolist() for b in [part["f1_released"]]]),
                "official mean": metrics.mean_of_batches(
                    [[metrics.released_batch_mean(batch)] for batch in batches]
                ),
                "batches": len(batches),
                "rows": len(part),
            }
        )
    frame = pd.DataFrame(rows)
    frame.to_csv(study.folder / "tables" / f"melo-official-averages-{setting}.csv", index=False)
    return frame.pivot(index="editor", columns="subset", values=["mean of rows", "official mean"])


def judged(study: Study, setting: str, editor: str = "MELO") -> claims.Judgement:
    """The paper's claims tested on one setting, for MELO as released or another variant of it."""
    found = []
    for spec in study.document["claims"]:
        spec = dict(spec, editor=editor)
        found.append(claims.Claim.from_spec(spec))
    return claims.judge(found, claims.Material(scored(study, setting), study.steps(setting)))


def saved_index(study: Study, setting: str, editor: str) -> dict | None:
    """Keys, blocks, centres and radii of MELO's index at the end of the first seed's run."""
    for run in study.runs:
        if (run.setting, run.editor, run.sweep, run.seed) == (setting, editor, "", 0):
            found = study.finished(run)
            if found is not None:
                loaded = load_file(found.editor / "index.safetensors")
                return dict(loaded)
    return None


def summary(
    study: Study, verdicts: dict[str, claims.Judgement], listed: dict[str, list[str]]
) -> index_page.PaperSummary:
    """What the front page says about this report: the claims are those of the first setting."""
    headline = [c for c in table2(study).cells if c.editor in ("MELO", "GRACE", "LoRA") and c.n]
    first = next(iter(study.document["settings"]))
    counted = {first: verdicts[first]} if first in verdicts else {}
    return common.summary(study, counted, listed, headline, order=1)


def sweep_plot(records: pd.DataFrame, title: str) -> figures.Plot:
    """Decoded edits and rephrases, and unchanged near answers, against a swept setting."""
    # Near questions are right if they stay as they were, edits if they become what was asked.
    kept = records["subset"].isin(["near", "upstream"])
    share = records["exact_match"].where(~kept, records["agreement"])
    rows = records.assign(swept=records["value"].astype(float), share=share)
    subsets = ("edits", "holdout", "near")
    return figures.sweep(rows, "swept", "share", subsets=subsets, xlabel=title, ylabel="share")
