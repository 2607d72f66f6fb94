"""Statistics of a campaign in long form: one row a panel, point, system and metric."""

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd

from analysis.load import Campaign
from analysis.reduce import reduce_cell
from analysis.stats import mean_layer_ratio, median_interval, median_ratio, ratio_interval

COLUMNS = [
    *["experiment", "system", "engine", "precision", "x_name", "x"],
    *["metric", "value", "ci_low", "ci_high", "n", "unit", "source"],
]
MEDIANS = {
    "ttft_ms": "ms",
    "layer_moe_ms": "ms",
    "layer_moe_min_rank_ms": "ms",
    "layer_moe_spread_ms": "ms",
    "padding": "ratio",
    "imbalance": "ratio",
}
# Name of the ratio: the reduced metric it is taken of, and the statistic.
RATIOS = {
    "speedup_ttft": ("ttft_ms", median_ratio),
    "speedup_layer": ("layer_moe_ms", median_ratio),
    "speedup_layer_paper": ("layer_moe_mean_rank_ms", mean_layer_ratio),
}


@dataclass(eq=False)
class Series:
    """One system at one point: its launches, each a dict of arrays [I, L] by metric."""

    system: str
    engine: str
    precision: str
    source: str
    passed: bool = True
    launches: dict[int, dict[str, np.ndarray]] = field(default_factory=dict)

    def arrays(self, metric: str) -> dict[int, np.ndarray]:
        return {launch: reduced[metric] for launch, reduced in sorted(self.launches.items()) if metric in reduced}


def summarise(campaign: Campaign) -> pd.DataFrame:
    """Medians, counts and speed-ups with 95 % intervals, in the columns COLUMNS.

    Only cells in state ok have rows. A speed-up is against the plan's baseline, and only where the outputs of both were
    checked and right. Raises ValueError where the baseline of a point differs from a system in source or precision.
    """
    reduced = {c: reduce_cell(frame, campaign.runs[c]["point"]["world_size"]) for c, frame in campaign.frames.items()}
    rows = [
        {"experiment": panel["name"], "x_name": panel["x_name"], "x": point["x"]} | row
        for panel in campaign.plan["panels"]
        for point in panel["points"]
        for row in point_rows(campaign, reduced, point["cells"])
    ]
    return pd.DataFrame(rows, columns=COLUMNS)


def point_rows(campaign: Campaign, reduced: dict[str, dict], cells: list[str]) -> Iterator[dict]:
    """All rows of one point, baseline first so that it leads every table."""
    series = collect_series(campaign, reduced, cells)
    baselines = [one for one in series if one.system == campaign.plan.get("baseline")]
    complete = all(cell in reduced for cell in cells)
    for one in [*baselines, *(one for one in series if one not in baselines)]:
        yield from label(one, absolute_rows(one))
        baseline = None if one in baselines else matching_baseline(one, baselines, complete)
        if baseline and baseline.passed and one.passed:
            yield from label(one, ratio_rows(baseline, one))


def collect_series(campaign: Campaign, reduced: dict[str, dict], cells: list[str]) -> list[Series]:
    """The ok cells of a point grouped by system, engine, precision and source."""
    found: dict[tuple, Series] = {}
    for cell in cells:
        if cell not in reduced:
            continue
        run = campaign.runs[cell]
        key = (run["system"], run["engine"], run["precision"], run["source"])
        one = found.setdefault(key, Series(*key))
        one.passed &= bool(run["correctness"] and run["correctness"]["passed"])
        known = one.launches.get(run["launch"], {})
        one.launches[run["launch"]] = {
            metric: np.concatenate([known[metric], values_IL]) if metric in known else values_IL
            for metric, values_IL in reduced[cell].items()
        }
    return list(found.values())


def matching_baseline(one: Series, baselines: list[Series], complete: bool) -> Series | None:
    """The baseline of the same precision and source; None when its cell has not run or failed."""
    matches = [b for b in baselines if (b.precision, b.source) == (one.precision, one.source)]
    if len(matches) > 1:
        raise ValueError(f"The baseline {matches[0].system} has {len(matches)} engines at one point; one is allowed.")
    if not matches and baselines and complete:
        raise ValueError(
            f"{one.system} ({one.precision}, {one.source}) cannot be compared with the baseline "
            f"{baselines[0].system} ({baselines[0].precision}, {baselines[0].source}): precision and source must agree."
        )
    return matches[0] if matches else None


def label(one: Series, rows: Iterator[dict]) -> Iterator[dict]:
    names = {"system": one.system, "engine": one.engine, "precision": one.precision, "source": one.source}
    return (names | row for row in rows)


def row(metric: str, interval: tuple[float, float, float], n: int, unit: str) -> dict:
    value, low, high = interval
    return {"metric": metric, "value": value, "ci_low": low, "ci_high": high, "n": n, "unit": unit}


def absolute_rows(one: Series) -> Iterator[dict]:
    """Medians over all launches, iterations and layers; `n` counts the values."""
    for metric, unit in MEDIANS.items():
        if launches := one.arrays(metric):
            values = np.concatenate([values_IL.ravel() for values_IL in launches.values()])
            yield row(metric, median_interval(values), values.size, unit)
    if launches := one.arrays("dropped"):
        # A mean, for a median would hide rare drops; counted, not estimated, hence no interval.
        dropped = np.concatenate(list(launches.values()))
        yield row("dropped", (float(dropped.mean()), np.nan, np.nan), dropped.size, "tokens")


def ratio_rows(baseline: Series, one: Series) -> Iterator[dict]:
    """Speed-ups over the launches that both have; `n` counts the system's iterations."""
    for name, (metric, statistic) in RATIOS.items():
        above, below = baseline.arrays(metric), one.arrays(metric)
        shared = sorted(above.keys() & below.keys())
        if not shared:
            continue
        interval = ratio_interval([above[i] for i in shared], [below[i] for i in shared], statistic=statistic)
        yield row(name, interval, sum(len(below[i]) for i in shared), "ratio")


def write_summary(campaign: Campaign, summary: pd.DataFrame | None = None) -> Path:
    """Write summary.csv into the campaign's folder; a reader sees the old file or the new one, never half of one."""
    summary = summarise(campaign) if summary is None else summary
    path = campaign.folder / "summary.csv"
    partial_path = path.with_suffix(f".{os.getpid()}.tmp")
    try:
        summary.to_csv(partial_path, index=False)
        os.replace(partial_path, path)
    finally:
        partial_path.unlink(missing_ok=True)
    return path
