"""How far a described device is from the real one: real runs beside the same runs, simulated.

    python -m analysis.validation results/validate                     # the published runs, of experiment=validate
    python -m analysis.validation SIMULATED... --measured MEASURED...  # campaigns of experiment=alone
    python -m analysis.validation results/validate_here                # one campaign that has both

Tables and figure go into docs/, and the error that reports of simulated campaigns go by into devices/validated.json.
"""

import argparse
import json
import sys
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from analysis.fidelity import launch_medians, replace_block
from analysis.figures.validation import plot_validation
from analysis.frames import select
from analysis.labels import system_name
from analysis.load import Campaign, load_campaign
from analysis.model_error import VALIDATED
from analysis.reduce import reduce_cell
from analysis.reference import load_reference
from analysis.stats import median_of

DOCUMENT = Path(__file__).parents[1] / "docs" / "validation.md"
# Systems that run the published programs, and what those are called in results/reference/paper_runs.csv.
PROGRAMS = {
    "deepspeed": ("deepspeed", "deepspeed"),
    "moeshard_authors": ("moeshard", "megablocks"),
    "moeshard_authors_loop": ("moeshard", "loop"),
}
# The runs that constants of conf/device/a100_sxm.yaml were chosen on: (program, experts, batch size).
FITTED = {
    ("moeshard_authors", 128, 10),
    ("moeshard_authors", 128, 250),
    ("moeshard_authors_loop", 128, 10),
    ("moeshard_authors_loop", 128, 100),
    ("moeshard_authors_loop", 256, 250),
}
METRICS = {"layer_moe_ms": "layer", "ttft_ms": "TTFT"}
KEYS = ["system", "num_experts", "batch_size"]
POINT = ["precision", "num_experts", "batch_size"]
# Of our own runs, those by which constants of conf/device were chosen: `unrepeated` and `scan_row_us`.
CHOSEN_POINT, CHOSEN_SYSTEM = ("bf16", 128, 10), "deepspeed"


def compare(campaign: Campaign, published: pd.DataFrame) -> pd.DataFrame:
    """A row for each run: both times, published and simulated, in ms, their relative errors, and whether it was fitted.

    Raises ValueError for a run that has no numbers.
    """
    rows = []
    for cell, run in campaign.runs.items():
        if run["state"] != "ok":
            raise ValueError(f"{run['system']} at {run['point']} has no times: {run['reason']}")
        key = (run["system"], run["point"]["num_experts"], run["point"]["batch_size"])
        place = dict(zip(KEYS, key, strict=True)) | {"precision": run["precision"], "fitted": key in FITTED}
        rows.append(place | _beside(published_times(published, *key), medians(campaign, cell)))
    order = list(PROGRAMS)
    return pd.DataFrame(rows).sort_values(KEYS, key=lambda c: c.map(order.index) if c.name == "system" else c)


def compare_measured(simulated: list[Campaign], measured: list[Campaign]) -> pd.DataFrame:
    """The same rows, of every run that was measured; ValueError for one that was not simulated on one device."""
    ours = {run_key(run): medians(campaign, cell) for campaign in simulated for cell, run in campaign.runs.items()}
    rows = []
    for campaign in measured:
        for cell, run in campaign.runs.items():
            if run["state"] != "ok":
                continue
            key = run_key(run)
            if key not in ours:
                raise ValueError(f"{campaign.folder} measured {key}, which {simulated[0].folder} has not simulated")
            place: dict[str, Any] = dict(zip(["system", *POINT], key, strict=True))
            place["fitted"] = key[0] == CHOSEN_SYSTEM or key[1:] == CHOSEN_POINT
            rows.append(place | _beside(medians(campaign, cell), ours[key]))
    return pd.DataFrame(rows).sort_values([*POINT, "system"])


def run_key(run: dict[str, Any]) -> tuple[str, str, int, int]:
    """What two runs must share to be compared: (system, precision, experts, batch size)."""
    return run["system"], run["precision"], run["point"]["num_experts"], run["point"]["batch_size"]


def _beside(real: dict[str, float], ours: dict[str, float]) -> dict[str, float]:
    row = {}
    for metric in METRICS:
        row |= {f"{metric}/real": real[metric], f"{metric}/simulated": ours[metric]}
        row[f"{metric}/error"] = ours[metric] / real[metric] - 1
    return row


def published_times(runs: pd.DataFrame, system: str, num_experts: int, batch_size: int) -> dict[str, float]:
    """The medians of a published run: the slowest rank's forward pass, and its layers."""
    name, engine = PROGRAMS[system]
    (row,) = select(runs, system=name, engine=engine, num_experts=num_experts, batch_size=batch_size).to_dict("records")
    layers = [value for column, value in row.items() if str(column).startswith("layer")]
    return {"ttft_ms": float(row["ttft_max_rank_median_ms"]), "layer_moe_ms": float(np.median(layers))}


