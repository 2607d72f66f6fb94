"""What a comparison of real and simulated runs comes to, in Markdown."""

import re

import pandas as pd

from analysis.labels import system_name
from analysis.studies.validation.compare import METRICS, orders, summary

MARKERS = "<!-- validation:{} -->"


def table(runs: pd.DataFrame, real: str) -> str:
    """The runs one by one, in Markdown; real: what the real ones are called."""
    several = runs["precision"].nunique() > 1
    lines = [
        f"| system |{' precision |' * several} experts | batch | layer, {real} | simulated | error | TTFT, {real} |"
        " simulated | error | |",
        "|---" * (10 + several) + "|",
    ]
    for run in runs.to_dict("records"):
        times = " | ".join(
            f"{run[f'{name}/real']:.1f} | {run[f'{name}/simulated']:.1f} | {100 * run[f'{name}/error']:+.1f} %"
            for name in METRICS
        )
        place = [run["system"], *[run["precision"]] * several, run["num_experts"], run["batch_size"]]
        lines.append(f"| {' | '.join(map(str, place))} | {times} | {'fitted' if run['fitted'] else ''} |")
    return "\n".join(lines)


def sentences(runs: pd.DataFrame) -> str:
    """What the table comes to."""
    found = summary(runs)
    lines = []
    for metric, name in METRICS.items():
        known, (right, total) = found[metric], orders(runs, metric)
        median, worst, ratio = (f"{100 * known[share]:.1f} %" for share in ("median", "worst", "ratio"))
        lines.append(
            f"- **{name}**: the {known['runs']:.0f} runs that were not fitted are wrong by {median} in the median and "
            f"{worst} at worst. The order of two programs is right in {right} of {total} comparisons that differ by "
            f"more than 10 %. Nine in ten ratios of two programs are within {ratio}: simulated systems nearer to one "
            "another than that are a tie."
        )
    return "\n".join(lines)


def by_system(runs: pd.DataFrame) -> str:
    """Median and worst error of each system, and of all."""
    lines = ["| median error, worst | cells | MoE layer | TTFT |", "|---|---|---|---|"]
    for system in [*sorted(set(runs["system"])), None]:
        mine = runs if system is None else runs.loc[runs["system"] == system]
        errors = (mine[f"{metric}/error"].abs() for metric in METRICS)
        told = " | ".join(f"{100 * one.median():.1f} %, {100 * one.max():.1f} %" for one in errors)
        lines.append(f"| {system_name(system) if system else 'all'} | {len(mine)} | {told} |")
    return "\n".join(lines)


def replace_block(text: str, name: str, block: str) -> str:
    """Put `block` between the markers `name` of a document; ValueError where it has none."""
    start, end = MARKERS.format(name), MARKERS.format("end")
    pattern = re.compile(f"({re.escape(start)}\n).*?({re.escape(end)})", re.DOTALL)
    if not pattern.search(text):
        raise ValueError(f"there is no block {start} ... {end} to replace")
    return pattern.sub(lambda found: f"{found[1]}{block}\n{found[2]}", text)
