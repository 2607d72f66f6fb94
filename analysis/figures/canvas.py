"""What every figure shares: size, fonts, the sentence below it, and how it is written."""

import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patheffects import AbstractPathEffect, withStroke
from matplotlib.ticker import LogLocator, NullLocator

from analysis.labels import GREY

FONT, SMALL = 8.5, 7.5
WIDTH = 6.67  # inches: 1000 pixels at 150 dpi
BOUNDS = ["ci_low", "ci_high"]
CUT = 1.5
INTERVAL: dict[str, Any] = {"capsize": 2, "elinewidth": 1}
# Names of systems are data, never mathematics; text stays text in an SVG, so that it can be searched and read aloud.
STYLE: dict[Any, Any] = {"text.parse_math": False, "svg.fonttype": "none"}
NO_METADATA = dict.fromkeys(("Creator", "Date", "Format", "Type"))
HIDDEN = "_unclaimed"  # the label of grey points over a series
HALO: list[AbstractPathEffect] = [withStroke(linewidth=2, foreground="white")]  # keeps a number legible on a line
drawing = rc_context(STYLE)  # decorates functions that draw


@dataclass(frozen=True)
class Picture:
    """A figure as written: what it shows in one line, the sentences below it, and its two files."""

    title: str
    note: str
    png: Path
    svg: Path


def new_figure(height: float) -> Figure:
    """A 1000 pixel wide figure of `height` inches that needs no display."""
    figure = Figure(figsize=(WIDTH, height), dpi=150)
    FigureCanvasAgg(figure)
    return figure


def margins(figure: Figure, *, left: float, right: float, top: float = 0.82, bottom: float = 1.0, **spaces: float):
    """Space around the axes in inches; the top is for the title, the bottom for the note."""
    height = figure.get_figheight()
    inside = {"left": left / WIDTH, "right": 1 - right / WIDTH, "top": 1 - top / height, "bottom": bottom / height}
    figure.subplots_adjust(**inside, **spaces)


def tidy(axis: Axes, grid: Literal["both", "x", "y"] = "y") -> None:
    """Axes without a box, with small ticks and a pale grid behind the data."""
    axis.spines[["top", "right"]].set_visible(False)
    axis.tick_params(labelsize=SMALL, length=2.5)
    axis.grid(axis=grid, color="#e6e6e6", linewidth=0.6)
    axis.set_axisbelow(True)


def column_title(axis: Axes, text: str, pad: float = 6) -> None:
    """A title above the left end of the axes, `pad` points away."""
    axis.set_title(text, fontsize=FONT, loc="left", fontweight="bold", pad=pad)


def shown_range(rows: pd.DataFrame) -> tuple[float, float]:
    """What a log axis has to show: all values, and their intervals as far as a factor of CUT beyond the values.

    The interval of two launches can be so wide that nothing else would be seen; one that is cut has no cap.
    """
    if rows.empty:
        return 1.0, 1.0
    spans = np.clip(rows.filter(["value", *BOUNDS]), rows["value"].min() / CUT, rows["value"].max() * CUT)
    return float(np.nanmin(spans)), float(np.nanmax(spans))


def ratio_axis(axis: Axes, low: float, high: float) -> None:
    """A log2 axis of ratios with ticks such as 0.25×, from half to twice at least."""
    axis.set_yscale("log", base=2)
    axis.yaxis.set_major_formatter(lambda ratio, _: f"{ratio:g}×")
    axis.yaxis.set_minor_locator(NullLocator())
    axis.set_ylim(min(0.5, low) / 1.15, 1.15 * max(2, high))


def time_axis(axis: Axes, low: float, high: float) -> None:
    """A log axis of times with ticks at 1, 2 and 5 times powers of ten."""
    axis.set_yscale("log")
    axis.set_ylim(low, high)
    axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axis.yaxis.set_minor_locator(NullLocator())


def spread(heights: list[float], gap: float) -> list[float]:
    """Heights at least `gap` apart, in their order and about their mean."""
    order = np.argsort(heights, kind="stable")
    raised = np.asarray(heights, dtype=float)[order]
    for i in range(1, len(raised)):
        raised[i] = max(raised[i], raised[i - 1] + gap)
    moved = np.empty_like(raised)
    moved[order] = raised - (raised.mean() - np.mean(heights)) if len(raised) else raised
    return moved.tolist()


def label_lines(axis: Axes) -> None:
    """Names of the series in the right margin, level with their last points, moved apart where they would touch."""
    ends = {}
    for container in axis.containers:
        name, line = str(container.get_label()), container[0]
        if name == HIDDEN:
            continue
        heights = np.asarray(line.get_ydata(), dtype=float)
        last = heights[np.isfinite(heights)][-1]
        ends[name] = (axis.transData.transform((0, last))[1], line.get_color())
    heights = spread([height for height, _ in ends.values()], gap=SMALL * 1.3 * axis.figure.dpi / 72)
    for (name, (_, colour)), height in zip(ends.items(), heights, strict=True):
        fraction = axis.transAxes.inverted().transform((0, height))[1]
        look = {"transform": axis.transAxes, "color": colour, "fontsize": SMALL, "va": "center"}
        axis.text(1.03, fraction, name, **look)


def save(figure: Figure, title: str, note: str, path: Path, lines: int = 4) -> Picture:
    """Write `path`.png and `path`.svg, the same bytes for the same data; of the note at most so many lines."""
    height = figure.get_figheight()
    figure.text(0.015, 1 - 0.1 / height, title, fontsize=min(10.5, 735 / len(title)), fontweight="bold", va="top")
    told = textwrap.fill(note, 125, max_lines=lines, placeholder=" …")
    figure.text(0.015, 0.08 / height, told, fontsize=6.8, color=GREY, va="bottom")
    png, svg = (path.with_name(f"{path.name}{suffix}") for suffix in (".png", ".svg"))
    figure.savefig(png)
    salted: dict[Any, Any] = STYLE | {"svg.hashsalt": f"figure {path.name}"}  # names inside the file repeat
    with rc_context(salted):
        figure.savefig(svg, metadata=NO_METADATA)
    return Picture(title, note, png, svg)
