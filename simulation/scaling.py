"""`python -m simulation.scaling CAMPAIGN`: MoE layer time and memory per rank against the number of ranks.

A cost model (`simulation.model`) is fitted to the campaign's cells with fewer ranks, held against those with most,
and then asked for numbers of ranks that nobody measured. Everything it says is marked `simulated`.
"""

import argparse
import sys
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from rich.console import Console

from analysis.frames import select
from analysis.labels import number, system_name
from analysis.load import Campaign, load_campaign
from analysis.report import in_terminal
from clusters.network import NetworkModel
from simulation.figures import plot_scaling
from simulation.model import CostModel, NotModelled, Observation, expected_tokens, fit, observe, work_of
from simulation.networks import Stretched, load_network
from simulation.recorded import PANEL, panel_cells

RANKS = [2**n for n in range(1, 10)]  # 2..512
SOURCE = "simulated"
TIMES = ["layer_ms", "low_ms", "high_ms"]


def observations_of(campaign: Campaign, panel: str) -> tuple[dict[str, list[Observation]], list[str]]:
    """Measured cells by system, and a sentence for each system that the model does not cover."""
    seen: dict[str, list[Observation]] = defaultdict(list)
    refused: dict[str, str] = {}
    for cell in panel_cells(campaign, panel):
        try:
            seen[campaign.runs[cell]["system"]].append(observe(campaign, cell))
        except NotModelled as reason:
            refused[campaign.runs[cell]["system"]] = f"{campaign.runs[cell]['system']} is not modelled: {reason}."
    return dict(seen), list(refused.values())


def split(observations: list[Observation]) -> tuple[list[Observation], list[Observation]]:
    """Cells with fewer ranks, and those with most ranks, which no coefficient has seen."""
    most = max(one.run["point"]["world_size"] for one in observations)
    held = [one for one in observations if one.run["point"]["world_size"] == most]
    return [one for one in observations if one not in held], held


def errors(model: CostModel, observations: Iterable[Observation]) -> pd.DataFrame:
    """Predicted and measured layer times of cells, each on the network that it was recorded on.

    quiet_ms: the measured time without the machine's noise, which no model of work can foresee.
    """
    rows = [
        one.run["point"]
        | {"cell": one.cell, "system": one.system, "launch": one.run["launch"], "measured_ms": one.layer_ms}
        | {"predicted_ms": model.layer_ms(one.work, one.network()), "quiet_ms": one.quiet_ms()}
        for one in observations
    ]
    frame = pd.DataFrame(rows)
    return frame.assign(error=frame["predicted_ms"] / frame["measured_ms"] - 1)


def predict(
    model: CostModel, config: dict[str, Any], num_experts: int, network: NetworkModel, factor: float
) -> list[dict[str, Any]]:
    """Layer time and memory of a system by number of ranks; a row with a reason where it cannot run.

    low_ms and high_ms: what ranks compute divided and multiplied by `factor`, with the same transfers.
    """
    rows = []
    for ranks in RANKS:
        row = {"system": config["system"]["name"], "num_experts": num_experts, "ranks": ranks, "source": SOURCE}
        try:
            work = work_of(config, expected_tokens(config, num_experts, ranks))
            layer_ms, compute_ms = model.layer_ms(work, network), model.compute_ms(work)
        except ValueError as reason:
            rows.append(row | dict.fromkeys([*TIMES, "memory_mb"], np.nan) | {"reason": str(reason)})
            continue
        row |= {"layer_ms": layer_ms, "low_ms": layer_ms - (1 - 1 / factor) * compute_ms}
        row |= {"high_ms": layer_ms + (factor - 1) * compute_ms, "memory_mb": work.memory_G.max() / 1e6}
        rows.append(row | {"reason": ""})
    return rows


def measured(observations: list[Observation], network: NetworkModel) -> list[dict[str, Any]]:
    """What was measured, priced on `network` where it knows so many ranks."""
    rows = []
    for one in observations:
        point = one.run["point"]
        place = {"system": one.system, "num_experts": point["num_experts"], "ranks": point["world_size"]}
        try:
            layer_ms = one.layer_ms_on(network)
        except ValueError:
            continue
        rows.append(place | {"layer_ms": layer_ms, "source": "emulated, replayed", "cell": one.cell})
    return rows


class Scaling:
    """The fitted models of a campaign's systems with their errors on cells that they have not seen."""

    def __init__(self, campaign: Campaign, panel: str = PANEL) -> None:
        self.observations, self.refused = observations_of(campaign, panel)
        self.models: dict[str, CostModel] = {}
        held_out = []
        for system, seen in self.observations.items():
            train, held = split(seen)
            if not train:
                raise ValueError(f"panel {panel} has one number of ranks only; an extrapolation needs at least two")
            self.models[system] = fit(train)
            held_out.append(errors(self.models[system], held))
        if not held_out:
            raise ValueError(f"no system of panel {panel} can be modelled: {' '.join(self.refused)}")
        self.held_out = pd.concat(held_out, ignore_index=True)

    @property
    def matmul_flops_per_s(self) -> float:
        """The best of all launches; a lower one was disturbed."""
        return max(one.run["ceilings"]["matmul_flops_per_s"] for seen in self.observations.values() for one in seen)

    def factor(self, system: str) -> float:
        """The worst error of a system on cells that it was not fitted to, as a factor: 1.2 is 20 % either way."""
        mine = select(self.held_out, system=system)
        return float(np.exp(np.abs(np.log(mine["predicted_ms"] / mine["measured_ms"])).max()))

    def rows(self, num_experts: int, network: NetworkModel, stretch: float = 1.0) -> pd.DataFrame:
        """Predictions and measured points; with `stretch` as on ranks that compute so many times as fast."""
        slowed = Stretched(network, stretch)
        rows = []
        for system, seen in self.observations.items():
            config, factor = seen[0].run["config"], self.factor(system)
            rows += predict(self.models[system], config, num_experts, slowed, factor)
            rows += measured([one for one in seen if one.run["point"]["num_experts"] == num_experts], slowed)
        frame = pd.DataFrame(rows)
        return frame.assign(**{name: frame[name] / stretch for name in TIMES})


