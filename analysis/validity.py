"""The 24 validity checks of a stored campaign: run them, and write validity.json."""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path

import pandas as pd

from analysis.checks.evidence import PASS, SEVERITY, SKIP, Check, Evidence, Finding
from analysis.checks.inputs import correct_outputs, division, realised_load, same_inputs
from analysis.checks.machine import ceilings, covered, foreign_load, gpu_clocks, known_environment, untouched_files
from analysis.checks.statistics import drawn_points, floor, intervals, one_source, repetitions
from analysis.checks.timing import (
    agreed_iterations,
    aligned_layers,
    all_ranks,
    interleaved_order,
    metric_names,
    observer_cost,
    outliers,
    preemption,
    steady_state,
)
from analysis.frames import write_whole
from analysis.load import SIMULATED, Campaign
from analysis.schema import SCHEMA
from analysis.summary import summarise

CHECKS: list[tuple[str, str, Check]] = [
    ("V01", "Metrics are defined", metric_names),
    ("V02", "Two passes, the observer's cost known", observer_cost),
    ("V03", "Ranks aligned before every layer", aligned_layers),
    ("V04", "All ranks stored, the slowest counts", all_ranks),
    ("V05", "Iterations agreed by all ranks", agreed_iterations),
    ("V06", "Warm-up apart, no drift", steady_state),
    ("V07", "Enough launches and iterations for claims", repetitions),
    ("V08", "Preemption is known and left out", preemption),
    ("V09", "Intervals", intervals),
    ("V10", "Outliers counted, never removed", outliers),
    ("V11", "Systems took turns", interleaved_order),
    ("V12", "Noise floor from A/A pairs", floor),
    ("V13", "Same inputs for all systems", same_inputs),
    ("V14", "Outputs right before timing", correct_outputs),
    ("V15", "Dropped and padded rows counted", division),
    ("V16", "Realised load is the intended one", realised_load),
    ("V17", "Environment recorded", known_environment),
    ("V18", "GPU clocks steady", gpu_clocks),
    ("V19", "Machine undisturbed", foreign_load),
    ("V20", "Upper bounds measured", ceilings),
    ("V21", "Raw rows untouched", untouched_files),
    ("V22", "Intervals and absolute times in figures", drawn_points),
    ("V23", "One source in each statistic", one_source),
    ("V24", "Every planned cell accounted for", covered),
]
# What checks of measurements say of cells that were simulated, which they do not look at.
NOT_SIMULATED = {
    "V02": "marks cost nothing, so one pass gives the forward pass, its layers and its sections.",
    "V03": "ranks are aligned at no cost, and every layer starts with all of them.",
    "V06": "there is no first call and no drift; every forward pass takes the same.",
    "V07": "a repetition gives the same numbers, so one is enough.",
    "V08": "nothing else runs on its cores.",
    "V09": "a number that repeats exactly has no interval; the model's error stands beside it.",
    "V10": "there are no outliers.",
    "V11": "each system runs alone on empty devices, so the order changes nothing.",
    "V12": "there is no noise; ratios are held against the model's error.",
    "V14": "outputs have no values; `make conformance` and every measured or emulated cell check them.",
    "V18": "the described device has no clocks that change.",
    "V19": "what else this machine does changes no number.",
    "V20": "the ceilings are those of the description.",
}
COLUMNS = ["check", "title", "cell", "verdict", "detail"]


def judge(campaign: Campaign, summary: pd.DataFrame | None = None) -> pd.DataFrame:
    """One row for each check and cell (or campaign, cell None): COLUMNS; verdict pass, warn, fail or not applicable."""
    evidence = Evidence(campaign, summarise(campaign) if summary is None else summary)
    nothing = [Finding(None, SKIP, "No measured cell to look at.")]
    rows = [
        (identity, title, *finding)
        for identity, title, check in CHECKS
        for finding in (list(findings_of(identity, check, evidence)) or nothing)
    ]
    return pd.DataFrame(rows, columns=COLUMNS)


def findings_of(identity: str, check: Check, evidence: Evidence) -> Iterator[Finding]:
    """What a check says of the cells that it can judge, and of simulated ones where it cannot."""
    if identity in NOT_SIMULATED and any(cell.run["source"] == SIMULATED for cell in evidence.cells):
        yield Finding(None, SKIP, f"Simulated: {NOT_SIMULATED[identity]}")
        evidence = evidence.without(SIMULATED)
    if evidence.cells or check is covered:
        yield from check(evidence)


def worst(verdicts: Iterable[str]) -> str:
    """The most severe verdict."""
    return max(verdicts, key=SEVERITY.index)


def verdicts_by_check(findings: pd.DataFrame) -> pd.DataFrame:
    """One row for each check: check, title, verdict (the worst), detail (how often, and the first of the worst)."""
    rows = []
    for identity, title, _ in CHECKS:
        found = findings.loc[findings["check"] == identity]
        verdict = worst(found["verdict"])
        bad = found.loc[found["verdict"] == verdict]
        several = f"{len(bad)} of {len(found)}: " if len(found) > 1 and verdict not in (PASS, SKIP) else ""
        rows.append((identity, title, verdict, f"{several}{bad['detail'].iloc[-1 if verdict == PASS else 0]}"))
    return pd.DataFrame(rows, columns=["check", "title", "verdict", "detail"])


def write_validity(campaign: Campaign, findings: pd.DataFrame | None = None) -> Path:
    """Write validity.json into the campaign's folder; `findings` from `judge`."""
    findings = judge(campaign) if findings is None else findings
    checks = [
        {"id": row["check"], "title": row["title"], "verdict": row["verdict"], "detail": row["detail"]}
        | {"cells": cells_of(findings.loc[findings["check"] == row["check"]])}
        for row in verdicts_by_check(findings).to_dict("records")
    ]
    text = json.dumps({"schema": SCHEMA, "checks": checks}, indent=1) + "\n"
    return write_whole(campaign.folder / "validity.json", text)


def cells_of(findings: pd.DataFrame) -> dict[str, dict[str, str]]:
    """Verdict and detail of each cell that findings are about."""
    found = findings.dropna(subset=["cell"]).to_dict("records")
    return {row["cell"]: {"verdict": row["verdict"], "detail": row["detail"]} for row in found}
