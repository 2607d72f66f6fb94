"""The script of a visit to a GPU: it stops in time, says what became of each step, and goes on after a failure."""

import os
import subprocess
import tarfile
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPTS = ("gpu_visit", "pack_wheels")


def visit(tmp_path: Path, steps: str, seconds: str = "60", **environment: str) -> tuple[int, list[list[str]], float]:
    """Exit status, the lines of the summary and the wall seconds of a visit with these steps."""
    (tmp_path / "steps.sh").write_text(steps)
    settings = {**os.environ, "VISIT_STEPS": str(tmp_path / "steps.sh"), "VISIT_DEVICE": "cpu", **environment}
    command = [ROOT / "scripts/gpu_visit.sh", "python3", tmp_path / "out", *([seconds] if seconds else [])]
    start = time.monotonic()
    status = subprocess.run(command, env=settings, cwd=tmp_path, capture_output=True, timeout=60).returncode
    wall_s = time.monotonic() - start
    lines = (tmp_path / "out/summary.tsv").read_text().splitlines()
    assert lines[0].split("\t") == ["step", "state", "seconds", "detail"]
    return status, [line.split("\t") for line in lines[1:]], wall_s


@pytest.mark.parametrize("name", SCRIPTS)
def test_the_script_parses(name: str):
    subprocess.run(["bash", "-n", ROOT / f"scripts/{name}.sh"], check=True)


def test_a_visit_whose_steps_succeed_exits_with_0(tmp_path: Path):
    status, lines, _ = visit(tmp_path, "step one 5 echo said\nstep two 5 test -d experiments\n")
    assert status == 0
    assert [line[:2] for line in lines] == [["one", "ok"], ["two", "ok"], ["visit", "ok"]]
    assert "said" in (tmp_path / "out/log.txt").read_text()


def test_a_failure_is_noted_and_the_next_step_runs(tmp_path: Path):
    status, lines, _ = visit(tmp_path, "step one 5 sh -c 'exit 3'\nstep two 5 absent-command\nstep three 5 true\n")
    assert status == 1
    assert [line[1] for line in lines] == ["failed", "failed", "ok", "incomplete"]
    assert lines[0][3] == "exit status 3"


def test_a_step_is_stopped_at_its_own_budget(tmp_path: Path):
    status, lines, wall_s = visit(tmp_path, "step slow 1 sleep 30\nstep next 5 true\n")
    assert (status, [line[1] for line in lines[:2]]) == (1, ["stopped", "ok"])
    assert wall_s < 10


def test_the_deadline_stops_a_step_and_leaves_the_others_out(tmp_path: Path):
    steps = "RESERVE=2 LEAST=1\nstep long 30 sleep 30\nstep late 30 true\n"
    status, lines, wall_s = visit(tmp_path, steps, seconds="", VISIT_SECONDS="4")
    assert (status, [line[1] for line in lines[:2]]) == (1, ["stopped", "skipped"])
    assert wall_s < 6


def test_a_step_that_ignores_the_interrupt_is_killed(tmp_path: Path):
    steps = "step deaf 1 sh -c \"trap '' INT; while :; do sleep 0.1; done\"\n"
    status, lines, wall_s = visit(tmp_path, steps)
    assert (status, lines[0][1]) == (1, "stopped") and wall_s < 15


def test_what_is_there_is_packed_as_one_file(tmp_path: Path):
    steps = 'mkdir -p "$work/layers/a"; pack layers.tar.gz "$work" layers absent; pack none.tar.gz "$work" absent\n'
    visit(tmp_path, steps)
    with tarfile.open(tmp_path / "out/layers.tar.gz") as archive:
        assert archive.getnames() == ["layers", "layers/a"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["layers.tar.gz", "log.txt", "summary.tsv"]


@pytest.mark.parametrize(
    ("arguments", "environment"), [([], {}), (["out", "soon"], {}), (["out", "60"], {"VISIT_DEVICE": "tpu"})]
)
def test_wrong_arguments_are_refused(tmp_path: Path, arguments, environment):
    command = [ROOT / "scripts/gpu_visit.sh", "python3", *arguments]
    ended = subprocess.run(command, env={**os.environ, **environment}, cwd=tmp_path, capture_output=True, text=True)
    assert ended.returncode == 2 and ended.stderr.startswith(("usage:", "gpu_visit:"))


def test_a_copy_without_git_is_told_its_commit(monkeypatch: pytest.MonkeyPatch):
    from experiments import environment

    monkeypatch.setattr(environment, "_git", lambda *arguments: None)
    monkeypatch.setenv("HARNESS_COMMIT", "abc-dirty")
    assert environment._commit() == {"git_commit": "abc", "git_dirty": True}
    monkeypatch.delenv("HARNESS_COMMIT")
    assert environment._commit() == {"git_commit": version("moe-inference-harness"), "git_dirty": False}
    monkeypatch.setattr(environment, "version", _not_installed)
    assert environment._commit() == {"git_commit": None, "git_dirty": False}


def _not_installed(package: str) -> str:
    raise PackageNotFoundError(package)
