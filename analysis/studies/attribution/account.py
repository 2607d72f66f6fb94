"""Where the time between two systems goes: the account of each, and what the difference of two is made of.

The account of a forward pass adds up to it by construction; a difference is the difference of two accounts, and what
they leave of the difference end to end is the residual. docs/attribution.md has the definitions.
Letters: I iterations, L MoE layers, G ranks, S launches.
"""

from collections.abc import Iterable

import numpy as np
import pandas as pd
from scipy.stats import t

from analysis.frames import select
from analysis.load import TRUSTED, Campaign, correctness
from analysis.reduce import KEYS, SECTION, cubes

PARTS = ["padding", "experts", "imbalance", "communication", "waiting", "weights", "host", "kernels", "non_moe"]
TOTAL, RESIDUAL = "total", "residual"
WAITS = ["exposed", "transfer", "weights", "in_experts"]
IDLES = ["idle", "idle_in_experts"]  # of a simulated rank's device, whose host had not issued anything more yet
STAND_INS = ["metadata", "dispatch", "combine", "weights"]  # sections that stand for collectives that are not stored


def split(campaign: Campaign, panel: str, x: object, above: str, below: str) -> pd.DataFrame:
    """The difference of two systems at one point, above - below: rows PARTS, total and residual, in ms saved.

    Columns: value, ci_low, ci_high (95 %, launches are the units), launches. The parts and the residual add up to the
    total, the difference of TTFT end to end. Raises ValueError where one of the two has no verified measurement in a
    launch that both share.
    """
    cells = [cells_of(campaign, panel, x, system) for system in (above, below)]
    separable = tells_transfers(campaign, (cell for found in cells for cell in found.values()))
    accounts = [accounts_of(campaign, found, separable) for found in cells]
    launches = sorted(set(accounts[0].index) & set(accounts[1].index))
    if not launches:
        raise ValueError(f"{above} and {below} share no verified launch in panel {panel} at {x}.")
    return intervals(accounts[0].loc[launches] - accounts[1].loc[launches])


def intervals(account: pd.DataFrame) -> pd.DataFrame:
    """One row a column: mean over launches and its 95 % interval, nan for a single launch.

    On a linear scale, whatever the signs, for only means of milliseconds add up.
    """
    values_S, count = account.to_numpy(dtype=float), len(account)
    mean = values_S.mean(axis=0)
    half = t.ppf(0.975, count - 1) * values_S.std(axis=0, ddof=1) / np.sqrt(count) if count > 1 else np.nan
    found = {"value": mean, "ci_low": mean - half, "ci_high": mean + half, "launches": count}
    return pd.DataFrame(found, index=account.columns)


def panel_named(campaign: Campaign, name: str) -> dict:
    """The plan's node of a panel; ValueError naming those that are there."""
    panels = {panel["name"]: panel for panel in campaign.plan["panels"]}
    if name not in panels:
        raise ValueError(f"The plan has no panel {name}; it has {', '.join(panels)}.")
    return panels[name]


def cells_of(campaign: Campaign, panel: str, x: object, system: str) -> dict[int, str]:
    """The ok and verified cells of a system at a point by launch, twins left out."""
    points = [point["cells"] for point in panel_named(campaign, panel)["points"] if point["x"] == x]
    found: dict[int, str] = {}
    for cell in (cell for cells in points for cell in cells if cell in campaign.frames):
        run = campaign.runs[cell]
        if run["system"] != system or run["twin"] or correctness(run) not in TRUSTED:
            continue
        if run["launch"] in found:
            raise ValueError(
                f"Panel {panel} has two cells of {system} in launch {run['launch']} at {x}; one is allowed."
            )
        found[run["launch"]] = cell
    return found


def tells_transfers(campaign: Campaign, cells: Iterable[str]) -> bool:
    """Whether a cluster said when transfers began, which separates them from waiting for the slowest rank."""
    return any(len(campaign.collectives(cell)) for cell in cells)


def accounts_of(campaign: Campaign, cells: dict[int, str], separable: bool) -> pd.DataFrame:
    """Rows launches, columns PARTS, total and residual; launches without an instrumented pass have no row."""
    accounts = {launch: account(campaign, cell, separable) for launch, cell in sorted(cells.items())}
    found = {launch: parts for launch, parts in accounts.items() if parts is not None}
    return pd.DataFrame.from_dict(found, orient="index", columns=[*PARTS, TOTAL, RESIDUAL])


