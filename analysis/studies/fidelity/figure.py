"""Emulated over real time of every cell, with the bands of 5 and 10 %."""

from pathlib import Path

import numpy as np
import pandas as pd

from analysis.figures.canvas import SMALL, Picture, column_title, drawing, margins, new_figure, save, tidy
from analysis.labels import system_name, system_styles

PANELS = {"ttft_ms": "TTFT", "layer_moe_ms": "MoE layer"}
BANDS = {10: "#f2f2f2", 5: "#e2e2e2"}  # percent
NOTE = (
    "A dot is a system at one point: geometric means over launches, bars the 95 % interval of the ratio (Welch). "
    "Bands: 5 and 10 %. Above the line the emulator is too slow, below it too fast."
)


@drawing
def plot_fidelity(errors: pd.DataFrame, path: Path, note: str) -> Picture:
    """Write `path`.png and .svg from `compare`."""
    systems = list(dict.fromkeys(errors["system"]))
    styles = system_styles(systems)
    figure = new_figure(height=3.4)
    axes = figure.subplots(1, len(PANELS), sharey=True)
    for axis, (metric, title) in zip(axes, PANELS.items(), strict=True):
        rows = errors.loc[errors["metric"] == metric]
        for band, colour in BANDS.items():
            axis.axhspan(-band, band, color=colour, linewidth=0)
        axis.axhline(0, color="black", linewidth=0.8)
        for place, system in enumerate(systems):
            here = rows.loc[rows["system"] == system]
            at = place + np.linspace(-0.25, 0.25, len(here)) if len(here) > 1 else [place]
            error = 100 * here[["error", "low", "high"]].to_numpy()
            bars = np.nan_to_num(np.abs(error[:, [1, 2]] - error[:, [0]])).T
            axis.errorbar(at, error[:, 0], yerr=bars, fmt="o", markersize=3, elinewidth=0.8, color=styles[system][0])
        axis.set_xticks(range(len(systems)), [system_name(s) for s in systems], rotation=30, ha="right", fontsize=SMALL)
        worst = 100 * rows["error"].abs()
        column_title(axis, f"{title}: median {worst.median():.1f} %, worst {worst.max():.1f} %")
        tidy(axis)
    reach = max(12.0, 1.15 * 100 * errors.loc[errors["metric"].isin(PANELS), "error"].abs().max())
    axes[0].set_ylim(-reach, reach)
    axes[0].set_ylabel("emulated / real − 1, %", fontsize=SMALL)
    margins(figure, left=0.7, right=0.1, bottom=1.35, wspace=0.08)
    return save(figure, "How far emulated times are from real ones", f"{NOTE} {note}".strip(), path)
