"""Findings of our own: sentences of this study in a paper's YAML (`findings:`), tested as claims
are, on the runs of the paper's page."""

import html
from collections.abc import Mapping
from dataclasses import dataclass

import pandas as pd

from lib.metrics import costs
from lib.report.claims import claims, verdict
from lib.runs.study import Study


@dataclass(frozen=True)
class OwnFindings:
    """The findings of a paper's page, judged per setting; shows itself in notebooks."""

    by_setting: Mapping[str, claims.Judgement]
    titles: Mapping[str, str]

    @property
    def tidy(self) -> pd.DataFrame:
        """One row per finding and setting: setting, key, sentence, source, verdict, evidence."""
        parts = [judged.tidy.assign(setting=name) for name, judged in self.by_setting.items()]
        names = ["setting", *claims.Judgement(()).tidy.columns]
        return pd.concat(parts, ignore_index=True)[names] if parts else pd.DataFrame(columns=names)

    def _repr_html_(self) -> str:
        shown = [
            f"<h3>Findings: {html.escape(self.titles[name])}</h3>{judged.to_html()}"
            for name, judged in self.by_setting.items()
        ]
        return "".join(shown) or "<p><em>No setting of this profile can test a finding.</em></p>"


def findings(study: Study) -> OwnFindings:
    """Every finding in every setting that plans its editors, also written as CSV.

    An entry of `findings:` is one of `claims:` (`Claim.from_spec`). Its `editor`, if it has one,
    and further editors (`needs`) must be planned; `settings` names the only ones that can tell.
    """
    planned = {
        name: setting
        for name, setting in study.document["settings"].items()
        if setting.get("enabled", True)
    }
    judged = {name: _judged(study, name) for name in planned}
    judged = {name: found for name, found in judged.items() if found.rows}
    found = OwnFindings(judged, {name: planned[name]["title"] for name in judged})
    path = study.folder / "tables" / f"{study.paper}-findings.csv"
    path.parent.mkdir(parents=True, exist_ok=True)
    found.tidy.to_csv(path, index=False)
    return found


def _judged(study: Study, setting: str) -> claims.Judgement:
    here = {name for name, entry in study.document["settings"][setting]["editors"].items() if entry}
    stated = []
    for given in study.document.get("findings", ()):
        spec = dict(given)
        needed = {*filter(None, [spec.get("editor")]), *spec.pop("needs", ())}
        if setting in spec.pop("settings", [setting]) and needed <= here:
            stated.append(claims.Claim.from_spec(spec))
    if not stated:
        return claims.Judgement(())
    records = study.records(setting, None)
    if records.empty:
        nothing = verdict.Finding(verdict.UNKNOWN, "No run of this setting is finished.")
        return claims.Judgement(tuple((finding, nothing) for finding in stated))
    material = verdict.Material(
        records,
        study.steps(setting, None),
        costs.inference(study.records(setting), study.manifests(setting)),
        study.observations(setting, None),
    )
    return claims.judge(stated, material)
