"""A small campaign in the stored schema, with medians, floors and shares that are known in advance.

Shape letters: I iterations, L MoE layers, G ranks, E experts.
"""

import json
import zlib
from hashlib import sha256
from itertools import cycle
from pathlib import Path

import numpy as np
import pandas as pd

SCHEMA, WORLD_SIZE, LAYERS, BLOCK = 2, 4, (1, 3), 5
# The last rank is the slowest; a mean over ranks would give 0.7 of it.
RANK_G = np.array([0.4, 0.6, 0.8, 1.0])
WRONG_MS = 1e6  # what the first call and the warm-up hold: one of them in a statistic would show
OBSERVED = 1.02  # an instrumented pass takes 2 % longer
TWIN = 1.01  # the second half of an A/A pair is 1 % slower: the noise floor of every campaign
SECTIONS = {"route": 0.05, "metadata": 0.05, "dispatch": 0.2, "experts": 0.5, "combine": 0.2}  # shares of a layer
CEILINGS = {"matmul_flops_per_s": 1e11, "copy_bytes_per_s": 1e10, "dtype": "float32", "threads": 1}
BOUND = 0.5  # experts take twice as long as their flops would at the matmul ceiling
GAIN = {8: 2.0, 64: 6.0, 256: 3.0, 1: 0.5, 10: 2.0, 45: 4.0}
DEVICE = {"name": "a100_sxm", "title": "A100", "identity": "0123456789abcdef", "source": "data sheet"}
SIMULATED = {"source": "simulated", "device": DEVICE, "correctness": None, "precision": "tf32", "tier": "once"}
# What devices/validated.json would say: ratios of layers within 6 % are ties.
VALIDATED = {
    "a100_sxm": {
        "layer_moe_ms": {"median": 0.04, "worst": 0.12, "ratio": 0.06, "runs": 22},
        "ttft_ms": {"median": 0.03, "worst": 0.1, "ratio": 0.05, "runs": 22},
    }
}
WRITTEN: dict[str, dict[str, bytes]] = {}  # files of cells that some test has written before
SHARED = {"section": None, "layer": None, "unit": "ms"}


def offsets(cell: str, iterations: int, noise: float) -> np.ndarray:
    """Symmetric about zero, so that the median is known, and in a shuffled order, so that there is no drift: [I]."""
    return noise * np.random.default_rng(zlib.crc32(cell.encode())).permutation(np.linspace(-1, 1, iterations))


def rows(metric: str, value_IG: np.ndarray, phase: str = "measure", **columns) -> dict:
    """One row an iteration and rank, as columns."""
    iteration, rank = np.indices(value_IG.shape).reshape(2, -1)
    values = {"iteration": iteration, "rank": rank, "value": value_IG.ravel(), "metric": metric, "phase": phase}
    return SHARED | values | columns


def table(parts: list[dict]) -> pd.DataFrame:
    """Parts one below the other; what is one value stands in each row."""
    sized = [(part, len(part["value"])) for part in parts]
    whole = {name: np.concatenate([np.broadcast_to(part[name], n) for part, n in sized]) for name in parts[0]}
    return pd.DataFrame(whole)


def end_to_end(values: dict, offset_I: np.ndarray) -> list[dict]:
    """The measured pass and what comes before it."""
    ones_IG = np.ones((len(offset_I), WORLD_SIZE))
    ttft_IG = values["ttft_ms"] * (1 + offset_I)[:, None] * RANK_G
    frames = [rows("ttft_ms", ttft_IG)]
    frames += [rows("ttft_ms", WRONG_MS * ones_IG[:1], phase) for phase in ("first", "warmup")]
    units = {
        "rows_computed": "rows",
        "rows_useful": "rows",
        "dropped": "tokens",
        "bytes_sent": "bytes",
        "flops": "flop",
        "memory_bytes": "bytes",
    }
    for metric in [name for name in units if name in values]:
        by_rank = RANK_G if metric in ("flops", "bytes_sent") else np.arange(1, WORLD_SIZE + 1)
        for layer in LAYERS:
            frames.append(rows(metric, values[metric] * ones_IG * by_rank, layer=layer, unit=units[metric]))
    return frames


