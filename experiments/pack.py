"""Makes one file of each kind out of a campaign's cells (analysis/schema.py); it may be stopped at any moment.

A cell is written by itself, so that nothing that was measured is lost; what is packed is easier to keep and many times
as fast to read. New tables are written beside the old ones, runs.json with their checksums makes them valid at once,
they take their places, here or in whoever reads next (analysis/files.py), and then the cells go. Whoever calls this
holds the folder (`Store.writing`).
"""

import json
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from analysis.files import loose_cells, read_cell, read_packed_runs, sha256
from analysis.schema import CELLS, COLUMNS, CORRUPT, MILLISECONDS, NEW, RUNS, SCHEMA, TABLES, split_shared

GROUP = 100_000  # rows of a row group, or a few more: few enough for memory, many enough to take little room
PAGE = 64 << 20  # bytes: a column of a group is one page, in which zstd sees that systems got the same routing
Runs = dict[str, dict[str, Any]]


def pack(folder: Path) -> list[str]:
    """Pack the cells that are what was written; a sentence about each other one, which stays where it is.

    Raises ValueError for a packed file that is not what was written (`set_aside`), OSError where the disk is full.
    """
    packed = read_packed_runs(folder)
    found = {cell: read_cell(folder / CELLS / cell) for cell in loose_cells(folder)}
    loose = {cell: run for cell, run in found.items() if run["state"] != CORRUPT}
    if loose:
        _write(folder, packed, loose)
        read_packed_runs(folder)  # tables take their places, and no cell goes before all can be read
        _remove_new(folder)
    _remove(folder, loose)
    return [f"{run['reason']} Cell {cell} is not packed." for cell, run in found.items() if cell not in loose]


def forget(folder: Path, cells: set[str]) -> None:
    """Remove what is stored of these cells, packed or not; rows of cells that runs.json lacks are never read."""
    packed = read_packed_runs(folder)
    if cells & packed.keys():
        _write_runs(folder, {cell: run for cell, run in packed.items() if cell not in cells}, _checksums(folder))
    _remove(folder, cells)


def set_aside(folder: Path) -> str | None:
    """Rename what is packed where a file of it is not what was written, and say so: its cells are measured again."""
    try:
        read_packed_runs(folder)
    except ValueError as error:
        for path in (*_tables(folder).values(), folder / RUNS):
            if path.exists():
                path.replace(path.with_name(f"{path.name}.damaged"))
        return f"{error} What was packed is measured again, and its files are kept as *.damaged."
    return None


def _tables(folder: Path, suffix: str = "") -> dict[str, Path]:
    return {name: folder / f"{name}.parquet{suffix}" for name in TABLES}


def _checksums(folder: Path, suffix: str = "") -> dict[str, str]:
    found = _tables(folder, suffix).items()
    return {f"{name}.parquet": sha256(path.read_bytes()) for name, path in found if path.exists()}


def _remove_new(folder: Path) -> None:
    """Remove tables that no runs.json knows, or that are those in place."""
    for path in _tables(folder, NEW).values():
        path.unlink(missing_ok=True)


def _write(folder: Path, packed: Runs, loose: Runs) -> None:
    """New tables, then the runs.json that makes them valid."""
    together = dict(sorted((packed | loose).items(), key=lambda item: (item[1].get("launch_id") or "", item[0])))
    kept = [cell for cell, run in together.items() if run["state"] == "ok" and cell not in loose]
    added = [folder / CELLS / cell for cell in together if cell in loose]
    _remove_new(folder)
    try:
        for name, path in _tables(folder, NEW).items():
            _write_table(path, name, folder, kept, added)
        _write_runs(folder, together, _checksums(folder, NEW))
    except OSError:  # a full disk: half a table would only take more of it
        _remove_new(folder)
        raise


