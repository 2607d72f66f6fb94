import json
import os
from pathlib import Path

import pandas as pd
import pytest

from analysis.schema import COLLECTIVE_COLUMNS, ROUTING_COLUMNS, SAMPLE_COLUMNS, SCHEMA
from experiments.store import Store

OK = {"cell": "abc", "state": "ok", "reason": None}
FAILED = {"cell": "abc", "state": "failed", "reason": "out of memory"}
# Without the columns that do not apply, in another order, with one that is not stored.
SAMPLES = pd.DataFrame(
    [
        {"unit": "ms", "value": 1.5, "metric": "ttft_ms", "rank": 0, "iteration": 3, "cell": "abc", "scratch": 1},
        {"unit": "ms", "value": 0.5, "metric": "section_ms", "rank": 1, "iteration": 3, "cell": "abc", "layer": 1}
        | {"section": "combine", "scratch": 2},
    ]
).assign(campaign="c", launch=0, phase="measure", order=7, time=1e9, source="emulated", schema=2)
ROUTING = pd.DataFrame([[1, 0, 0, 2, 24, 23.5]], columns=ROUTING_COLUMNS)
MOVED = [3, 1, "combine", 0, 0, "all_gather", 2, 0.0, 1.0, 1.0, 2.0, 3.0, 4.0, 4.0, [0.0, 4.0], False]
COLLECTIVES = pd.DataFrame([MOVED], columns=COLLECTIVE_COLUMNS)
TABLES = {"samples": SAMPLES, "routing": ROUTING, "collectives": COLLECTIVES}


@pytest.fixture
def store(tmp_path) -> Store:
    store = Store(tmp_path / "campaign")
    store.write_plan({"schema": 2})
    return store


def state(store: Store, cell: str = "abc") -> str:
    return store.states([cell])[cell]


def folder(store: Store) -> Path:
    return store.folder / "cells" / "abc"


def test_plan_is_written_and_replaced(store):
    store.write_plan({"schema": 2, "panels": [{"name": "a"}]})
    assert json.loads((store.folder / "plan.json").read_text()) == {"schema": 2, "panels": [{"name": "a"}]}
    assert sorted(path.name for path in store.folder.iterdir()) == ["plan.json"]


def test_measured_cell_is_stored_whole(store):
    assert state(store) != "ok"
    store.write_cell(OK, TABLES)
    assert state(store) == "ok" and state(store, "abd") == "planned"
    tables = {f"{name}.parquet" for name in TABLES}
    assert {path.name for path in folder(store).iterdir()} == {"run.json", *tables}
    run = json.loads((folder(store) / "run.json").read_text())
    assert {key: run[key] for key in OK} == OK and run["schema"] == SCHEMA
    assert set(run["checksums"]) == tables
    assert [path.name for path in folder(store).parent.iterdir()] == ["abc"]


def test_samples_have_the_columns_and_types_of_the_schema(store):
    store.write_cell(OK, TABLES)
    samples = pd.read_parquet(folder(store) / "samples.parquet")
    assert list(samples.columns) == list(SAMPLE_COLUMNS)
    assert {name: str(dtype) for name, dtype in samples.dtypes.items()} == SAMPLE_COLUMNS
    assert samples["value"].tolist() == [1.5, 0.5] and samples["order"].tolist() == [7, 7]
    assert samples["layer"].isna().tolist() == samples["section"].isna().tolist() == [True, False]
    assert pd.read_parquet(folder(store) / "routing.parquet").equals(ROUTING)


def test_times_have_seven_digits_and_counts_all(store):
    rows = pd.concat([SAMPLES.head(1)] * 2).assign(value=[1.23456789012, 123456789], unit=["ms", "bytes"])
    store.write_cell(OK, TABLES | {"samples": rows})
    time_ms, count = pd.read_parquet(folder(store) / "samples.parquet")["value"]
    assert time_ms != 1.23456789012 and time_ms == pytest.approx(1.23456789012, rel=1e-7) and count == 123456789


@pytest.mark.parametrize("file", ["samples.parquet", "routing.parquet", "collectives.parquet", "run.json"])
@pytest.mark.parametrize("damage", ["truncated", "missing", "changed"])
def test_damaged_cell_is_not_measured(store, file, damage):
    store.write_cell(OK, TABLES)
    path = folder(store) / file
    content = path.read_bytes()
    if damage == "missing":
        path.unlink()
    elif damage == "truncated":
        path.write_bytes(content[: len(content) // 2])
    elif file == "run.json":
        path.write_text('{"cell": "abc"}')
    else:
        path.write_bytes(content[:100] + bytes([content[100] ^ 1]) + content[101:])
    assert state(store) != "ok"


def test_failure_is_a_record_but_no_measurement(store):
    store.write_cell(FAILED)
    assert state(store) != "ok"
    run = json.loads((folder(store) / "run.json").read_text())
    assert run["reason"] == "out of memory" and run["checksums"] == {}


def test_success_replaces_a_failure_and_leaves_nothing_of_it(store):
    store.write_cell(FAILED)
    (folder(store) / "left_over").touch()
    store.write_cell(OK, TABLES)
    assert state(store) == "ok" and not (folder(store) / "left_over").exists()


def test_writing_that_is_interrupted_leaves_no_cell(store, monkeypatch):
    def interrupted(frame: pd.DataFrame, *args: object, **kwargs: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(pd.DataFrame, "to_parquet", interrupted)
        with pytest.raises(KeyboardInterrupt):
            store.write_cell(OK, TABLES)
    assert not folder(store).exists() and state(store) != "ok"
    store.write_cell(OK, TABLES)  # over what was left behind
    assert state(store) == "ok" and [path.name for path in folder(store).parent.iterdir()] == ["abc"]


def test_cell_appears_by_one_rename(store, monkeypatch):
    seen, rename = [], os.replace

    def spy(source: Path, target: Path) -> None:
        if Path(target) == folder(store):
            seen.append((sorted(os.listdir(source)), folder(store).exists()))
        rename(source, target)

    monkeypatch.setattr(os, "replace", spy)
    store.write_cell(OK, TABLES)
    assert seen == [(["collectives.parquet", "routing.parquet", "run.json", "samples.parquet"], False)]
