"""No secret and no private path is written or committed, and nothing large is."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq
import pytest

from analysis.files import read_runs
from tests.experiments.tiny import TINY

ROOT = Path(__file__).parents[1]
IS_CHECKOUT = pytest.mark.skipif(not (ROOT / ".git").exists(), reason="not a git checkout")
MAX_TRACKED_BYTES = 500_000
MAX_SAMPLE_BYTES = 5_000_000  # of a file under results/
HOME = re.compile(rb"(?<![\w.~-])/(?:home|Users)/\w|(?<![\w.~-])/root/\w|[A-Za-z]:\\{1,2}Users\\")
KEY = re.compile(
    rb"-----BEGIN [A-Z ]*PRIVATE KEY|\bAKIA[0-9A-Z]{16}\b|\bhf_[A-Za-z]{34}\b|\bgh[pousr]_\w{36}\b|\bwandb_v1_\w{20}"
)
SECRETS = {
    name: f"s3cret{index}{name.lower().replace('_', '')}".ljust(40, "f")
    for index, name in enumerate(("WANDB_API_KEY", "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "AWS_SECRET_ACCESS_KEY"))
}


def tracked(root: Path) -> list[Path]:
    """Files that are committed, or would be by `git add`."""
    listing = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listing, cwd=root, capture_output=True, text=True, check=True).stdout.split("\0")
    return [root / name for name in names if name and (root / name).is_file()]


def too_large(root: Path) -> list[str]:
    def limit(path: Path) -> int:
        return MAX_SAMPLE_BYTES if path.is_relative_to(root / "results") else MAX_TRACKED_BYTES

    return [str(path.relative_to(root)) for path in tracked(root) if path.stat().st_size > limit(path)]


def private(root: Path, pattern: re.Pattern[bytes]) -> list[str]:
    """Tracked texts in which the pattern occurs, each with what was found first."""
    texts = {path: data for path in tracked(root) if b"\0" not in (data := path.read_bytes())}
    found = {path: pattern.search(data) for path, data in texts.items()}
    return [f"{path.relative_to(root)}: {match[0].decode()}" for path, match in found.items() if match]


@IS_CHECKOUT
def test_nothing_large_is_tracked():
    assert too_large(ROOT) == []


@IS_CHECKOUT
def test_no_home_folder_is_tracked():
    assert private(ROOT, HOME) == []


@IS_CHECKOUT
def test_no_key_is_tracked():
    assert private(ROOT, KEY) == []


def test_what_must_not_be_tracked_is_found(tmp_path):
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    me = "/".join(["", "home", "me"])
    (tmp_path / "run.json").write_text(f'{{"out": "{me}/results", "site": "https://a.b/c/home/me"}}')
    (tmp_path / "fine.md").write_text("~/.cache, $HOME/x, https://a.b/home/x, a/root/b")
    (tmp_path / "key.txt").write_text("hf_" + 34 * "a")
    (tmp_path / "large.bin").write_bytes(bytes(MAX_TRACKED_BYTES + 1))
    (tmp_path / "results").mkdir()
    (tmp_path / "results/fine.bin").write_bytes(bytes(MAX_SAMPLE_BYTES))
    (tmp_path / "results/large.bin").write_bytes(bytes(MAX_SAMPLE_BYTES + 1))
    (tmp_path / "ignored.txt").write_text(me + "x" * MAX_TRACKED_BYTES)
    (tmp_path / ".gitignore").write_text("ignored.txt")
    assert private(tmp_path, HOME) == [f"run.json: {me[:-1]}"]
    assert private(tmp_path, KEY) == ["key.txt: hf_" + 34 * "a"]
    assert sorted(too_large(tmp_path)) == ["large.bin", "results/large.bin"]


def command(overrides: list[str], home: Path) -> tuple[int, str, str]:
    """The command line on a tiny workload with secrets in its environment; all it writes, caches too, is in `home`."""
    folders = {"HOME": str(home), "XDG_CACHE_HOME": str(home / "cache"), "HF_HOME": str(home / "hub")}
    environment = {**os.environ, **folders, **SECRETS, "OMP_NUM_THREADS": "1"}
    line = [sys.executable, "-m", "experiments.run", *overrides, f"out={home / 'out'}"]
    result = subprocess.run(line, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=200)
    return result.returncode, result.stdout, result.stderr


def contents(path: Path) -> bytes:
    """A file's bytes; of Parquet, which is compressed, its decoded rows and metadata too."""
    data = path.read_bytes()
    if path.suffix == ".parquet":
        table = pq.read_table(path)
        data += repr(table.schema.metadata).encode() + json.dumps(table.to_pylist(), default=str).encode()
    return data


def leaks(folder: Path, *texts: str) -> list[str]:
    """Where a secret was written."""
    places = {str(path): contents(path) for path in sorted(folder.rglob("*")) if path.is_file()}
    places |= {f"text {index}": text.encode() for index, text in enumerate(texts)}
    return [f"{place}: {name}" for place, data in places.items() for name in SECRETS if SECRETS[name].encode() in data]


def test_a_leak_is_found(tmp_path):
    secret = SECRETS["HF_TOKEN"]
    pd.DataFrame({"reason": [secret] * 9}).to_parquet(tmp_path / "a.parquet", compression="zstd")
    (tmp_path / "run.json").write_text(json.dumps({"variables": {"HF_TOKEN": secret}}))
    (tmp_path / "fine.json").write_text(json.dumps({"variables": ["HF_TOKEN"]}))
    found = leaks(tmp_path, "fine", f"token {secret}")
    assert found == [f"{tmp_path / 'a.parquet'}: HF_TOKEN", f"{tmp_path / 'run.json'}: HF_TOKEN", "text 1: HF_TOKEN"]


def test_a_campaign_writes_no_secret(tmp_path):
    """Of two systems, of which one fails: what is stored, mirrored, cached and printed."""
    systems = "system._target_=systems.dense.Dense,tests.experiments.tiny.RaisesOnRankOne"
    status, out, err = command(
        ["-m", *TINY, "engine=loop", "system=dense", systems, "logger=wandb", "logger.mode=offline"], tmp_path
    )
    assert status == 1, out + err
    stored = [run["state"] for run in read_runs(tmp_path / "out").values()]
    assert sorted(stored) == ["failed", "ok"]
    assert len(list(tmp_path.glob("out/wandb/offline-run-*/*.wandb"))) == 2  # the mirror is searched too
    assert leaks(tmp_path, out, err) == []
