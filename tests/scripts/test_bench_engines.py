"""scripts/bench_engines.py on sizes that take no time."""

import os
import subprocess
import sys

import pandas as pd
import pytest
import torch

from scripts import bench_engines as bench
from systems.engines.cpu import MARCH, processor

CPU = torch.device("cpu")


SIZES = ["--experts", "4", "--widths", "48", "--tokens", "60", "--routings", "skewed", "--seconds", "0.01"]
NARROW = {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2", MARCH: "x86-64-v3"}


def test_every_engine_that_can_run_is_timed_on_the_same_work(tmp_path, monkeypatch, capsys, has_compiler):
    monkeypatch.setattr(bench, "D_MODEL", 32)
    assert bench.main([*SIZES, "--device", "cpu", "--out", str(tmp_path)]) == 0
    found = pd.read_csv(tmp_path / "tables/engines.csv")
    timed = {"dense mm", "hugging face", "loop", "grouped", "cpu"}
    for precision, rows in found.groupby("precision"):
        packed = {"dense oneDNN"} if bench._packs(bench.DTYPES[str(precision)]) else set()
        assert set(rows.engine) == timed | packed
        assert rows.loc[rows.engine == rows.dense, "share"].item() == 1  # that others are held against
    assert set(found.precision) == {"fp32", "bf16"} and (found.share > 0).all() and (found.rounds >= 5).all()
    assert (tmp_path / "engines.png").exists() and "percent" not in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.skipif("avx2" not in processor(), reason="this processor has no AVX2 to be held to")
def test_a_processor_without_avx512_is_timed_too(tmp_path, has_compiler):
    """Where oneDNN packs no weights in bfloat16."""
    command = [sys.executable, "-m", "scripts.bench_engines", *SIZES, "--device", "cpu", "--out", str(tmp_path)]
    subprocess.run(command, check=True, capture_output=True, env=os.environ | NARROW)
    found = pd.read_csv(tmp_path / "tables/engines.csv")
    assert "dense oneDNN" not in set(found[found.precision == "bf16"].engine)
    assert {"cpu", "dense mm"} <= set(found[found.precision == "bf16"].engine)


def test_an_engine_that_computes_something_else_is_not_timed():
    calls = {"dense mm": lambda: torch.ones(2), "loop": lambda: torch.ones(2), "cpu": lambda: torch.zeros(2)}
    with pytest.raises(RuntimeError, match=r"cpu differs from the others by 1\.0e"):
        bench.time_rounds(calls, 0.0, CPU, 1e-5)
