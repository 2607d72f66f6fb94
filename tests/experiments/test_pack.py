"""A packed campaign is read like any other, can be gone on with, and survives being stopped at any moment."""

import json
from pathlib import Path

import pandas as pd
import pytest

from analysis.load import load_campaign
from analysis.schema import COLUMNS, SAMPLE_COLUMNS
from experiments.pack import main, pack
from experiments.store import Store

CELLS = ("aaa", "bbb", "ccc")


def run(cell: str, state: str = "ok") -> dict:
    return {"cell": cell, "campaign": "c", "state": state, "reason": None if state == "ok" else "no memory"}


def tables(cell: str, rows: int = 3) -> dict[str, pd.DataFrame]:
    samples = pd.DataFrame({name: ["" if kind == "str" else 1] * rows for name, kind in SAMPLE_COLUMNS.items()})
    samples = samples.assign(cell=cell, schema=2, layer=pd.array([None, 1, 2][:rows], dtype="Int64"))
    routing = pd.DataFrame({name: range(rows) for name in COLUMNS["routing"]})
    return {"samples": samples, "routing": routing}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    store = Store(tmp_path)
    points = [{"x": 1, "cells": list(CELLS)}]
    panel = {"name": "p", "x_name": "x", "points": points}
    store.write_plan({"schema": 2, "panels": [panel], "command": "", "campaign": "c"})
    for cell in ("aaa", "bbb"):
        store.write_cell(run(cell), tables(cell))
    store.write_cell(run("ccc", "oom"))
    return tmp_path


def same(one, other) -> bool:
    equal = one.runs == other.runs and one.frames.keys() == other.frames.keys()
    return equal and all(
        one.frames[cell].equals(other.frames[cell]) and one.routing(cell).equals(other.routing(cell))
        for cell in one.frames
    )


@pytest.fixture
def before(folder: Path):
    campaign = load_campaign(folder)
    tables_of = {cell: campaign.routing(cell) for cell in campaign.frames}
    object.__setattr__(campaign, "routing", tables_of.get)
    return campaign


def test_nothing_is_lost_or_changed(folder: Path, before):
    assert main([str(folder)]) == 0
    assert not (folder / "cells").exists()
    assert sorted(path.name for path in folder.glob("*.*")) == [
        *(".lock", "plan.json", "routing.parquet", "runs.json", "samples.parquet"),
    ]
    assert same(load_campaign(folder), before)
    assert [Store(folder).state(cell) for cell in (*CELLS, "ddd")] == ["ok", "ok", "oom", "planned"]


def test_a_campaign_that_went_on_is_packed_again(folder: Path):
    pack(folder)
    with Store(folder).writing():
        Store(folder).write_cell(run("ccc"), tables("ccc", rows=2))
    assert load_campaign(folder).runs["ccc"]["state"] == "ok"
    assert pack(folder) == 3
    found = load_campaign(folder)
    assert {cell: len(frame) for cell, frame in found.frames.items()} == {"aaa": 3, "bbb": 3, "ccc": 2}
    assert len(found.collectives("aaa")) == 0 and len(found.routing("ccc")) == 2


@pytest.mark.parametrize("calls", range(6))
def test_it_may_be_stopped_at_any_moment(folder: Path, before, monkeypatch, calls: int):
    """The disk takes so many more changes of names; the second packing has the cells of the first to lose."""
    pack(folder)
    with Store(folder).writing():
        Store(folder).write_cell(run("aaa"), tables("aaa"))
    left, replace = [calls], Path.replace

    def stopping(self, target):
        if not left[0]:
            raise KeyboardInterrupt
        left[0] -= 1
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", stopping)
    try:
        pack(folder)
    except KeyboardInterrupt:
        monkeypatch.setattr(Path, "replace", replace)
    assert same(load_campaign(folder), before)


def test_a_damaged_file_is_named(folder: Path, capsys):
    (folder / "cells/aaa/samples.parquet").write_bytes(b"")
    assert main([str(folder)]) == 2
    assert "cell aaa" in (said := capsys.readouterr().err) and "samples.parquet is not what was written" in said
    assert (folder / "cells/bbb").exists()


def test_a_changed_packed_file_is_not_read(folder: Path):
    pack(folder)
    packed = json.loads((folder / "runs.json").read_text())
    packed["shared"]["campaign"] = "another"
    (folder / "runs.json").write_text(json.dumps(packed))
    with pytest.raises(ValueError, match=r"runs\.json \(aaa\) is not what was written"):
        load_campaign(folder)
    assert Store(folder).state("aaa") == "planned"  # to be measured again


def test_what_is_no_campaign_is_refused(tmp_path: Path, capsys):
    assert main([str(tmp_path)]) == 2
    assert "is not a campaign's folder" in capsys.readouterr().err
