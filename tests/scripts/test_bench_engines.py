"""scripts/bench_engines.py on sizes that take no time."""

import pandas as pd
import pytest
import torch

from scripts import bench_engines as bench
from systems.engines import auto

CPU = torch.device("cpu")


def test_every_engine_that_can_run_is_timed_on_the_same_work(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(bench, "D_MODEL", 32)
    monkeypatch.setattr(bench, "MEASURED", tmp_path / "measured.csv")
    sizes = ["--experts", "4", "--widths", "48", "--tokens", "60", "--routings", "skewed", "--seconds", "0.01"]
    assert bench.main([*sizes, "--device", "cpu", "--record", "--out", str(tmp_path)]) == 0
    found = pd.read_csv(tmp_path / "tables/engines.csv")
    timed = {"dense mm", "dense oneDNN", "hugging face", "loop", "grouped", "cpu"}
    assert set(found.precision) == {"ieee", "bf16"} and set(found.engine) == timed
    assert (found.share > 0).all() and (found.rounds >= 5).all()
    for _, rows in found.groupby("precision"):  # the dense way that others are held against has a share of one
        assert rows.loc[rows.engine == rows.dense, "share"].item() == 1
    recorded = pd.read_csv(tmp_path / "measured.csv")
    assert set(recorded.engine) == {"loop", "grouped", "cpu"} and len(recorded) == 6
    assert (tmp_path / "engines.png").exists() and "percent" not in capsys.readouterr().err
    # What was recorded of another device or precision stays.
    pd.concat([recorded, recorded.assign(device="cuda")]).to_csv(tmp_path / "measured.csv", index=False)
    bench.record(found[found.precision == "ieee"].assign(share=7.0), CPU)
    again = pd.read_csv(tmp_path / "measured.csv")
    assert again.device.value_counts().to_dict() == {"cpu": 6, "cuda": 6}
    assert set(again[again.share == 7].precision) == {"ieee"} and (again.share == 7).sum() == 3


def test_an_engine_that_computes_something_else_is_not_timed():
    calls = {"dense mm": lambda: torch.ones(2), "loop": lambda: torch.ones(2), "cpu": lambda: torch.zeros(2)}
    with pytest.raises(RuntimeError, match=r"cpu differs from the others by 1\.0e"):
        bench.time_rounds(calls, 0.0, CPU, 1e-5)


def test_the_committed_measurements_choose_an_engine_that_is_there():
    assert auto.MEASURED.exists()
    assert auto.choose("cpu", "ieee", 128, 12000, (64, 64)) == "cpu"
