"""One command for all, and a wheel that works where there is no checkout."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from experiments.console import COMMANDS, main, usage

ROOT = Path(__file__).parents[2]


def test_commands_are_told(capsys):
    assert main([]) == main(["--help"]) == 0
    assert capsys.readouterr().out == (usage() + "\n") * 2
    assert all(name in usage() for name in COMMANDS)


def test_an_unknown_command_is_refused_in_one_sentence(capsys):
    assert main(["measure"]) == 2
    assert capsys.readouterr().err == (
        "error: there is no command 'measure'; it must be one of run, status, report, judge, score, timeline\n"
    )


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_says_what_it_takes(name):
    done = subprocess.run(
        [sys.executable, "-m", "experiments.console", name, "--help"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) > 5


def test_a_command_gets_its_arguments(tmp_path, capsys):
    assert main(["status", str(tmp_path)]) == 2
    assert "is not a campaign's folder" in capsys.readouterr().err


@pytest.mark.slow
def test_a_wheel_runs_where_there_is_no_checkout(tmp_path):
    """Built and installed in an empty folder; Figure 3a of two points, simulated, from another one."""
    build = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", tmp_path / "dist"]
    source = tmp_path / "source"
    subprocess.run(["git", "clone", "-q", ROOT, source], check=True)
    subprocess.run([*build, source], check=True, cwd=tmp_path)
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    target, empty = tmp_path / "installed", tmp_path / "empty"
    subprocess.run([sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", target, wheel], check=True)
    empty.mkdir()
    command = [
        sys.executable,
        target / "bin/moe-harness",
        "run",
        "-m",
        "experiment=fig3a",
        "scale=paper",
        "cluster=simulated",
    ]
    options = ["device=a100_sxm", "tier=once", "model.num_experts=8,16", "out=here"]
    environment = os.environ | {"PYTHONPATH": str(target), "HARNESS_COMMIT": "of a wheel"}
    ran = subprocess.run([*command, *options], cwd=empty, env=environment, capture_output=True, text=True, timeout=280)
    assert ran.returncode == 0, ran.stderr + ran.stdout
    assert (empty / "here/report.html").exists() and (empty / "here/samples.parquet").exists()
    where = subprocess.run(
        [sys.executable, "-c", "import experiments; print(experiments.__file__)"], cwd=empty, env=environment,
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert Path(where.stdout.strip()).is_relative_to(target)
