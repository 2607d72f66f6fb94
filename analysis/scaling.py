"""Layer time and peak memory of a rank against the number of ranks: panels of kind `scaling`."""

from typing import Any

import pandas as pd

from analysis.frames import select
from analysis.labels import number, short_axis_name, system_name, x_text
from analysis.load import Campaign, coverage
from analysis.maps import map_frames
from analysis.tables import Table, slug

COLUMNS = {"layer_ms": "MoE layer, ms", "memory_gb": "peak memory of a rank, GB"}
PLACE = ["y", "ranks", "system"]


def scaling_frame(campaign: Campaign, panel: dict) -> pd.DataFrame:
    """One row a system and point: y, ranks, system, layer_ms, memory_gb (nan where it was not recorded), source."""
    times = map_frames(campaign, panel)["layer_moe_ms"].rename(columns={"x": "ranks", "value": "layer_ms"})
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


def scaling_table(campaign: Campaign, panel: dict) -> Table:
    """A row a y, system and quantity, a column a number of ranks; where there is no number, the state of the cell."""
    frame, shown = scaling_frame(campaign, panel), []
    states = select(coverage(campaign), experiment=panel["name"])
    why = {(row["y"], row["x"], row["system"]): row["state"] for row in states.to_dict("records")}
    found = {(row["y"], row["ranks"], row["system"]): row for row in frame.to_dict("records")}
    ranks = list(dict.fromkeys(point["x"] for point in panel["points"]))
    for y in dict.fromkeys(point.get("y") for point in panel["points"]):
        place = {short_axis_name(panel["y_name"]): x_text(panel["y_name"], y)} if panel.get("y_name") else {}
        for system in dict.fromkeys(states["system"].dropna()):
            for column, title in COLUMNS.items():
                cells = {
                    str(rank): number(found[key][column]) if (key := (y, rank, system)) in found else why.get(key, "–")
                    for rank in ranks
                }
                shown.append(place | {"system": system_name(system), "": title} | cells)
    title = f"{panel['title']}: by number of ranks"
    return Table(slug(panel["name"]), title, frame, pd.DataFrame(shown))
