"""The comparison of scheduling policies: what its table says of timed calls."""

import pandas as pd
import pytest

from scripts.compare_scheduling import LOST_MS, table


def test_slow_calls_are_told_by_the_median_of_the_harness_s_policy():
    times = {"batch": [1.0, 1.0, 1.2, 9.0], "other": [1.0, 1.0 + 2 * LOST_MS, 1.0 + 2 * LOST_MS, 1.2]}
    rows = [("all_gather", "1 KB", policy, ms) for policy, found in times.items() for ms in found]
    found = table(pd.DataFrame(rows, columns=["collective", "size", "policy", "milliseconds"])).set_index("policy")
    assert found["call"].tolist() == ["all_gather, 1 KB"] * 2
    assert found["slow"].to_dict() == {"batch": 0.25, "other": 0.5}
    assert found.loc["batch", "median"] == pytest.approx(1.1) and found.loc["batch", "mean"] == pytest.approx(3.05)
