"""Where a MoE layer's time goes: sections of every rank of every system at one point, so that a straggler shows."""

from pathlib import Path
from typing import Any, cast

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.patches import Patch

from analysis.figures.canvas import (
    BOUNDS,
    FONT,
    INTERVAL,
    SMALL,
    Picture,
    drawing,
    margins,
    new_figure,
    save,
    shown_range,
    tidy,
)
from analysis.frames import select
from analysis.labels import BLACK, SECTIONS, SERIES, series_names
from analysis.load import Campaign
from analysis.stats import median_interval

STATISTICS = ["value", "ci_low", "ci_high", "n"]
FORWARD = ["launch", "cell", "iteration"]
WAITING: dict[str, Any] = {"facecolor": "#ffffff", "edgecolor": "#555555", "hatch": "////", "linewidth": 0.4}
WAIT = "waits for the last rank to enter"


def point_samples(campaign: Campaign, cells: list[str], metric: str) -> pd.DataFrame:
    """Instrumented rows of one metric of a point's ok cells, twins left out; with system, engine and precision."""
    frames = [
        select(campaign.frames[cell], metric=metric, phase="instrumented").assign(**{key: run[key] for key in SERIES})
        for cell in cells
        if cell in campaign.frames and not (run := campaign.runs[cell])["twin"]
    ]
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame(columns=[*SERIES, "value"])


def section_times(campaign: Campaign, cells: list[str]) -> pd.DataFrame:
    """Milliseconds of each rank in each section of one MoE layer: mean over layers, median over iterations.

    Columns: system, engine, precision, rank, section, value, ci_low, ci_high, n. Besides the sections there are
    `entry_skew` (how long the rank waited to enter the layer) and `total` (the whole layer).
    """
    layer_ms = {"total": "layer_moe_ms", "entry_skew": "entry_skew_ms"}
    frames = [point_samples(campaign, cells, "section_ms")]
    frames += [point_samples(campaign, cells, metric).assign(section=name) for name, metric in layer_ms.items()]
    samples = pd.concat([frame for frame in frames if len(frame)] or frames[:1], ignore_index=True)
    columns = [*SERIES, "rank", "section"]
    if samples.empty:
        return pd.DataFrame(columns=[*columns, *STATISTICS])
    # A section may be entered more than once in a layer.
    by_layer = samples.groupby([*columns, *FORWARD, "layer"], as_index=False).agg({"value": "sum"})
    return intervals(by_layer.groupby([*columns, *FORWARD], as_index=False).agg({"value": "mean"}), columns)


def intervals(samples: pd.DataFrame, columns: list[str]) -> pd.DataFrame:
    """Median and interval of `value` in each group of `columns`; launches stay apart."""
    rows = []
    for key, group in samples.groupby(columns):
        launches = [launch["value"].to_numpy() for _, launch in group.groupby("launch")]
        rows.append([*cast(tuple, key), *median_interval(launches), len(group)])
    return pd.DataFrame(rows, columns=[*columns, *STATISTICS])


@drawing
def plot_sections(section_ms: pd.DataFrame, path: Path, *, title: str, note: str = "") -> Picture:
    """One bar a rank, its sections (`section_times`) side by side; left of zero what the rank waited to enter.

    Every system has its own scale, for the stragglers of a fast one would not show on that of a slow one.
    """
    names, ranks = series_names(section_ms), sorted(section_ms["rank"].unique())
    height = len(names) * (0.16 * len(ranks) + 0.42)
    figure = new_figure(1.7 + height)
    margins(figure, left=0.3 + max(map(len, names.values())) * 0.6 * FONT / 72, right=0.2, top=0.65, bottom=1.05)
    figure.subplots_adjust(hspace=0.42 / (0.16 * len(ranks)))
    for axis, (key, name) in zip(figure.subplots(len(names), 1, squeeze=False)[:, 0], names.items(), strict=True):
        draw_system(axis, select(section_ms, **dict(zip(SERIES, key, strict=True))), ranks)
        axis.set_ylabel(name, fontsize=FONT, rotation=0, ha="right", va="center")
    figure.axes[-1].set_xlabel(
        "ms of one MoE layer (mean of the layers), by rank; each system on its own scale", fontsize=FONT
    )
    place = {"loc": "upper left", "bbox_to_anchor": (0.005, 1 - 0.3 / figure.get_figheight()), "columnspacing": 1.0}
    figure.legend(handles=legend_handles(section_ms), ncols=6, frameon=False, fontsize=SMALL, handlelength=1.0, **place)
    return save(figure, title, note, path)


def draw_system(axis: Axes, section_ms: pd.DataFrame, ranks: list[int]) -> None:
    """A bar a rank; left of 0 the wait for the last rank to enter."""
    tidy(axis, grid="x")
    for rank in ranks:
        draw_rank(axis, rank, select(section_ms, rank=rank).set_index("section"))
    low = -max(select(section_ms, section="entry_skew")["value"].to_list(), default=0.0)
    axis.set_xlim(1.05 * low, 1.05 * shown_range(select(section_ms, section="total"))[1])
    axis.set_yticks(ranks)
    axis.invert_yaxis()
    axis.axvline(0, color=BLACK, linewidth=0.9)


def draw_rank(axis: Axes, place: float, rows: pd.DataFrame) -> None:
    """One rank's bar, with the interval of its whole layer."""
    value = rows["value"].to_dict()
    axis.barh(place, -value.get("entry_skew", 0.0), height=0.85, **WAITING)
    left = 0.0
    for section in present(rows.reset_index()):
        axis.barh(place, value[section], left=left, height=0.85, color=SECTIONS.get(section, "#999999"))
        left += value[section]
    if "total" in value:
        total = rows.loc["total"]
        error = np.abs(total[BOUNDS].to_numpy(dtype=float)[:, None] - total["value"])
        axis.errorbar(total["value"], place, xerr=error, color=BLACK, marker="|", markersize=5, **INTERVAL)


def present(section_ms: pd.DataFrame) -> list[str]:
    """Sections that were recorded: the standard ones in the order in which they run, then a system's own."""
    found = set(section_ms["section"]) - {"entry_skew", "total"}
    return [name for name in SECTIONS if name in found] + sorted(found - set(SECTIONS))


def legend_handles(section_ms: pd.DataFrame) -> list[Patch]:
    """The sections that there are, and the wait."""
    handles = [Patch(color=SECTIONS.get(name, "#999999"), label=name) for name in present(section_ms)]
    return [*handles, Patch(label=WAIT, **WAITING)]
