"""Real runs beside the same runs, simulated: their errors, and those of ratios and orders of two programs."""

from collections.abc import Callable, Iterator, Mapping
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd

from analysis.frames import select
from analysis.load import SIMULATED, Campaign
from analysis.reduce import reduce_cell
from analysis.stats import median_of

# Systems that run the published programs, and what those are called in results/reference/paper_runs.csv.
PROGRAMS = {
    "deepspeed": ("deepspeed", "deepspeed"),
    "moeshard_authors": ("moeshard", "megablocks"),
    "moeshard_authors_loop": ("moeshard", "loop"),
}
METRICS = {"layer_moe_ms": "layer", "ttft_ms": "TTFT"}
KEYS = ["system", "precision", "num_experts", "batch_size"]
POINT = KEYS[1:]
# The runs that constants of conf/device/a100_sxm.yaml were chosen on: (program, experts, batch size).
FITTED = {
    ("moeshard_authors", 128, 10),
    ("moeshard_authors", 128, 250),
    ("moeshard_authors_loop", 128, 10),
    ("moeshard_authors_loop", 128, 100),
    ("moeshard_authors_loop", 256, 250),
}
# Of our own runs, those by which constants of conf/device were chosen: `unrepeated` and `scan_row_us`.
CHOSEN_POINT, CHOSEN_SYSTEM = ("bf16", 128, 10), "deepspeed"
Run = tuple[str, str, int, int]  # what two runs must share to be compared: KEYS
Times = Mapping[Run, dict[str, float]]  # ms by metric


def compare(real: Times, ours: Times, fitted: Callable[[Run], bool] = lambda run: False) -> pd.DataFrame:
    """A row for each real run: both times in ms, their relative errors, and whether a constant was chosen by it.

    Raises ValueError for a run that was not simulated.
    """
    if missing := real.keys() - ours.keys():
        raise ValueError(f"measured, but not simulated: {', '.join(map(str, sorted(missing)))}")
    rows = [
        dict(zip(KEYS, run, strict=True)) | {"fitted": fitted(run)} | beside(times, ours[run])
        for run, times in sorted(real.items())
    ]
    return pd.DataFrame(rows)


def beside(real: dict[str, float], ours: dict[str, float]) -> dict[str, float]:
    """Both times of each metric and their relative error."""
    row = {}
    for metric in METRICS:
        row |= {f"{metric}/real": real[metric], f"{metric}/simulated": ours[metric]}
        row[f"{metric}/error"] = ours[metric] / real[metric] - 1
    return row


def fitted_by_authors(run: Run) -> bool:
    """Whether a constant of the A100 was fitted on this published run."""
    system, _, *point = run
    return (system, *point) in FITTED


def chosen_by_us(run: Run) -> bool:
    """Whether a constant was chosen by this run of our own."""
    return run[0] == CHOSEN_SYSTEM or run[1:] == CHOSEN_POINT


def run_times(campaigns: list[Campaign], *, simulated: bool) -> dict[Run, dict[str, float]]:
    """Times of all runs that were simulated, or of all others: geometric means over launches, twins left out."""
    launches: dict[Run, list[dict[str, float]]] = {}
    for campaign in campaigns:
        for cell, run in campaign.runs.items():
            if run["state"] == "ok" and not run["twin"] and (run["source"] == SIMULATED) == simulated:
                launches.setdefault(run_key(run), []).append(medians(campaign, cell))
    return {
        run: {metric: float(np.exp(np.mean([np.log(one[metric]) for one in times]))) for metric in METRICS}
        for run, times in launches.items()
    }


def run_key(run: dict[str, Any]) -> Run:
    """See Run."""
    return run["system"], run["precision"], run["point"]["num_experts"], run["point"]["batch_size"]


def published_times(runs: pd.DataFrame, run: Run) -> dict[str, float]:
    """The medians of a published run: the slowest rank's forward pass, and its layers."""
    (name, engine), (_, _, num_experts, batch_size) = PROGRAMS[run[0]], run
    (row,) = select(runs, system=name, engine=engine, num_experts=num_experts, batch_size=batch_size).to_dict("records")
    layers = [value for column, value in row.items() if str(column).startswith("layer")]
    return {"ttft_ms": float(row["ttft_max_rank_median_ms"]), "layer_moe_ms": float(np.median(layers))}


def medians(campaign: Campaign, cell: str) -> dict[str, float]:
    """The same medians of a cell."""
    reduced = reduce_cell(campaign.frames[cell], campaign.runs[cell]["point"]["world_size"])
    return {metric: float(median_of(reduced[metric])) for metric in METRICS}


def summary(runs: pd.DataFrame) -> dict[str, dict[str, float]]:
    """By metric, of the runs that were not fitted: median and worst error, and that of a ratio of two runs of a point.

    ratio: what nine in ten of those errors are within.
    """
    held_out = runs.loc[~runs["fitted"]]
    found = {}
    for metric in METRICS:
        errors = held_out[f"{metric}/error"].abs()
        known = {
            "median": errors.median(),
            "worst": errors.max(),
            "ratio": float(np.quantile(ratios(runs, metric), 0.9)),
        }
        found[metric] = {name: round(float(value), 4) for name, value in known.items()} | {"runs": len(held_out)}
    return found


def pairs(runs: pd.DataFrame) -> Iterator[tuple[dict, dict]]:
    """Two programs at one point, every pair once."""
    for _, point in runs.groupby(POINT):
        yield from combinations(point.to_dict("records"), 2)


def ratios(runs: pd.DataFrame, metric: str) -> np.ndarray:
    """The errors of all ratios of two programs at one point that are not both of fitted runs, as positive shares."""
    found = [
        abs(np.log((1 + one[f"{metric}/error"]) / (1 + other[f"{metric}/error"])))
        for one, other in pairs(runs)
        if not (one["fitted"] and other["fitted"])
    ]
    return np.expm1(np.array(found))


def orders(runs: pd.DataFrame, metric: str, least: float = 0.1) -> tuple[int, int]:
    """(in how many comparisons of two programs at one point the order is right, of how many that differ by `least`)."""
    right = total = 0
    for one, other in pairs(runs):
        real, ours = (one[f"{metric}/{of}"] / other[f"{metric}/{of}"] for of in ("real", "simulated"))
        if abs(np.log(real)) > np.log1p(least):
            total, right = total + 1, right + ((real > 1) == (ours > 1))
    return right, total
