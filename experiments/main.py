"""From points to results: check, plan, run the campaign, show it; errors in one sentence."""

import json
import sys
from pathlib import Path

from rich.console import Console
from torch.distributed.elastic.multiprocessing.api import SignalException

from analysis.report import render
from clusters.launch import launch, prepare
from clusters.session import connect
from experiments.campaign import cache_dir, run_campaign
from experiments.cells import Cell, check, instantiate
from experiments.plan import Plan, Point, make_plan
from experiments.store import Store
from experiments.worker import PRELOAD, run_launch, run_rank
from workloads.batches import TokenSource
from workloads.checkpoint import open_checkpoint

BAD_INPUT, SOME_FAILED, INTERRUPTED = 2, 1, 130


def run_points(points: list[Point]) -> int:
    """Run one campaign of these points and show what it gave; returns the exit status."""
    console = Console(width=None if sys.stdout.isatty() else 120)
    try:
        plan = make_plan(points)
        for cell in plan.cells.values():
            check(cell)
        for cell in plan.cells.values():
            read_tokens(cell)
    except (ValueError, OSError, RuntimeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return BAD_INPUT
    folder = Path(points[0].configs[0]["out"])
    store = Store(folder)
    try:
        _run(plan, store, console)
    except (KeyboardInterrupt, SignalException):
        done = sum(store.is_measured(cell) for cell in plan.cells)
        console.print(
            f"interrupted: {done} of {len(plan.cells)} cells are stored in {folder}; the same command goes on"
        )
        return INTERRUPTED
    render(folder, console)
    return 0 if all(store.is_measured(cell) for cell in plan.cells) else SOME_FAILED


def read_tokens(cell: Cell) -> None:
    """Tokenise what the cell will read, so that a corpus that cannot be read is known before ranks start."""
    config, model = cell.config, instantiate(cell.config["model"])
    checkpoint = open_checkpoint(model.checkpoint).folder if model.checkpoint else None
    source = TokenSource(instantiate(config["corpus"]), model.vocab_size, cache_dir(), checkpoint)
    world_size, last = cell.cluster.world_size, config["tier"]["iterations"] - 1
    sizes = {"batch_size": config["batch_size"], "seq_len": config["seq_len"], "seed": config["seed"]}
    source.batch(rank=world_size - 1, iteration=last, world_size=world_size, **sizes)


def _run(plan: Plan, store: Store, console: Console) -> None:
    first = next(iter(plan.cells.values()))
    prepare(first.cluster, PRELOAD)
    if first.cluster.kind == "torchrun":
        _run_inside_launch(plan, store, console)
        return

    def start_ranks(spec: dict) -> None:
        path = Path(spec["folder"]) / "spec.json"
        path.write_text(json.dumps(spec))
        launch(plan.cells[next(iter(spec["cells"]))].cluster, run_rank, str(path))

    run_campaign(plan, store, start_ranks, console)


def _run_inside_launch(plan: Plan, store: Store, console: Console) -> None:
    """Under torchrun this process is a rank: rank 0 leads the campaign, the others follow its launches."""
    first = next(iter(plan.cells.values()))
    with connect(first.cluster, instantiate(first.config["network"]), store.folder / "baton") as session:
        if session.rank > 0:
            number = 0
            while (spec := json.loads(session.store.get(f"spec/{number}"))) is not None:
                run_launch(spec, session)
                number += 1
            sys.exit(0)
        launched = 0

        def lead(spec: dict | None) -> None:
            nonlocal launched
            session.store.set(f"spec/{launched}", json.dumps(spec))
            launched += 1
            if spec is not None:
                run_launch(spec, session)

        run_campaign(plan, store, lead, console)
        lead(None)
