"""The launches of one system at one point, and which series are compared with which."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from analysis.load import SIMULATED, TRUSTED, Campaign, correctness, device_of, place_of, turn_of
from analysis.reduce import SECTION, expert_load, load_cube, reduce_cell
from analysis.stats import median_of, ratio_interval

TIMES = ("ttft_ms", "layer_moe_ms")


@dataclass(eq=False)
class Series:
    """One system at one point: its launches, each a dict of arrays [I, L] by metric. A twin is a series of its own."""

    system: str
    engine: str
    precision: str
    source: str
    device: str
    twin: bool
    block: int = 1
    tier: str = ""
    passed: bool = True
    cells: list[str] = field(default_factory=list)
    layers: list[int] = field(default_factory=list)
    launches: dict[int, dict[str, np.ndarray]] = field(default_factory=dict)

    def arrays(self, metric: str) -> dict[int, np.ndarray]:
        """[I, L] by launch, in order, of the launches that have the metric."""
        return {launch: reduced[metric] for launch, reduced in sorted(self.launches.items()) if metric in reduced}

    def matches(self, other: "Series") -> bool:
        """Whether the two may be compared: one precision, both measured, both emulated, or simulated on one device."""
        return self.origin == other.origin

    @property
    def origin(self) -> tuple[str, ...]:
        """Precision, source and, where that is simulated, the device."""
        return tuple(filter(None, (self.precision, self.source, self.device)))


def series_of_points(campaign: Campaign) -> list[tuple[dict, list[Series], bool]]:
    """Every point of every panel: its place, its series, and whether all its cells are there."""
    loads: dict[str, dict] = {}
    reduced = {cell: reduce_run(campaign, cell, loads) for cell in campaign.frames}
    return [
        (
            place_of(panel, point),
            collect_series(campaign, reduced, point["cells"]),
            all(cell in reduced for cell in point["cells"]),
        )
        for panel in campaign.plan["panels"]
        for point in panel["points"]
    ]


def reduce_run(campaign: Campaign, cell: str, loads: dict[str, dict]) -> dict[str, np.ndarray]:
    """`loads` keeps the load of experts by the routing's checksum: cells of a point have it in common."""
    run = campaign.runs[cell]
    routing = run["checksums"].get("routing.parquet", cell)
    if routing not in loads:
        loads[routing] = expert_load(load_cube(campaign.routing(cell), run["point"]["num_experts"]))
    return reduce_cell(campaign.frames[cell], run["point"]["world_size"], run.get("ceilings")) | loads[routing]


def collect_series(campaign: Campaign, reduced: dict[str, dict], cells: list[str]) -> list[Series]:
    """The ok cells of a point grouped by system, engine, precision, source, device, and whether they are the twins."""
    found: dict[tuple, Series] = {}
    for cell in cells:
        if cell not in reduced:
            continue
        run = campaign.runs[cell]
        key = (run["system"], run["engine"], run["precision"], run["source"], device_of(run), run["twin"])
        one = found.setdefault(key, Series(*key))
        one.cells.append(cell)
        one.passed &= correctness(run) in TRUSTED
        one.block, one.tier = turn_of(run), run["tier"]
        one.layers = sorted(campaign.frames[cell]["layer"].dropna().unique())
        if run["launch"] in one.launches:
            raise ValueError(f"Cell {cell} is the second of {run['system']} in launch {run['launch']} of one point.")
        one.launches[run["launch"]] = reduced[cell]
    return list(found.values())


def launch_medians(campaign: Campaign, panels: Sequence[dict]) -> pd.DataFrame:
    """One row a panel, point, system, twin, metric and launch: the median of the slowest rank's times.

    Metrics are TIMES and the sections. Systems whose outputs were not verified are left out.
    """
    cells = {cell for panel in panels for point in panel["points"] for cell in point["cells"]} & campaign.frames.keys()
    sizes = {cell: campaign.runs[cell]["point"]["world_size"] for cell in cells}
    reduced = {cell: reduce_cell(campaign.frames[cell], size) for cell, size in sizes.items()}
    rows = [
        {"panel": panel["name"], "x": point["x"], "y": point.get("y"), "system": one.system, "twin": one.twin}
        | {"source": one.source, "metric": metric, "launch": launch, "value": median_of(values)}
        for panel in panels
        for point in panel["points"]
        for one in collect_series(campaign, reduced, point["cells"])
        if one.passed
        for metric in dict.fromkeys(name for launch in one.launches.values() for name in launch)
        if metric in TIMES or metric.startswith(SECTION)
        for launch, values in one.arrays(metric).items()
    ]
    columns = ["panel", "x", "y", "system", "twin", "source", "metric", "launch", "value"]
    return pd.DataFrame(rows, columns=columns).astype({"twin": bool})


def time_ratio(here: pd.DataFrame, above: str, below: str) -> tuple[float, float, float]:
    """Time of `above` / time of `below` at one point, with its interval over the launches that both have."""
    pairs = launch_pairs(here, (above, below))
    if pairs.empty:
        return np.nan, np.nan, np.nan
    if "source" in here and set(here["source"]) == {SIMULATED}:  # repeats exactly
        ratio = float((pairs[above] / pairs[below]).iloc[0])
        return ratio, ratio, ratio
    return ratio_interval(*([[value] for value in pairs[system]] for system in (above, below)))


def launch_pairs(here: pd.DataFrame, pair: tuple[str, str]) -> pd.DataFrame:
    """Times of two systems, a row a launch that both have."""
    return here.pivot(index="launch", columns="system", values="value").reindex(columns=list(pair)).dropna()


def twin_of(one: Series, series: list[Series]) -> Series | None:
    """The series that repeats this one, if the campaign has it."""
    same = (t for t in series if t.twin and (t.system, t.engine) == (one.system, one.engine))
    return next((twin for twin in same if twin.matches(one)), None)


def matching_baseline(one: Series, baselines: list[Series], complete: bool) -> Series | None:
    """The baseline of the same precision, source and device; None when its cell has not run or failed."""
    matches = [base for base in baselines if base.matches(one)]
    if len(matches) > 1:
        raise ValueError(f"The baseline {matches[0].system} has {len(matches)} engines at one point; one is allowed.")
    if not matches and baselines and complete:
        raise ValueError(
            f"{one.system} ({', '.join(one.origin)}) cannot be compared with the baseline "
            f"{baselines[0].system} ({', '.join(baselines[0].origin)}): precision, source and device must agree."
        )
    return matches[0] if matches else None
