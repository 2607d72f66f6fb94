"""Results on disk: plan.json, and cells, each written whole or not at all and packed in the end (analysis/schema.py).

running.json, while there are any: the cells of the launches that run now, and by which process.
A cell is planned (it is not stored), running, or stored in one of STATES.
"""

import json
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd
import psutil
from filelock import FileLock, Timeout

from analysis.files import read_loose_runs, read_runs, sha256
from analysis.schema import CELLS, COLUMNS, CORRUPT, MILLISECONDS, SAMPLE_COLUMNS, SCHEMA

TO_MEASURE = ("planned", "damaged")


class StoreBusy(RuntimeError):
    """Another campaign writes to the folder."""


class Store:
    """One campaign's folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._cells = folder / CELLS
        self._running: set[str] = set()
        self._noting = threading.Lock()

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Hold the folder for one campaign; StoreBusy, in one sentence, while another process holds it."""
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            with FileLock(self.folder / ".lock", timeout=0):
                yield
        except Timeout:
            raise StoreBusy(
                f"another campaign is writing to {self.folder}; wait for it, or choose another folder with out="
            ) from None

    def write_plan(self, plan: dict[str, Any]) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        _write_json(self.folder / "plan.json", plan)

    def read_plan(self) -> dict[str, Any]:
        """plan.json; ValueError in one sentence where there is none or it is of another schema."""
        path = self.folder / "plan.json"
        try:
            plan = json.loads(path.read_text())
        except (OSError, ValueError) as error:
            raise ValueError(
                f"{self.folder} is not a campaign's folder: {path.name} cannot be read ({error})"
            ) from None
        schema = plan.get("schema") if isinstance(plan, dict) else None
        if schema != SCHEMA or not {"panels", "command", "campaign"} <= plan.keys():
            raise ValueError(f"{path} is no plan of schema {SCHEMA} (found {schema}); measure again")
        return plan

    @contextmanager
    def running(self, cells: list[str]) -> Iterator[None]:
        """Note which cells a launch is at; the note of a process that was killed is known by its pid."""
        self._note_running(set.union, cells)
        try:
            yield
        finally:
            self._note_running(set.difference, cells)

    def _note_running(self, change: Callable[[set[str], list[str]], set[str]], cells: list[str]) -> None:
        path = self.folder / "running.json"
        with self._noting:
            self._running = change(self._running, cells)
            if self._running:
                _write_json(path, {"pid": os.getpid(), "since": time.time(), "cells": sorted(self._running)})
            else:
                path.unlink(missing_ok=True)

    def running_cells(self) -> list[str]:
        """The cells that a process which is alive is at."""
        try:
            note = json.loads((self.folder / "running.json").read_text())
            # A younger process has only inherited the number of the one that wrote the note.
            return note["cells"] if psutil.Process(note["pid"]).create_time() <= note["since"] else []
        except (OSError, ValueError, KeyError, TypeError, psutil.Error):
            return []

    def runs(self) -> dict[str, dict[str, Any]]:
        """By cell, the run.json of all that is stored (`read_runs`); nothing packed where that is damaged."""
        try:
            return read_runs(self.folder)
        except ValueError:
            return read_loose_runs(self.folder)

    def states(self, cells: Iterable[str]) -> dict[str, str]:
        """By cell, one of STATES; planned where it is not stored, damaged where it is not what was written."""
        runs = self.runs()
        return {cell: state_of(runs.get(cell)) for cell in cells}

    def write_cell(self, run: dict[str, Any], tables: Mapping[str, pd.DataFrame] | None = None) -> None:
        """Store one cell, with those of its TABLES that there are; an earlier failure of it is replaced."""
        scratch, final = self._cells / f".{run['cell']}.tmp", self._cells / run["cell"]
        shutil.rmtree(scratch, ignore_errors=True)
        try:
            self._write_files(scratch, run, tables or {})
        except OSError:  # a full disk: half a cell would only take more of it
            shutil.rmtree(scratch, ignore_errors=True)
            raise
        shutil.rmtree(final, ignore_errors=True)
        os.replace(scratch, final)

    def _write_files(self, scratch: Path, run: dict[str, Any], tables: Mapping[str, pd.DataFrame]) -> None:
        scratch.mkdir(parents=True)
        for name, table in tables.items():
            if name == "samples":
                table = table.reindex(columns=COLUMNS[name]).astype(SAMPLE_COLUMNS)
            _with_seven_digits(table)[COLUMNS[name]].to_parquet(scratch / f"{name}.parquet", index=False)
        checksums = {path.name: sha256(path.read_bytes()) for path in sorted(scratch.iterdir())}
        _write_json(scratch / "run.json", _seal({"schema": SCHEMA, **run, "checksums": checksums}))


def state_of(run: dict[str, Any] | None) -> str:
    """What a stored cell, or one that is not, counts as: one of STATES, planned or damaged."""
    return "planned" if run is None else "damaged" if run["state"] == CORRUPT else run["state"]


def _with_seven_digits(table: pd.DataFrame) -> pd.DataFrame:
    """Times as 32 bits hold them, which take half the room: a stopwatch has no more digits."""
    table = table.copy()
    for column in table.columns.intersection(MILLISECONDS):
        timed = table.get("unit", pd.Series("ms", table.index)) == "ms"
        table[column] = table[column].where(~timed, table[column].astype("float32").astype("float64"))
    return table


def _seal(document: dict[str, Any]) -> dict[str, Any]:
    """The document with a digest of everything else in it."""
    body = {key: value for key, value in document.items() if key != "digest"}
    body = json.loads(json.dumps(body))  # as it will be read: JSON has no numbers as keys
    return {**body, "digest": sha256(json.dumps(body, sort_keys=True).encode())}


def _write_json(path: Path, document: dict[str, Any]) -> None:
    scratch = path.with_suffix(".tmp")
    scratch.write_text(json.dumps(document, indent=1) + "\n")
    os.replace(scratch, path)
