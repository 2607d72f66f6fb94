"""Where a campaign stands, and going on with it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from experiments import status
from experiments.main import run_points
from experiments.plan import make_plan
from experiments.store import Store
from tests.experiments.tiny import TINY, point

ROOT = Path(__file__).parents[2]
FAILED = {"state": "failed", "reason": "out of luck"}


@pytest.fixture
def planned(tmp_path):
    plan = make_plan([point("moeshard", "ep", out=tmp_path)], ["system=ep"])
    store = Store(tmp_path)
    store.write_plan(plan.document)
    return plan, store


def test_states(planned):
    plan, store = planned
    first, second = plan.cells
    assert status.states_of(plan.document, store) == {first: "planned", second: "planned"}
    store.write_cell({"cell": first, **FAILED})
    with store.running([second]):
        assert status.states_of(plan.document, store) == {first: "failed", second: "running"}
    assert status.states_of(plan.document, store)[second] == "planned"
    (store.folder / "cells" / first / "run.json").write_text("{")
    assert status.states_of(plan.document, store)[first] == "damaged"


def test_the_note_of_a_process_that_was_killed_does_not_count(planned):
    plan, store = planned
    dead = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True)
    note = {"pid": int(dead.stdout), "since": 0, "cells": list(plan.cells)}
    (store.folder / "running.json").write_text(json.dumps(note))
    assert set(status.states_of(plan.document, store).values()) == {"planned"}


def test_table_says_how_to_go_on(planned, capsys):
    plan, store = planned
    store.write_cell({"cell": next(iter(plan.cells)), **FAILED})
    status.show(plan.document, store, Console(width=200))
    shown = capsys.readouterr().out
    assert "failed" in shown and "planned" in shown and f"make resume CAMPAIGN={store.folder}" in shown


def test_a_folder_without_a_plan_is_one_sentence(tmp_path, capsys):
    assert status.main([str(tmp_path)]) == 2
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.slow
def test_resume_runs_what_is_missing_and_nothing_twice(tmp_path):
    """Two launches of one cell each; the second cell loses its samples."""
    typed = ["system=moeshard", "tier.launches=2"]
    assert run_points([point("moeshard", out=tmp_path, overrides=tuple(typed))], [*TINY, *typed]) == 0
    kept, damaged = sorted((tmp_path / "cells").iterdir())
    before = {cell: (cell / "run.json").read_text() for cell in (kept, damaged)}
    (damaged / "samples.parquet").unlink()
    command = [sys.executable, "-m", "experiments.status", str(tmp_path), "--resume"]
    again = subprocess.run(
        command, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True
    )
    assert again.returncode == 0, again.stdout + again.stderr
    assert f"cell {damaged.name} is damaged (samples.parquet is missing)" in again.stdout
    assert "1 cells stored already" in again.stdout
    assert (kept / "run.json").read_text() == before[kept]
    assert (damaged / "run.json").read_text() != before[damaged] and (damaged / "samples.parquet").exists()
