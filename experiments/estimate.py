"""What a campaign will do and about how long it will take, said before anything runs."""

import math
import os
from collections import Counter
from dataclasses import replace

from experiments.ceilings import core_flops_per_s
from experiments.cells import Cell
from experiments.configuration import build_router, find_class, layer_shape, options
from experiments.plan import Plan
from experiments.records import Workload
from experiments.store import TO_MEASURE, Store
from systems.engines.base import DTYPES

LAUNCH_S = 5.0  # starting ranks, building and checking what runs on them
UTILISATION = 0.3  # of the matmul ceiling, over a whole forward pass on a CPU


def announce(plan: Plan, store: Store) -> str:
    """One line: launches, cells, forward passes, what is stored already and the estimated time of the rest."""
    state_of = store.states(plan.cells)
    states = Counter(state_of.values())
    lacking = [ids for ids in plan.launches if any(state_of[cell] in TO_MEASURE for cell in ids)]
    todo = [plan.cells[cell] for ids in lacking for cell in ids if state_of[cell] in ("ok", *TO_MEASURE)]
    passes = sum(num_passes(cell) for cell in todo)
    stored = f", {len(plan.cells) - len(todo)} cells stored already" if len(todo) < len(plan.cells) else ""
    failed = sum(count for state, count in states.items() if state not in ("ok", *TO_MEASURE))
    stored += f" ({failed} without numbers)" if failed else ""
    plural = "" if len(lacking) == 1 else "es"
    # How many a fast system has in a turn is known when it has run.
    least = "at least " if any(not cell.is_simulated and cell.config.tier.longest_turn > 1 for cell in todo) else ""
    plan_text = f"plan: {len(lacking)} launch{plural}, {len(todo)} cells, {least}{passes} forward passes{stored}"
    simulated = sum(cell.is_simulated for cell in todo)
    todo = [cell for cell in todo if not cell.is_simulated]
    lacking = [ids for ids in lacking if not plan.cells[ids[0]].is_simulated]
    times = [f"{simulated} cells are simulated first, seconds each"] if simulated else []
    return "; ".join([plan_text, *times, *([_duration(todo, len(lacking))] if todo else [])])


def networks(plan: Plan) -> list[str]:
    """A line for each network that emulated ranks are given: where its numbers come from."""
    emulated = [cell.config.network for cell in plan.cells.values() if cell.cluster.kind == "emulated"]
    return list(dict.fromkeys(f"network {one.name}: {one['source']}" for one in emulated if one.get("source")))


def num_passes(cell: Cell) -> int:
    """Forward passes of a cell: the first, warm-up, and in each round a turn of both passes, each of one at least.

    A simulated cell has warm-up and one pass for all.
    """
    tier = cell.config.tier
    if cell.is_simulated:
        return tier.warmup + tier.rounds
    return 1 + tier.warmup + 2 * tier.rounds


def forward_flops(cell: Cell) -> float:
    """FLOPs of one forward pass over all ranks: matrix products of the encoder and of the experts, padding included."""
    config, cluster = cell.config, cell.cluster
    model, shape = config.model, layer_shape(config)
    inner = model.num_heads * model.d_kv
    attention = 8 * model.d_model * inner + 4 * config.seq_len * inner
    dense_blocks = model.num_blocks - len(model.moe_blocks)
    ffn = shape.row_flops(shape.d_ff)
    system = find_class(config.system)
    every = system.every_option(**options(config.system, "system"))
    if "draws" in system.needs(**every):
        shape = replace(shape, max_expert_tokens=_busiest_expert(config))
    padding = system.padding(shape, cluster.world_size, **every)
    per_token = model.num_blocks * attention + (dense_blocks + len(model.moe_blocks) * shape.top_k * padding) * ffn
    return per_token * sum(config.tokens_G)


def _busiest_expert(workload: Workload) -> int | None:
    """Tokens that rank 0's busiest expert is meant to get in the first forward pass; None for a learned router."""
    router = build_router(workload, rank=0, classifier=None)
    block = workload.model.moe_blocks[0]
    intended_E = router.intended(layer_shape(workload).max_tokens, layer=block, iteration=0)
    return None if intended_E is None else math.ceil(intended_E.max())


def _duration(todo: list[Cell], num_launches: int) -> str:
    first = todo[0]
    if first.cluster.device == "cuda":
        return "the time is known after the first launch"
    ceiling = core_flops_per_s(DTYPES[first.config.precision], first.cluster.threads_per_rank)
    flops = sum(num_passes(cell) * forward_flops(cell) for cell in todo)
    seconds = num_launches * LAUNCH_S + flops / (ceiling * UTILISATION * _ranks_at_once(first))
    return f"about {_readable(seconds)} (rough: from FLOPs and this machine's matmul)"


def _ranks_at_once(cell: Cell) -> float:
    if cell.cluster.kind == "emulated":
        return 1
    return min(cell.cluster.world_size, len(os.sched_getaffinity(0)) / cell.cluster.threads_per_rank)


def _readable(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
