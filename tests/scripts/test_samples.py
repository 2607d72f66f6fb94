"""The samples are what their manifest says, and who shows one says by which code it was measured."""

import json
import shutil
from pathlib import Path

import pytest

from scripts import samples


def test_the_manifest_describes_the_samples_that_are_there():
    known = json.loads(samples.MANIFEST.read_text())
    assert known == {
        str(folder.relative_to(samples.RESULTS)): samples.described(folder) for folder in samples.folders()
    }
    assert len(known) >= 10


def test_a_caption_says_whether_the_code_has_changed(monkeypatch):
    folder = samples.folders()[0]
    runs = samples.read_runs(folder)
    monkeypatch.setattr(samples, "read", lambda kind, stored: stored)
    monkeypatch.setattr(samples, "code_digest", lambda config: "now")
    now = {cell: run | {"code": "now"} for cell, run in runs.items()}
    monkeypatch.setattr(samples.Store, "runs", lambda store: now)
    assert "changed" not in samples.caption(folder)
    monkeypatch.setattr(samples, "code_digest", lambda config: "later")
    assert samples.caption(folder).endswith("The code has changed since.")


def test_what_is_not_a_sample_is_named(capsys):
    assert samples.main(["fig33"]) == 2
    assert "there is no sample fig33, only fig3, paper" in capsys.readouterr().out


@pytest.mark.parametrize("status", [0, 3])
def test_a_campaign_is_run_and_described_unless_it_fails(tmp_path: Path, monkeypatch, status: int):
    shutil.copytree(samples.RESULTS / "sample-executor", tmp_path / "sample-fig3")
    old = tmp_path / "sample-fig3/old.png"
    old.touch()
    seen = []

    def run(command, **_):
        seen.append(command)
        (tmp_path / "sample-fig3").mkdir(exist_ok=True)
        (tmp_path / "sample-fig3/validity.json").touch()
        return type("Done", (), {"returncode": status})

    monkeypatch.setattr(samples, "RESULTS", tmp_path)
    monkeypatch.setattr(samples, "MANIFEST", tmp_path / "samples.json")
    monkeypatch.setattr(samples.subprocess, "run", run)
    assert samples.main(["fig3"]) == (1 if status else 0)
    assert "experiment=fig3" in seen[0] and not old.exists()  # it was of older code
    assert (tmp_path / "sample-fig3/validity.json").exists() == bool(status)
