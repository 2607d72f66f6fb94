"""The parent's side: run what the plan lacks, launch by launch; a failure becomes a row and the campaign goes on."""

import errno
import json
import os
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pandas as pd
from rich.console import Console

from analysis.schema import SCHEMA, TABLES
from clusters.launch import LaunchFailed
from experiments import environment, machine
from experiments.cells import Cell
from experiments.configuration import described_device
from experiments.identity import code_digest
from experiments.loggers import Logger
from experiments.pack import set_aside
from experiments.plan import Plan
from experiments.progress import ProgressBar, line
from experiments.records import Launch, Member
from experiments.records import document as stored
from experiments.store import TO_MEASURE, Store, state_of
from experiments.worker import read_progress

PRIVATE = ("experiment", "out", "logger")  # change no number, and may name a private folder
Launcher = Callable[[Launch], None]
# What is known of a cell: run.json and its tables by name; no tables without numbers.
Outcome = tuple[dict[str, Any], dict[str, pd.DataFrame]]


def run_campaign(plan: Plan, store: Store, launcher: Launcher, logger: Logger, console: Console) -> None:
    """Measure every launch of which the store lacks a cell; `launcher(launch)` runs one or raises LaunchFailed.

    The systems of a launch are only compared when they took turns, so they are measured again together. A cell that
    failed is left as it is: its id changes with the code. `logger` is told of each cell between two launches.
    Simulated launches come first, as many at a time as there are cores: nothing disturbs them. What was packed and is
    damaged is renamed, so that it is measured again.
    """
    todo = cells_to_measure(plan, store, console)
    telling, ending = threading.Lock(), threading.Event()
    with ProgressBar(console, total=len(plan.cells)) as bar:

        def measure(ids: list[str]) -> None:
            """Launch these cells until each has an outcome: a rank that dies takes one of them along."""
            remaining = ids
            while remaining:
                bar.at(plan.cells[remaining[0]], done=len(plan.cells) - len(todo))
                finished = _run_launch({cell: plan.cells[cell] for cell in remaining}, plan, store, launcher, bar)
                if ending.is_set():  # what died now was interrupted
                    finished = [(run, tables) for run, tables in finished if run["state"] == "ok"]
                    remaining = []
                done = {run["cell"] for run, _ in finished}
                remaining = [cell for cell in remaining if cell not in done]
                with telling:
                    for run, tables in finished:
                        store.write_cell(run, tables)
                        logger.cell(run, tables.get("samples"))
                        told = line(plan.cells[run["cell"]], run, tables.get("samples"))
                        console.print(told, highlight=False, markup=False, soft_wrap=True)
                    todo.difference_update(done)

        launches = [lacking for ids in plan.launches if (lacking := [cell for cell in ids if cell in todo])]
        simulated = [ids for ids in launches if plan.cells[ids[0]].is_simulated]
        for_each(measure, simulated, ending, at_once=len(os.sched_getaffinity(0)))
        for_each(measure, [ids for ids in launches if ids not in simulated], ending, at_once=1)
        bar.at(None, done=len(plan.cells) - len(todo))


def for_each(
    do: Callable[[list[str]], None], launches: list[list[str]], ending: threading.Event, *, at_once: int
) -> None:
    """Do it for each launch, in threads where several may run at once; what one raises ends the campaign.

    ending: set once it ends, while launches that are under way still go on.
    """
    if at_once == 1:
        for ids in launches:
            do(ids)
        return
    pool = ThreadPoolExecutor(at_once)
    try:
        for done in [pool.submit(do, ids) for ids in launches]:
            done.result()
    except BaseException:
        ending.set()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def cells_to_measure(plan: Plan, store: Store, console: Console) -> set[str]:
    """The cells of every launch that is not complete; damaged ones are named and belong to them."""
    said = [set_aside(store.folder)]
    runs = store.runs()
    states = {cell: state_of(runs.get(cell)) for cell in plan.cells}
    damaged = (cell for cell, state in states.items() if state == "damaged")
    said += [f"{runs[cell]['reason']} The launch of cell {cell} is measured again." for cell in damaged]
    for sentence in filter(None, said):
        console.print(sentence, highlight=False, markup=False, soft_wrap=True)
    missing = {cell for cell, state in states.items() if state in TO_MEASURE}
    failed = {cell for cell, state in states.items() if state != "ok"} - missing
    # Stored halves of two runs of one launch did not take turns with one another.
    mixed = [ids for ids in plan.launches if len({runs[cell]["started"] for cell in ids if states[cell] == "ok"}) > 1]
    lacking = [ids for ids in plan.launches if missing & set(ids) or ids in mixed]
    return {cell for ids in lacking for cell in ids} - failed


