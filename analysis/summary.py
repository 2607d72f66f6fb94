"""Statistics of a campaign in long form: one row a panel, point, system and metric (and section or layer)."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd

from analysis.frames import write_whole
from analysis.load import SIMULATED, Campaign
from analysis.model_error import tie_bands
from analysis.reduce import SECTION
from analysis.series import Series, matching_baseline, series_of_points, twin_of
from analysis.stats import (
    Floor,
    mean_layer_ratio,
    median_interval,
    median_ratio,
    noise_floor_of,
    outside,
    ratio_interval,
)

COLUMNS = [
    *["experiment", "system", "engine", "precision", "x_name", "x", "y_name", "y", "metric", "section", "layer"],
    *["value", "ci_low", "ci_high", "n", "launches", "tier", "unit", "source", "device", "claimable"],
]
MEDIANS = {
    **dict.fromkeys(["ttft_ms", "ttft_min_rank_ms", "ttft_spread_ms"], "ms"),
    **dict.fromkeys(["layer_moe_ms", "layer_moe_min_rank_ms", "layer_moe_spread_ms", "entry_skew_ms"], "ms"),
    **dict.fromkeys(["padding", "imbalance", "over_least", "expert_cv", "expert_gini", "expert_imbalance"], "ratio"),
    "empty_experts": "experts",
    "flops": "flop",
    "bytes_sent": "bytes",
    "weight_bytes": "bytes",
}
MEANS = {"dropped": "tokens", "predicted": "share"}  # a median would hide what is rare
# Name of the ratio: the reduced metrics above and below, and the statistic.
RATIOS = {
    "speedup_ttft": ("ttft_ms", "ttft_ms", median_ratio),
    "speedup_layer": ("layer_moe_ms", "layer_moe_ms", median_ratio),
    "speedup_layer_paper": ("layer_moe_mean_rank_ms", "layer_moe_mean_rank_ms", mean_layer_ratio),
}
AA_RATIOS = {"aa_ratio_ttft": RATIOS["speedup_ttft"], "aa_ratio_layer": RATIOS["speedup_layer"]}
OBSERVER = {"observer_cost": ("ttft_instrumented_ms", "ttft_ms", median_ratio)}
FLOOR_OF = {"speedup_ttft": "ttft_ms", "speedup_layer": "layer_moe_ms", "speedup_layer_paper": "layer_moe_ms"}
FLOOR_OF |= {"speedup_by_layer": "layer_moe_ms"}
LAUNCHES, ITERATIONS = 3, 30  # what claims rest on, iterations in all launches together


def summarise(campaign: Campaign) -> pd.DataFrame:
    """Medians, counts and ratios with 95 % intervals, in the columns COLUMNS.

    Only cells in state ok have rows, and twins only as the A/A ratio of what they repeat. A speed-up is against the
    plan's baseline, and only where the outputs of both were checked and right. `claimable`: tier full, LAUNCHES
    launches, ITERATIONS iterations, and for a speed-up an interval wholly outside the noise floor. A simulated number
    repeats exactly: its interval is itself, its floor the model's error, and a validated device makes it claimable.
    Raises ValueError where the baseline of a point differs from a system in source, device or precision.
    """
    rows = [
        place | row
        for place, series, complete in series_of_points(campaign)
        for row in point_rows(series, campaign.plan.get("baseline"), complete)
    ]
    floors = {device: tie_bands(device) for device in {row["device"] for row in rows}}
    floors[""] = floor_of_rows(rows, campaign.plan)
    summary = pd.DataFrame(
        [row | {"claimable": claimable(row, floors[row["device"]])} for row in rows], columns=COLUMNS
    )
    return summary.astype({"section": "string", "layer": "Int64", "claimable": bool})


def noise_floor(campaign: Campaign, summary: pd.DataFrame | None = None) -> dict[str, Floor]:
    """What two runs of the same system differ by, of ttft_ms and layer_moe_ms (`noise_floor_of`); {} without twins."""
    summary = summarise(campaign) if summary is None else summary
    return floor_of_rows(summary.to_dict("records"), campaign.plan)


def point_rows(series: list[Series], baseline: str | None, complete: bool) -> Iterator[dict]:
    """All rows of one point, baseline first so that it leads every table."""
    timed = [one for one in series if not one.twin]
    baselines = [one for one in timed if one.system == baseline]
    for one in [*baselines, *(one for one in timed if one not in baselines)]:
        yield from label(one, absolute_rows(one))
        yield from label(one, ratio_rows(one, one, OBSERVER))
        if twin := twin_of(one, series):
            yield from label(one, ratio_rows(twin, one, AA_RATIOS))
        base = None if one in baselines else matching_baseline(one, baselines, complete)
        if base and base.passed and one.passed:
            yield from label(one, ratio_rows(base, one, RATIOS))
            yield from label(one, layer_ratio_rows(base, one))


def label(one: Series, rows: Iterator[dict]) -> Iterator[dict]:
    """Rows with what identifies their series."""
    names = {"system": one.system, "engine": one.engine, "precision": one.precision, "source": one.source}
    for row in rows:
        exact = {"ci_low": row["value"], "ci_high": row["value"]} if one.source == SIMULATED else {}
        yield names | {"device": one.device, "tier": one.tier} | row | exact


def row(metric: str, interval: tuple[float, float, float], launches: list[np.ndarray], unit: str, **place) -> dict:
    """`n` counts iterations over all launches."""
    value, low, high = interval
    sizes = [len(values_IL) for values_IL in launches]
    counts = {"n": sum(sizes), "launches": len(sizes)}
    return {"metric": metric, "value": value, "ci_low": low, "ci_high": high, "unit": unit} | counts | place


def absolute_rows(one: Series) -> Iterator[dict]:
    """Medians, the counts, each section, each layer."""
    for metric, unit in MEDIANS.items():
        if launches := list(one.arrays(metric).values()):
            yield row(metric, median_interval(launches), launches, unit)
    for metric, unit in MEANS.items():
        if launches := list(one.arrays(metric).values()):  # counted, not estimated, hence no interval
            yield row(metric, (float(np.concatenate(launches).mean()), np.nan, np.nan), launches, unit)
    yield from section_rows(one)
    for at, layer in enumerate(one.layers):
        if launches := [values_IL[:, at] for values_IL in one.arrays("layer_moe_ms").values()]:
            yield row("layer_moe_by_layer_ms", median_interval(launches), launches, "ms", layer=layer)


def section_rows(one: Series) -> Iterator[dict]:
    """Time of each section, and percent of the machine's ceiling where that is known."""
    names = dict.fromkeys(name for reduced in one.launches.values() for name in reduced if "/" in name)
    for name in names:
        launches = list(one.arrays(name).values())
        metric, section = name.split("/")
        unit = "ms" if name.startswith(SECTION) else "percent"
        yield row(metric, median_interval(launches), launches, unit, section=section)


