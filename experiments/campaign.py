"""The parent's side: run what the plan lacks, launch by launch; a failure becomes a row and the campaign goes on."""

import json
import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from clusters.launch import LaunchFailed
from experiments import environment
from experiments.cells import Cell
from experiments.plan import Plan
from experiments.store import SCHEMA, Store
from experiments.worker import read_progress

Launcher = Callable[[dict[str, Any]], None]


def run_campaign(plan: Plan, store: Store, launcher: Launcher, console: Console) -> None:
    """Measure every launch of which the store lacks a cell; `launcher(spec)` runs one or raises LaunchFailed.

    The systems of a launch are only compared when they took turns, so they are measured again together. A cell that
    failed is left as it is: its id changes with the code.
    """
    store.write_plan(plan.document)
    failed = {cell for cell in plan.cells if store.has_failed(cell)}
    lacking = [ids for ids in plan.launches if not all(cell in failed or store.is_measured(cell) for cell in ids)]
    todo = {cell for ids in lacking for cell in ids} - failed
    if len(todo) < len(plan.cells):
        console.print(f"{len(plan.cells) - len(todo)} of {len(plan.cells)} cells are stored already")
    with _bar(console) as bar:
        task = bar.add_task("", total=len(plan.cells), completed=len(plan.cells) - len(todo))
        for ids in plan.launches:
            remaining = [cell for cell in ids if cell in todo]
            while remaining:
                bar.update(task, description=_describe(plan.cells[remaining[0]]))
                finished = _run_launch({cell: plan.cells[cell] for cell in remaining}, plan, store, launcher, bar, task)
                for run in finished:
                    console.print(_line(run), highlight=False, markup=False, soft_wrap=True)
                done = {run["cell"] for run in finished}
                remaining = [cell for cell in remaining if cell not in done]
                todo -= done
                bar.update(task, completed=len(plan.cells) - len(todo))


def _run_launch(
    cells: dict[str, Cell], plan: Plan, store: Store, launcher: Launcher, bar: Progress, task: Any
) -> list[dict[str, Any]]:
    """One launch of these cells. Returns the run.json of each cell that has now an outcome.

    When a rank dies the cell it was at is stored as failed, and the others are left for another launch.
    """
    started = datetime.now(UTC).isoformat()
    with tempfile.TemporaryDirectory(prefix="launch-") as name:
        folder = Path(name)
        spec = _spec(cells, folder)
        try:
            with _watch(folder, bar, task, len(cells)):
                launcher(spec)
        except LaunchFailed as failure:
            guilty = read_progress(folder, failure.rank)["cell"]
            failed = [guilty] if guilty in cells else list(cells)
            runs = [_run(cells[cell], plan, started, state=failure.kind, failure=failure) for cell in failed]
            for run in runs:
                store.write_cell(run)
            return runs
        return _store_outcome(cells, folder, plan, store, started)


def _store_outcome(
    cells: dict[str, Cell], folder: Path, plan: Plan, store: Store, started: str
) -> list[dict[str, Any]]:
    samples, routing = pd.read_parquet(folder / "samples.parquet"), pd.read_parquet(folder / "routing.parquet")
    runs = []
    for id, correctness in json.loads((folder / "outcome.json").read_text()).items():
        run = _run(cells[id], plan, started, state="ok", correctness=correctness)
        if correctness["passed"]:
            labels = {"campaign": run["campaign"], "launch": run["launch"], "source": run["source"], "schema": SCHEMA}
            rows = samples.query("cell == @id").assign(**labels)
            store.write_cell(run, rows, routing.query("cell == @id"))
            run = {**run, "ttft_ms": _ttft_ms(rows)}
        else:
            run |= {"state": "failed", "reason": _mismatch(correctness)}
            store.write_cell(run)
        runs.append(run)
    return runs


def _spec(cells: dict[str, Cell], folder: Path) -> dict[str, Any]:
    """The frozen configuration that ranks get."""
    first = next(iter(cells.values()))
    return {
        "launch_id": f"{first.launch_id}-{time.monotonic_ns()}",
        "folder": str(folder),
        "cache_dir": str(cache_dir()),
        "parent": os.getpid(),
        "cluster": first.config["cluster"],
        "workload": first.workload,
        "cells": {id: {"node": cell.config["system"], "engine": cell.engine} for id, cell in cells.items()},
    }


def _run(
    cell: Cell,
    plan: Plan,
    started: str,
    *,
    state: str,
    failure: LaunchFailed | None = None,
    correctness: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """What run.json says of a cell."""
    return {
        "cell": cell.id,
        "campaign": plan.document["campaign"],
        "state": state,
        "reason": str(failure) if failure else None,
        "traceback": failure.traceback if failure else None,
        "system": cell.system,
        "engine": cell.engine,
        "precision": cell.config["precision"],
        "source": cell.cluster.source,
        "launch": cell.launch,
        "point": cell.point,
        "tier": cell.config["tier"]["name"],
        "correctness": correctness,
        "config": {key: value for key, value in cell.config.items() if key != "experiment"},
        "seed": cell.config["seed"],
        "environment": environment.describe(),
        "started": started,
        "finished": datetime.now(UTC).isoformat(),
    }


def cache_dir() -> Path:
    """Where tokenisers and token streams are kept between runs."""
    return Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "moe-inference-harness"


def _mismatch(correctness: dict[str, Any]) -> str:
    if not correctness["dropped_as_accounted"]:
        return "the number of dropped tokens is not what the system's capacity gives"
    return (
        f"the output differs from the dense model's by {correctness['relative_error']:.1e}, "
        f"more than {correctness['tolerance']:.0e}"
    )


def _ttft_ms(rows: pd.DataFrame) -> float:
    measured = rows.query("metric == 'ttft_ms' and phase == 'measure'")
    slowest_rank_ms = measured.pivot_table(index="iteration", values="value", aggfunc="max")
    return float(np.median(slowest_rank_ms.to_numpy()))


def _describe(cell: Cell) -> str:
    point = cell.point
    return f"E={point['num_experts']} batch={point['batch_size']} G={point['world_size']} launch {cell.launch}"


def _line(run: dict[str, Any]) -> str:
    point = run["point"]
    where = f"E={point['num_experts']:<4} batch={point['batch_size']:<4} launch {run['launch']}"
    what = f"{run['system']:<24} {run['engine']:<10}"
    outcome = f"ttft {run['ttft_ms']:9.2f} ms" if run["state"] == "ok" else f"{run['state']}: {run['reason']}"
    return f"  {where}  {what} {outcome}"


def _bar(console: Console) -> Progress:
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("cells")
    times = TimeElapsedColumn(), TextColumn("left:"), TimeRemainingColumn()
    return Progress(*columns, *times, console=console, refresh_per_second=1, speed_estimate_period=600)


@contextmanager
def _watch(folder: Path, bar: Progress, task: Any, num_cells: int) -> Iterator[None]:
    """Move the bar with rank 0's progress while a launch runs."""
    completed, stop = bar.tasks[task].completed, threading.Event()

    def follow() -> None:
        while not stop.wait(1.0):
            bar.update(task, completed=completed + num_cells * read_progress(folder)["done"])

    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