def medians(campaign: Campaign, cell: str) -> dict[str, float]:
    """The same medians of a cell."""
    reduced = reduce_cell(campaign.frames[cell], campaign.runs[cell]["point"]["world_size"])
    return {metric: float(median_of(reduced[metric])) for metric in METRICS}


def summary(runs: pd.DataFrame) -> dict[str, dict[str, float]]:
    """By metric, of the runs that were not fitted: median and worst error, and that of a ratio of two runs of a point.

    ratio: what nine in ten of those errors are within.
    """
    held_out = runs.loc[~runs["fitted"]]
    found = {}
    for metric in METRICS:
        errors = held_out[f"{metric}/error"].abs()
        known = {
            "median": errors.median(),
            "worst": errors.max(),
            "ratio": float(np.quantile(ratios(runs, metric), 0.9)),
        }
        found[metric] = {name: round(float(value), 4) for name, value in known.items()} | {"runs": len(held_out)}
    return found


def ratios(runs: pd.DataFrame, metric: str) -> np.ndarray:
    """The errors of all ratios of two programs at one point that are not both of fitted runs, as positive shares."""
    found = []
    for _, point in runs.groupby(POINT):
        for one, other in combinations(point.to_dict("records"), 2):
            if not (one["fitted"] and other["fitted"]):
                found.append(abs(np.log((1 + one[f"{metric}/error"]) / (1 + other[f"{metric}/error"]))))
    return np.expm1(np.array(found))


def orders(runs: pd.DataFrame, metric: str, least: float = 0.1) -> tuple[int, int]:
    """(in how many comparisons of two programs at one point the order is right, of how many that differ by `least`)."""
    right = total = 0
    for _, point in runs.groupby(POINT):
        for one, other in combinations(point.to_dict("records"), 2):
            real, ours = (one[f"{metric}/{of}"] / other[f"{metric}/{of}"] for of in ("real", "simulated"))
            if abs(np.log(real)) > np.log1p(least):
                total, right = total + 1, right + ((real > 1) == (ours > 1))
    return right, total


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


def here(campaign: Campaign) -> str:
    """Simulated over measured, less 1, of a campaign of experiment=validate_here, by system; in Markdown.

    Raises ValueError where no cell has both.
    """
    times: Any = launch_medians(campaign)
    times = times.loc[~times["twin"] & times["metric"].isin(list(METRICS))]
    log_ms = np.log(times["value"]).groupby([times[name] for name in ("source", "system", "x", "metric")]).mean()
    if not {"emulated", "simulated"} <= set(times["source"]):
        raise ValueError(f"{campaign.folder} has no cells that are both measured and simulated")
    errors = np.expm1(log_ms["simulated"] - log_ms["emulated"]).abs().dropna()
    lines = ["| median error, worst | cells | MoE layer | TTFT |", "|---|---|---|---|"]
    for system in [*errors.index.unique("system"), None]:
        mine = errors if system is None else errors.xs(system, level="system", drop_level=False)
        by_metric = [mine.xs(metric, level="metric") for metric in METRICS]
        told = " | ".join(f"{100 * one.median():.1f} %, {100 * one.max():.1f} %" for one in by_metric)
        lines.append(f"| {system_name(system) if system else 'all'} | {len(by_metric[0])} | {told} |")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    """Write table, figure and errors; 2 where the campaigns cannot be used."""
    parser = argparse.ArgumentParser(
        prog="python -m analysis.validation",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("campaign", type=Path, nargs="+")
    parser.add_argument("--measured", type=Path, nargs="+", default=[], help="what the campaigns simulate")
    parser.add_argument("--document", type=Path, default=DOCUMENT)
    parser.add_argument("--errors", type=Path, default=VALIDATED)
    given = parser.parse_args(arguments)
    try:
        campaigns = [load_campaign(path) for path in given.campaign]
        if campaigns[0].plan["experiment"] == "validate_here":
            given.document.write_text(replace_block(given.document.read_text(), "here", found := here(campaigns[0])))
            print(found)
            return 0
        if given.measured:
            runs, real = compare_measured(campaigns, [load_campaign(path) for path in given.measured]), "measured"
        else:
            runs, real = compare(campaigns[0], load_reference().runs), "published"
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    device = next(iter(campaigns[0].runs.values()))["config"]["device"]["name"]
    known = json.loads(given.errors.read_text()) if given.errors.exists() else {}
    given.errors.write_text(json.dumps(known | {device: summary(runs)}, indent=1) + "\n")
    text = replace_block(given.document.read_text(), device, f"{sentences(runs)}\n\n{table(runs, real)}")
    given.document.write_text(text)
    if not given.measured:
        plot_validation(runs, given.document.parent / "figures" / f"validation_{device}")
    print(sentences(runs))
    return 0


if __name__ == "__main__":
    sys.exit(main())
