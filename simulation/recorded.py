"""The collectives of a stored emulated cell, as arrays: one `LayerRun` for each MoE layer of each observed pass.

Shape letters: K collectives of one layer, G ranks. Times are milliseconds since the ranks met before the layer, one
clock for all; each rank's own layer begins a moment later, when it has got so far.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pandas as pd

from analysis.frames import select
from analysis.load import Campaign, correctness

PANEL = "map_experts_ranks"


@dataclass(frozen=True)
class LayerRun:
    """One MoE layer of one instrumented forward pass.

    waited_KG is NaN where a rank never waited for an asynchronous collective itself. sent_KGG[k, g, h]: bytes that
    rank g sends to rank h. entered_G and left_G: when each rank entered and left the layer.
    """

    iteration: int
    layer: int
    collectives: list[str]
    sections: list[str | None]
    asynchronous_K: np.ndarray
    issued_KG: np.ndarray
    waited_KG: np.ndarray
    finished_KG: np.ndarray
    sent_KGG: np.ndarray
    entered_G: np.ndarray
    left_G: np.ndarray

    @property
    def ranks(self) -> int:
        return len(self.left_G)

    @property
    def layer_G(self) -> np.ndarray:
        """Milliseconds that each rank spent in the layer."""
        return self.left_G - self.entered_G


def panel_cells(campaign: Campaign, panel: str = PANEL) -> list[str]:
    """The cells of a panel that ran on an emulated cluster and computed what they should, twins left out.

    Raises ValueError where the campaign has no such panel or the panel no such cell.
    """
    names = [found["name"] for found in campaign.plan["panels"]]
    if panel not in names:
        raise ValueError(f"the campaign has no panel {panel!r}; it has {', '.join(names)}")
    points = campaign.plan["panels"][names.index(panel)]["points"]
    cells = dict.fromkeys(cell for point in points for cell in point["cells"] if cell in campaign.frames)
    wanted = [cell for cell in cells if usable(campaign.runs[cell])]
    if not wanted:
        raise ValueError(f"panel {panel} has no cell that ran on an emulated cluster with a verified output")
    return wanted


def usable(run: dict) -> bool:
    """Whether a cell ran on an emulated cluster, computed what it should, and is no twin."""
    return run["source"] == "emulated" and not run["twin"] and correctness(run) == "passed"


def layer_runs(campaign: Campaign, cell: str) -> list[LayerRun]:
    """Every layer of every instrumented pass of a cell, by iteration and layer.

    Raises ValueError for a cell without recorded collectives, or with collectives of only some of its ranks.
    """
    frame, ranks = campaign.collectives(cell), campaign.runs[cell]["point"]["world_size"]
    if frame.empty:
        raise ValueError(f"cell {cell} has no recorded collectives; only emulated cells have, measured since 2026-11")
    if set(frame["ranks"]) != {ranks}:
        raise ValueError(f"cell {cell} has collectives among some of its {ranks} ranks; only those of all are modelled")
    samples = select(campaign.frames[cell], phase="instrumented", metric="layer_moe_ms")
    return list(runs_of(frame, samples.sort_values("rank"), ranks, cell))


def runs_of(frame: pd.DataFrame, samples: pd.DataFrame, ranks: int, cell: str) -> Iterator[LayerRun]:
    """Every layer of the collectives and samples (metric layer_moe_ms) of a cell; see `layer_runs`."""
    for iteration, layer in sorted(set(zip(frame["iteration"], frame["layer"], strict=True))):
        rows = select(frame, iteration=iteration, layer=layer)
        rows = rows.sort_values(["sequence", "rank"])
        if len(rows) % ranks or (rows["rank"].to_numpy().reshape(-1, ranks) != np.arange(ranks)).any():
            raise ValueError(f"cell {cell} lacks collectives of some ranks in layer {layer}, iteration {iteration}")
        first = rows.iloc[::ranks]
        # What a rank resumed from before its first collective is the meeting: all at once, before the layer's start.
        entered_G = -rows["resumed_ms"].to_numpy(float)[:ranks]
        own_G = select(samples, iteration=iteration, layer=layer)["value"].to_numpy(float)
        times = {
            f"{name}_KG": rows[f"{name}_ms"].to_numpy(float).reshape(-1, ranks) + entered_G
            for name in ("issued", "waited", "finished")
        }
        yield LayerRun(
            iteration=int(iteration),
            layer=int(layer),
            collectives=first["collective"].tolist(),
            sections=[None if pd.isna(section) else str(section) for section in first["section"]],
            asynchronous_K=first["asynchronous"].to_numpy(bool),
            sent_KGG=np.stack(rows["sent_to"].to_list()).astype(float).reshape(-1, ranks, ranks),
            entered_G=entered_G,
            left_G=entered_G + own_G,
            **times,
        )


def as_IL(runs: list[LayerRun], values: list[float]) -> np.ndarray:
    """One value a run as an array over iterations and layers."""
    layers = len({run.layer for run in runs})
    return np.reshape(values, (-1, layers))
