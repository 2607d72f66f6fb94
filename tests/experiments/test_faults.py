"""What may go wrong with the machine and its files: nothing lost, nothing wrong, nothing hung."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from io import StringIO
from pathlib import Path

import psutil
import pytest
from rich.console import Console

from analysis.files import read_runs
from experiments.campaign import cells_to_measure
from experiments.main import SOME_FAILED, run_points
from experiments.pack import pack
from experiments.plan import make_plan
from experiments.store import Store
from tests.experiments.stored import measure
from tests.experiments.tiny import TINY, point

FILES = ("samples.parquet", "run.json")
ROOT = Path(__file__).parents[2]
SIX_POINTS = [
    *(key for key in TINY if "num_experts" not in key),
    "experiment=fig4",
    "system=moeshard",
    "experiment.twin=null",
]


def start(*arguments: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "experiments.run", *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, cwd=ROOT, env=environment, **pipes)


def states(folder: Path) -> list[str]:
    return [run["state"] for run in read_runs(folder).values()]


def wait_for_cells(folder: Path, number: int) -> None:
    deadline = time.monotonic() + 100
    while len(states(folder)) < number:
        assert time.monotonic() < deadline, "no cell was stored in time"
        time.sleep(0.1)


@pytest.mark.slow
def test_kill_9_of_the_parent_loses_the_running_launch_only(tmp_path):
    process = start(*SIX_POINTS, f"out={tmp_path}")
    wait_for_cells(tmp_path, 2)
    ranks = psutil.Process(process.pid).children(recursive=True)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    kept = read_runs(tmp_path)
    assert len(kept) >= 2 and set(states(tmp_path)) == {"ok"}
    _, alive = psutil.wait_procs(ranks, timeout=15)
    assert not [rank for rank in alive if rank.status() != psutil.STATUS_ZOMBIE], "orphans compute on"
    again = start(*SIX_POINTS, f"out={tmp_path}")
    out, err = again.communicate(timeout=120)
    assert again.returncode == 0 and f"{len(kept)} cells stored already" in out, out + err
    assert states(tmp_path) == ["ok"] * 6
    assert read_runs(tmp_path).items() >= kept.items() and not (tmp_path / "cells").exists()


def test_two_campaigns_in_one_folder(tmp_path, capsys):
    with Store(tmp_path).writing():
        assert run_points([point("moeshard", out=tmp_path)]) == SOME_FAILED
    assert f"another campaign is writing to {tmp_path}" in capsys.readouterr().err
    assert not (tmp_path / "plan.json").exists() and states(tmp_path) == []


def test_damaged_files_are_named_and_their_launches_are_measured_again(tmp_path):
    """Three launches of two cells; one cell has a table cut off, one another number; then a bit of a packed file."""
    plan = make_plan([point("moeshard", "ep", out=tmp_path, overrides=("tier.launches=3",))])
    store, said = Store(tmp_path), Console(file=StringIO(), width=500)
    for ids in plan.launches:
        for cell in ids:
            measure(tmp_path, cell)
    assert cells_to_measure(plan, store, said) == set() and said.file.getvalue() == ""
    cut, edited = (tmp_path / "cells" / ids[0] / name for ids, name in zip(plan.launches, FILES, strict=False))
    cut.write_bytes(cut.read_bytes()[:-100])
    edited.write_text(edited.read_text().replace('"launch_id": "', '"launch_id": "1'))
    assert cells_to_measure(plan, store, said) == {*plan.launches[0], *plan.launches[1]}
    lines = said.file.getvalue().splitlines()
    assert all(any(f"{path} is not what was written" in line for line in lines) for path in (cut, edited))
    for ids in plan.launches[:2]:
        for cell in ids:
            measure(tmp_path, cell, number=2)
    pack(tmp_path)
    assert cells_to_measure(plan, store, said) == set()
    content = bytearray((tmp_path / "samples.parquet").read_bytes())
    content[len(content) // 2] ^= 1
    (tmp_path / "samples.parquet").write_bytes(content)
    assert cells_to_measure(plan, store, said) == plan.cells.keys()
    assert "samples.parquet is not what was written" in said.file.getvalue().splitlines()[-1]


@pytest.fixture
def small_disk(tmp_path) -> Iterator[Path]:
    """A disk of 96 kB of our own."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=96k", "tmpfs", str(folder)]
    if os.geteuid() or not shutil.which("mount") or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting a small disk takes root")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.slow
def test_a_full_disk_ends_the_campaign_and_loses_nothing(small_disk):
    arguments = [*SIX_POINTS, f"out={small_disk}"]
    process = start(*arguments)
    out, err = process.communicate(timeout=120)
    assert process.returncode == SOME_FAILED, out + err
    assert "No space left on device" in err and err.count("\n") == 1 and "the same command goes on" in err
    kept = states(small_disk)
    assert 0 < len(kept) < 6 and set(kept) == {"ok"}
    subprocess.run(["mount", "-o", "remount,size=4m", str(small_disk)], check=True)
    again = start(*arguments)
    out, err = again.communicate(timeout=120)
    assert again.returncode == 0 and states(small_disk) == ["ok"] * 6, out + err
