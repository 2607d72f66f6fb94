"""Where a campaign stands, and going on with it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from analysis.files import read_runs
from experiments import status
from experiments.main import run_points
from experiments.pack import pack
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
    assert shown.strip().endswith("RETRY=all")


def test_a_folder_without_a_plan_is_one_sentence(tmp_path, capsys):
    assert status.main([str(tmp_path)]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_failures_are_planned_again_when_they_are_to_be_retried(planned, monkeypatch):
    """One is packed and one is not; a failure of another plan stays."""
    (first, second), store, ran = planned[0].cells, planned[1], []
    monkeypatch.setattr(status.os, "execv", lambda _, command: ran.append(command))
    for cell in ("elsewhere", first):
        store.write_cell({"cell": cell, **FAILED})
    pack(store.folder)
    store.write_cell({"cell": second, **FAILED, "state": "oom"})
    status.main([str(store.folder), "--retry", "failed", "timeout"])
    assert store.states([first, second, "elsewhere"]) == {first: "planned", second: "oom", "elsewhere": "failed"}
    status.main([str(store.folder), "--retry", "all"])
    assert store.states([first, second, "elsewhere"]) == {first: "planned", second: "planned", "elsewhere": "failed"}
    assert [command[2:] for command in ran] == [["experiments.run", "system=ep", f"out='{store.folder}'"]] * 2


def test_nothing_is_retried_while_a_campaign_runs(planned, capsys):
    plan, store = planned
    store.write_cell({"cell": next(iter(plan.cells)), **FAILED})
    with store.writing():
        assert status.main([str(store.folder), "--retry", "failed"]) == 2
    assert (
        "another campaign is writing" in capsys.readouterr().err
        and "failed" in status.states_of(plan.document, store).values()
    )


@pytest.mark.slow
def test_resume_runs_what_is_missing_and_nothing_twice(tmp_path, monkeypatch):
    """Two launches of one cell each, of a campaign that was stopped before it packed; the second cell is damaged."""
    typed = ["system=moeshard", "tier.launches=2"]
    with monkeypatch.context() as patch:
        patch.setattr("experiments.main.pack", lambda folder: [])
        assert run_points([point("moeshard", out=tmp_path, overrides=tuple(typed))], [*TINY, *typed]) == 0
    before, (kept, damaged) = read_runs(tmp_path), sorted((tmp_path / "cells").iterdir())
    (damaged / "samples.parquet").unlink()
    command = [sys.executable, "-m", "experiments.status", str(tmp_path), "--resume"]
    again = subprocess.run(
        command, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True
    )
    assert again.returncode == 0, again.stdout + again.stderr
    assert f"The launch of cell {damaged.name} is measured again." in again.stdout
    assert "1 cells stored already" in again.stdout
    after = read_runs(tmp_path)
    assert after.keys() == before.keys() and not (tmp_path / "cells").exists()
    assert after[kept.name] == before[kept.name] and after[damaged.name] != before[damaged.name]
