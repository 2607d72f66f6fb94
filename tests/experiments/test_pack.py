"""A campaign that packs itself is read like any other at every moment, and may be stopped at any."""

import hashlib
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from analysis.files import read_runs
from analysis.load import load_campaign
from analysis.schema import SCHEMA
from experiments.pack import forget, pack, set_aside
from experiments.store import Store
from tests.experiments.stored import measure

FILES = ["collectives.parquet", "plan.json", "routing.parquet", "runs.json", "samples.parquet"]
CELLS = ("aaa", "bbb", "ccc", "ddd")
Seen = dict[str, tuple]


def planned(folder: Path) -> Path:
    panel = {"name": "p", "x_name": "x", "points": [{"x": 1, "cells": list(CELLS)}]}
    Store(folder).write_plan({"schema": SCHEMA, "panels": [panel], "command": "", "campaign": "c"})
    return folder


def seen(folder: Path) -> Seen:
    """Of every planned cell: its state, which measurement it is of, and its rows."""
    campaign = load_campaign(folder)
    found = {}
    for cell, run in campaign.runs.items():
        found[cell] = run["state"], run.get("started")
        if cell in campaign.frames:
            values = [
                campaign.frames[cell]["value"],
                campaign.routing(cell)["tokens"],
                campaign.collectives(cell)["rank"],
            ]
            found[cell] += tuple(tuple(column) for column in values)
    return found


def expected(*measured: tuple[str, str, int]) -> Seen:
    """What `seen` gives after these."""
    found: Seen = dict.fromkeys(CELLS, ("missing", None))
    for cell, state, number in measured:
        rows = ((number,) * 3, (number,) * 2, (number,) * (2 if cell == "bbb" else 0))
        found[cell] = (state, number, *rows) if state == "ok" else (state, number)
    return found


class Watch:
    """Does something before every change of a file that Python makes."""

    def __init__(self) -> None:
        self.do: Callable[[], None] | None = None
        sys.addaudithook(self._at)

    def _at(self, event: str, arguments: tuple) -> None:
        changes = event in ("os.rename", "os.remove", "os.rmdir", "os.mkdir", "shutil.rmtree")
        if self.do and (changes or (event == "open" and str(arguments[1])[0] in "wx")):
            do, self.do = self.do, None
            try:
                do()
            finally:
                self.do = do


WATCH = Watch()


def content(folder: Path) -> str:
    """A hash of all files that are not to be removed."""
    shown = (path for path in sorted(folder.rglob("*")) if not any(part.startswith(".") for part in path.parts))
    found = [(str(path.relative_to(folder)), path.read_bytes() if path.is_file() else b"") for path in shown]
    return hashlib.sha256(repr(found).encode()).hexdigest()