def errors_table(held_out: pd.DataFrame) -> pd.DataFrame:
    """Median and worst error by system on the cells with most ranks, and how much of their time is noise."""
    rows = []
    for system in dict.fromkeys(held_out["system"]):
        mine = select(held_out, system=system)
        worst = mine.loc[mine["error"].abs().idxmax()]
        texts = {
            "system": system_name(system),
            "cells": str(len(mine)),
            "median error, %": f"{100 * mine['error'].abs().median():.0f}",
            "worst, %": f"{100 * worst['error']:+.0f}",
            "at": f"E = {worst['num_experts']}, {worst['world_size']} ranks",
            "noise in the measured, %": f"{100 * (1 - mine['quiet_ms'] / mine['measured_ms']).median():.0f}",
        }
        rows.append(texts)
    return pd.DataFrame(rows)


def shown(rows: pd.DataFrame) -> pd.DataFrame:
    """Predicted layer time and memory, a row a number of ranks."""
    predicted = select(rows, source=SOURCE)
    columns: dict[str, list[str]] = {"ranks": [str(ranks) for ranks in RANKS]}
    for system in dict.fromkeys(predicted["system"]):
        mine = select(predicted, system=system).set_index("ranks").reindex(RANKS)
        columns[f"{system_name(system)}, ms"] = [number(value) for value in mine["layer_ms"]]
        columns[f"{system_name(system)}, MB"] = [number(value) for value in mine["memory_mb"]]
    return pd.DataFrame(columns)


def ends(rows: pd.DataFrame, *, why: bool = True) -> list[str]:
    """A sentence for each number of ranks at which systems end: the first that they cannot run with, and why."""
    stopped = rows.loc[rows["reason"].fillna("") != ""].drop_duplicates("system")
    together: dict[tuple[int, str], list[str]] = defaultdict(list)
    for row in stopped.to_dict("records"):
        together[row["ranks"], f" ({row['reason']})" if why else ""].append(system_name(row["system"]))
    return [f"Not with {ranks} ranks: {', '.join(names)}{reason}." for (ranks, reason), names in together.items()]


def rate(flops_per_s: float) -> str:
    """640 TFLOP/s, or 36.4 GFLOP/s."""
    scale, unit = (1e12, "T") if flops_per_s >= 1e12 else (1e9, "G")
    return f"{number(flops_per_s / scale)} {unit}FLOP/s"


def main(arguments: list[str] | None = None) -> int:
    """Print and draw the prediction; 2 where the campaign cannot be used."""
    parser = argparse.ArgumentParser(prog="python -m simulation.scaling", description="Extrapolate to many ranks.")
    parser.add_argument("campaign", type=Path)
    parser.add_argument("--network", default="nodes_h200", help="a name of conf/network (default: nodes_h200)")
    parser.add_argument("--experts", type=int, nargs="+", default=[256, 512], help="a figure for each (256 512)")
    parser.add_argument("--panel", default=PANEL, help=f"the panel to learn from ({PANEL})")
    parser.add_argument("--flops", type=float, help="FLOP/s of a rank, if not the measured ceiling of the campaign")
    given = parser.parse_args(arguments)
    try:
        run(given, Console())
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def run(given: argparse.Namespace, console: Console) -> None:
    """Fit, print the errors, and for each number of experts a table and a figure in CAMPAIGN/simulated."""
    network, campaign = load_network(given.network), load_campaign(given.campaign)
    scaling, folder = Scaling(campaign, given.panel), given.campaign / "simulated"
    folder.mkdir(exist_ok=True)
    stretch = given.flops / scaling.matmul_flops_per_s if given.flops else 1.0
    flops = rate(given.flops or scaling.matmul_flops_per_s)
    most = int(max(scaling.held_out["world_size"]))
    console.print(
        in_terminal(f"Error of the model on cells with {most} ranks, not fitted", errors_table(scaling.held_out)), ""
    )
    for num_experts in given.experts:
        rows = scaling.rows(num_experts, network, stretch)
        title = f"One MoE layer with {num_experts} experts, {network.name}, {flops} a rank (simulated)"
        console.print(in_terminal(title, shown(rows)), "")
        for sentence in [*ends(rows), *scaling.refused]:
            console.print(sentence, highlight=False)
        path = folder / f"scaling_{given.network}_{num_experts}"
        rows.to_csv(path.with_suffix(".csv"), index=False)
        picture = plot_scaling(rows, path, title=title, note=note(scaling, rows, most))
        console.print(f"wrote {picture.png} (and .svg, .csv)", highlight=False, soft_wrap=True)


def note(scaling: Scaling, rows: pd.DataFrame, most: int) -> str:
    """What the lines, points and bands are."""
    sentences = [
        f"Lines: a cost model fitted to emulated ranks, fewer than {most}; bands: what ranks compute with its worst",
        f"error on {most} ranks, which further away may be larger. Points: measured computation with transfers of this",
        "network. Noise of machines is not modelled.",
        *ends(rows, why=False),
    ]
    return " ".join(sentences)


if __name__ == "__main__":
    sys.exit(main())
