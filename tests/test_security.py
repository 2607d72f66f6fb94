"""No file that is read can run code."""

import ast
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.workloads.test_checkpoint import MODEL, random_tensors, save
from workloads.checkpoint import open_checkpoint

ROOT = Path(__file__).parents[1]
# Calls that run what a file or a text says: pickles, Python and shell sources.
RUNS_DATA = {
    *("pickle.load", "pickle.loads", "pickle.Unpickler", "marshal.load", "marshal.loads", "shelve.open"),
    *("cloudpickle.load", "cloudpickle.loads", "dill.load", "dill.loads", "joblib.load", "pandas.read_pickle"),
    *("yaml.unsafe_load", "yaml.unsafe_load_all", "yaml.full_load", "yaml.full_load_all"),
    *("eval", "exec", "builtins.eval", "builtins.exec", "runpy.run_path"),
    *("os.system", "os.popen", "subprocess.getoutput", "subprocess.getstatusoutput"),
}
# torch.distributed's collectives of Python objects pickle them.
OBJECT_COLLECTIVE = re.compile(r"(^|\.)(all_gather|gather|broadcast|scatter|send|recv)_object(_list)?$")
SAFE_YAML = {"yaml.SafeLoader", "yaml.CSafeLoader"}


def sources(root: Path) -> Iterator[tuple[Path, str]]:
    """Python files and the code cells of notebooks, without environments, builds and results."""
    tops = [path for path in root.iterdir() if not path.name.startswith(".") and path.name not in ("build", "results")]
    tops = [path for path in tops if not (path / "pyvenv.cfg").exists()]
    for path in sorted(file for top in tops for file in (top.rglob("*") if top.is_dir() else [top])):
        if path.suffix == ".py":
            yield path.relative_to(root), path.read_text()
        elif path.suffix == ".ipynb" and ".ipynb_checkpoints" not in path.parts:
            cells = [cell["source"] for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == "code"]
            lines = "\n".join("".join(cell) for cell in cells).splitlines()
            yield path.relative_to(root), "\n".join(line for line in lines if not line.startswith("%"))


def full_names(tree: ast.AST) -> dict[str, str]:
    """What imports call things here: np -> numpy, load -> torch.load."""
    names = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.asname: alias.name for alias in node.names if alias.asname}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
    return names


def unsafe_calls(path: Path, source: str) -> Iterator[str]:
    """Every call of a file that can run what it is given, as a sentence."""
    tree = ast.parse(source)
    names = full_names(tree)

    def full(node: ast.AST) -> str:
        head, dot, rest = ast.unparse(node).partition(".")
        return names.get(head, head) + dot + rest

    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            options = {keyword.arg: full(keyword.value) for keyword in node.keywords if keyword.arg}
            reason = why_unsafe(full(node.func), options, [full(argument) for argument in node.args])
            if reason:
                yield f"{path}:{node.lineno} {reason}"


def why_unsafe(function: str, options: dict[str, str], arguments: list[str]) -> str | None:
    if function in RUNS_DATA or OBJECT_COLLECTIVE.search(function) or function.endswith(".to_pickle"):
        return f"calls {function}"
    if function == "torch.load" and options.get("weights_only") != "True":
        return "calls torch.load without weights_only=True"
    if function in ("yaml.load", "yaml.load_all") and not SAFE_YAML & {options.get("Loader"), *arguments}:
        return f"calls {function} without a safe loader"
    for keyword in ("allow_pickle", "trust_remote_code", "shell"):
        if options.get(keyword, "False") != "False":
            return f"passes {keyword}={options[keyword]}"
    return None


def test_no_call_runs_what_a_file_says():
    found = [sentence for path, source in sources(ROOT) for sentence in unsafe_calls(path, source)]
    assert found == []


@pytest.mark.parametrize(
    "source",
    [
        "import pickle as p\np.load(f)",
        "from pickle import loads\nloads(b)",
        "import torch\ntorch.load(f)",
        "from torch import load\nload(f, weights_only=False)",
        "import numpy as np\nnp.load(f, allow_pickle=True)",
        "import pandas as pd\npd.read_pickle(f)",
        "import joblib\njoblib.load(f)",
        "from datasets import load_dataset\nload_dataset(n, trust_remote_code=True)",
        "AutoModel.from_pretrained(n, trust_remote_code=allowed)",
        "import yaml\nyaml.load(f)",
        "from yaml import load, Loader\nload(f, Loader)",
        "import subprocess as s\ns.run(c, shell=True)",
        "import os\nos.system(c)",
        "eval(text)",
        "def late():\n    exec(text)",
        "import torch.distributed as dist\ndist.all_gather_object(into, thing)",
        "frame.to_pickle(f)",
    ],
)
def test_unsafe_call_is_found(source):
    [sentence] = unsafe_calls(Path("a.py"), source)
    assert sentence.startswith("a.py:")


