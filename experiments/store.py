"""Results on disk: plan.json, and one folder per cell, written whole or not at all.

cells/<id>/run.json          configuration, state, environment, checksums
cells/<id>/samples.parquet   one row one observation (state ok only)
cells/<id>/routing.parquet   tokens per layer, iteration, rank and expert
"""

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pandas as pd

SCHEMA = 1
SAMPLE_COLUMNS = {
    "campaign": "str",
    "cell": "str",
    "launch": "int64",
    "iteration": "int64",
    "phase": "str",
    "rank": "int64",
    "metric": "str",
    "layer": "Int64",
    "section": "str",
    "value": "float64",
    "unit": "str",
    "order": "Int64",
    "time": "float64",
    "source": "str",
    "schema": "int64",
}
ROUTING_COLUMNS = ["layer", "iteration", "rank", "expert", "tokens"]


class Store:
    """One campaign's folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._cells = folder / "cells"

    def write_plan(self, plan: dict[str, Any]) -> None:
        self._cells.mkdir(parents=True, exist_ok=True)
        _write_json(self.folder / "plan.json", plan)

    def is_measured(self, cell: str) -> bool:
        """True if the cell is stored in state ok and its files are what was written."""
        try:
            run = json.loads((self._cells / cell / "run.json").read_text())
            return run["state"] == "ok" and all(
                _checksum(self._cells / cell / name) == digest for name, digest in run["checksums"].items()
            )
        except (OSError, ValueError, KeyError):
            return False

    def has_failed(self, cell: str) -> bool:
        """True if the cell is stored with the reason why it has no numbers."""
        try:
            return json.loads((self._cells / cell / "run.json").read_text())["state"] != "ok"
        except (OSError, ValueError, KeyError):
            return False

    def write_cell(
        self, run: dict[str, Any], samples: pd.DataFrame | None = None, routing: pd.DataFrame | None = None
    ) -> None:
        """Store one cell; an earlier failure of it is replaced."""
        scratch, final = self._cells / f".{run['cell']}.tmp", self._cells / run["cell"]
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir(parents=True)
        if samples is not None and routing is not None:
            samples = samples.reindex(columns=list(SAMPLE_COLUMNS)).astype(SAMPLE_COLUMNS)
            samples.to_parquet(scratch / "samples.parquet", index=False)
            routing[ROUTING_COLUMNS].to_parquet(scratch / "routing.parquet", index=False)
        checksums = {path.name: _checksum(path) for path in sorted(scratch.iterdir())}
        _write_json(scratch / "run.json", {"schema": SCHEMA, **run, "checksums": checksums})
        shutil.rmtree(final, ignore_errors=True)
        os.replace(scratch, final)


def _checksum(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _write_json(path: Path, document: dict[str, Any]) -> None:
    scratch = path.with_suffix(".tmp")
    scratch.write_text(json.dumps(document, indent=1) + "\n")
    os.replace(scratch, path)
