"""Reads a stored campaign; what is missing, failed or unreadable stays visible as a state."""

import hashlib
import json
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from analysis.labels import remember
from analysis.schema import COLLECTIVE_COLUMNS, NEW, RUNS, SCHEMA, join_shared

SIMULATED = "simulated"  # the source of numbers of a described device
Document = TypeVar("Document")
TRUSTED = ("passed", SIMULATED)  # what `correctness` says of cells whose times count
RUN_COLUMNS = ["system", "engine", "precision", "twin"]


@dataclass(frozen=True)
class Campaign:
    """A plan and what became of its cells: `runs` has every planned cell, `frames` the rows of those in state ok."""

    folder: Path
    plan: dict
    runs: dict[str, dict]
    frames: dict[str, pd.DataFrame]

    def samples(self) -> pd.DataFrame:
        """All rows of all ok cells, with system, engine, precision and the workload point as columns."""
        joined = [frame.assign(**run_columns(self.runs[cell])) for cell, frame in self.frames.items()]
        return pd.concat(joined, ignore_index=True) if joined else pd.DataFrame(columns=["cell", *RUN_COLUMNS])

    def routing(self, cell: str) -> pd.DataFrame:
        """Realised and intended tokens of an ok cell, one row a layer, iteration, rank and expert; read when asked for.

        Columns: layer, iteration, rank, expert, tokens, intended. Experts without tokens may have no row.
        """
        return read_cell_table(self.folder, cell, "routing")

    def collectives(self, cell: str) -> pd.DataFrame:
        """What each rank of an ok cell moved in every observed layer; no rows where the cluster was not emulated.

        Times are in ms since the layer began. sent_to: bytes to each rank of the collective.
        """
        found = read_cell_table(self.folder, cell, "collectives")
        return found if len(found.columns) else pd.DataFrame(columns=COLLECTIVE_COLUMNS)


def run_columns(run: dict) -> dict:
    """What tables of cells show of a run.json."""
    return {name: run[name] for name in RUN_COLUMNS} | run["point"]


def load_campaign(folder: Path | str) -> Campaign:
    """Read plan.json, every planned cell's run.json and the samples of the ok ones.

    A cell that is not stored gets the state `missing`; one with an unreadable file gets `corrupt`, and a warning names
    the file. Raises ValueError when plan.json, or a file of a packed campaign, cannot be read.
    """
    folder = Path(folder)
    plan = read_json(folder / "plan.json")
    packed, rows = read_packed_runs(folder), _packed_rows(folder)
    runs, frames = {}, {}
    for cell in planned_cells(plan):
        if cell in packed and not (folder / "cells" / cell).exists():
            runs[cell], frame = packed[cell], rows.get(cell) if packed[cell]["state"] == "ok" else None
        else:
            runs[cell], frame = load_cell(folder / "cells" / cell)
        if frame is not None:
            frames[cell] = frame
    remember(runs.values())
    return Campaign(folder, plan, runs, frames)


def read_packed_runs(folder: Path) -> dict[str, dict]:
    """By cell, the run.json of a packed campaign, or none; ValueError naming a file that is not what was written."""
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
    """Do what was left to do where packing was stopped after runs.json had been written."""
    fresh = path.with_name(path.name + NEW)
    if fresh.exists() and sha256(fresh.read_bytes()) == expected:
        fresh.replace(path)


def _packed_rows(folder: Path) -> dict[str, pd.DataFrame]:
    if not (folder / RUNS).exists():
        return {}
    rows = read_table(folder / "samples.parquet")
    return {str(cell): frame.reset_index(drop=True) for cell, frame in rows.groupby("cell", sort=False)}


def read_cell_table(folder: Path, cell: str, name: str) -> pd.DataFrame:
    """A table of one cell, packed or not; no rows and columns where the cell has none of that name."""
    own = folder / "cells" / cell / f"{name}.parquet"
    if own.exists():
        return read_table(own)
    packed = folder / f"{name}.parquet"
    if own.parent.exists() or not packed.exists():
        return pd.DataFrame()
    found = read(packed, lambda: pq.read_table(packed, filters=[("cell", "=", cell)]).to_pandas())
    return found if name == "samples" else found.drop(columns="cell")


def planned_cells(plan: dict) -> list[str]:
    """Every cell of the plan once, in the order of the panels."""
    return list(dict.fromkeys(cell for panel in plan["panels"] for point in panel["points"] for cell in point["cells"]))


