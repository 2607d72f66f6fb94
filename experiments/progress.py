"""What a campaign says while it runs: the bar, and a line per cell."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import pandas as pd
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from experiments.cells import Cell
from experiments.loggers import slowest_ttft_ms
from experiments.worker import read_progress
from workloads.model import DECODE


class ProgressBar:
    """Cells done of all planned ones; follows rank 0 while a launch runs."""

    def __init__(self, console: Console, total: int) -> None:
        columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("cells")
        times = TimeElapsedColumn(), TextColumn("left:"), TimeRemainingColumn()
        self._bar = Progress(*columns, *times, console=console, refresh_per_second=1, speed_estimate_period=600)
        self._task = self._bar.add_task("", total=total)
        self._done = 0

    def __enter__(self) -> "ProgressBar":
        self._bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.stop()

    def at(self, cell: Cell | None, done: int) -> None:
        """The launch that starts now, and how many cells are done."""
        self._done = done
        description = f"{cell.label} {_occasion(cell)}" if cell else "done"
        self._bar.update(self._task, description=description, completed=done)

    @contextmanager
    def following(self, folder: Path, num_cells: int) -> Iterator[None]:
        """Move the bar with rank 0's progress while a launch of `num_cells` runs."""
        stop = threading.Event()

        def follow() -> None:
            while not stop.wait(1.0):
                self._bar.update(self._task, completed=self._done + num_cells * read_progress(folder)["done"])

        thread = threading.Thread(target=follow, daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()


def line(cell: Cell, run: dict[str, Any], samples: pd.DataFrame | None) -> str:
    """One cell's outcome."""
    where = f"{cell.label:<52} {_occasion(cell)}"
    what = f"{run['system'] + (' (twin)' if run['twin'] else ''):<24} {run['engine']:<10}"
    if samples is None:
        return f"  {where}  {what} {run['state']}: {run['reason']}"
    passed = "tpot" if run["regime"] == DECODE else "ttft"
    return f"  {where}  {what} {passed} {median(slowest_ttft_ms(samples).values()):9.2f} ms"


def _occasion(cell: Cell) -> str:
    """Which launch it is, or on what it is simulated."""
    if not cell.is_simulated:
        return f"launch {cell.launch}"
    return f"simulated on {cell.cluster.world_size} x {cell.config.device.name}"