def instrumented(values: dict, offset_I: np.ndarray) -> list[dict]:
    """The second pass: ranks meet before each layer, then layers and sections are timed."""
    scale_IG = (1 + offset_I)[:, None] * RANK_G
    frames = [rows("ttft_ms", OBSERVED * values["ttft_ms"] * scale_IG, "instrumented")]
    for layer in LAYERS if "layer_moe_ms" in values else ():
        layer_IG = values["layer_moe_ms"] * scale_IG
        frames.append(rows("layer_moe_ms", layer_IG, "instrumented", layer=layer))
        frames.append(rows("entry_skew_ms", 1 - RANK_G + 0 * layer_IG, "instrumented", layer=layer))
        for section, share in SECTIONS.items():
            frames.append(rows("section_ms", share * layer_IG, "instrumented", layer=layer, section=section))
    return frames


def sample_rows(run: dict, values: dict, iterations: int, noise: float, turns: dict) -> pd.DataFrame:
    """Every row of one cell. `turns`: place of each iteration in its phase's interleaved order."""
    offset_I = offsets(run["cell"], iterations, noise)
    frame = table(end_to_end(values, offset_I) + instrumented(values, offset_I))
    ours = {"campaign": "c1", "cell": run["cell"], "launch": run["launch"], "source": run["source"], "schema": SCHEMA}
    place = np.array([turns.get(i, i) for i in range(iterations)])
    frame = frame.assign(**ours, order=place[frame["iteration"]])
    frame["time"] = 1.8e9 + 1000 * run["launch"] + 0.1 * frame["order"]
    kinds = {"layer": "Int64", "section": "string", "order": "Int64"}
    return frame.astype(kinds)


def routing_rows(point: dict, iterations: int) -> pd.DataFrame:
    """Counts drawn from the probabilities behind `intended`: expert 0 is twice as popular as the others."""
    num_experts, tokens = point["num_experts"], point["batch_size"] * point["seq_len"]
    share_E = np.r_[2.0, np.ones(num_experts - 1)] / (num_experts + 1)
    shape_LIG = (len(LAYERS), iterations, WORLD_SIZE)
    drawn_LIGE = np.random.default_rng(num_experts + tokens).multinomial(tokens, share_E, size=shape_LIG)
    layer, iteration, rank, expert = np.indices(drawn_LIGE.shape).reshape(4, -1)
    keys = {"layer": np.array(LAYERS)[layer], "iteration": iteration, "rank": rank, "expert": expert}
    return pd.DataFrame(keys | {"tokens": drawn_LIGE.ravel(), "intended": tokens * share_E[expert]})