def account(campaign: Campaign, cell: str, separable: bool) -> dict[str, float] | None:
    """One launch of one system, in ms: PARTS (medians over iterations), total (TTFT end to end), residual.

    separable: the cluster tells when transfers began; otherwise `waiting` has communication and imbalance together.
    None without an instrumented pass.
    """
    samples, world_size = campaign.frames[cell], campaign.runs[cell]["point"]["world_size"]
    measured, observed = (cubes(samples, phase, world_size) for phase in ("measure", "instrumented"))
    if "layer_moe_ms" not in observed:
        return None
    observed = {"ttft_ms": measured["ttft_ms"]} | observed  # simulated ranks have one pass for both
    layer_ILG, nothing_ILG = observed["layer_moe_ms"], 0.0 * observed["layer_moe_ms"]
    if separable:
        places = select(samples, phase="instrumented", metric="layer_moe_ms")
        waits = exposures(campaign.collectives(cell), places, layer_ILG)
    else:
        waits = {"exposed": np.sum([observed.get(SECTION + name, nothing_ILG) for name in STAND_INS], axis=0)}
    if "idle_layer_moe_ms" in observed:
        idle_experts_ILG = observed.get("idle_section_ms/experts", nothing_ILG)
        waits |= {"idle": observed["idle_layer_moe_ms"], "idle_in_experts": idle_experts_ILG}
    parts_I = parts(layer_ILG, observed.get(f"{SECTION}experts", nothing_ILG), waits, useful_share(measured))
    parts_I["non_moe"] = observed["ttft_ms"].max(axis=(1, 2)) - layer_ILG.max(axis=2).sum(axis=1)
    found = {name: float(np.median(parts_I[name])) for name in PARTS}
    total = float(np.median(measured["ttft_ms"].max(axis=(1, 2))))
    return found | {TOTAL: total, RESIDUAL: total - sum(found.values())}


def parts(
    layer_ILG: np.ndarray, experts_ILG: np.ndarray, waits: dict[str, np.ndarray], useful_LG: np.ndarray
) -> dict[str, np.ndarray]:
    """The parts [I] of all MoE layers: their sum is the sum over layers of the slowest rank's time.

    waits: by the names of WAITS; without transfers the time that ranks are held up is `waiting`, with them `imbalance`;
    with IDLES what is not computing of experts is split into host and other kernels.
    """
    exposed, transfer, weights, in_experts, idle, idle_in_experts = (
        waits.get(name, 0.0 * layer_ILG) for name in (*WAITS, *IDLES)
    )
    own_IL = (layer_ILG - exposed).mean(axis=2)
    computing_ILG = experts_ILG - in_experts - idle_in_experts
    useful_IL, moved_IL = (useful_LG * computing_ILG).mean(axis=2), transfer.mean(axis=2)
    experts_IL, weights_IL = computing_ILG.mean(axis=2), weights.mean(axis=2)
    held_up_IL, none_IL = layer_ILG.max(axis=2) - own_IL - moved_IL, 0.0 * own_IL
    found_IL = {
        "padding": experts_IL - useful_IL,
        "experts": useful_IL,
        "imbalance": held_up_IL if "transfer" in waits else none_IL,
        "communication": moved_IL - weights_IL,
        "waiting": none_IL if "transfer" in waits else held_up_IL,
        "weights": weights_IL,
    }
    rest_IL, idle_IL = own_IL - experts_IL, idle.mean(axis=2)
    found_IL["host"] = idle_IL if "idle" in waits else rest_IL
    found_IL["kernels"] = rest_IL - found_IL["host"]
    return {name: part_IL.sum(axis=1) for name, part_IL in found_IL.items()}


def exposures(collectives: pd.DataFrame, places: pd.DataFrame, layer_ILG: np.ndarray) -> dict[str, np.ndarray]:
    """What each rank waited for collectives inside its layer, [I, L, G] in ms, by the names of WAITS.

    exposed: from when it waited until they finished; transfer: the part of it in which data moved; weights: transfer
    in section weights; in_experts: exposed in section experts. What computation hides is in none of them.
    places: the rows behind layer_ILG, for their iterations and layers.
    """
    rows = {name: collectives[name].to_numpy() for name in ("section", *KEYS)}
    times = {name: collectives[f"{name}_ms"].to_numpy(dtype=float) for name in ("waited", "started", "finished")}
    at = (*(np.searchsorted(np.unique(places[key]), rows[key]) for key in KEYS[:2]), rows["rank"])
    end = np.minimum(times["finished"], layer_ILG[at])
    waited = np.clip(np.nan_to_num(times["waited"], nan=np.inf), 0.0, None)  # nobody waited: nobody was held up
    exposed = np.clip(end - waited, 0.0, None)
    transfer = np.clip(end - np.maximum(waited, times["started"]), 0.0, None)
    of = {"exposed": exposed, "transfer": transfer}
    of |= {"weights": transfer * (rows["section"] == "weights"), "in_experts": exposed * (rows["section"] == "experts")}
    found = {name: np.zeros_like(layer_ILG) for name in WAITS}
    for name, spent in of.items():
        np.add.at(found[name], at, spent)
    return found


def useful_share(measured: dict[str, np.ndarray]) -> np.ndarray:
    """Useful rows of those computed over all iterations, [L, G]; 1 where none was computed or counted."""
    if "rows_computed" not in measured or "rows_useful" not in measured:
        return np.ones(1)
    computed_LG, useful_LG = (measured[name].sum(axis=0) for name in ("rows_computed", "rows_useful"))
    return np.divide(useful_LG, computed_LG, out=np.ones_like(computed_LG), where=computed_LG > 0)