def ratio_rows(above: Series, below: Series, ratios: dict) -> Iterator[dict]:
    """Ratios over the launches that both have."""
    for name, (numerator, denominator, statistic) in ratios.items():
        pairs = shared_launches(above.arrays(numerator), below.arrays(denominator))
        if pairs[0]:
            interval = ratio_interval(*pairs, statistic=statistic, block=(above.block, below.block))
            yield row(name, interval, pairs[1], "ratio")


def layer_ratio_rows(above: Series, below: Series) -> Iterator[dict]:
    """The speed-up of each MoE layer over the launches that both have."""
    numerator, denominator = shared_launches(above.arrays("layer_moe_ms"), below.arrays("layer_moe_ms"))
    for at, layer in enumerate(below.layers if numerator else []):
        pairs = [v_IL[:, at] for v_IL in numerator], [v_IL[:, at] for v_IL in denominator]
        interval = ratio_interval(*pairs, block=(above.block, below.block))
        yield row("speedup_by_layer", interval, pairs[1], "ratio", layer=layer)


def shared_launches(above: dict[int, np.ndarray], below: dict[int, np.ndarray]) -> tuple[list, list]:
    """The arrays of the launches that both have, in the same order."""
    shared = sorted(above.keys() & below.keys())
    return [above[launch] for launch in shared], [below[launch] for launch in shared]


def floor_of_rows(rows: list[dict], plan: dict) -> dict[str, Floor]:
    """The floor of each metric over all points' A/A ratios; a point that stands in two panels counts once."""
    cells = {
        (panel["name"], point["x"], point.get("y")): tuple(point["cells"])
        for panel in plan["panels"]
        for point in panel["points"]
    }
    ratios: dict[str, dict] = {}
    for row in rows:
        if row["metric"] in AA_RATIOS:
            y = None if pd.isna(row["y"]) else row["y"]
            pair = (cells[row["experiment"], row["x"], y], row["system"], row["engine"], row["precision"])
            ratios.setdefault(AA_RATIOS[row["metric"]][0], {})[pair] = row["value"]
    return {metric: noise_floor_of(list(values.values())) for metric, values in ratios.items()}


def claimable(row: dict, floor: dict[str, Floor]) -> bool:
    """Whether a row may be claimed: full tier, enough launches and iterations (or a validated device), not noise."""
    enough = row["tier"] == "full" and row["launches"] >= LAUNCHES and row["n"] >= ITERATIONS
    enough = bool(floor) if row["source"] == SIMULATED else enough
    if not enough or row["metric"] not in FLOOR_OF:
        return enough
    return outside(row["ci_low"], row["ci_high"], floor.get(FLOOR_OF[row["metric"]]))


def write_summary(campaign: Campaign, summary: pd.DataFrame | None = None) -> Path:
    """Write summary.csv into the campaign's folder."""
    summary = summarise(campaign) if summary is None else summary
    return write_whole(campaign.folder / "summary.csv", summary.to_csv(index=False))
