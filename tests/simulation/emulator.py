"""Small programs run by the emulator's rules (docs/emulation.md), written anew, and campaigns of what they leave.

Letters: G ranks. A program is a list of steps; each rank computes steps' milliseconds before issuing or waiting.
"""

import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from simulation.networks import build_network
from simulation.replay import transfer_ms
from simulation.work import Transfer
from tests.analysis.synthetic import checksum, write_cell, write_plan

NETWORK = {"_target_": "clusters.network.Network", "name": "wire", "base_us": 20.0, "hop_us": 1.0, "bandwidth_gbs": 0.5}


LATE_MS = 0.0003


class Step(NamedTuple):
    """compute_G: ms before it. Issue `transfer` (asynchronously or not), or wait for the collective of that number."""

    compute_G: np.ndarray
    transfer: Transfer | None = None
    asynchronous: bool = False
    wait: int = 0


def emulate(steps: list[Step], network) -> tuple[pd.DataFrame, np.ndarray]:
    """Rows of the collectives and each rank's time at the end, in ms; the last step has neither issue nor wait."""
    ranks = len(steps[0].compute_G)
    now_G, link_free, pending, rows = np.zeros(ranks), 0.0, [], []

    def complete(k: int) -> None:
        nonlocal now_G, link_free
        while pending and pending[0][0] <= k:
            number, issued_G, step = pending.pop(0)
            ready_G = np.maximum(issued_G, link_free)
            started = ready_G.max()
            moved = (step.transfer.collective, step.transfer.sent_GG)
            link_free = started + transfer_ms(network, *moved, started - ready_G.min())
            waited_G = np.maximum(now_G, issued_G)
            now_G = np.maximum(now_G, link_free)
            for g in range(ranks):
                sent = step.transfer.sent_GG[g]
                times = {"issued_ms": issued_G[g], "waited_ms": waited_G[g], "started_ms": started}
                times |= {"finished_ms": link_free, "resumed_ms": 0.0}
                place = {"sequence": number, "rank": g, "ranks": ranks, "collective": step.transfer.collective}
                moved = {"bytes_sent": sent.sum(), "bytes_received": step.transfer.sent_GG[:, g].sum()}
                rows.append(place | times | moved | {"sent_to": sent.tolist(), "asynchronous": step.asynchronous})

    issues = 0
    for step in steps:
        now_G = now_G + step.compute_G
        if step.transfer:
            pending.append((issues, now_G.copy(), step))
            issues += 1
            if not step.asynchronous:
                complete(issues - 1)
        elif step is not steps[-1]:
            complete(step.wait)
    return pd.DataFrame(rows), now_G


class Layers(NamedTuple):
    """One cell: a program for each iteration and layer, and what it was."""

    system: dict
    point: dict
    launch: int
    programs: dict[tuple[int, int], list[Step]]
    tokens_GE: np.ndarray


def write(folder: Path, layers: Layers, x: int, *, emulated: bool = True, **changes) -> str:
    """Store one cell; returns its id."""
    cell = f"{layers.system['name']}_{x}_{layers.point['world_size']}_{layers.launch}"
    config = {"system": layers.system, "network": NETWORK, "precision": "ieee", "engine": None, "seed": 0}
    config |= {"model": {"d_model": 16, "d_ff": 64, "num_experts": layers.point["num_experts"]}}
    config |= {"batch_size": layers.point["batch_size"], "seq_len": layers.point["seq_len"]}
    config |= {"router": {"_target_": "routers.synthetic.SyntheticRouter", "name": "synthetic", "alpha": 0.6}}
    config |= {"cluster": {"kind": "emulated", "device": "cpu"}, "tier": {"block": 1}}
    spec = {"system": layers.system["name"], "point": layers.point, "launch": layers.launch, "state": "failed"}
    write_cell(folder, cell, spec | {"config": config, "launch_id": cell, "tier": "smoke"})
    target = folder / "cells" / cell
    run = json.loads((target / "run.json").read_text()) | {"state": "ok", **changes}
    collectives, samples = recorded(layers, cell)
    samples.to_parquet(target / "samples.parquet")
    routing(layers).to_parquet(target / "routing.parquet")
    if emulated:
        collectives.to_parquet(target / "collectives.parquet")
    run["checksums"] = {path.name: checksum(path) for path in target.glob("*.parquet")}
    (target / "run.json").write_text(json.dumps(run))
    return cell


def recorded(layers: Layers, cell: str) -> tuple[pd.DataFrame, pd.DataFrame]:
    """collectives.parquet and samples.parquet of a cell."""
    frames, samples = [], []
    for (iteration, layer), steps in layers.programs.items():
        rows, end_G = emulate(steps, build_network(NETWORK))
        # The layer's own clock starts a moment after the ranks met, on each rank another.
        late_G = LATE_MS * np.arange(len(end_G))
        times = [name for name in rows if name.endswith("_ms")]
        rows[times] = rows[times].sub(late_G[rows["rank"]], axis=0)
        end_G = end_G - late_G
        frames.append(rows.assign(iteration=iteration, layer=layer, section="dispatch"))
        samples += [
            {"iteration": iteration, "layer": layer, "rank": g, "value": end, "metric": "layer_moe_ms"}
            for g, end in enumerate(end_G)
        ]
    shared = {"phase": "instrumented", "section": None, "cell": cell, "source": "emulated", "schema": 2, "unit": "ms"}
    return pd.concat(frames), pd.DataFrame(samples).assign(**shared)


def routing(layers: Layers) -> pd.DataFrame:
    rank, expert = np.indices(layers.tokens_GE.shape).reshape(2, -1)
    rows = pd.DataFrame({"rank": rank, "expert": expert, "tokens": layers.tokens_GE.ravel(), "intended": np.nan})
    return pd.concat([rows.assign(iteration=i, layer=layer) for i, layer in layers.programs])


def write_panel(folder: Path, cells: dict[tuple[int, int], list[str]]) -> None:
    """plan.json with the panel of experts and ranks; cells by (experts, ranks)."""
    points = [{"x": x, "y": y, "published_x": None, "cells": names} for (x, y), names in cells.items()]
    panel = {"name": "map_experts_ranks", "title": "Ranks", "kind": "map", "x_name": "num_experts"}
    write_plan(folder, [panel | {"y_name": "world_size", "points": points}], baseline=None)
