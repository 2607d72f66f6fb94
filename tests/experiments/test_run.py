"""The command line: what people type."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from analysis.files import read_runs
from experiments import run as run_module
from experiments.plan import make_plan
from tests.experiments.tiny import TINY, run

ROOT = Path(__file__).parents[2]


def start(*arguments: str, launcher: tuple[str, ...] = ()) -> subprocess.Popen:
    command = [sys.executable, *launcher, "-m", "experiments.run", *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def in_a_process(*arguments: str, **kwargs) -> tuple[int, str, str]:
    process = start(*arguments, **kwargs)
    out, err = process.communicate(timeout=120)
    return process.returncode, out, err


def plan_of(folder: Path) -> dict:
    return json.loads((folder / "plan.json").read_text())


def states(folder: Path) -> list[str]:
    return [run["state"] for run in read_runs(folder).values()]


def test_bad_input_is_one_sentence_before_anything_runs(tmp_path, capsys):
    """Which sentences there are, test_cells has."""
    status = run(*TINY, "router.num_skewed=5", f"out={tmp_path / 'out'}")
    out, err = capsys.readouterr()
    assert status == 2 and err.startswith("error: ") and "router.num_skewed is 5; it must be between 0 and" in err
    assert len(err.strip().splitlines()) == 1 and out == ""
    assert not (tmp_path / "out").exists()


def test_an_unknown_name_is_named(capsys):
    """Which other things Hydra refuses, test_refusals has."""
    status = run("system=moeshrd")
    err = capsys.readouterr().err
    assert status == 2 and "'moeshrd'" in err and "'moeshard'" in err and "Traceback" not in err


def test_a_multirun_is_one_campaign(tmp_path, monkeypatch):
    """Which test_secrets measures."""
    plans = []
    monkeypatch.setattr(run_module, "run_points", lambda points, _: plans.append(make_plan(points)) or 0)
    typed = ["-m", *TINY, "model.num_experts=4,8", "router.alpha=0,0.6", f"out={tmp_path}"]
    assert run(*typed) == 0
    (plan,) = (plan.document for plan in plans)
    assert [panel["name"] for panel in plan["panels"]] == ["sweep_router.alpha=0", "sweep_router.alpha=0.6"]
    assert [[point["x"] for point in panel["points"]] for panel in plan["panels"]] == [[4, 8]] * 2
    assert all(len(point["cells"]) == 1 for panel in plan["panels"] for point in panel["points"])
    assert [len(launch["cells"]) for launch in plan["launches"]] == [1] * 4


def test_ctrl_c_keeps_what_is_measured_and_the_same_command_goes_on(tmp_path, capsys):
    arguments = [
        *(key for key in TINY if "num_experts" not in key),
        "experiment=fig4",
        "experiment.panels.fig4a.values=[8,16,32]",
        "system=moeshard",
        "experiment.twin=null",
        f"out={tmp_path}",
    ]
    process = start(*arguments)
    deadline = time.monotonic() + 100
    while not states(tmp_path) and time.monotonic() < deadline:
        time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, out + err
    kept = len(states(tmp_path))
    assert 0 < kept < 4 and f"interrupted: {kept} of 4 cells are stored" in out
    assert list((tmp_path / "cells").iterdir()) and not (tmp_path / "runs.json").exists()
    assert run(*arguments) == 0 and f"{kept} cells stored already" in capsys.readouterr().out
    assert states(tmp_path) == ["ok"] * 4 and not (tmp_path / "cells").exists()


@pytest.mark.slow
def test_a_matched_network_is_shown_and_the_same_command_goes_on_without_measuring(tmp_path, monkeypatch, capsys):
    arguments = [*TINY, "network=matched", "engine=loop", f"out={tmp_path / 'out'}"]
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert run(*arguments) == 0
    out = capsys.readouterr().out
    shown = out.splitlines()[0]
    assert shown.startswith("network matched: this machine's core (") and shown.endswith(" : 235 GB/s (R = 5.6)")
    assert "The network keeps this ratio: this machine's core (" in " ".join(out.split())
    rates = plan_of(tmp_path / "out")["core_flops_per_s"]
    (kept,) = tmp_path.glob("cache/*/cores.json")
    kept.unlink()
    assert run(*arguments) == 0 and "1 cells stored already" in capsys.readouterr().out
    assert states(tmp_path / "out") == ["ok"]
    assert plan_of(tmp_path / "out")["core_flops_per_s"] == rates
    assert not kept.exists()


@pytest.mark.slow
def test_inside_torchrun(tmp_path):
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")
    overrides = [key for key in TINY if not key.startswith("cluster.")]
    status, out, err = in_a_process(
        *overrides, "cluster=torchrun", "cluster.device=cpu", "tier.launches=2", f"out={tmp_path}", launcher=launcher
    )
    assert status == 0, out + err
    assert states(tmp_path) == ["ok", "ok"]
    assert {run["source"] for run in read_runs(tmp_path).values()} == {"measured"}
