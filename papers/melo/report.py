"""MELO's report: its tables, figures, claims and notes, built from the runs of a `Study`."""

from collections.abc import Mapping
from typing import Any

from lib.metrics import costs
from lib.report import summaries
from lib.report.claims import claims, verdict
from lib.runs.study import Study
from papers import common
from papers.melo.scores import for_group, group_of, scored
from papers.melo.tables import all_of_table2, reported_settings


def judged(study: Study, setting: str, editor: str = "MELO") -> claims.Judgement:
    """The paper's claims that one setting can test, for MELO as released or another variant."""
    group, here, found = group_of(study, setting), study.editors(setting), []
    for given in study.document["claims"]:
        spec: dict[str, Any] = {k: for_group(study, v, group) for k, v in given.items()}
        if any(value is None for value in spec.values()):
            continue
        if "others" in spec:
            spec["others"] = [e for e in spec["others"] if e in here and e != editor]
        if spec["test"] == "fits":
            planned = study.original["settings"][setting]
            spec["planned"] = planned.get("cost", {}).get("gigabytes")
        found.append(claims.Claim.from_spec(spec | {"editor": editor}))
    material = verdict.Material(
        scored(study, setting),
        study.steps(setting),
        costs.inference(study.records(setting), study.manifests(setting)),
        study.observations(setting),
    )
    return claims.judge(found, material)


def verdicts(study: Study) -> dict[str, claims.Judgement]:
    """The claims by "editor: setting's title", each also written as CSV: MELO as released in every
    group of Table 2, MELO as intended where the released key sees the target."""
    found = {}
    for setting in study.settings:
        editors = study.document["settings"][setting]["editors"]
        intended = editors.get("MELO intended", {}).get("config", {}).get("key_position")
        chosen = ["MELO"] if setting in reported_settings(study) else []
        chosen += ["MELO intended"] if intended == "last_prompt_token" else []
        for editor in chosen:
            title = f"{editor}: {study.title(setting)}"
            found[title] = judged(study, setting, editor)
            name = f"melo-claims-{setting}-{editor.lower().replace(' ', '-')}"
            common.kept(study, name, found[title].tidy)
    return found


def summary(
    study: Study,
    judgements: Mapping[str, claims.Judgement],
    listed: Mapping[str, list[str]],
) -> summaries.PaperSummary:
    """What the front page says about this report: the claims, and the order of the methods in
    Table 2."""
    titles = {title: title for title in judgements}
    return common.summary(study, judgements, listed, shown=[all_of_table2(study)], titles=titles)
