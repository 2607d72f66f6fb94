"""Reads a campaign's folder (analysis/schema.py): what is packed and what is not yet, if it is what was written."""

import hashlib
import json
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from analysis.schema import CELLS, CORRUPT, NEW, RUNS, SCHEMA, STATES, join_shared

Document = TypeVar("Document")
EVERY_OK_CELL = ("samples.parquet", "routing.parquet")  # has these


def read_runs(folder: Path) -> dict[str, dict]:
    """By cell, the run.json of all that is stored, packed or not; what is damaged has the state `corrupt` and a reason.

    Raises ValueError naming a packed file that is not what was written.
    """
    return undisturbed(folder, lambda: read_packed_runs(folder) | read_loose_runs(folder))


def undisturbed(folder: Path, reader: Callable[[], Document]) -> Document:
    """What the reader returns of one state of the folder: it reads again where a campaign packed itself meanwhile."""
    while True:
        before, cells = _changed(folder / RUNS), _changed(folder / CELLS)
        try:
            found = reader()
        except ValueError:
            if (before, cells) == (_changed(folder / RUNS), _changed(folder / CELLS)):
                raise
            continue
        if before == _changed(folder / RUNS):
            return found


def _changed(path: Path) -> tuple[int, int] | None:
    """Which file it is and when it was changed."""
    try:
        return (found := path.stat()).st_ino, found.st_mtime_ns
    except OSError:
        return None


def read_loose_runs(folder: Path) -> dict[str, dict]:
    """The same of the cells that are not packed yet."""
    runs = {cell: read_cell(folder / CELLS / cell) for cell in loose_cells(folder)}
    # What has been packed and removed since it was listed is no loss.
    return {cell: run for cell, run in runs.items() if run["state"] != CORRUPT or (folder / CELLS / cell).exists()}


def loose_cells(folder: Path) -> list[str]:
    """The cells that are not packed yet; names with a dot are those of cells that are being written or removed."""
    return sorted(path.name for path in (folder / CELLS).glob("[!.]*"))


def read_cell(folder: Path) -> dict:
    """The run.json of a cell that is not packed; `corrupt`, with the reason, where a file is not what was written."""
    run: dict = {"cell": folder.name}
    try:
        run = read_json(folder / "run.json")
        verify_seal(folder / "run.json", run)
        if run.get("state") not in STATES:
            raise ValueError(f"{folder / 'run.json'} has no state.")
        checksums = run.get("checksums", {})
        for name in dict.fromkeys([*(EVERY_OK_CELL if run["state"] == "ok" else ()), *checksums]):
            verify_checksum(folder / name, checksums.get(name))
    except ValueError as error:
        run |= {"state": CORRUPT, "reason": str(error)}
    return run


def read_packed_runs(folder: Path) -> dict[str, dict]:
    """By cell, the run.json of what is packed, or none; ValueError naming a file that is not what was written."""
    path = folder / RUNS
    if not path.exists():
        return {}
    document = read_json(path)
    for name, expected in document["checksums"].items():
        _take_place(folder / name, expected)
        verify_checksum(folder / name, expected)
    runs = join_shared(document)
    for cell, run in runs.items():
        verify_seal(Path(f"{path} ({cell})"), run)
    return runs


def _take_place(path: Path, expected: str) -> None:
    """Do what is left to do where packing was stopped, or is, after runs.json was written."""
    fresh = path.with_name(path.name + NEW)
    with suppress(OSError):  # another process was faster, or may do it
        if fresh.exists() and not _is(path, expected) and _is(fresh, expected):
            fresh.replace(path)


def _is(path: Path, expected: str) -> bool:
    return path.exists() and sha256(path.read_bytes()) == expected


def read_samples(folder: Path, runs: dict[str, dict]) -> dict[str, pd.DataFrame]:
    """By cell, the samples of the ok ones of `runs`."""
    packed = folder / "samples.parquet"
    rows = read_table(packed).groupby("cell", sort=False) if packed.exists() else ()
    frames = {str(cell): frame.reset_index(drop=True) for cell, frame in rows}
    loose = {cell: folder / CELLS / cell / packed.name for cell, run in runs.items() if run["state"] == "ok"}
    frames |= {cell: read_table(own) for cell, own in loose.items() if own.exists()}
    return {cell: frames[cell] for cell in loose if cell in frames}


def read_cell_table(folder: Path, cell: str, name: str) -> pd.DataFrame:
    """A table of one cell, packed or not; no rows and columns where the cell has none of that name."""
    own = folder / CELLS / cell / f"{name}.parquet"
    if own.exists():
        return read_table(own)
    packed = folder / f"{name}.parquet"
    if own.parent.exists() or not packed.exists():
        return pd.DataFrame()
    found = read(packed, lambda: pq.read_table(packed, filters=[("cell", "=", cell)]).to_pandas())
    return found if name == "samples" else found.drop(columns="cell")


def read_json(path: Path) -> dict:
    """A JSON document of this schema; ValueError naming the file otherwise."""
    document = read(path, lambda: json.loads(path.read_text()))
    schema = document.get("schema") if isinstance(document, dict) else None
    if schema != SCHEMA:
        older = f" ({schema} is from another version of the harness: measure again)" if schema else ""
        raise ValueError(f"{path} is not a document of schema {SCHEMA}{older}.")
    return document


def verify_seal(path: Path, run: dict) -> None:
    """Compare a run.json with the digest of everything else in it, where it has one."""
    body = {key: value for key, value in run.items() if key != "digest"}
    if run.get("digest", digest := sha256(json.dumps(body, sort_keys=True).encode())) != digest:
        raise ValueError(f"{path} is not what was written: its digest is not that of its content.")


def sha256(content: bytes) -> str:
    """64 hexadecimal digits."""
    return hashlib.sha256(content).hexdigest()


def verify_checksum(path: Path, expected: str | None) -> None:
    """Compare a file with what run.json says was written."""
    found = read(path, lambda: sha256(path.read_bytes()))
    if expected is None:
        raise ValueError(f"{path} has no checksum in run.json.")
    if found != expected:
        raise ValueError(f"{path} is not what was written: its checksum differs from the one in run.json.")


def read_table(path: Path) -> pd.DataFrame:
    """A parquet file whose pages have intact checksums; ValueError naming one that cannot be read."""
    return read(path, lambda: pq.read_table(path, page_checksum_verification=True).to_pandas())


def read(path: Path, reader: Callable[[], Document]) -> Document:
    """What the reader returns; ValueError, in one sentence with the path, where it fails."""
    try:
        return reader()
    except (OSError, ValueError, pa.ArrowException) as error:
        raise ValueError(f"{path} cannot be read: {str(error).splitlines()[0]}") from error
