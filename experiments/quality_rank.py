"""What a rank finds of the quality of outputs: systems and the dense model guess the same tokens, one after the other.

Letters in names: B sequences of L tokens, N guesses, V vocabulary, T tokens of a batch, D d_model, P passages.
"""

import faulthandler
import json
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist

from clusters.network import Network
from clusters.session import Session, connect
from experiments.bench import Bench
from experiments.program import Program, Start
from experiments.records import Launch, read
from experiments.worker import Progress, follow_parent
from routers.drawn import PROFILE_FROM
from systems.base import System
from systems.collectives import all_gather
from workloads.checkpoint import open_checkpoint
from workloads.guesses import Task, logits, task_of

CEILINGS = {"matmul_flops_per_s": 1e11, "link_bytes_per_s": 2e11}  # planners weigh by them; no output depends on them
DENSE = ""  # the name of the dense model among those of systems


class Pass(NamedTuple):
    """Scores of all guesses [N, V], and by MoE block what the layer gave [T, D] and the token copies it dropped."""

    logits_NV: torch.Tensor
    output_TD: dict[int, torch.Tensor]
    dropped: dict[int, int]


def quality_rank(path: str) -> None:
    """Entry point of a process; `path` is that of a Launch. Rank 0 leaves quality.json in its folder."""
    launch = read(Launch, json.loads(Path(path).read_text()))
    threading.Thread(target=follow_parent, args=(launch.parent,), daemon=True).start()
    faulthandler.dump_traceback_later(launch.workload.cluster.timeout_s, exit=True)
    with connect(launch.workload.cluster, Network("none"), Path(launch.folder) / "device_lock") as session:
        sums = read_and_compare(launch, session)
        if session.rank == 0:
            (Path(launch.folder) / "quality.json").write_text(json.dumps(sums))
    faulthandler.cancel_dump_traceback_later()


@torch.inference_mode()
def read_and_compare(launch: Launch, session: Session) -> dict[str, dict[str, float]]:
    """Sums over the text of all ranks, by system; DENSE is the dense model's own. The same on every rank."""
    progress, workload = Progress(launch, session.rank), launch.workload
    bench = Bench(workload, session, launch.cache_dir, CEILINGS)
    for name, member in launch.cells.items():
        progress(name)
        bench.add(name, member)
    for layer in bench.program.layers.values():
        layer.remember = True
    _look_around(bench, progress)
    sums: dict[str, dict[str, float]] = {}
    draw = torch.Generator().manual_seed(workload.seed + session.rank)
    for number, ids_BL in enumerate(texts(bench.program)):
        task = task_of(workload.model, ids_BL, draw)
        dense = forward(bench.program, bench.program.references, task, number)
        for name, systems in {DENSE: bench.program.references, **bench.systems}.items():
            progress(name or next(iter(launch.cells)))
            found = dense if name == DENSE else forward(bench.program, systems, task, number)
            parts = compare(found, dense, task.answer_N)
            before = sums.get(name, dict.fromkeys(parts, 0.0))
            sums[name] = {part: before[part] + value for part, value in parts.items()}
    return {name: _over_ranks(parts, session) for name, parts in sums.items()}


def _look_around(bench: Bench, progress: Progress) -> None:
    """Give systems that learn from what they have seen a pass of the corpus, which is not counted."""
    program, draw = bench.program, torch.Generator().manual_seed(bench.session.rank)
    task = task_of(program.workload.model, torch.from_numpy(program.token_batch(PROFILE_FROM)), draw)
    for name, systems in bench.systems.items():
        if any(system.stateful for system in systems.values()):
            progress(name)
            forward(program, systems, task, PROFILE_FROM)


def texts(program: Program) -> Iterator[torch.Tensor]:
    """The tokens [B, L] of each pass of this rank: the checkpoint's held-out ones, or as many batches of the corpus as
    the tier has rounds.
    """
    workload, session = program.workload, program.session
    held_out_PL = open_checkpoint(workload.model.checkpoint or "").held_out()
    if held_out_PL is None:
        yield from (torch.from_numpy(program.token_batch(number)) for number in range(workload.tier.rounds))
        return
    for places in dealt(len(held_out_PL), session.rank, session.world_size, workload.batch_size):
        yield held_out_PL[places, : workload.seq_len]


def dealt(num_passages: int, rank: int, world_size: int, batch_size: int) -> list[slice]:
    """The passages of each of a rank's passes; all ranks have as many, and what is left over is read by none.

    Example: 9 passages, 2 ranks with batches of 2 -> rank 1 reads 2 and 3, then 6 and 7.
    """
    passes = num_passages // (world_size * batch_size)
    starts = [(number * world_size + rank) * batch_size for number in range(passes)]
    return [slice(start, start + batch_size) for start in starts]


def forward(program: Program, systems: Mapping[int, System], task: Task, iteration: int) -> Pass:
    """The model's guesses with these systems in its MoE layers."""
    module, session, num_experts = program.module, program.session, program.shape.num_experts
    embedded_BLD = module.get_input_embeddings()(task.read_BL.to(session.device))
    with session.clock.running():
        hidden_BLD = program.forward(systems, Start(embedded_BLD, None), iteration)
    output_TD, dropped = {}, {}
    for block, layer in program.layers.items():
        assert layer.seen is not None
        _, routing, output_TD[block] = layer.seen
        tokens_GE = all_gather(routing.tokens_per_expert(num_experts).unsqueeze(0), session.group).cpu()
        dropped[block] = systems[block].account(tokens_GE, program.dtype.itemsize).dropped
    return Pass(logits(module, hidden_BLD[task.asked_BL.to(session.device)]), output_TD, dropped)


def compare(found: Pass, dense: Pass, answer_N: torch.Tensor) -> dict[str, float]:
    """Sums, over guesses and tokens, of what the measures are made of; blocks are part of a name.

    nats: cross-entropy of the answers. agreed: guesses whose likeliest token is the dense model's. kl_nats: of the
    found distribution from the dense model's. error, scale: squared numbers of the layers' difference and of the dense
    layers. dropped: token copies.
    """
    log_p_NV, dense_NV = (one.logits_NV.double().log_softmax(-1) for one in (found, dense))
    sums = {
        "guesses": float(len(answer_N)),
        "nats": float(-log_p_NV.gather(1, answer_N.to(log_p_NV.device).unsqueeze(1)).sum()),
        "agreed": float((log_p_NV.argmax(1) == dense_NV.argmax(1)).sum()),
        "kl_nats": float((dense_NV.exp() * (dense_NV - log_p_NV)).sum()),
    }
    for block, dense_TD in dense.output_TD.items():
        sums[f"error.{block}"] = float((found.output_TD[block] - dense_TD).double().square().sum())
        sums[f"scale.{block}"] = float(dense_TD.double().square().sum())
        sums[f"dropped.{block}"] = float(found.dropped[block])
        sums[f"tokens.{block}"] = float(len(dense_TD))
    return sums


def _over_ranks(parts: dict[str, Any], session: Session) -> dict[str, float]:
    sums = torch.tensor(list(parts.values()), dtype=torch.float64, device=session.device)
    dist.all_reduce(sums, group=session.group)
    return dict(zip(parts, sums.tolist(), strict=True))
