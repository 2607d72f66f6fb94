"""How far emulated times are from real ones: the same cells on real processes and emulated, side by side.

`python -m analysis.fidelity CAMPAIGN` pairs each panel P of a campaign with P_emulated; `--emulated OTHER` pairs equal
panels of two campaigns (a launch that exists already, as under torchrun, cannot be part of the same one).
"""

import argparse
import itertools
import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.stats import ttest_ind

from analysis.figures.fidelity import plot_fidelity
from analysis.labels import system_name
from analysis.load import Campaign, load_campaign
from analysis.reduce import SECTION
from analysis.series import series_of_points
from analysis.stats import Floor, median_of, noise_floor_of, outside, ratio_interval

SHARED = ("model", "router", "corpus", "tier", "batch_size", "seq_len", "precision", "seed")
METRICS = {"ttft_ms": "TTFT", "layer_moe_ms": "MoE layer"}
EMULATED = "_emulated"
KEYS = ["panel", "x", "system", "metric"]
MARKERS = "<!-- fidelity:{} -->"


def launch_medians(campaign: Campaign) -> pd.DataFrame:
    """One row a panel, point, system, twin, metric and launch: the median of the slowest rank's times."""
    rows = [
        {"panel": place["experiment"], "x": place["x"], "system": one.system, "twin": one.twin, "source": one.source}
        | {"metric": metric, "launch": launch, "value": median_of(values)}
        for place, series, _ in series_of_points(campaign)
        for one in series
        if one.passed
        for metric in timed_metrics(one.launches)
        for launch, values in one.arrays(metric).items()
    ]
    return pd.DataFrame(rows, columns=["panel", "x", "system", "twin", "source", "metric", "launch", "value"])


def timed_metrics(launches: dict[int, dict[str, np.ndarray]]) -> list[str]:
    """What is compared of a series: METRICS and the sections, in the order of recording."""
    found = dict.fromkeys(name for launch in launches.values() for name in launch)
    return [name for name in found if name in METRICS or name.startswith(SECTION)]


