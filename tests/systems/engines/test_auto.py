"""engine=auto: which engines it asks to be timed, and what it takes where none are."""

import pytest

from systems.engines import auto
from systems.engines.cpu import kernels

WIDTHS = (64, 768)


@pytest.fixture(autouse=True)
def forget():
    remembered = auto._refusal, auto._say_once
    for function in remembered:
        function.cache_clear()
    yield
    for function in remembered:
        function.cache_clear()


@pytest.fixture
def timed(monkeypatch):
    """What was asked to be timed; loop is the fastest."""
    asked = []
    monkeypatch.setattr(auto.probe, "fastest", lambda *arguments: asked.append(arguments) or "loop")
    return asked


def test_engines_that_can_run_are_timed_once_in_a_process(timed, has_compiler):
    for _ in range(3):
        assert auto.choose("cpu", "fp32", 8, 3000, WIDTHS, 2) == "loop"
    [(engines, work, threads)] = timed
    assert engines == ("cpu", "grouped", "loop") and threads == 2
    assert work == ("float32", 8, 8 * 512, 64, 1024, "relu")


def test_an_engine_that_cannot_run_is_not_timed(timed, has_compiler):
    auto.choose("cpu", "fp32", 8, 3000, (64, 770))  # grouped wants multiples of 4
    assert timed[0][0] == ("cpu", "loop")


def test_it_says_why_our_own_engine_cannot_run(timed, capsys):
    assert auto.choose("cpu", "fp16", 8, 3000, WIDTHS) == "loop"
    assert timed[0][0] == ("grouped", "loop")
    assert capsys.readouterr().err == (
        "engine=auto takes loop: engine=cpu multiplies float32 and bfloat16, got torch.float16; use engine=grouped\n"
    )


def test_without_a_compiler_another_engine(timed, monkeypatch, capsys):
    monkeypatch.setenv("CXX", "/nonexistent")
    kernels.cache_clear()
    assert auto.choose("cpu", "fp32", 8, 3000, WIDTHS) == "loop"
    assert timed[0][0] == ("grouped", "loop")
    assert "cannot run /nonexistent" in capsys.readouterr().err


def test_the_only_engine_that_can_run_is_not_timed(timed):
    assert auto.choose("cpu", "fp16", 8, 3000, (64, 770)) == "loop"
    assert auto.choose("fpga", "fp32", 8, 3000, WIDTHS) == "loop"
    assert not timed


def test_on_a_gpu_the_preferred_one_without_timing(timed, monkeypatch, capsys):
    monkeypatch.setattr(auto, "_refusal", lambda name, *_: "" if name in ("triton", "loop") else "no")
    assert auto.choose("cuda", "bf16", 8, 3000, WIDTHS) == "triton" and not timed
    assert capsys.readouterr().err == ""


def test_preferred_times_nothing(timed, has_compiler):
    assert auto.preferred("cpu", "fp32", WIDTHS) == "cpu"
    assert auto.preferred("cpu", "fp16", WIDTHS) == "grouped"
    assert not timed
