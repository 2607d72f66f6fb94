"""Published runs beside simulated ones, on numbers worked out by hand."""

import numpy as np
import pandas as pd
import pytest

from analysis import validation
from analysis.reference import load_reference


def runs(errors: dict[tuple[str, int, int], float]) -> pd.DataFrame:
    """Runs of 100 ms (DeepSpeed) and 10 ms (the others), simulated with these errors."""
    rows = []
    for (system, experts, batch), error in errors.items():
        row = {"system": system, "num_experts": experts, "batch_size": batch}
        row["fitted"] = (system, experts, batch) in validation.FITTED
        for metric in validation.METRICS:
            real = 100.0 if system == "deepspeed" else 10.0
            row |= {f"{metric}/published": real, f"{metric}/simulated": real * (1 + error), f"{metric}/error": error}
        rows.append(row)
    return pd.DataFrame(rows)


FOUR = runs(
    {
        ("deepspeed", 8, 250): 0.10,
        ("moeshard_authors", 8, 250): -0.02,
        ("deepspeed", 128, 250): 0.04,
        ("moeshard_authors", 128, 250): 0.50,  # fitted: in no summary
    }
)


def test_fitted_runs_are_in_no_summary():
    found = validation.summary(FOUR)["layer_moe_ms"]
    assert (found["runs"], found["median"], found["worst"]) == (3, 0.04, 0.1)


def test_the_error_of_a_ratio_is_that_of_two_runs_of_a_point():
    assert validation.ratios(FOUR, "ttft_ms") == pytest.approx([1.10 / 0.98 - 1, 1.50 / 1.04 - 1])


def test_orders_count_comparisons_that_differ_by_enough():
    assert validation.orders(FOUR, "ttft_ms") == (2, 2)
    turned = runs({("deepspeed", 8, 250): -0.95, ("moeshard_authors", 8, 250): 0.0})
    assert validation.orders(turned, "ttft_ms") == (0, 1)


def test_every_run_has_its_line_and_fitted_ones_say_so():
    lines = validation.table(FOUR).splitlines()[2:]
    assert len(lines) == 4 and "fitted" in lines[3] and "+50.0 %" in lines[3] and "fitted" not in lines[0]


def test_all_published_runs_are_found_and_five_of_them_are_fitted():
    published = load_reference().runs
    points = [(experts, 250) for experts in (8, 16, 32, 64, 128, 256)] + [(128, batch) for batch in (10, 100, 450)]
    times = {
        (system, *point): validation.published_times(published, system, *point)
        for system in validation.PROGRAMS
        for point in points
    }
    assert len(times) == len(published) == 27 and len(validation.FITTED) <= 5
    assert times.keys() >= validation.FITTED
    assert times["deepspeed", 128, 250] == pytest.approx({"ttft_ms": 1131.99, "layer_moe_ms": 177.28})
    assert np.isfinite([list(one.values()) for one in times.values()]).all()
