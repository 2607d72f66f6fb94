"""From points to results: check, plan, run the campaign, show it; errors in one sentence."""

import json
import os
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from datetime import UTC, datetime
from pathlib import Path

from rich.console import Console
from torch.distributed.elastic.multiprocessing.api import SignalException

from analysis.report import render
from analysis.schema import FAILURES
from clusters.launch import launch, prepare
from clusters.session import connect
from experiments.campaign import cache_dir, document, run_campaign
from experiments.cells import Cell, Unsupported, check
from experiments.configuration import instantiate, token_source
from experiments.estimate import announce, networks
from experiments.loggers import Logger
from experiments.matched import match_networks
from experiments.pack import pack
from experiments.plan import CORES, Plan, Point, make_plan
from experiments.records import Launch, read
from experiments.records import document as stored
from experiments.schedule import PROFILED, iterations_of
from experiments.simulate import launch_simulation
from experiments.store import Store, StoreBusy
from experiments.worker import PRELOAD, run_launch, run_rank

BAD_INPUT, SOME_FAILED, INTERRUPTED = 2, 1, 130


def run_points(points: list[Point], command: Sequence[str] = ()) -> int:
    """Run one campaign of these points and show what it gave; returns the exit status. command: what was typed."""
    console = Console(width=None if sys.stdout.isatty() else 120)
    try:
        rates = known_rates(points)
        plan = make_plan(match_networks(points, rates), command, rates)
        unsupported = find_unsupported(plan)
        logger = instantiate(points[0].configs[0].logger, "logger")
        store = Store(Path(points[0].configs[0].out))
    except (ValueError, OSError, RuntimeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return BAD_INPUT
    try:
        with nullcontext() if follows(plan) else store.writing():
            if not follows(plan):
                store_unsupported(unsupported, plan, store)
            _run(plan, store, logger, console)
            for said in pack(store.folder):
                console.print(said, highlight=False, markup=False, soft_wrap=True)
    except (KeyboardInterrupt, SignalException):
        console.print(f"interrupted: {_progress(plan, store)}; the same command goes on")
        return INTERRUPTED
    except StoreBusy as error:
        print(f"error: {error}", file=sys.stderr)
        return SOME_FAILED
    except OSError as error:
        print(f"error: {error}: {_progress(plan, store)}; the same command goes on", file=sys.stderr)
        return SOME_FAILED
    finally:
        logger.close()
    render(store.folder, console)
    return 0 if set(store.states(plan.cells).values()) == {"ok"} else SOME_FAILED


def known_rates(points: Sequence[Point]) -> dict[str, float]:
    """FLOP/s of the cores that a campaign in the same folder was planned with, so that going on measures none anew."""
    folders = {Path(config.out) for point in points for config in point.configs}
    try:
        return {core: rate for folder in folders for core, rate in Store(folder).read_plan()[CORES].items()}
    except (ValueError, KeyError):  # there is none yet, or it is an old one
        return {}


def find_unsupported(plan: Plan) -> dict[str, str]:
    """Cells that this machine or their system cannot run, with the reason. Raises ValueError for bad input.

    A campaign of which no cell can run is bad input too.
    """
    reasons = {}
    for cell in plan.cells.values():
        try:
            check(cell)
        except Unsupported as error:
            reasons[cell.id] = str(error)
    if len(reasons) == len(plan.cells):
        raise ValueError(next(iter(reasons.values())))
    for cell in plan.cells.values():
        read_tokens(cell)
    return reasons


def store_unsupported(reasons: dict[str, str], plan: Plan, store: Store) -> None:
    """What cannot run is a row with its reason, like any other failure."""
    for cell, state in store.states(reasons).items():
        if state not in FAILURES:
            now = datetime.now(UTC).isoformat()
            store.write_cell(document(plan.cells[cell], plan, now) | {"state": "unsupported", "reason": reasons[cell]})


def follows(plan: Plan) -> bool:
    """Whether this process is a rank that only follows: under torchrun rank 0 alone writes to the folder."""
    first = next(iter(plan.cells.values()))
    return first.cluster.kind == "torchrun" and int(os.environ["RANK"]) > 0


def _progress(plan: Plan, store: Store) -> str:
    done = sum(state == "ok" for state in store.states(plan.cells).values())
    return f"{done} of {len(plan.cells)} cells are stored in {store.folder}"


def read_tokens(cell: Cell) -> None:
    """Tokenise what the cell will read, so that a corpus that cannot be read is known before ranks start."""
    config = cell.config
    source = token_source(config, cache_dir())
    tier, world_size = config.tier, cell.cluster.world_size
    last = iterations_of(tier)["warmup"].stop - 1 + PROFILED
    sizes = {"batch_size": config.batch_size, "seq_len": config.seq_len, "seed": config.seed}
    source.batch(rank=world_size - 1, iteration=last, world_size=world_size, **sizes)


def _run(plan: Plan, store: Store, logger: Logger, console: Console) -> None:
    # Simulated panels may stand beside those of another cluster, whose processes then need the preparation.
    first = min(plan.cells.values(), key=lambda cell: cell.is_simulated)
    prepare(first.cluster, PRELOAD)
    if first.cluster.kind == "torchrun":
        _run_inside_launch(plan, store, logger, console)
        return
    store.write_plan(plan.document)
    console.print("\n".join([*networks(plan), announce(plan, store)]), highlight=False, markup=False, soft_wrap=True)

    def start_ranks(told: Launch) -> None:
        if told.workload.is_simulated:
            launch_simulation(told)
            return
        path = Path(told.folder) / "launch.json"
        path.write_text(json.dumps(stored(told)))
        launch(told.workload.cluster, run_rank, str(path))

    run_campaign(plan, store, start_ranks, logger, console)


def _run_inside_launch(plan: Plan, store: Store, logger: Logger, console: Console) -> None:
    """Under torchrun this process is a rank: rank 0 leads the campaign, the others follow its launches."""
    first = next(iter(plan.cells.values()))
    with connect(first.cluster, instantiate(first.config.network, "network"), store.folder / "device_lock") as session:
        if session.rank > 0:
            number = 0
            while (told := json.loads(session.store.get(f"launch/{number}"))) is not None:
                run_launch(read(Launch, told), session)
                number += 1
            sys.exit(0)
        launched = 0

        def lead(told: Launch | None) -> None:
            nonlocal launched
            session.store.set(f"launch/{launched}", json.dumps(told and stored(told)))
            launched += 1
            if told is not None:
                run_launch(told, session)

        store.write_plan(plan.document)
        run_campaign(plan, store, lead, logger, console)
        lead(None)