@pytest.mark.parametrize(
    "source",
    [
        "model.eval()",
        "frame.eval('a + b')",
        "import json\njson.load(f)",
        "import torch\ntorch.load(f, weights_only=True)",
        "import numpy as np\nnp.load(f, allow_pickle=False)",
        "import yaml\nyaml.safe_load(f)\nyaml.load(f, Loader=yaml.SafeLoader)",
        "from yaml import CSafeLoader, load\nload(f, CSafeLoader)",
        "import subprocess\nsubprocess.run(['git'], shell=False)",
        "AutoTokenizer.from_pretrained(n, trust_remote_code=False)",
    ],
)
def test_safe_call_passes(source):
    assert list(unsafe_calls(Path("a.py"), source)) == []


def test_notebooks_and_all_folders_are_scanned(tmp_path):
    cells = [{"cell_type": "code", "source": ["%matplotlib inline\n", "eval(x)"]}, {"cell_type": "markdown"}]
    for name in ("new/deep/a.py", "b.py", ".venv/c.py", "results/d.py", "env/lib/e.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("eval(x)")
    (tmp_path / "env/pyvenv.cfg").touch()
    (tmp_path / "new/n.ipynb").write_text(json.dumps({"cells": cells}))
    found = {str(path) for path, source in sources(tmp_path) if list(unsafe_calls(path, source))}
    assert found == {"new/deep/a.py", "b.py", "new/n.ipynb"}


def test_no_configuration_trusts_remote_code():
    configurations = [*(ROOT / "conf").rglob("*.yaml"), ROOT / "Makefile", ROOT / "pyproject.toml"]
    assert len(configurations) > 10
    assert not [path for path in configurations if "trust_remote_code" in path.read_text()]


class Trap:
    """Unpickling it writes a file."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self):
        return Path.touch, (self.canary,)


def trapped(folder: Path, canary: Path, name: str = "pytorch_model.bin") -> Path:
    import pickle

    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(pickle.dumps(Trap(canary)))
    return folder


def test_a_checkpoint_of_pickles_is_refused_unread(tmp_path):
    folder = trapped(tmp_path / "model", tmp_path / "canary")
    with pytest.raises(ValueError, match=r"has no model\.safetensors; write it with save_pretrained first$"):
        open_checkpoint(str(folder))
    assert not (tmp_path / "canary").exists()


@pytest.mark.parametrize("num_files", [1, 3])
def test_pickles_beside_safetensors_are_not_touched(tmp_path, num_files):
    tensors = random_tensors()
    folder = trapped(save(tmp_path / "model", tensors, num_files), tmp_path / "canary")
    checkpoint = open_checkpoint(str(folder))
    assert all(checkpoint.read(name).equal(tensor) for name, tensor in tensors.items())
    assert not (tmp_path / "canary").exists()


def test_a_pickle_that_calls_itself_safetensors_is_not_unpickled(tmp_path):
    folder = trapped(tmp_path / "model", tmp_path / "canary", "model.safetensors")
    with pytest.raises((ValueError, OSError)):  # what the command line says in a sentence
        open_checkpoint(str(folder)).check(MODEL)
    assert not (tmp_path / "canary").exists()


def test_code_beside_a_checkpoint_is_not_run_even_if_someone_types_yes(tmp_path):
    folder, canary = tmp_path / "model", tmp_path / "canary"
    folder.mkdir()
    (folder / "spiece.model").touch()
    (folder / "config.json").write_text('{"model_type": "own", "auto_map": {"AutoConfig": "own.Own"}}')
    (folder / "tokenizer_config.json").write_text('{"auto_map": {"AutoTokenizer": ["own.Own", null]}}')
    (folder / "own.py").write_text(f"open({str(canary)!r}, 'w').close()\nclass Own: pass\n")
    code = "import sys, pathlib, workloads.tokenizer as t; t._load_from_checkpoint(pathlib.Path(sys.argv[1]))"
    result = subprocess.run(
        [sys.executable, "-c", code, str(folder)],
        cwd=ROOT,
        env={**os.environ, "HF_HOME": str(tmp_path / "hub")},
        input="y\ny\ny\n",
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert "ValueError: checkpoint" in result.stderr, result.stderr
    assert not canary.exists()
