"""What a launch leaves beside its times: counted work, realised load, the inputs' digests, whether systems agree."""

from typing import Any

import numpy as np
import torch

from experiments.agreement import agree, digest_strings, digest_tensors
from experiments.bench import Bench
from systems.base import Account, System
from systems.collectives import all_gather
from workloads.batches import tokens_hash

UNITS = {
    **dict.fromkeys(["rows_computed", "rows_useful", "least_rows"], "rows"),
    "dropped": "tokens",
    **dict.fromkeys(["bytes_sent", "memory_bytes", "weight_bytes"], "bytes"),
    "flops": "flop",
    "predicted": "share",
}


def accounts(bench: Bench, cell: str, passes: dict[str, range]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Rows of what this rank computed, dropped and sent, and of its tokens per expert in the pass `measure`.

    passes: the iterations of each; a system may compute other rows in each.
    """
    keys = [(block, phase, i) for block in bench.program.layers for phase, which in passes.items() for i in which]
    found = bench.accountant.accounts([(cell, block, i) for block, _, i in keys])
    counted, routed = [], []
    for (block, phase, iteration), (tokens_GE, account) in zip(keys, found, strict=True):
        labels = {"cell": cell, "iteration": iteration, "layer": block}
        known = _known(bench, bench.systems[cell][block], account)
        counted += [
            {**labels, "phase": phase, "metric": name, "value": known[name], "unit": unit}
            for name, unit in UNITS.items()
            if known[name] is not None
        ]
        if phase == "measure":
            routed += [labels | row for row in _loads(bench, tokens_GE[bench.session.rank], block, iteration)]
    return counted, routed


def _known(bench: Bench, system: System, account: Account) -> dict[str, float | None]:
    shape = bench.program.shape
    weights = system.experts_held() * shape.expert_elements(shape.d_ff)
    flops = account.rows_computed * shape.row_flops(shape.d_ff)
    return vars(account) | {"flops": flops, "weight_bytes": weights * bench.program.dtype.itemsize}


def _loads(bench: Bench, tokens_E: torch.Tensor, block: int, iteration: int) -> list[dict[str, Any]]:
    """Realised and intended tokens of every expert that has either; intended is NaN for a learned router."""
    asked_E = bench.program.router.intended(bench.program.num_tokens, layer=block, iteration=iteration)
    intended_E = np.full(len(tokens_E), np.nan) if asked_E is None else asked_E
    experts = np.flatnonzero((tokens_E.numpy() > 0) | (intended_E > 0))
    columns = (column.tolist() for column in (experts, tokens_E[experts], intended_E[experts]))
    return [
        {"expert": expert, "tokens": tokens, "intended": intended}
        for expert, tokens, intended in zip(*columns, strict=True)
    ]


def agreement(bench: Bench, cells: list[str]) -> dict[str, dict[str, Any]]:
    """How far each cell's outputs are from the others' in the timed iterations; see `agreement.agree`."""
    lossless = [cell for cell in cells if not _has_own_rule(bench, cell) and not _drops(bench, cell)]
    shape_BX = (bench.workload.sequences_G[bench.session.rank], -1)
    experts = {
        cell: {
            i: torch.cat(
                [
                    bench.accountant.routings[cell, block, i].expert_TK.reshape(shape_BX)
                    for block in bench.program.layers
                ],
                dim=1,
            )
            for i in bench.sketches[cell]
        }
        for cell in lossless
    }
    return agree(
        {cell: bench.sketches[cell] for cell in lossless},
        experts,
        members=bench.members,
        precision=bench.workload.precision,
        num_layers=len(bench.program.layers),
        group=bench.session.group,
    )


def _has_own_rule(bench: Bench, cell: str) -> bool:
    return any(system.own_rule for system in bench.systems[cell].values())


def _drops(bench: Bench, cell: str) -> bool:
    """Whether any rank drops a token in any layer and timed iteration of either pass."""
    keys = [(cell, block, iteration) for block in bench.program.layers for iteration in sorted(bench.sketches[cell])]
    dropped = sum(account.dropped for _, account in bench.accountant.accounts(keys))
    mine = torch.tensor([float(dropped)], device=bench.session.device)
    return bool(all_gather(mine, bench.session.group).sum() > 0)


def inputs(bench: Bench, cells: list[str]) -> dict[str, dict[str, Any]]:
    """What each cell was given on this rank: digests of tokens, weights and routing, dtype and precision.

    Simulated weights have no values to digest.

    Over the iterations that every system of every launch has.
    """
    iterations = range(bench.workload.tier.rounds)
    shared = {
        "tokens": digest_strings([tokens_hash(bench.program.token_batch(i)) for i in iterations]),
        "dtype": str(bench.program.dtype).removeprefix("torch."),
        "matmul_precision": torch.get_float32_matmul_precision(),
    }
    if bench.session.device.type != "meta":
        own = {} if bench.workload.model.is_decoder else bench.program.weights  # decoders' gates are in their module
        routers = {f"router.{block}": layer.router() for block, layer in own.items()}
        shared["weights"] = digest_tensors({**bench.program.module.state_dict(), **routers})
    return {
        cell: shared
        | {
            "routing": digest_strings(
                [
                    bench.accountant.routings[cell, block, i].digest()
                    for block in bench.program.layers
                    for i in iterations
                ]
            )
        }
        for cell in cells
    }
