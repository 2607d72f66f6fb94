"""The 24 validity checks of a stored campaign: run them, and write validity.json."""

import json
import os
from collections.abc import Iterable
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
    early_stop,
    interleaved_order,
    metric_names,
    observer_cost,
    outliers,
    steady_state,
)
from analysis.load import SCHEMA, Campaign
from analysis.summary import summarise

CHECKS: list[tuple[str, str, Check]] = [
    ("V01", "Metrics are defined", metric_names),
    ("V02", "Two passes, the observer's cost known", observer_cost),
    ("V03", "Ranks aligned before every layer", aligned_layers),
    ("V04", "All ranks stored, the slowest counts", all_ranks),
    ("V05", "Iterations agreed by all ranks", agreed_iterations),
    ("V06", "Warm-up apart, no drift", steady_state),
    ("V07", "Enough launches and iterations for claims", repetitions),
    ("V08", "Stopped when precise enough", early_stop),
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
COLUMNS = ["check", "title", "cell", "verdict", "detail"]


def judge(campaign: Campaign, summary: pd.DataFrame | None = None) -> pd.DataFrame:
    """One row for each check and cell (or campaign, cell None): COLUMNS; verdict pass, warn, fail or not applicable."""
    evidence = Evidence(campaign, summarise(campaign) if summary is None else summary)
    nothing = [Finding(None, SKIP, "No measured cell to look at.")]
    rows = [
        (identity, title, *finding)
        for identity, title, check in CHECKS
        for finding in ((list(check(evidence)) if evidence.cells or check is covered else []) or nothing)
    ]
    return pd.DataFrame(rows, columns=COLUMNS)


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
    """Write validity.json into the campaign's folder, whole or not at all; `findings` from `judge`."""
    findings = judge(campaign) if findings is None else findings
    checks = [
        {"id": row["check"], "title": row["title"], "verdict": row["verdict"], "detail": row["detail"]}
        | {"cells": cells_of(findings.loc[findings["check"] == row["check"]])}
        for row in verdicts_by_check(findings).to_dict("records")
    ]
    path = campaign.folder / "validity.json"
    partial_path = path.with_suffix(f".{os.getpid()}.tmp")
    try:
        partial_path.write_text(json.dumps({"schema": SCHEMA, "checks": checks}, indent=1) + "\n")
        os.replace(partial_path, path)
    finally:
        partial_path.unlink(missing_ok=True)
    return path


def cells_of(findings: pd.DataFrame) -> dict[str, dict[str, str]]:
    """Verdict and detail of each cell that findings are about."""
    found = findings.dropna(subset=["cell"]).to_dict("records")
    return {row["cell"]: {"verdict": row["verdict"], "detail": row["detail"]} for row in found}