def load_cell(folder: Path) -> tuple[dict, pd.DataFrame | None]:
    """One cell's run.json and, in state ok, its samples."""
    if not folder.exists():
        return {"cell": folder.name, "state": "missing", "reason": "It has not run."}, None
    run: dict = {"cell": folder.name}
    try:
        run = read_json(folder / "run.json")
        verify_seal(folder / "run.json", run)
        return run, read_rows(folder, run.get("checksums", {})) if run["state"] == "ok" else None
    except ValueError as error:
        warnings.warn(str(error), stacklevel=2)
        return run | {"state": "corrupt", "reason": str(error)}, None


def read_json(path: Path) -> dict:
    """A JSON document of this schema; ValueError naming the file otherwise."""
    document = read(path, lambda: json.loads(path.read_text()))
    schema = document.get("schema") if isinstance(document, dict) else None
    if schema != SCHEMA:
        older = f" ({schema} is from another version of the harness: measure again)" if schema else ""
        raise ValueError(f"{path} is not a document of schema {SCHEMA}{older}.")
    return document


def read_rows(folder: Path, checksums: dict[str, str]) -> pd.DataFrame:
    """The samples of one ok cell; ValueError naming the file that is truncated, changed or of another schema."""
    for name in dict.fromkeys(("samples.parquet", "routing.parquet", *checksums)):
        verify_checksum(folder / name, checksums.get(name))
    path = folder / "samples.parquet"
    frame = read_table(path)
    if "schema" not in frame or set(frame["schema"]) != {SCHEMA}:
        raise ValueError(f"{path} does not hold samples of schema {SCHEMA}.")
    return frame


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


def place_of(panel: dict, point: dict) -> dict:
    """Where a point is: its panel, its x, and its y where the panel has a second axis (None elsewhere)."""
    axes = {"x_name": panel["x_name"], "x": point["x"], "y_name": panel.get("y_name"), "y": point.get("y")}
    return {"experiment": panel["name"]} | axes


def coverage(campaign: Campaign) -> pd.DataFrame:
    """Every planned cell of every panel, twins too, with its state, the reason, and whether its output was checked."""
    rows = [
        place_of(panel, point)
        | {"cell": cell}
        | {name: campaign.runs[cell].get(name) for name in [*RUN_COLUMNS, "launch", "state", "reason"]}
        | {"correctness": correctness(campaign.runs[cell])}
        for panel in campaign.plan["panels"]
        for point in panel["points"]
        for cell in point["cells"]
    ]
    return pd.DataFrame(rows)


def device_of(run: dict) -> str:
    """The name of the described device that a cell was simulated on; "" for one that ran."""
    return run.get("device", {}).get("name", "")


def turn_of(run: dict) -> int:
    """How many forward passes of each kind a cell had in a round; one in samples of earlier code."""
    return run["schedule"].get("turn", 1)


def runs_of(campaign: Campaign, panel: dict | None = None) -> list[dict]:
    """run.json of the ok cells of a panel, or of all."""
    wanted = campaign.frames if panel is None else {cell for point in panel["points"] for cell in point["cells"]}
    return [campaign.runs[cell] for cell in campaign.frames if cell in wanted]


def regime_of(campaign: Campaign, panel: dict | None = None) -> str:
    """What all cells of a panel, or of all, were timed at: `encode`, `prefill` or `decode`; "" where they differ."""
    regimes = {run.get("regime", "encode") for run in runs_of(campaign, panel)}  # samples of earlier code have none
    return regimes.pop() if len(regimes) == 1 else ""


def simulated_on(campaign: Campaign, panel: dict | None = None) -> str:
    """The described device whose numbers a panel (or campaign) shows; "" where anything ran, or nothing did."""
    devices = {device_of(run) for run in runs_of(campaign, panel)}
    return devices.pop() if len(devices) == 1 else ""


def correctness(run: dict) -> str:
    """`passed`, `simulated` (outputs have no values), `failed` with the error, or `not checked`."""
    if run.get("source") == SIMULATED:
        return SIMULATED
    check = run.get("correctness")
    if check is None:
        return "not checked"
    agreement = check.get("agreement")
    if check["passed"] and agreement and not agreement["passed"]:
        check = agreement
    elif check["passed"]:
        return "passed"
    return f"failed (relative error {check['relative_error']:.2g}, {check['tolerance']:.2g} allowed)"
