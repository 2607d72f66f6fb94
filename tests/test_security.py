"""No file that is read can run code."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.test_secrets import IS_CHECKOUT, tracked
from tests.workloads.test_checkpoint import MODEL, random_tensors, save
from workloads.checkpoint import open_checkpoint

ROOT = Path(__file__).parents[1]
# ruff knows calls that unpickle or start a shell (make lint), but not these options of a call.
RUNS_DATA = re.compile(r"(?:allow_pickle|trust_remote_code)[\"']?\s*[=:]\s*(?!False\b|false\b)\S+")


@IS_CHECKOUT
def test_no_option_runs_what_a_file_says():
    texts = {path: path.read_text() for path in tracked(ROOT) if path.suffix in (".py", ".ipynb", ".yaml", ".sh")}
    del texts[Path(__file__)]
    assert len(texts) > 400
    assert {path: match[0] for path, text in texts.items() if (match := RUNS_DATA.search(text))} == {}


@pytest.mark.parametrize(
    "option", ["f(a, allow_pickle=True)", "f(trust_remote_code = allowed)", "trust_remote_code: true"]
)
def test_an_option_that_runs_data_is_found(option):
    assert RUNS_DATA.search(option)
    assert not RUNS_DATA.search(re.sub(r"True|allowed|true", "False", option))


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
