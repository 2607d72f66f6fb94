"""engine=auto: what it picks, by hand-made measurements."""

import csv

import pytest
import torch

from systems.engines import auto

FP32, WIDTHS = torch.float32, (64, 768)


@pytest.fixture(autouse=True)
def forget():
    auto.choose.cache_clear()
    auto._measured.cache_clear()
    yield
    auto.choose.cache_clear()
    auto._measured.cache_clear()


@pytest.fixture
def measured(tmp_path, monkeypatch):
    def write(*rows: tuple[str, int, str, float]) -> None:
        with (tmp_path / "measured.csv").open("w") as file:
            table = csv.writer(file)
            table.writerow(["device", "dtype", "num_experts", "width", "tokens", "engine", "share"])
            table.writerows(("cpu", dtype, experts, 768, 3000, engine, share) for dtype, experts, engine, share in rows)
        monkeypatch.setattr(auto, "MEASURED", tmp_path / "measured.csv")

    return write


def test_nearest_point_decides(measured):
    measured(
        ("torch.float32", 8, "loop", 0.9),
        ("torch.float32", 8, "grouped", 0.8),
        ("torch.float32", 128, "loop", 0.4),
        ("torch.float32", 128, "grouped", 0.5),
        ("torch.bfloat16", 8, "grouped", 0.99),
    )
    assert auto.choose("cpu", FP32, 10, 3000, WIDTHS) == "loop"
    assert auto.choose("cpu", FP32, 256, 3000, WIDTHS) == "grouped"
    assert auto.choose("cpu", torch.bfloat16, 256, 3000, WIDTHS) == "grouped"


def test_an_engine_that_cannot_run_is_not_chosen(measured):
    measured(("torch.float32", 8, "grouped", 0.9), ("torch.float32", 8, "loop", 0.5), ("torch.float32", 8, "triton", 1))
    assert auto.choose("cpu", FP32, 8, 3000, (64, 770)) == "loop"  # grouped wants multiples of 4


def test_without_measurements_the_preferred(measured):
    measured()
    assert auto.choose("cpu", FP32, 8, 3000, WIDTHS) == "cpu"
    assert auto.choose("cpu", torch.float16, 8, 3000, WIDTHS) == "grouped"
