"""Published times on real devices and simulated ones on the described device, run by run."""

from pathlib import Path

import pandas as pd
from matplotlib.ticker import NullFormatter

from analysis.figures.canvas import SMALL, Picture, column_title, drawing, margins, new_figure, save, tidy
from analysis.labels import system_name, system_styles

SWEEPS = (
    ("num_experts", "batch_size", 250, "experts, batch 250"),
    ("batch_size", "num_experts", 128, "batch, 128 experts"),
)
METRICS = {"layer_moe_ms": "MoE layer, ms", "ttft_ms": "TTFT, ms"}
NOTE = (
    "Lines: the authors' runs on four A100s. Dots: the same programs, simulated on the described device; filled ones "
    "took part in fitting its three constants."
)


@drawing
def plot_validation(runs: pd.DataFrame, path: Path) -> Picture:
    """Write `path`.png and .svg from `validation.compare`."""
    styles = system_styles(list(dict.fromkeys(runs["system"])))
    figure = new_figure(height=4.6)
    axes = figure.subplots(len(METRICS), len(SWEEPS), sharex="col")
    for row, (metric, label) in zip(axes, METRICS.items(), strict=True):
        for axis, (x, fixed, value, title) in zip(row, SWEEPS, strict=True):
            for system, mine in runs.loc[runs[fixed] == value].sort_values(x).groupby("system"):
                colour = styles[system][0]
                axis.plot(mine[x], mine[f"{metric}/real"], color=colour, linewidth=1, label=system_name(str(system)))
                faces = [colour if fitted else "white" for fitted in mine["fitted"]]
                axis.scatter(mine[x], mine[f"{metric}/simulated"], c=faces, edgecolors=colour, s=22, zorder=3)
            axis.set_xscale("log", base=2)
            axis.set_yscale("log")
            axis.set_xticks(sorted(runs.loc[runs[fixed] == value, x].unique()))
            axis.xaxis.set_major_formatter("{x:.0f}")
            axis.yaxis.set_major_formatter("{x:.0f}")
            axis.yaxis.set_minor_formatter(NullFormatter())
            column_title(axis, title if metric == "layer_moe_ms" else "")
            tidy(axis)
        row[0].set_ylabel(label, fontsize=SMALL)
    lines, names = axes[0][0].get_legend_handles_labels()
    place = {"loc": "upper left", "bbox_to_anchor": (0.005, 1 - 0.3 / figure.get_figheight())}
    figure.legend(lines, names, ncols=3, fontsize=SMALL, frameon=False, **place)
    margins(figure, left=0.8, right=0.1, bottom=0.8, wspace=0.18)
    return save(figure, "Published on four A100s and simulated", NOTE, path)
