"""Cells as a store has them, without a launch."""

from pathlib import Path

import pandas as pd

from analysis.schema import COLUMNS, SAMPLE_COLUMNS, SCHEMA
from experiments.store import Store


def run(cell: str, state: str = "ok", started: int = 0) -> dict:
    about = {"reason": None if state == "ok" else "no memory", "started": started, "launch_id": cell[::-1]}
    return {"cell": cell, "campaign": "c", "state": state, **about}


def tables(cell: str, value: float = 1) -> dict[str, pd.DataFrame]:
    """Rows that tell which measurement of the cell they are of; only some cells have collectives."""
    samples = pd.DataFrame({name: ["" if kind == "str" else 1] * 3 for name, kind in SAMPLE_COLUMNS.items()})
    samples = samples.assign(cell=cell, schema=SCHEMA, value=value, layer=pd.array([None, 1, 2], dtype="Int64"))
    found = {"samples": samples}
    for name in ("routing", *(["collectives"] if cell == "bbb" else [])):
        found[name] = pd.DataFrame({column: [float(value)] * 2 for column in COLUMNS[name]})
    return found


def measure(folder: Path, cell: str, state: str = "ok", number: int = 1) -> None:
    rows = tables(cell, number) if state == "ok" else {}
    Store(folder).write_cell(run(cell, state, number), rows)
