"""Imports point one way, nothing is pickled, and nothing large is tracked."""

import ast
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PURE = {"routers", "systems.engines", "systems.permute", "systems.planners", "workloads"}
PACKAGES = {"analysis", "clusters", "devices", "experiments", "routers", "systems", "workloads"}
# Folder -> the parts of this project that its files may import; the innermost folder decides.
MAY_IMPORT = {
    "routers": PURE,
    "systems/engines": PURE,
    "systems/planners": PURE,
    "workloads": PURE,
    "systems": PURE | {"systems"},
    "clusters": {"clusters"},
    "devices": {"devices", "clusters.network"},
    "analysis": {"analysis"},
    "analysis/studies": {"analysis"},
    "experiments": PACKAGES,
    "scripts": PACKAGES,
}
# Library -> the only places that may import it (none for those that pickle).
CONFINED = {
    "hydra": ("experiments/run.py", "experiments/composition.py"),
    "omegaconf": ("experiments/",),
    **dict.fromkeys(("pickle", "cloudpickle", "dill", "joblib", "shelve"), ()),
}
UNSAFE_CALLS = {"torch.save", "torch.load"}
UNSAFE_KEYWORDS = {"allow_pickle", "trust_remote_code"}
MAX_TRACKED_BYTES = 500_000


def within(module: str, package: str) -> bool:
    return module == package or module.startswith(package + ".")


def imported(path: Path, tree: ast.AST) -> Iterator[str]:
    """Dotted names that the file at `path` (relative to the root) imports; `from a import b` gives a.b."""
    package = path.parent.parts
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            parts = [*base, *(node.module.split(".") if node.module else [])]
            yield from (".".join([*parts, alias.name]) for alias in node.names)


def layer_violations(path: Path, modules: set[str]) -> Iterator[str]:
    folder = max((f for f in MAY_IMPORT if path.is_relative_to(f)), key=len)
    for module in modules:
        ours = module.split(".")[0] in PACKAGES
        if ours and not any(within(module, allowed) for allowed in MAY_IMPORT[folder]):
            yield f"{path} imports {module}, but {folder} may only import {sorted(MAY_IMPORT[folder])}"
        if folder == "analysis" and within(module, "analysis.studies"):
            yield f"{path} imports {module}, but only studies may import one another"


def library_violations(path: Path, modules: set[str]) -> Iterator[str]:
    for library, places in CONFINED.items():
        if not path.as_posix().startswith(places):
            names = [module for module in modules if within(module, library)]
            yield from (f"{path} imports {name}, allowed only in {places or 'no file'}" for name in names)


def call_violations(path: Path, tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            function = ast.unparse(node.func)
            if function in UNSAFE_CALLS:
                yield f"{path}:{node.lineno} calls {function}, which pickles: use safetensors"
            for keyword in node.keywords:
                if keyword.arg in UNSAFE_KEYWORDS and ast.unparse(keyword.value) != "False":
                    yield f"{path}:{node.lineno} passes {keyword.arg}"


def violations(root: Path) -> list[str]:
    """Every broken import or call rule in the project's Python files under `root`, as sentences."""
    found: list[str] = []
    for folder in sorted(PACKAGES | {"scripts"}):
        for file in sorted((root / folder).rglob("*.py")):
            path, tree = file.relative_to(root), ast.parse(file.read_text())
            modules = set(imported(path, tree))
            found += [
                *layer_violations(path, modules),
                *library_violations(path, modules),
                *call_violations(path, tree),
            ]
    return found


def write(root: Path, path: str, source: str) -> Path:
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    (root / path).write_text(source)
    return root


def test_project_keeps_the_rules():
    assert violations(ROOT) == []


def test_every_package_is_there_to_be_checked():
    assert {folder for folder in PACKAGES if any((ROOT / folder).rglob("*.py"))} == PACKAGES


@pytest.mark.parametrize(
    ("path", "source", "culprit"),
    [
        ("routers/skew.py", "import systems.expert_parallel", "systems.expert_parallel"),
        ("routers/skew.py", "from systems import expert_parallel", "systems.expert_parallel"),
        ("systems/engines/loop.py", "from .. import expert_parallel", "systems.expert_parallel"),
        ("systems/planners/eplb.py", "from ..expert_parallel import executor", "systems.expert_parallel.executor"),
        ("workloads/encoder.py", "def late():\n    import clusters", "clusters"),
        ("systems/dense.py", "from clusters.emulated import Clock", "clusters.emulated.Clock"),
        ("systems/dense.py", "if TYPE_CHECKING:\n    from experiments import plan", "experiments.plan"),
        ("clusters/launch.py", "import routers", "routers"),
        ("devices/device.py", "from clusters.emulated import EmulatedGroup", "clusters.emulated.EmulatedGroup"),
        ("analysis/figures.py", "from workloads import encoder", "workloads.encoder"),
        ("analysis/report.py", "from analysis.studies.paper import claims", "analysis.studies.paper.claims"),
        ("experiments/plan.py", "from hydra.utils import instantiate", "hydra.utils.instantiate"),
        ("systems/dense.py", "from omegaconf import DictConfig", "omegaconf.DictConfig"),
        ("scripts/convert.py", "import pickle", "pickle"),
        ("clusters/launch.py", "import joblib as j", "joblib"),
        ("workloads/corpus.py", "load(name, trust_remote_code=True)", "trust_remote_code"),
        ("workloads/corpus.py", "torch.load(path)", "torch.load"),
    ],
)
def test_broken_rule_is_named(tmp_path: Path, path: str, source: str, culprit: str):
    (sentence,) = violations(write(tmp_path, path, source))
    assert sentence.startswith(path) and culprit in sentence


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("systems/dense.py", "from systems.engines import loop\nfrom routers import Routing\nfrom . import base"),
        ("systems/planners/eplb.py", "from .plan import Plan\nfrom routers import Routing"),
        ("experiments/run.py", "import hydra\nfrom clusters import launch\nfrom systems import dense"),
        ("experiments/plan.py", "from omegaconf import OmegaConf"),
        ("analysis/figures.py", "from analysis import statistics\nimport pandas\nimport systems_of_units"),
        ("workloads/corpus.py", "numpy.load(path, allow_pickle=False)"),
    ],
)
def test_allowed_imports_pass(tmp_path: Path, path: str, source: str):
    assert violations(write(tmp_path, path, source)) == []


def large_files(root: Path) -> list[str]:
    """Tracked (or about to be tracked) files over the limit, without the sample campaigns."""
    listing = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listing, cwd=root, capture_output=True, text=True, check=True).stdout.split("\0")[:-1]
    files = [name for name in names if not name.startswith("results/") and (root / name).is_file()]
    return [name for name in files if (root / name).stat().st_size > MAX_TRACKED_BYTES]


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="not a git checkout")
def test_no_large_file_is_tracked():
    assert large_files(ROOT) == []


def test_large_file_is_found(tmp_path: Path):
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    write(tmp_path, "big.txt", "x" * (MAX_TRACKED_BYTES + 1))
    write(tmp_path, "ignored.txt", "x" * (MAX_TRACKED_BYTES + 1))
    write(tmp_path, "results/sample/big.txt", "x" * (MAX_TRACKED_BYTES + 1))
    write(tmp_path, ".gitignore", "ignored.txt")
    assert large_files(tmp_path) == ["big.txt"]
