"""What is timed for engine=auto, how the choice is kept, and who reads it."""

import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from systems.engines import probe
from systems.engines.probe import Work, on_grid

# The real one: tests/conftest.py replaces it in every test, and this module is imported before.
FASTEST = probe.fastest
WORK = Work("float32", 4, 64, 64, 64)
ENGINES = ("cpu", "grouped", "loop")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(probe, "cache_folder", lambda: tmp_path / "cache")
    return tmp_path / "cache"


@pytest.fixture
def measured(folder, monkeypatch):
    """Works that were timed; `loop` is the fastest for 4 experts, `grouped` for others."""
    calls = []

    def measure(engines, work, threads):
        calls.append((work, threads))
        return {name: 1.0 if name == ("loop" if work.num_experts == 4 else "grouped") else 2.0 for name in engines}

    monkeypatch.setattr(probe, "measure", measure)
    return calls


def test_each_kind_of_work_is_timed_once_and_then_read(measured, folder):
    for _ in range(3):
        assert FASTEST(ENGINES, WORK, 1) == "loop"
        assert FASTEST(ENGINES, WORK._replace(num_experts=8), 1) == "grouped"
    assert len(measured) == 2
    [file] = folder.glob("*.json")
    assert [entry["engine"] for entry in json.loads(file.read_text())] == ["loop", "grouped"]


@pytest.mark.parametrize("what", ["threads", "torch", "processor", "instructions", "march", "engines"])
def test_another_machine_is_timed_anew(measured, monkeypatch, what):
    FASTEST(ENGINES, WORK, 1)
    probe._digest.cache_clear()
    if what == "torch":
        monkeypatch.setattr(torch, "__version__", "1.0")
    if what == "processor":
        monkeypatch.setattr(probe, "processor", lambda: "flags: z80")
    if what in ("instructions", "march"):
        monkeypatch.setenv({"instructions": "ATEN_CPU_CAPABILITY", "march": "HARNESS_MARCH"}[what], "default")
    FASTEST(ENGINES[1:] if what == "engines" else ENGINES, WORK, 2 if what == "threads" else 1)
    probe._digest.cache_clear()
    assert len(measured) == 2


def test_when_enough_was_spent_the_nearest_decides_and_that_is_kept(measured, folder, monkeypatch):
    FASTEST(ENGINES, WORK, 1)
    FASTEST(ENGINES, WORK._replace(num_experts=64), 1)
    monkeypatch.setattr(probe, "BUDGET", 0.0)
    near = WORK._replace(num_experts=32)
    assert FASTEST(ENGINES, near, 1) == "grouped" and len(measured) == 2
    monkeypatch.setattr(probe, "BUDGET", 20.0)
    assert FASTEST(ENGINES, near, 1) == "grouped" and len(measured) == 2
    FASTEST(ENGINES, WORK._replace(dtype="bfloat16"), 1)  # nothing of this type is there to go by
    assert len(measured) == 3


def test_a_broken_file_is_written_anew(measured, folder):
    FASTEST(ENGINES, WORK, 1)
    [file] = folder.glob("*.json")
    file.write_text('[{"engi')
    assert FASTEST(ENGINES, WORK, 1) == "loop" and len(measured) == 2


def test_where_nothing_can_be_kept_the_first(measured, folder, capsys):
    folder.write_text("not a folder")
    assert FASTEST(ENGINES, WORK, 1) == "cpu" and not measured
    assert "engine=auto takes cpu: it cannot keep what it measures" in capsys.readouterr().err


def test_measure_times_every_engine_and_leaves_threads_alone(monkeypatch, has_compiler):
    monkeypatch.setattr(probe, "SECONDS", 0.0)
    before = torch.get_num_threads()
    seconds = probe.measure(ENGINES, WORK, before + 1)
    assert seconds.keys() == set(ENGINES) and min(seconds.values()) > 0
    assert torch.get_num_threads() == before


@given(
    num_experts=st.integers(1, 4096),
    rows=st.integers(1, 10**7),
    widths=st.tuples(st.integers(1, 20000), st.integers(1, 20000)),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
)
def test_what_is_timed_is_small_and_on_a_grid(num_experts, rows, widths, dtype):
    work = on_grid(num_experts, rows, widths, dtype)
    one_expert = 2 * work.d_model * work.hidden * dtype.itemsize
    assert one_expert * work.num_experts <= max(one_expert, probe.MOST_BYTES)
    assert 4 * work.rows * work.d_model * work.hidden <= probe.MOST_FLOPS
    assert 1 <= work.num_experts <= 2 * num_experts and work.rows >= work.num_experts
    widths = (work.d_model, work.hidden)
    assert all(probe.NARROWEST <= width <= probe.WIDEST and width.bit_count() == 1 for width in widths)
    sizes = (work.num_experts, work.rows, widths, dtype)
    assert on_grid(*sizes) == work