def _write_table(path: Path, name: str, folder: Path, kept: list[str], added: list[Path]) -> None:
    """The rows of all cells that have this table, those that are packed first; no file where none has."""
    file = f"{name}.parquet"
    old = folder / file if kept and (folder / file).exists() else None
    new = [cell for cell in added if (cell / file).exists()]
    sources = [*([old] if old else []), *(cell / file for cell in new)]
    if not sources:
        return
    rows = _rows(old, kept, new, file, COLUMNS[name])
    schema = _schema([pq.read_schema(source) for source in sources], COLUMNS[name])
    timed = [column for column in MILLISECONDS if column in schema.names]
    options = {
        "use_dictionary": [column for column in schema.names if column not in timed],
        "use_byte_stream_split": timed,
        "data_page_size": PAGE,
        "write_page_checksum": True,
        "compression": "zstd",
        "compression_level": 12,
    }
    with path.open("wb") as out, pq.ParquetWriter(out, schema, **options) as writer:
        for group in _groups(table.cast(schema) for table in rows):
            writer.write_table(group, row_group_size=len(group))


def _rows(old: Path | None, kept: list[str], new: list[Path], file: str, columns: list[str]) -> Iterator[pa.Table]:
    """What is packed, less what is measured again, then cell after cell."""
    if old:
        for batch in pq.ParquetFile(old).iter_batches(GROUP):
            yield pa.table(batch).filter(pc.field("cell").isin(kept))
    for cell in new:
        yield _with_cell(pq.read_table(cell / file, columns=columns), cell.name)


def _with_cell(table: pa.Table, cell: str) -> pa.Table:
    return table if "cell" in table.column_names else table.append_column("cell", pa.array([cell] * len(table)))


def _schema(found: list[pa.Schema], columns: list[str]) -> pa.Schema:
    """The columns of all files with the widest of their types."""
    wanted = [*columns, *(["cell"] if "cell" not in columns else [])]
    known = [pa.schema([one.field(name) for name in wanted if name in one.names]) for one in found]
    widest = pa.unify_schemas([*known, pa.schema([("cell", pa.string())])], promote_options="permissive")
    return pa.schema([widest.field(name) for name in wanted], found[0].metadata)  # pandas' types


def _groups(tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
    """The same rows in larger tables."""
    waiting: list[pa.Table] = []
    for table in filter(len, tables):
        waiting.append(table)
        if sum(map(len, waiting)) >= GROUP:
            yield pa.concat_tables(waiting)
            waiting = []
    if waiting:
        yield pa.concat_tables(waiting)


def _write_runs(folder: Path, runs: Runs, checksums: dict[str, str]) -> None:
    scratch = folder / f"{RUNS}{NEW}"
    scratch.write_text(_text({"schema": SCHEMA, "checksums": checksums} | split_shared(runs)))
    scratch.replace(folder / RUNS)


def _text(document: dict[str, Any]) -> str:
    """JSON with a line a run, so that a change shows in a diff."""
    runs = ",\n".join(f"  {json.dumps(cell)}: {json.dumps(rest)}" for cell, rest in document["runs"].items())
    objects = ",\n".join(f"  {json.dumps(one)}" for one in document["objects"])
    rest = json.dumps({key: value for key, value in document.items() if key not in ("runs", "objects")}, indent=1)
    return f'{rest[:-2]},\n "objects": [\n{objects}\n ],\n "runs": {{\n{runs}\n }}\n}}\n'


def _remove(folder: Path, cells: Iterable[str]) -> None:
    """Remove the folders of these cells, each at once, and what was left of others that were not to stay."""
    _remove_hidden(folder)
    for cell in cells:
        if (own := folder / CELLS / cell).exists():
            own.replace(own.with_name(f".{cell}"))
    _remove_hidden(folder)
    if (folder / CELLS).exists() and not any((folder / CELLS).iterdir()):
        (folder / CELLS).rmdir()


def _remove_hidden(folder: Path) -> None:
    for path in (folder / CELLS).glob(".*"):
        shutil.rmtree(path)
