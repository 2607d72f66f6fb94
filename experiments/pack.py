"""`python -m experiments.pack FOLDER...`: make one file of each kind out of a campaign's cells (analysis/schema.py).

A cell is written by itself, so that nothing that was measured is lost; a campaign that is through is easier to keep and
many times as fast to read packed. It can be gone on with: what is measured then stands beside, until it is packed too.
"""

import argparse
import json
import shutil
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from analysis.load import read_packed_runs, sha256
from analysis.schema import COLUMNS, MILLISECONDS, NEW, RUNS, SCHEMA, TABLES, split_shared
from experiments.store import Store, StoreBusy

GROUP = 100_000  # rows of a row group: few enough to read one cell, many enough to take little room
PAGE = 64 << 20  # bytes: a column of a group is one page, in which zstd sees that systems got the same routing


def pack(folder: Path) -> int:
    """Pack a campaign and return how many cells it has; ValueError for one that is no campaign or has damaged cells."""
    store = Store(folder)
    store.read_plan()
    with store.writing():
        loose = sorted(path.name for path in (folder / "cells").iterdir() if not path.name.startswith("."))
        for cell in loose:
            if damage := store.damage(cell):
                raise ValueError(f"cell {cell} of {folder} cannot be packed: {damage}")
        packed = read_packed_runs(folder)
        runs = packed | {cell: json.loads((folder / "cells" / cell / "run.json").read_text()) for cell in loose}
        if loose:
            in_launches = sorted(runs, key=lambda cell: (runs[cell].get("launch_id") or "", cell))
            _write(folder, {cell: runs[cell] for cell in in_launches}, set(loose))
        shutil.rmtree(folder / "cells")
    return len(runs)


def _write(folder: Path, runs: dict[str, dict[str, Any]], loose: set[str]) -> None:
    """New tables, then runs.json, then the tables take their places: whenever it is killed, one state is whole."""
    fresh = {f"{name}.parquet": folder / f"{name}.parquet{NEW}" for name in TABLES}
    for name in TABLES:
        fresh[f"{name}.parquet"].unlink(missing_ok=True)
        _write_table(fresh[f"{name}.parquet"], folder, name, runs, loose)
    checksums = {name: sha256(path.read_bytes()) for name, path in fresh.items() if path.exists()}
    scratch = folder / f"{RUNS}{NEW}"
    scratch.write_text(_text({"schema": SCHEMA, "checksums": checksums} | split_shared(runs)))
    scratch.replace(folder / RUNS)
    for name in checksums:
        fresh[name].replace(folder / name)


def _write_table(path: Path, folder: Path, name: str, runs: Iterable[str], loose: set[str]) -> None:
    """The rows of all cells that have this table, cell after cell; no file where none has."""
    old = folder / f"{name}.parquet"
    kept = pq.read_table(old) if old.exists() else None
    tables = []
    for cell in runs:
        own = folder / "cells" / cell / f"{name}.parquet"
        if cell in loose and own.exists():
            tables.append(_with_cell(pq.read_table(own, columns=COLUMNS[name]), cell))
        elif cell not in loose and kept is not None:
            tables.append(kept.filter(pc.field("cell") == cell))
    if not tables:
        return
    schema = pa.unify_schemas([table.schema.remove_metadata() for table in tables], promote_options="permissive")
    schema = schema.with_metadata(tables[0].schema.metadata)  # pandas' types
    rows = pa.concat_tables([table.cast(schema) for table in tables])
    numbers = [column for column in MILLISECONDS if column in rows.column_names]
    pq.write_table(
        rows,
        path,
        row_group_size=GROUP,
        data_page_size=PAGE,
        use_dictionary=[column for column in rows.column_names if column not in numbers],  # pyright: ignore
        use_byte_stream_split=numbers,  # pyright: ignore
        write_page_checksum=True,
        compression="zstd",
        compression_level=12,
    )


def _with_cell(table: pa.Table, cell: str) -> pa.Table:
    return table if "cell" in table.column_names else table.append_column("cell", pa.array([cell] * len(table)))


def _text(document: dict[str, Any]) -> str:
    """JSON with a line a run, so that a change shows in a diff."""
    runs = ",\n".join(f"  {json.dumps(cell)}: {json.dumps(rest)}" for cell, rest in document["runs"].items())
    objects = ",\n".join(f"  {json.dumps(one)}" for one in document["objects"])
    rest = json.dumps({key: value for key, value in document.items() if key not in ("runs", "objects")}, indent=1)
    return f'{rest[:-2]},\n "objects": [\n{objects}\n ],\n "runs": {{\n{runs}\n }}\n}}\n'


def main(arguments: Sequence[str] | None = None) -> int:
    """Pack the folders; 2 at the first that cannot be."""
    parser = argparse.ArgumentParser(prog="python -m experiments.pack", description=__doc__)
    parser.add_argument("folders", type=Path, nargs="+")
    for folder in parser.parse_args(arguments).folders:
        try:
            print(f"{folder}: {pack(folder)} cells")
        except (ValueError, OSError, StoreBusy) as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
