"""Results on disk: plan.json, and one folder per cell, written whole or not at all (analysis/schema.py).

running.json, while there are any: the cells of the launches that run now, and by which process.
A cell is planned (it is not stored), running, or stored in one of STATES.
"""

import hashlib
import json
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd
import psutil
from filelock import FileLock, Timeout

from analysis.load import read_packed_runs
from analysis.schema import COLUMNS, MILLISECONDS, SAMPLE_COLUMNS, SCHEMA, STATES

TO_MEASURE = ("planned", "damaged")


class StoreBusy(RuntimeError):
    """Another campaign writes to the folder."""


class Store:
    """One campaign's folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._cells = folder / "cells"
        self._running: set[str] = set()
        self._noting = threading.Lock()

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Hold the folder for one campaign; StoreBusy, in one sentence, while another process holds it."""
        self._cells.mkdir(parents=True, exist_ok=True)
        try:
            with FileLock(self.folder / ".lock", timeout=0):
                yield
        except Timeout:
            raise StoreBusy(
                f"another campaign is writing to {self.folder}; wait for it, or choose another folder with out="
            ) from None

    def write_plan(self, plan: dict[str, Any]) -> None:
        self._cells.mkdir(parents=True, exist_ok=True)
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

    def state(self, cell: str) -> str:
        """One of STATES; planned where the cell is not stored, or damaged where it is not what was written."""
        if not self._is_loose(cell):
            return self._packed[cell]["state"] if cell in self._packed else "planned"
        return "damaged" if self.damage(cell) else self._read(cell)["state"]

    def damage(self, cell: str) -> str | None:
        """Which file of a stored cell is not what was written, in a few words; None if all are."""
        if not self._is_loose(cell):
            return None if cell in self._packed else "it is not stored"
        try:
            run = self._read(cell)
        except (OSError, ValueError, KeyError, AttributeError, TypeError):
            return "run.json cannot be read"
        if run.get("digest") != _seal(run)["digest"]:
            return "run.json is not what was written"
        for name, expected in run["checksums"].items():
            path = self._cells / cell / name
            if not path.is_file():
                return f"{name} is missing"
            if _checksum(path) != expected:
                return f"{name} is not what was written"
        return None

    def _is_loose(self, cell: str) -> bool:
        return (self._cells / cell).exists()

    @cached_property
    def _packed(self) -> dict[str, dict[str, Any]]:
        """The runs of a packed campaign; none where its files are not what was written, so that they are made anew."""
        try:
            return read_packed_runs(self.folder)
        except ValueError:
            return {}

    def _read(self, cell: str) -> dict[str, Any]:
        if not self._is_loose(cell):
            return self._packed[cell]
        run = json.loads((self._cells / cell / "run.json").read_text())
        if run.get("schema") != SCHEMA or run["state"] not in STATES:
            raise ValueError(f"cell {cell} is of another schema")
        return run

    def started(self, cell: str) -> str:
        """When the launch began that measured a stored cell: the same for all cells that took turns."""
        return self._read(cell)["started"]

    def is_measured(self, cell: str) -> bool:
        """True if the cell is stored in state ok and its files are what was written."""
        return self.state(cell) == "ok"

    def has_failed(self, cell: str) -> bool:
        """True if the cell is stored with the reason why it has no numbers."""
        return self.state(cell) not in ("ok", *TO_MEASURE)

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
        checksums = {path.name: _checksum(path) for path in sorted(scratch.iterdir())}
        _write_json(scratch / "run.json", _seal({"schema": SCHEMA, **run, "checksums": checksums}))


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
    return {**body, "digest": hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()}


def _checksum(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _write_json(path: Path, document: dict[str, Any]) -> None:
    scratch = path.with_suffix(".tmp")
    scratch.write_text(json.dumps(document, indent=1) + "\n")
    os.replace(scratch, path)
