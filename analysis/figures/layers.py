"""Latency of every MoE layer of every system at one workload point."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from analysis.figures.canvas import (
    BOUNDS,
    FONT,
    HALO,
    INTERVAL,
    SMALL,
    Picture,
    drawing,
    margins,
    new_figure,
    save,
    shown_range,
    tidy,
    time_axis,
)
from analysis.frames import select
from analysis.labels import SERIES, number, series_names, system_styles

WIDE = 5  # a factor between slowest and fastest above which a linear axis hides the fast ones


@drawing
def plot_layers(
    latencies: pd.DataFrame, path: Path, *, title: str, note: str = "", baseline: str | None = None
) -> Picture:
    """One dot with its interval for each series and MoE layer; the baseline's times as numbers.

    latencies: one point's rows of `summarise` with metric layer_moe_by_layer_ms.
    """
    names = series_names(latencies)
    styles = system_styles([system for system, *_ in names])
    layers = sorted(latencies["layer"].unique())
    figure = new_figure(3.7)
    margins(figure, left=0.62, right=min(0.45 + max(map(len, names.values())) * 0.6 * SMALL / 72, 2.2), top=0.5)
    axis = figure.subplots()
    tidy(axis)
    shift = min(0.3, 0.05 * len(names)) * np.linspace(-1, 1, len(names)) if len(names) > 1 else [0.0]
    for (key, name), offset in zip(names.items(), shift, strict=True):
        mine = select(latencies, **dict(zip(SERIES, key, strict=True))).set_index("layer").reindex(layers)
        error = np.abs(mine[BOUNDS].to_numpy().T - mine["value"].to_numpy())
        colour, marker = styles[key[0]]
        look: dict[str, Any] = {"color": colour, "marker": marker, "linestyle": "none", "markersize": 5, "label": name}
        axis.errorbar(np.arange(len(layers)) + offset, mine["value"], error, **look, **INTERVAL)
        if key[0] == baseline:
            print_values(axis, np.arange(len(layers)) + offset, mine, shown_range(latencies)[1])
    finish(axis, latencies, layers)
    return save(figure, title, note, path)


def print_values(axis: Axes, places: np.ndarray, rows: pd.DataFrame, top: float) -> None:
    """The value above each interval, or above its visible part where `top` cuts it."""
    for place, value, high in zip(places, rows["value"], rows["ci_high"].clip(upper=top), strict=True):
        look = {"xytext": (0, 4), "textcoords": "offset points", "ha": "center", "fontsize": SMALL}
        if np.isfinite(value):
            axis.annotate(number(value), (place, np.nanmax([value, high])), **look).set_path_effects(HALO)


def finish(axis: Axes, latencies: pd.DataFrame, layers: list[int]) -> None:
    """Milliseconds from zero, or on a marked log axis where a linear one would hide the fast systems."""
    low, high = shown_range(latencies)
    if high > WIDE * low:
        time_axis(axis, low / 1.2, high * 1.3)
        axis.set_ylabel("ms, log scale", fontsize=FONT)
    else:
        axis.set_ylim(0, 1.15 * high)
        axis.set_ylabel("ms", fontsize=FONT)
    axis.set_xticks(range(len(layers)), [str(layer) for layer in layers])
    axis.set_xlim(-0.5, len(layers) - 0.5)
    axis.set_xlabel("MoE layer (encoder block)", fontsize=FONT)
    axis.legend(frameon=False, fontsize=SMALL, loc="upper left", bbox_to_anchor=(1.0, 1.0))