def document(cell: str, spec: dict) -> dict:
    """run.json of a quiet, correct cell, with whatever `spec` changes."""
    iterations = spec.get("iterations", 5)
    tier = {"name": spec.get("tier", "quick"), "launches": 2, "warmup": 1}
    tier |= {"rounds": -(-iterations // BLOCK), "turn_s": 0, "longest_turn": BLOCK}
    quiet = {"load_1min": 0.1, "busy_share": 0.01, "gpus": []}
    during = {"busy_cpu_s": 10.0, "own_cpu_s": 9.9, "steal_s": 0.0, "wall_s": 10.0, "cores": 2}
    agreement = {"with": ["deepspeed", "moeshard"], "iterations": 2 * iterations, "relative_error": 1e-6}
    correctness = {"relative_error": 1e-6, "tolerance": 1e-4, "dropped_as_accounted": True, "passed": True}
    digests = {name: [f"{name}{rank}" for rank in range(WORLD_SIZE)] for name in ("tokens", "routing")}
    settings = {"weights": ["weights"] * 4, "dtype": ["float32"] * 4, "matmul_precision": ["highest"] * 4}
    git = {"git_commit": "1234567", "git_dirty": False, "lock_sha256": "ab" * 32, "variables": {}}
    host = {"python": "3.11.9", "packages": {"torch": "2.13.0"}, "platform": "Linux", "cpu": "a CPU", "cores": 2}
    config = {"cluster": {"kind": "emulated", "device": "cpu"}, "network": {"name": "nvlink3"}, "tier": tier}
    config |= {
        "router": {"_target_": "routers.synthetic.SyntheticRouter", "name": "synthetic"},
        "scale": {"name": "laptop"},
    }
    seconds = {"build": 2.0, "verify": 1.0, "warmup": 1.0, "measure": 5.0, "instrumented": 2.0}
    run = {"schema": SCHEMA, "cell": cell, "campaign": "c1", "state": "ok", "reason": None, "traceback": None}
    run |= {"engine": "grouped", "precision": "fp32", "source": "emulated", "launch": 0, "twin": False}
    run |= {"tier": tier["name"], "config": config, "seed": 0, "environment": host | {"gpus": []} | git}
    run |= {"correctness": correctness | {"agreement": agreement | {"tolerance": 2e-5, "passed": True}}}
    run |= {"schedule": {"iterations": iterations, "turn": BLOCK}}
    run |= {"started": "2026-11-22T10:00:00", "finished": "2026-11-22T10:00:11", "seconds": seconds}
    run |= {"inputs": digests | settings, "machine": {"before": quiet, "after": quiet, "during": during}}
    run |= {"ceilings": CEILINGS, "launch_id": f"launch{spec.get('launch', 0)}", "checksums": {}}
    return run | {key: spec[key] for key in spec if key not in ("values", "iterations", "noise", "turns")}


def write_cell(folder: Path, cell: str, spec: dict) -> None:
    """One cell's run.json and, in state ok, samples.parquet and routing.parquet."""
    target = folder / "cells" / cell
    target.mkdir(parents=True)
    key = f"{cell} {spec}"
    if key not in WRITTEN:
        WRITTEN[key] = files_of(cell, spec)
    for name, content in WRITTEN[key].items():
        (target / name).write_bytes(content)


def files_of(cell: str, spec: dict) -> dict[str, bytes]:
    """What write_cell writes."""
    run, tables = document(cell, spec), {}
    if run["state"] == "ok":
        iterations = spec.get("iterations", 5)
        values = spec["values"]
        if "layer_moe_ms" in values:
            experts_s = SECTIONS["experts"] * values["layer_moe_ms"] / 1e3
            values = {"flops": BOUND * experts_s * CEILINGS["matmul_flops_per_s"], "bytes_sent": 1e6} | values
        samples = sample_rows(run, values, iterations, spec.get("noise", 0.02), spec.get("turns", {}))
        frames = {"samples.parquet": samples, "routing.parquet": routing_rows(run["point"], iterations)}
        tables = {name: frame.to_parquet() for name, frame in frames.items()}
        run["checksums"] = {name: sha256(content).hexdigest() for name, content in tables.items()} | run["checksums"]
    return tables | {"run.json": json.dumps(run).encode()}


def checksum(path: Path) -> str:
    return sha256(path.read_bytes()).hexdigest()


def write_plan(folder: Path, panels: list[dict], baseline: str | None = "deepspeed", **changes) -> None:
    plan = {"schema": SCHEMA, "experiment": folder.name, "campaign": "c1", "scale": "laptop", "tier": "quick"}
    plan |= {"baseline": baseline, "twin": "moeshard", "seed": 0, "launches": []}
    panels = [{"kind": "speedup", "published": []} | panel for panel in panels]
    (folder / "plan.json").write_text(json.dumps(plan | {"panels": panels} | changes))


def point(num_experts: int = 128, batch_size: int = 25) -> dict:
    return {"num_experts": num_experts, "batch_size": batch_size, "seq_len": 120, "world_size": WORLD_SIZE}


def take_turns(cells: list[str], iterations: int) -> dict[str, dict[int, int]]:
    """A B C C B A: the place of every iteration of every cell."""
    turns, place = {cell: {} for cell in cells}, 0
    for i, order in zip(range(iterations), cycle([cells, cells[::-1]])):
        for cell in order:
            turns[cell][i], place = place, place + 1
    return turns


def launch_specs(x_name: str, x: int, launch: int, middle: float, common: dict, twins: bool) -> dict[str, dict]:
    """The cells of one launch: DeepSpeed, MoEShard and MoEShard again. Launches differ by 1 %, about their middle."""
    specs = {}
    level = {"deepspeed": np.exp(0.01 * (launch - middle)), "moeshard": np.exp(0.015 * (launch - middle))}
    for system in ("deepspeed", "moeshard", *(["moeshard"] if twins else [])):
        twin = f"{system}_{x_name}_{x}_{launch}" in specs
        factor = GAIN[x] if system == "moeshard" else 1.0
        slower = level[system] * (TWIN if twin else 1.0)
        values = {"ttft_ms": slower * 400 / (max(factor / 2, 0.5) if system == "moeshard" else 1.0)}
        values |= {"layer_moe_ms": slower * 60 / factor, "rows_computed": 30.0, "rows_useful": 10.0}
        values |= {"dropped": 1.0 if system == "deepspeed" else 0.0}
        spec = {"system": system, "point": point(**{x_name: x}), "launch": launch, "values": values, "twin": twin}
        spec |= common | {"launch_id": f"{x_name}_{x}_{launch}"}
        spec |= {"engine": "deepspeed"} if system == "deepspeed" else {}
        specs[f"{system}_{x_name}_{x}_{launch}" + ("_twin" if twin else "")] = spec
    turns = take_turns(list(specs), common["iterations"])
    return {cell: spec | {"turns": turns[cell]} for cell, spec in specs.items()}


def write_fig3(
    folder: Path,
    experts=(8, 64, 256),
    batches=(1, 10),
    launches: int = 2,
    iterations: int = 5,
    tier: str = "quick",
    twins: bool = True,
    everywhere: dict | None = None,
    **changes: dict | None,
) -> Path:
    """A campaign with the two panels of Figure 3; `changes` overrides a cell's spec by its id, None leaves it out;
    `everywhere` overrides all.

    Medians: DeepSpeed 400 ms TTFT and 60 ms a layer; MoEShard's are those over GAIN (layer) and half of it (TTFT).
    """
    folder.mkdir(parents=True, exist_ok=True)
    panels, launched, common = [], [], {"iterations": iterations, "tier": tier} | (everywhere or {})
    for name, x_name, xs in (("fig3a", "num_experts", experts), ("fig3b", "batch_size", batches)):
        panel = {"name": name, "title": f"Figure 3{name[-1]}", "x_name": x_name, "points": []}
        panel["published"] = [f"3{name[-1]}", f"4{name[-1]}"]
        for x in xs:
            cells = []
            for launch in range(launches):
                specs = launch_specs(x_name, x, launch, (launches - 1) / 2, common, twins)
                for cell, spec in specs.items():
                    if changes.get(cell, {}) is not None:
                        write_cell(folder, cell, spec | (changes.get(cell) or {}))
                launched.append({"id": f"{x_name}_{x}_{launch}", "launch": launch, "cells": list(specs)})
                cells += specs
            published_x = x if x_name == "num_experts" else 10 * x
            panel["points"].append({"x": x, "published_x": published_x, "cells": cells})
        panels.append(panel)
    write_plan(folder, panels, tier=tier, launches=launched, twin="moeshard" if twins else None)
    return folder
