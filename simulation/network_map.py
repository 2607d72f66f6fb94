"""`python -m simulation.network_map CAMPAIGN`: which system wins with how many ranks on which network, by replay.

The map's x axis is the machine's balance, FLOP per byte of the slowest link: the matmul rate of a rank / bandwidth. It
says how long a rank's transfers take beside its matrix products whatever the speed of either, so a map that was
recorded on slow ranks holds for fast ones with a link that is faster by as much.
"""

import argparse
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from rich.console import Console

from analysis.figures.maps import plot_map
from analysis.labels import number
from analysis.load import Campaign, load_campaign
from analysis.maps import COLUMNS, border_sentence, borders, map_rows, winner_text, winners
from analysis.report import in_terminal
from analysis.stats import median_of
from clusters.network import Network, NetworkModel
from simulation.model import ELEMENT_SIZES
from simulation.networks import load_network
from simulation.recorded import PANEL, LayerRun, as_IL, layer_runs, panel_cells
from simulation.replay import replay

SOURCE = "simulated"
BALANCES = (0.25, 8, 32, 128, 512, 2048)  # FLOP/byte
NAMED = ("nvlink4", "nvlink3", "pcie4", "ib_ndr", "ib_hdr", "nodes_h200", "nodes_a100")
TCP = {"base_us": 30.0, "hop_us": 10.0, "source": "assumed: 94 % of the line rate, latency of TCP in one rack"}
ETHERNET = (Network("ethernet_10g", bandwidth_gbs=1.175, **TCP), Network("ethernet_1g", bandwidth_gbs=0.1175, **TCP))
SWITCH_BASE_D_FF = 3072
CAVEAT = (
    "Simulated: measured computation, replayed transfers. Machines stand where their transfers are to their matrix "
    "products as here, for Switch-Base; what the host does beside them (launches, per-expert loops) does not scale "
    "with the matmul rate, so on a GPU it weighs more than here."
)


@dataclass(frozen=True)
class Machine:
    """A device and its link: FLOP/s that a matmul reaches, bytes/s of a collective, bytes of a number."""

    name: str
    flops_per_s: float
    bytes_per_s: float
    element_size: int


# Peak of the data sheet x the share that a large matmul reaches; bandwidths as in conf/network.
MACHINES = (
    Machine("A100, NVLink 3, tf32", 0.72 * 156e12, 235e9, 4),
    Machine("H200, NVLink 4, bf16", 0.65 * 989e12, 360e9, 2),
    Machine("A100, PCIe 4, tf32", 0.72 * 156e12, 24.7e9, 4),
    Machine("H200, NDR InfiniBand, bf16", 0.65 * 989e12, 47e9, 2),
)


def equivalent_balance(machine: Machine, d_ff: int, element_size: int) -> float:
    """FLOP/byte at which this campaign's model has the transfers per matrix product that Switch-Base has on `machine`.

    A row of d numbers of b bytes is moved for 4 d d_ff FLOP, so transfer / product = balance x b / (4 d_ff).
    """
    ours, theirs = element_size / d_ff, machine.element_size / SWITCH_BASE_D_FF
    return machine.flops_per_s / machine.bytes_per_s * theirs / ours


class Recorded:
    """The cells of a panel with one number of experts, their collectives read once."""

    def __init__(self, campaign: Campaign, num_experts: int, panel: str = PANEL) -> None:
        cells = panel_cells(campaign, panel)
        self.runs = {c: campaign.runs[c] for c in cells if campaign.runs[c]["point"]["num_experts"] == num_experts}
        if not self.runs:
            found = sorted({campaign.runs[cell]["point"]["num_experts"] for cell in cells})
            raise ValueError(f"panel {panel} has no cell with {num_experts} experts; it has {found}")
        self.layers: dict[str, list[LayerRun]] = {cell: layer_runs(campaign, cell) for cell in self.runs}

    @property
    def matmul_flops_per_s(self) -> float:
        """The best of all launches; a lower one was disturbed."""
        return max(run["ceilings"]["matmul_flops_per_s"] for run in self.runs.values())

    def rows(self, x: object, network: NetworkModel) -> list[dict]:
        """Layer times, in ms, of all cells on a network, as rows of a map; without those it has no time for."""
        rows = []
        for cell, run in self.runs.items():
            try:
                ms_IL = as_IL(self.layers[cell], [float(replay(one, network).max()) for one in self.layers[cell]])
            except ValueError:
                continue
            place = (x, run["point"]["world_size"], run["system"], run["launch"])
            rows.append(dict(zip(COLUMNS, (*place, median_of(ms_IL), SOURCE), strict=True)))
        return rows

    def over_balance(self, balances: Iterable[float], base_us: float, hop_us: float) -> pd.DataFrame:
        """A map's frame over machine balance, FLOP/byte, at one latency."""
        rows = []
        for balance in balances:
            bandwidth_gbs = self.matmul_flops_per_s / balance / 1e9
            rows += self.rows(balance, Network("link", base_us, hop_us, bandwidth_gbs=bandwidth_gbs))
        return pd.DataFrame(rows, columns=COLUMNS)

    def over_networks(self, networks: Iterable[NetworkModel]) -> pd.DataFrame:
        """A map's frame over named networks."""
        return pd.DataFrame([row for network in networks for row in self.rows(network.name, network)], columns=COLUMNS)

    def marks(self) -> pd.DataFrame:
        """Machines as points above the map, and the network that was recorded with the ranks that were measured."""
        config = next(iter(self.runs.values()))["config"]
        size, d_ff = ELEMENT_SIZES[config["precision"]], config["model"]["d_ff"]
        at = {machine.name: equivalent_balance(machine, d_ff, size) for machine in MACHINES}
        network = config["network"]
        if np.isfinite(bandwidth_gbs := network.get("bandwidth_gbs", np.inf)):
            at[f"as recorded ({network['name']})"] = self.matmul_flops_per_s / bandwidth_gbs / 1e9
        return pd.DataFrame([{"x": x, "y": np.nan, "group": name, "label": ""} for name, x in at.items()])