def paired(times: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Real and emulated times of one campaign, under the real panel's name; ValueError where there is no pair."""
    emulated = times.loc[times["panel"].str.endswith(EMULATED)]
    emulated = emulated.assign(panel=emulated["panel"].str.removesuffix(EMULATED))
    real = times.loc[times["panel"].isin(emulated["panel"])]
    if real.empty:
        raise ValueError(
            f"no panel has times on both clusters: a panel P needs P{EMULATED}; "
            f"there are {', '.join(times['panel'].unique()) or 'none'}"
        )
    return real, emulated


def compare(real: pd.DataFrame, emulated: pd.DataFrame) -> pd.DataFrame:
    """Emulated over real, less 1, of each panel, point, system and metric that both have, with a 95 % interval.

    Columns: KEYS, real and emulated (geometric means over launches, ms), error, low, high. Launches of the two are
    independent, so the interval is Welch's on the logarithms of their medians. Twins are left out.
    """
    for frame, source in ((real, "measured"), (emulated, "emulated")):
        if wrong := set(frame["source"]) - {source}:
            raise ValueError(f"times that should be {source} are {', '.join(sorted(wrong))}")
    theirs = {key: rows["value"] for key, rows in emulated.loc[~emulated["twin"]].groupby(KEYS)}
    rows = [
        dict(zip(KEYS, key, strict=True)) | one_error(rows["value"].to_numpy(), theirs[key].to_numpy())
        for key, rows in real.loc[~real["twin"]].groupby(KEYS)
        if key in theirs
    ]
    return pd.DataFrame(rows, columns=[*KEYS, "real", "emulated", "error", "low", "high"])


def one_error(real_S: np.ndarray, emulated_S: np.ndarray) -> dict[str, float]:
    """The columns of `compare` but its keys, from one median a launch; nan without an interval."""
    real, emulated = np.log(real_S), np.log(emulated_S)
    low, high = np.nan, np.nan
    if min(len(real), len(emulated)) > 1 and max(np.ptp(real), np.ptp(emulated)) > 1e-12:
        interval = ttest_ind(emulated, real, equal_var=False).confidence_interval(0.95)
        low, high = np.expm1(interval.low), np.expm1(interval.high)
    means = {"real": float(np.exp(real.mean())), "emulated": float(np.exp(emulated.mean()))}
    error = means["emulated"] / means["real"] - 1
    return means | {"error": error, "low": float(low), "high": float(high)}


def real_floor(real: pd.DataFrame) -> dict[str, Floor]:
    """What two real runs of one system differ by within a launch, by metric; {} without twins."""
    floors = {}
    for metric in METRICS:
        rows = real.loc[real["metric"] == metric]
        keys = ["panel", "x", "system", "launch"]
        twins = rows.loc[rows["twin"]].set_index(keys)["value"]
        ratios = (twins / rows.loc[~rows["twin"]].set_index(keys)["value"]).dropna()
        if len(ratios):
            floors[metric] = noise_floor_of(ratios.to_list())
    return floors


def orderings(real: pd.DataFrame, emulated: pd.DataFrame) -> pd.DataFrame:
    """Every pair of systems at a point: real and emulated ratio, whether the real one is beyond the A/A floor, and
    whether both name the same system the faster one."""
    floors, rows = real_floor(real), []
    for (panel, x, metric), here in real.loc[~real["twin"] & real["metric"].isin(METRICS)].groupby(
        ["panel", "x", "metric"]
    ):
        there = emulated.loc[~emulated["twin"] & (emulated["panel"] == panel) & (emulated["x"] == x)]
        times = [by_launch(here), by_launch(there.loc[there["metric"] == metric])]
        for one, other in itertools.combinations(sorted(times[0].keys() & times[1].keys()), 2):
            (ratio, low, high), (emulated_ratio, *_) = (system_ratio(side[one], side[other]) for side in times)
            known = outside(low, high, floors.get(str(metric)))
            rows.append(
                {"panel": panel, "x": x, "metric": metric, "one": one, "other": other, "real": ratio}
                | {"emulated": emulated_ratio, "beyond_floor": known, "agree": (ratio > 1) == (emulated_ratio > 1)}
            )
    return pd.DataFrame(rows)


def by_launch(rows: pd.DataFrame) -> dict[str, pd.Series]:
    """The times of each system, indexed by launch."""
    return {str(system): pd.Series(group.set_index("launch")["value"]) for system, group in rows.groupby("system")}


def system_ratio(one: pd.Series, other: pd.Series) -> tuple[float, float, float]:
    """one / other over the launches that both have, with its interval."""
    shared = one.index.intersection(other.index)
    sides = ([np.array([time]) for time in side.loc[shared]] for side in (one, other))
    return ratio_interval(*sides)


def by_system(errors: pd.DataFrame) -> pd.DataFrame:
    """One row a system and one for all: number of cells, median and worst absolute error of each metric in percent."""
    groups = [*((name, rows) for name, rows in errors.groupby("system")), ("all", errors)]
    return pd.DataFrame([{"system": name, "cells": num_cells(rows)} | summed(rows) for name, rows in groups])


def num_cells(errors: pd.DataFrame) -> int:
    """Cells are panel, point and system."""
    return len(errors.drop_duplicates(["panel", "x", "system"]))


def summed(errors: pd.DataFrame) -> dict[str, float]:
    """Median and worst absolute error of each metric, and of the sections that matter, in percent."""
    found = {}
    metrics = {**{metric: errors["metric"] == metric for metric in METRICS}, "sections": section_rows(errors)}
    for name, chosen in metrics.items():
        absolute = 100 * errors.loc[chosen, "error"].abs()
        found |= {f"{name} median": absolute.median(), f"{name} worst": absolute.max()}
    return found


def section_rows(errors: pd.DataFrame) -> pd.Series:
    """Sections that take at least a tenth of their layer: the error of a few microseconds is no one's concern."""
    layers = errors.loc[errors["metric"] == "layer_moe_ms"].set_index(KEYS[:3])["real"]
    layer_ms = pd.Series([layers.get(tuple(key), np.nan) for key in errors[KEYS[:3]].to_numpy()], index=errors.index)
    return errors["metric"].str.startswith(SECTION) & (errors["real"] >= 0.1 * layer_ms)


def markdown(errors: pd.DataFrame, order: pd.DataFrame, floors: dict[str, Floor]) -> str:
    """The table of docs/fidelity.md, with a sentence on the order of systems and one on the noise of the real runs."""
    lines = [
        "| median, worst error of | cells | TTFT | MoE layer | sections over 10 % of it |",
        "|---|---|---|---|---|",
    ]
    for row in by_system(errors).to_dict("records"):
        cells = [f"{row[f'{name} median']:.1f} %, {row[f'{name} worst']:.1f} %" for name in (*METRICS, "sections")]
        lines.append(f"| {system_name(row['system'])} | {row['cells']} | {' | '.join(cells)} |")
    return "\n".join([*lines, "", order_sentence(order), floor_words(floors)])


def order_sentence(order: pd.DataFrame) -> str:
    """How many comparisons that real runs decide the emulator decides alike, and how far its ratios are off."""
    if order.empty or not any(order["beyond_floor"]):
        return "Order of systems: no two are known to differ in the real runs by more than their noise."
    known = order.loc[order["beyond_floor"]]
    wrong = known.loc[~known["agree"]]
    text = f"Order of systems: emulated and real agree in {known['agree'].sum()} of the {len(known)} comparisons"
    text += f" (of {len(order)}) whose real difference is beyond the noise."
    named = [
        f"{system_name(r['one'])} / {system_name(r['other'])} at {r['x']} ({METRICS[r['metric']]}: real "
        f"{r['real']:.2f}, emulated {r['emulated']:.2f})"
        for r in wrong.to_dict("records")
    ]
    off = 100 * np.abs(known["emulated"] / known["real"] - 1)
    text += f" Their speed-ups differ by {off.median():.1f} % in the median, {off.max():.1f} % at worst."
    return text + (f" Not: {'; '.join(named)}." if named else "")


def floor_words(floors: dict[str, Floor]) -> str:
    """The sentence about the noise of real runs."""
    words = [f"{METRICS[name]} {100 * floor.value:.1f} % ({floor.n_pairs} pairs)" for name, floor in floors.items()]
    told = ", ".join(words) or "not measured"
    return f"Two real runs of one system in one launch differ, in 95 % of the pairs, by at most: {told}."


def replace_block(text: str, name: str, block: str) -> str:
    """Put `block` between the markers `name` of a document; ValueError where it has none."""
    start, end = MARKERS.format(name), MARKERS.format("end")
    pattern = re.compile(f"({re.escape(start)}\n).*?({re.escape(end)})", re.DOTALL)
    if not pattern.search(text):
        raise ValueError(f"there is no block {start} ... {end} to replace")
    return pattern.sub(lambda found: f"{found[1]}{block}\n{found[2]}", text)


def held_against(campaign: Campaign, other: Campaign | None) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Real and emulated times; ValueError where the two differ in more than the cluster."""
    times = launch_medians(campaign)
    if other is not None:
        if differing := sorted(differences(campaign, other)):
            raise ValueError(
                f"{campaign.folder} and {other.folder} differ in {', '.join(differing)}: not the same cells"
            )
        return times, launch_medians(other)
    return paired(times)


def differences(one: Campaign, other: Campaign) -> set[str]:
    """Keys of the workload, but for cluster and network, in which two campaigns do not agree."""
    values = [{key: set() for key in SHARED} for _ in (one, other)]
    for campaign, found in zip((one, other), values, strict=True):
        for cell in campaign.frames:
            for key in SHARED:
                found[key].add(json.dumps(campaign.runs[cell]["config"][key], sort_keys=True))
    return {key for key in SHARED if values[0][key] != values[1][key]}


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m analysis.fidelity", description=__doc__)
    parser.add_argument("campaign", type=Path)
    parser.add_argument("--emulated", type=Path, help="a second campaign, with the same panels emulated")
    parser.add_argument("--document", type=Path, help="a Markdown file whose block is replaced by the table")
    parser.add_argument("--block", default="table", help="the name of that block")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table; write fidelity.csv, fidelity.md and the figure into the campaign's folder."""
    given = arguments(argv)
    try:
        campaign = load_campaign(given.campaign)
        real, emulated = held_against(campaign, load_campaign(given.emulated) if given.emulated else None)
        errors = compare(real, emulated)
        if errors.empty:
            raise ValueError(f"{given.campaign}: no cell was measured on both clusters")
        table = markdown(errors, orderings(real, emulated), real_floor(real))
        errors.to_csv(given.campaign / "fidelity.csv", index=False)
        (given.campaign / "fidelity.md").write_text(table + "\n")
        picture = plot_fidelity(errors, given.campaign / "fidelity", note="")
        if given.document:
            given.document.write_text(replace_block(given.document.read_text(), given.block, table))
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(table, f"\nwrote {', '.join(str(p) for p in (given.campaign / 'fidelity.csv', picture.png, picture.svg))}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