def moments(folder: Path, copies: Path, act: Callable[[Path], object] = pack) -> list[Path]:
    """The states in which being stopped may leave the folder, as copies of it; the last is the result.

    copies: what is there already is not listed again.
    """
    found = []

    def copy() -> None:
        target = copies / content(folder)
        if not target.exists():
            found.append(Path(shutil.copytree(folder, target)))

    WATCH.do = copy
    try:
        act(folder)
    finally:
        WATCH.do = None
    copy()
    return found


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three cells are packed, of which one has failed; it and another are measured again, and a fourth is."""
    folder = planned(tmp_path / "campaign")
    for cell in ("aaa", "bbb"):
        measure(folder, cell)
    measure(folder, "ccc", "oom")
    pack(folder)
    for cell in ("bbb", "ccc", "ddd"):
        measure(folder, cell, number=2)
    return folder


ALL = expected(("aaa", "ok", 1), ("bbb", "ok", 2), ("ccc", "ok", 2), ("ddd", "ok", 2))


def rows_of_all(folder: Path) -> list[int]:
    files = (folder / f"{name}.parquet" for name in ("samples", "routing", "collectives"))
    return [len(pd.read_parquet(path)) for path in files]


def test_what_is_packed_and_what_is_not_are_read_together(folder: Path):
    assert seen(folder) == ALL
    assert pack(folder) == [] and seen(folder) == ALL and rows_of_all(folder) == [12, 8, 2]
    assert sorted(path.name for path in folder.iterdir()) == FILES
    assert Store(folder).states([*CELLS, "eee"]) == dict.fromkeys(CELLS, "ok") | {"eee": "planned"}


def test_stopped_twice_at_any_two_moments_nothing_is_lost_and_nothing_is_there_twice(folder: Path, tmp_path: Path):
    once = moments(folder, tmp_path / "once")
    twice = [again for stopped in once for again in moments(stopped, tmp_path / "twice")]
    assert len(once) > 8 and len(twice) > 8
    for stopped in twice:
        assert seen(stopped) == ALL
        assert pack(stopped) == [] and seen(stopped) == ALL
        assert rows_of_all(stopped) == [12, 8, 2] and sorted(path.name for path in stopped.iterdir()) == FILES


def test_who_reads_while_it_packs_sees_all(folder: Path):
    looked = []

    def look() -> None:
        looked.append(seen(folder))
        assert set(Store(folder).states(CELLS).values()) == {"ok"}

    WATCH.do = look
    try:
        pack(folder)
    finally:
        WATCH.do = None
    assert len(looked) > 8 and all(one == ALL for one in looked)


DEEDS = st.lists(
    st.tuples(st.sampled_from(CELLS), st.sampled_from(["ok", "failed"]), st.integers(0, 30)), min_size=1, max_size=5
)


@settings(max_examples=10, deadline=None)
@given(deeds=DEEDS)
def test_a_campaign_that_goes_on_and_is_stopped_again_and_again(tmp_path_factory, deeds):
    """Each deed measures a cell, again perhaps, and packs until so many files have changed."""
    folder = planned(tmp_path_factory.mktemp("deeds"))
    for number, (cell, state, stop) in enumerate(deeds):
        measure(folder, cell, state, number)
        states = moments(folder, tmp_path_factory.mktemp("copies"))
        folder = states[min(stop, len(states) - 1)]
        assert seen(folder) == expected(*((cell, state, at) for at, (cell, state, _) in enumerate(deeds[: number + 1])))
    measured = {cell: state for cell, state, _ in deeds}
    pack(folder)
    ok = sum(state == "ok" for state in measured.values())
    assert not ok or len(pd.read_parquet(folder / "samples.parquet")) == 3 * ok


def test_a_table_may_lose_all_its_rows(folder: Path):
    """Only this cell has collectives."""
    pack(folder)
    measure(folder, "bbb", "failed", number=3)
    assert pack(folder) == [] and seen(folder) == ALL | {"bbb": ("failed", 3)} and rows_of_all(folder) == [9, 6, 0]


def test_what_is_forgotten_is_measured_again_and_the_rest_stays(folder: Path, tmp_path: Path):
    measure(folder, "ddd", "failed")
    left = expected(("aaa", "ok", 1), ("bbb", "ok", 2), ("ccc", "ok", 2))
    before = left | expected(("ddd", "failed", 1))
    before |= {cell: left[cell] for cell in ("aaa", "bbb", "ccc")}
    for stopped in moments(folder, tmp_path / "loose", lambda folder: forget(folder, {"ddd"})):
        assert seen(stopped) in (before, left)
    assert seen(folder) == left
    pack(folder)
    for stopped in moments(folder, tmp_path / "packed", lambda folder: forget(folder, {"bbb"})):
        assert seen(stopped) in (left, left | {"bbb": ("missing", None)})
    measure(folder, "bbb", number=3)
    pack(folder)
    assert seen(folder) == left | {"bbb": expected(("bbb", "ok", 3))["bbb"]} and rows_of_all(folder) == [9, 6, 2]


def test_a_damaged_cell_is_named_and_stays_as_it_is(folder: Path):
    (folder / "cells/ddd/samples.parquet").write_bytes(b"")
    (said,) = pack(folder)
    assert "cells/ddd/samples.parquet is not what was written" in said and said.endswith("Cell ddd is not packed.")
    assert [path.name for path in (folder / "cells").iterdir()] == ["ddd"]
    assert Store(folder).states(CELLS) == dict.fromkeys(CELLS, "ok") | {"ddd": "damaged"}
    measure(folder, "ddd", number=2)
    assert pack(folder) == [] and seen(folder) == ALL


def test_damaged_packed_files_are_named_and_kept_aside(folder: Path):
    pack(folder)
    packed = json.loads((folder / "runs.json").read_text())
    packed["shared"]["campaign"] = "another"
    (folder / "runs.json").write_text(json.dumps(packed))
    with pytest.raises(ValueError, match=r"runs\.json \(aaa\) is not what was written"):
        load_campaign(folder)
    measure(folder, "ddd", number=3)
    now = dict.fromkeys(CELLS, "planned") | {"ddd": "ok"}  # the others are to be measured again
    assert Store(folder).states(CELLS) == now
    assert "kept as *.damaged" in (set_aside(folder) or "") and set_aside(folder) is None
    pack(folder)
    assert seen(folder) == expected(("ddd", "ok", 3)) and Store(folder).states(CELLS) == now
    assert len(pd.read_parquet(folder / "samples.parquet.damaged")) == 12


def test_a_disk_that_is_full_leaves_no_half_of_a_table(folder: Path, monkeypatch):
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("experiments.pack._write_runs", full)
        with pytest.raises(OSError, match="No space left"):
            pack(folder)
    assert not list(folder.glob("*.new")) and seen(folder) == ALL
    pack(folder)
    assert seen(folder) == ALL


def test_large_tables_are_written_in_groups(folder: Path, monkeypatch):
    monkeypatch.setattr("experiments.pack.GROUP", 4)
    pack(folder)
    found = pq.ParquetFile(folder / "samples.parquet").metadata
    assert [found.row_group(index).num_rows for index in range(found.num_row_groups)] == [6, 6]
    assert seen(folder) == ALL and read_runs(folder).keys() == set(CELLS)
