"""The files that install this project agree with one another, and the Makefile does what it says."""

import os
import re
import shutil
import subprocess
import tomllib
from importlib.metadata import distributions
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from scripts.lock import project_requirements, required

ROOT = Path(__file__).parents[1]
PYPROJECT = ROOT / "pyproject.toml"
LOCK_LINES = [line for line in (ROOT / "requirements.lock").read_text().splitlines() if not line.startswith("#")]
PINS = {name: Version(version) for name, version in (line.split("==") for line in LOCK_LINES)}
TARGETS = set(" ".join(re.findall(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), re.M)).split())


def unmet(requirements: list[Requirement], pins: dict[str, Version]) -> list[str]:
    """The requirements that no pin satisfies."""
    pinned = {str(r): pins.get(canonicalize_name(r.name)) for r in requirements}
    return [str(r) for r in requirements if not (v := pinned[str(r)]) or not r.specifier.contains(v, prereleases=True)]


def make(*arguments: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    # A bare environment: `make test CLUSTER=nccl` would hand its own variables down through MAKEFLAGS.
    environment = {"PATH": "/usr/local/bin:/usr/bin:/bin", "HOME": str(cwd)}
    return subprocess.run(["make", *arguments], cwd=cwd, env=environment, capture_output=True, text=True)


def installed_tree(path: Path) -> Path:
    """A copy of the install files whose .venv claims to be complete."""
    for name in ("Makefile", "requirements.lock", "pyproject.toml"):
        shutil.copyfile(ROOT / name, path / name)
    (path / ".venv").mkdir()
    (path / ".venv/.setup").touch()
    return path


def test_unmet_names_what_is_missing_or_too_old():
    requirements = [Requirement("torch>=2.11"), Requirement("Hydra_Core==1.3.*"), Requirement("rich")]
    assert unmet(requirements, {"torch": Version("2.10"), "hydra-core": Version("1.3.8")}) == ["torch>=2.11", "rich"]


def test_lock_satisfies_pyproject():
    assert unmet(project_requirements(PYPROJECT), PINS) == []


def test_lock_satisfies_every_package_it_pins():
    # torch's CUDA build asks for CUDA packages, which the lock leaves to torch.
    found = {canonicalize_name(d.name): d for d in distributions() if "+cpu" in d.version or d.name != "torch"}
    as_pinned = [d for name, d in found.items() if name in PINS and Version(d.version).public == str(PINS[name])]
    assert as_pinned
    assert {d.name: missing for d in as_pinned if (missing := unmet(required(d.requires or [], set()), PINS))} == {}


def test_lock_leaves_the_choice_of_cpu_or_cuda_open():
    assert PINS["torch"].local is None
    assert [name for name in PINS if name.startswith(("nvidia", "cuda", "triton"))] == []


def test_lock_is_sorted_and_without_duplicates():
    assert list(PINS) == sorted(PINS) and len(PINS) == len(LOCK_LINES)


def test_conda_environment_takes_its_versions_from_the_lock():
    requires_python = tomllib.loads(PYPROJECT.read_text())["project"]["requires-python"]
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    python, *rest = environment["dependencies"]
    assert python == f"python {requires_python}"
    assert rest == ["pip", {"pip": ["-r requirements.lock", "-e ."]}]


def test_pre_commit_runs_the_locked_ruff():
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"][0]["hooks"]
    pins = {pin for hook in hooks for pin in hook["additional_dependencies"] if pin.startswith("ruff")}
    assert pins == {f"ruff=={PINS['ruff']}"}


def test_citation_has_the_project_version():
    project = tomllib.loads(PYPROJECT.read_text())["project"]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert (citation["title"], citation["version"]) == (project["name"], project["version"])
    assert citation["license"] == project["license"]


def test_help_lists_every_target():
    assert set(re.findall(r"^  make (\S+)", make("help").stdout, re.M)) == TARGETS


def test_ci_uses_existing_targets():
    assert set(re.findall(r"^make (\S+)", (ROOT / ".ci/run").read_text(), re.M)) <= TARGETS


@pytest.mark.parametrize(
    ("cluster", "device"), [("emulated", "cpu"), ("gloo", "cpu"), ("nccl", "cuda")], ids=lambda value: value
)
def test_reproduce_fig3_passes_its_variables_to_hydra(cluster: str, device: str):
    command = make("-n", "reproduce-fig3", f"CLUSTER={cluster}", "SCALE=paper", "ARGS=out=x seed=1").stdout
    overrides = f"experiment=fig3 scale=paper cluster={cluster} cluster.device={device} tier=quick out=x seed=1"
    assert f".venv/bin/python -m experiments.run {overrides}\n" in command


def test_second_setup_says_one_line(tmp_path: Path):
    done = make("setup", cwd=installed_tree(tmp_path))
    assert done.stdout == "setup: .venv is complete for requirements.lock and pyproject.toml\n"


@pytest.mark.parametrize("changed", ["requirements.lock", "pyproject.toml"])
def test_setup_installs_again_after_a_change(tmp_path: Path, changed: str):
    tree = installed_tree(tmp_path)
    later = (tree / ".venv/.setup").stat().st_mtime + 10
    os.utime(tree / changed, (later, later))
    assert "-r requirements.lock" in make("-n", "setup", "PYTHON=python3", cwd=tree).stdout


def test_torch_index_is_an_extra_index(tmp_path: Path):
    tree = installed_tree(tmp_path)
    (tree / ".venv/.setup").unlink()
    commands = make("-n", "setup", "PYTHON=python3", "TORCH_INDEX=https://host/cpu", cwd=tree).stdout
    assert "--extra-index-url https://host/cpu -r requirements.lock" in commands


def test_setup_refuses_a_python_out_of_range(tmp_path: Path):
    tree = installed_tree(tmp_path)
    shutil.rmtree(tree / ".venv")
    refused = make("setup", "PYTHON=false", cwd=tree)
    assert refused.returncode != 0
    assert "make setup needs Python 3.11 or 3.12 and false is neither" in refused.stdout
    assert not (tree / ".venv").exists()
