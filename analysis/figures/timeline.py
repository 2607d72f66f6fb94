"""One instrumented iteration of one cell, rank by rank: who waits for whom in which section."""

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis.figures.canvas import FONT, SMALL, column_title, drawing, margins, new_figure, tidy
from analysis.figures.sections import WAITING, legend_handles, present
from analysis.frames import select
from analysis.labels import BLACK, SECTIONS, system_name
from analysis.load import Campaign


def timeline(samples: pd.DataFrame, iteration: int) -> pd.DataFrame:
    """Segments of one iteration's MoE layers; zero is where all ranks have met before the layer.

    samples: rows of one cell. Columns: layer, rank, section, start, value, in ms; `entry_skew` starts below zero.
    Sections stand in the order in which they run: their times were recorded, the gaps between them were not.
    Raises ValueError naming the iterations there are.
    """
    rows = select(samples, phase="instrumented")
    if iteration not in set(rows["iteration"]):
        there = sorted(rows["iteration"].unique().tolist())
        raise ValueError(f"iteration ({iteration}) is not among the instrumented ones: {there}")
    rows = select(rows, iteration=iteration)
    waits = select(rows, metric="entry_skew_ms").assign(section="entry_skew", start=lambda wait: -wait["value"])
    sections = select(rows, metric="section_ms")
    order = {name: place for place, name in enumerate(present(sections))}
    sections = sections.sort_values("section", key=lambda names: names.map(order), kind="stable")
    sections = sections.assign(start=sections.groupby(["layer", "rank"])["value"].cumsum() - sections["value"])
    return pd.concat([waits, sections], ignore_index=True).filter(["layer", "rank", "section", "start", "value"])


@drawing
def plot_timeline(campaign: Campaign, cell: str, iteration: int = 0) -> Figure:
    """The MoE layers of one iteration side by side, a row a rank; what lies between MoE layers is cut out."""
    segments, run = timeline(campaign.frames[cell], iteration), campaign.runs[cell]
    layers, ranks = sorted(segments["layer"].unique()), len(segments["rank"].unique())
    figure = new_figure(1.9 + 0.22 * ranks)
    margins(figure, left=0.62, right=0.15, top=0.6, bottom=0.75, wspace=0.12)
    axes = figure.subplots(1, len(layers), sharey=True, sharex=True, squeeze=False)[0]
    for axis, layer in zip(axes, layers, strict=True):
        draw_layer(axis, select(segments, layer=layer))
        column_title(axis, f"block {layer}")
    axes[0].set_ylabel("rank", fontsize=FONT)
    axes[0].set_yticks(range(ranks))
    axes[0].invert_yaxis()
    figure.legend(handles=legend_handles(segments), ncols=6, frameon=False, fontsize=SMALL, loc="lower center")
    title = f"{system_name(run['system'])}, launch {run['launch']}, iteration {iteration} ({run['source']})"
    figure.text(0.015, 0.98, title, fontsize=10.5, fontweight="bold", va="top")
    return figure


def draw_layer(axis: Axes, segments: pd.DataFrame) -> None:
    """The sections of one layer, a row a rank; 0 is when the last rank entered."""
    tidy(axis, grid="x")
    for section, rows in segments.groupby("section"):
        look: dict[str, Any] = WAITING if section == "entry_skew" else {"color": SECTIONS.get(str(section), "#999999")}
        axis.barh(rows["rank"], rows["value"], left=rows["start"], height=0.8, **look)
    axis.axvline(0, color=BLACK, linewidth=0.9)
    axis.set_xlabel("ms", fontsize=FONT)
    axis.tick_params(labelsize=SMALL)
    axis.use_sticky_edges = False
    axis.set_ylim(-0.6, np.max(segments["rank"]) + 0.6)