def networks_table(frame: pd.DataFrame) -> pd.DataFrame:
    """A row a network, a column a number of ranks: the winner and its margin."""
    won = {(row["x"], row["y"]): winner_text(row) for row in winners(frame).to_dict("records")}
    ranks = sorted(frame["y"].unique().tolist())
    rows = [[x, *(won.get((x, y), "–") for y in ranks)] for x in frame["x"].unique()]
    return pd.DataFrame(rows, columns=["network", *(f"{y} ranks" for y in ranks)])


def main(arguments: list[str] | None = None) -> int:
    """Price a campaign's cells on other networks; 2, with a sentence, for a folder that cannot be."""
    parser = argparse.ArgumentParser(prog="python -m simulation.network_map", description="Map of ranks and networks.")
    parser.add_argument("campaign", type=Path)
    parser.add_argument("--experts", type=int, default=128, help="the panel's cells with so many experts (128)")
    parser.add_argument("--panel", default=PANEL, help=f"the panel that was recorded ({PANEL})")
    parser.add_argument("--base-us", type=float, default=6.6, help="latency of a collective, microseconds (6.6)")
    parser.add_argument("--hop-us", type=float, default=0.6, help="latency of each of its steps, microseconds (0.6)")
    given = parser.parse_args(arguments)
    try:
        run(given, Console())
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def run(given: argparse.Namespace, console: Console) -> None:
    """Print both maps as tables and draw the one over balance into CAMPAIGN/simulated."""
    recorded = Recorded(load_campaign(given.campaign), given.experts, given.panel)
    folder = given.campaign / "simulated"
    folder.mkdir(exist_ok=True)
    frame = recorded.over_balance(BALANCES, given.base_us, given.hop_us)
    title = f"Ranks and network, {given.experts} experts: one MoE layer (simulated)"
    text = map_rows(frame, None).astype(str).rename(columns=lambda name: "ranks" if name == "y" else str(name))
    console.print(in_terminal(f"{title}, by FLOP per byte", text), "")
    named = recorded.over_networks([*map(load_network, NAMED), *ETHERNET])
    cores = f"{title}: if ranks as slow as this machine's had this network"
    console.print(in_terminal(cores, networks_table(named)), "")
    latency = f"Latency {given.base_us:g} µs and {given.hop_us:g} µs a step."
    rate = f"A rank's matmul reaches {number(recorded.matmul_flops_per_s / 1e9)} GFLOP/s here."
    sentence = border_sentence(borders(frame), "flops_per_byte", "ranks")
    picture = plot_map(
        frame,
        folder / f"ranks_network_{given.experts}",
        title=title,
        note=" ".join([CAVEAT, latency, rate]),
        x_name="flops_per_byte",
        y_name="ranks",
        points=recorded.marks(),
        x_label="machine balance: FLOP/s of a rank's matmul ÷ bytes/s of its link",
        y_label="ranks",
    )
    for name, table in (("balance", frame), ("networks", named)):
        table.to_csv(folder / f"ranks_network_{given.experts}_{name}.csv", index=False)
    console.print(*filter(None, [sentence, CAVEAT, f"wrote {picture.png} (and .svg, .csv)"]), sep="\n", highlight=False)


if __name__ == "__main__":
    sys.exit(main())
