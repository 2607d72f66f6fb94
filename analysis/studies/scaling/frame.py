"""Layer time and peak memory of a rank against the number of ranks."""

from typing import Any

import pandas as pd

from analysis.frames import select
from analysis.load import Campaign
from analysis.series import launch_medians

COLUMNS = {"layer_ms": "MoE layer, ms", "memory_gb": "peak memory of a rank, GB"}
PLACE = ["y", "ranks", "system"]


def scaling_frame(campaign: Campaign, panel: dict) -> pd.DataFrame:
    """One row a system and point: y, ranks, system, layer_ms, memory_gb (nan where it was not recorded), source."""
    times = launch_medians(campaign, [panel]).rename(columns={"x": "ranks", "value": "layer_ms"})
    times = select(times, metric="layer_moe_ms", twin=False)
    times = times.groupby([*PLACE, "source"], sort=False, dropna=False, as_index=False)["layer_ms"].median()
    peaks = [
        {"y": point.get("y"), "ranks": point["x"], "system": campaign.runs[cell]["system"], "memory_gb": peak_gb(frame)}
        for point in panel["points"]
        for cell in point["cells"]
        if (frame := campaign.frames.get(cell)) is not None
    ]
    columns = [*PLACE, "memory_gb"]
    memory: Any = pd.DataFrame(peaks, columns=columns).groupby(PLACE, dropna=False, as_index=False).max()
    return times.merge(memory, on=PLACE, how="left")


def peak_gb(samples: pd.DataFrame) -> float:
    """Of the rank that holds most."""
    return float(select(samples, metric="peak_memory_bytes")["value"].to_numpy().max()) / 1e9
