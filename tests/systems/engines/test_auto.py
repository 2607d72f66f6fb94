"""engine=auto: what it picks, by hand-made measurements."""

import csv

import pytest

from systems.engines import auto

WIDTHS = (64, 768)


@pytest.fixture(autouse=True)
def forget():
    auto.choose.cache_clear()
    auto._measured.cache_clear()
    auto._say_once.cache_clear()
    yield
    auto.choose.cache_clear()
    auto._measured.cache_clear()


@pytest.fixture
def measured(tmp_path, monkeypatch):
    def write(*rows: tuple[str, int, str, float]) -> None:
        with (tmp_path / "measured.csv").open("w") as file:
            table = csv.writer(file)
            table.writerow(["device", "precision", "num_experts", "width", "tokens", "engine", "share"])
            table.writerows(
                ("cpu", precision, experts, 768, 3000, engine, share) for precision, experts, engine, share in rows
            )
        monkeypatch.setattr(auto, "MEASURED", tmp_path / "measured.csv")

    return write


def test_nearest_point_decides(measured):
    measured(
        ("ieee", 8, "loop", 0.9),
        ("ieee", 8, "grouped", 0.8),
        ("ieee", 128, "loop", 0.4),
        ("ieee", 128, "grouped", 0.5),
        ("bf16", 8, "grouped", 0.99),
    )
    assert auto.choose("cpu", "ieee", 10, 3000, WIDTHS) == "loop"
    assert auto.choose("cpu", "ieee", 256, 3000, WIDTHS) == "grouped"
    assert auto.choose("cpu", "bf16", 256, 3000, WIDTHS) == "grouped"


def test_an_engine_that_cannot_run_is_not_chosen(measured):
    measured(("ieee", 8, "grouped", 0.9), ("ieee", 8, "loop", 0.5), ("ieee", 8, "triton", 1))
    assert auto.choose("cpu", "ieee", 8, 3000, (64, 770)) == "loop"  # grouped wants multiples of 4


def test_routings_count_alike(measured):
    """A mean of 0.8 beats one of 0.6, whatever the best case."""
    measured(
        ("ieee", 8, "loop", 0.8), ("ieee", 8, "loop", 0.8), ("ieee", 8, "grouped", 0.95), ("ieee", 8, "grouped", 0.3)
    )
    assert auto.choose("cpu", "ieee", 8, 3000, WIDTHS) == "loop"


def test_it_says_why_our_own_engine_cannot_run(measured, capsys):
    measured()
    assert auto.choose("cpu", "fp16", 8, 3000, WIDTHS) == "grouped"
    assert capsys.readouterr().err == (
        "engine=auto takes grouped: engine=cpu multiplies float32 and bfloat16, got torch.float16; use engine=grouped\n"
    )


def test_without_measurements_the_preferred(measured):
    measured()
    assert auto.choose("cpu", "ieee", 8, 3000, WIDTHS) == "cpu"
    assert auto.choose("cpu", "fp16", 8, 3000, WIDTHS) == "grouped"
