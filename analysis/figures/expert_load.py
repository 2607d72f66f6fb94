"""How many tokens each expert gets: the first and the last MoE layer of one workload point.

Shape letters: I iterations, E experts.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from analysis.figures.canvas import FONT, SMALL, Picture, column_title, drawing, margins, new_figure, save, tidy
from analysis.labels import BLACK, BLUE, SKY
from analysis.reduce import gini

ELSEWHERE: dict[str, Any] = {"color": BLACK, "linestyle": (0, (4, 2)), "linewidth": 1.2}


class Recorded(NamedTuple):
    """Loads that were recorded elsewhere, by MoE layer, [I, E]: their name in the legend, and a sentence on them."""

    name: str
    sentence: str
    loads: Mapping[int, np.ndarray]


def expert_tokens(routing: pd.DataFrame, num_experts: int) -> dict[int, np.ndarray]:
    """Tokens by MoE layer, summed over ranks: [I, E]; an expert without a row got none."""
    counts = routing.pivot_table(index=["layer", "iteration"], columns="expert", values="tokens", aggfunc="sum")
    counts = counts.reindex(columns=range(num_experts)).fillna(0)
    layers = counts.index.get_level_values("layer")
    return {int(layer): counts.loc[layers == layer].to_numpy() for layer in layers.unique()}


def load_statistics(tokens_IE: np.ndarray) -> dict[str, np.ndarray]:
    """Of each iteration, [I]: tokens of the busiest expert, that over the mean, empty experts, Gini coefficient."""
    busiest_I = tokens_IE.max(axis=1)
    return {
        "busiest": busiest_I,
        "busiest_to_mean": busiest_I / tokens_IE.mean(axis=1),
        "empty": (tokens_IE == 0).sum(axis=1),
        "gini": gini(tokens_IE),
    }


@drawing
def plot_load(
    tokens: Mapping[int, np.ndarray],
    path: Path,
    *,
    title: str,
    note: str = "",
    recorded: Recorded | None = None,
) -> Picture:
    """Bars by expert above, distribution over experts below; the first MoE layer left, the last right.

    tokens: [I, E] by MoE layer (`expert_tokens`). recorded: of as many experts.
    """
    layers = sorted({min(tokens), max(tokens)})
    figure = new_figure(5.1)
    margins(figure, left=0.62, right=0.15, top=0.65, bottom=1.05, hspace=0.42, wspace=0.16)
    axes = figure.subplots(2, len(layers), squeeze=False, sharey="row")
    for column, layer, place in zip(axes.T, layers, (min, max), strict=False):
        draw_bars(column[0], tokens[layer])
        column_title(column[0], f"{'First' if place is min else 'Last'} MoE layer (block {layer})")
        others = {recorded.name: recorded.loads[place(recorded.loads)]} if recorded else {}
        draw_distribution(column[1], tokens[layer], others)
    axes[0, 0].set_ylabel("tokens", fontsize=FONT)
    axes[1, 0].set_ylabel("share of experts with\nat most x tokens", fontsize=FONT)
    axes[1, 0].legend(frameon=False, fontsize=SMALL, loc="lower right")
    return save(figure, title, note, path)


def draw_bars(axis: Axes, tokens_IE: np.ndarray) -> None:
    """Mean tokens of every expert with the range over iterations, and what the imbalance amounts to."""
    tidy(axis)
    mean_E, expert_E = tokens_IE.mean(axis=0), np.arange(tokens_IE.shape[1])
    axis.bar(expert_E, mean_E, width=1.0 if len(expert_E) > 64 else 0.8, color=SKY)
    axis.vlines(expert_E, tokens_IE.min(axis=0), tokens_IE.max(axis=0), color=BLUE, linewidth=0.6)
    axis.axhline(mean_E.mean(), color=BLACK, linewidth=0.8, linestyle=":")
    axis.set_xlim(-1, len(expert_E))
    axis.set_ylim(top=max(axis.get_ylim()[1], 1.5 * tokens_IE.max()))  # room for the text; the axis is shared
    axis.set_xlabel("expert", fontsize=FONT)
    look = {"transform": axis.transAxes, "ha": "right", "va": "top", "fontsize": SMALL, "linespacing": 1.4}
    axis.text(0.99, 0.98, load_text(tokens_IE), **look)


def load_text(tokens_IE: np.ndarray) -> str:
    """Three lines: busiest, empty, Gini, each a mean over iterations with its range."""
    of = load_statistics(tokens_IE)
    busiest = f"busiest {spanned(of['busiest'])} tokens ({of['busiest_to_mean'].mean():.1f}× the mean)"
    return f"{busiest}\n{spanned(of['empty'])} experts without a token\nGini {spanned(of['gini'], '.2f')}"


def spanned(values_I: np.ndarray, form: str = ".0f") -> str:
    """Mean and range of a statistic over iterations; one value where they print the same."""
    mean, low, high = (format(value, form) for value in (values_I.mean(), values_I.min(), values_I.max()))
    return mean if low == high else f"{mean} [{low}, {high}]"


def draw_distribution(axis: Axes, tokens_IE: np.ndarray, others: Mapping[str, np.ndarray]) -> None:
    """Share of experts with at most x times the mean load: every iteration thin, all together thick."""
    tidy(axis, grid="both")
    for tokens_E in tokens_IE:
        axis.ecdf(tokens_E / tokens_E.mean(), color=SKY, linewidth=0.5, alpha=0.5)
    axis.ecdf(relative(tokens_IE), color=BLUE, linewidth=1.6, label="this campaign")
    for name, others_IE in others.items():
        axis.ecdf(relative(others_IE), **ELSEWHERE, label=name)
    axis.axvline(1, color=BLACK, linewidth=0.8, linestyle=":")
    axis.set_xscale("symlog", linthresh=1, base=2)
    axis.xaxis.set_major_formatter(lambda value, _: f"{value:g}×")
    axis.set_xlim(left=-0.05)
    axis.set_xlabel("tokens ÷ mean load (log scale from 1×)", fontsize=FONT)


def relative(tokens_IE: np.ndarray) -> np.ndarray:
    """Each expert's tokens over the mean of its iteration: [I * E]."""
    return (tokens_IE / tokens_IE.mean(axis=1, keepdims=True)).ravel()