def _run_launch(
    cells: dict[str, Cell], plan: Plan, store: Store, launcher: Launcher, bar: ProgressBar
) -> list[Outcome]:
    """One launch of these cells: the outcome of each cell that has one now.

    When a rank dies the cell it was at has failed, and the others are left for another launch.
    """
    started, first = datetime.now(UTC).isoformat(), next(iter(cells.values()))
    with tempfile.TemporaryDirectory(prefix="launch-") as name, store.running(list(cells)):
        folder = Path(name)
        before, meter = _state_for(first), machine.Meter()
        try:
            with bar.following(folder, len(cells)):
                launcher(_launch(cells, folder))
        except LaunchFailed as failure:
            _raise_if_disk_full(failure, folder)
            guilty = read_progress(folder, failure.rank)["cell"]
            failed = [guilty] if guilty in cells else list(cells)
            why = {"state": failure.kind, "reason": str(failure), "traceback": failure.traceback}
            return [(document(cells[cell], plan, started) | why, {}) for cell in failed]
        outcome = json.loads((folder / "outcome.json").read_text())
        seen = {"before": before, "during": meter.read(outcome["ranks_cpu_s"])}
        outcome["machine"] = seen | {"after": _state_for(first)}
        tables = {name: pd.read_parquet(folder / f"{name}.parquet") for name in TABLES}
    failed = [(document(cells[cell], plan, started) | why, {}) for cell, why in outcome.get("failed", {}).items()]
    return failed + [_outcome_of(cells[cell], plan, started, outcome, tables) for cell in outcome["correctness"]]


def _state_for(cell: Cell) -> dict[str, Any] | None:
    """What the machine is doing, which takes a moment to see; None for a simulated cell, which it does not change."""
    return None if cell.is_simulated else machine.state(cell.cluster.device)


def _outcome_of(
    cell: Cell, plan: Plan, started: str, outcome: dict[str, Any], tables: dict[str, pd.DataFrame]
) -> Outcome:
    correctness = outcome["correctness"][cell.id]
    found = {key: outcome[key] for key in ("ceilings", "seconds", "machine")}
    found["schedule"] = outcome["schedule"].get(cell.id)
    run = document(cell, plan, started) | found | {"correctness": correctness}
    if correctness and (reason := _mismatch(correctness)):
        return run | {"state": "invalid", "reason": reason}, {}
    run |= {"state": "ok", "inputs": outcome["inputs"][cell.id]}
    labels = {"campaign": run["campaign"], "launch": run["launch"], "source": run["source"], "schema": SCHEMA}
    mine = {name: table.loc[table["cell"] == cell.id] for name, table in tables.items() if len(table)}
    return run, mine | {"samples": mine["samples"].assign(**labels)}


def document(cell: Cell, plan: Plan, started: str) -> dict[str, Any]:
    """What run.json says of a cell, whatever its outcome."""
    return {
        "cell": cell.id,
        "campaign": plan.document["campaign"],
        "state": None,
        "reason": None,
        "traceback": None,
        "system": cell.system,
        "engine": cell.engine,
        "precision": cell.config.precision,
        "source": cell.cluster.source,
        **_device(cell),
        "launch": cell.launch,
        "launch_id": cell.launch_id,
        "twin": cell.twin,
        "point": cell.point,
        "regime": cell.config.model.regime(cell.config.regime),
        "tier": cell.config.tier.name,
        "correctness": None,
        "config": {key: value for key, value in stored(cell.config).items() if key not in PRIVATE},
        "seed": cell.config.seed,
        "code": code_digest(cell.config),
        "environment": environment.describe(),
        "started": started,
        "finished": datetime.now(UTC).isoformat(),
    }


def _device(cell: Cell) -> dict[str, Any]:
    """Which description a simulated cell's numbers come from."""
    if not cell.is_simulated:
        return {}
    device = described_device(cell.config)
    return {"device": {name: getattr(device, name) for name in ("name", "title", "identity", "source")}}


def cache_dir() -> Path:
    """Where tokenisers and token streams are kept between runs."""
    return Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "moe-inference-harness"


def _launch(cells: dict[str, Cell], folder: Path) -> Launch:
    """What ranks are told of these cells, which share a workload."""
    first = next(iter(cells.values()))
    return Launch(
        workload=first.config.workload,
        cells={id: Member(cell.config.system, cell.engine, cell.twin) for id, cell in cells.items()},
        number=first.launch,
        name=f"{first.launch_id}-{time.monotonic_ns()}",
        folder=str(folder),
        cache_dir=str(cache_dir()),
        parent=os.getpid(),
    )


def _raise_if_disk_full(failure: LaunchFailed, folder: Path) -> None:
    """A full disk is no cell's fault: it ends the campaign, and the same command goes on when there is room."""
    if os.strerror(errno.ENOSPC) in f"{failure} {failure.traceback}":
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder))


def _mismatch(correctness: dict[str, Any]) -> str | None:
    """Why the outputs are not right, in one clause; None if they are."""
    if not correctness["dropped_as_accounted"]:
        return "the number of dropped tokens is not what the system's capacity gives"
    agreement = correctness.get("agreement")
    for check, other in ((correctness, "the dense model's"), (agreement, "the other systems' in the timed iterations")):
        if check and not check["passed"]:
            error, tolerance = check["relative_error"], check["tolerance"]
            return f"the output differs from {other} by {error:.1e}, more than {tolerance:.0e}"
    return None
