import pytest
from hypothesis import given
from hypothesis import strategies as st

from devices.grids import Curve, Grid

# us = m * n * k: times that a rate of one leaves, so that every interpolation is exact.
CUBE = {"m": [1, 4], "n": [1, 2], "k": [2, 8], "us": [[[2, 8], [4, 16]], [[8, 32], [16, 64]]]}


def test_a_curve_is_read_between_points_and_goes_on_with_its_last_slope():
    curve = Curve([[10, 1], [20, 3], [40, 4]])
    assert [curve.at(x) for x in (0, 10, 15, 20, 30, 40, 80)] == [1, 1, 2, 3, 3.5, 4, 6]


@given(st.floats(1, 4), st.floats(1, 2), st.floats(2, 8))
def test_a_grid_is_exact_for_a_constant_rate(m, n, k):
    assert Grid(CUBE).seconds(m, n, k) == pytest.approx(m * n * k * 1e-6)


def test_beyond_a_grid_work_takes_longer_in_proportion_and_below_it_no_less():
    grid = Grid(CUBE)
    assert grid.seconds(8, 4, 16) == pytest.approx(8 * 64e-6)
    assert grid.seconds(1, 1, 1) == pytest.approx(2e-6)
