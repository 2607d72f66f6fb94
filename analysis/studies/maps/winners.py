"""Which system wins at each point of a map, and by how much; docs/maps.md has the rules.

A map's frame is tidy: columns x, y, system, launch, value (a time; less is better) and source, one row for each launch
of a system at a point.
"""

from collections.abc import Iterator

import numpy as np
import pandas as pd

from analysis.load import Campaign
from analysis.series import launch_medians, time_ratio
from analysis.stats import Floor, outside

COLUMNS = ["x", "y", "system", "launch", "value", "source"]
METRICS = {"layer_moe_ms": "one MoE layer", "ttft_ms": "full forward pass (TTFT)"}
WINS, TIE, ALONE = "wins", "tie", "alone"


def map_frames(campaign: Campaign, panel: dict) -> dict[str, pd.DataFrame]:
    """A map's frame by metric (METRICS), of `launch_medians` without twins."""
    rows = launch_medians(campaign, [panel])
    return {metric: rows.loc[~rows["twin"] & (rows["metric"] == metric), COLUMNS] for metric in METRICS}


def winners(frame: pd.DataFrame, floor: Floor | None = None) -> pd.DataFrame:
    """One row a point: the fastest system, the second, and by how much, with its 95 % interval over launches.

    Columns: x, y, winner, second, margin (time of the second / time of the winner), low, high, verdict (wins; tie where
    the interval, or a simulated margin, reaches into 1x +- the floor; alone where only one system has a time), without
    (systems of the frame that have none here).
    """
    systems = set(frame["system"])
    rows = [
        {"x": x, "y": y} | winner(here, floor) | {"without": sorted(systems - set(here["system"]))}
        for (x, y), here in by_place(frame)
    ]
    columns = ["x", "y", "winner", "second", "margin", "low", "high", "verdict", "without"]
    return pd.DataFrame(rows, columns=columns)


def by_place(frame: pd.DataFrame) -> Iterator[tuple[tuple, pd.DataFrame]]:
    """((x, y), its rows), in the order of the frame; y may be None, which groupby would drop."""
    places = pd.Series(list(zip(frame["x"], frame["y"], strict=True)), index=frame.index, dtype=object)
    return ((place, frame.loc[places == place]) for place in dict.fromkeys(places))


def winner(here: pd.DataFrame, floor: Floor | None) -> dict:
    """The row of one point."""
    times = here.pivot(index="launch", columns="system", values="value")[list(dict.fromkeys(here["system"]))]
    shared = times.dropna() if len(times.dropna()) else times  # launches that all systems have
    centre = np.log(shared).mean().to_dict()
    first, second = [*sorted(centre, key=lambda system: centre[system]), None][:2]
    margin, low, high = time_ratio(here, second, first) if second else (np.nan, np.nan, np.nan)
    verdict = (WINS if told_apart(low, high, floor) else TIE) if second else ALONE
    return {"winner": first, "second": second, "margin": margin, "low": low, "high": high, "verdict": verdict}


def told_apart(low: float, high: float, floor: Floor | None) -> bool:
    """Whether a ratio's interval lies wholly outside the floor, or outside 1x where there is none."""
    return outside(low, high, floor or Floor(0.0, 0))
