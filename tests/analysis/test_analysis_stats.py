from itertools import starmap

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from analysis.stats import (
    Floor,
    blocks,
    mean_layer_ratio,
    median_interval,
    median_of,
    noise_floor_of,
    outside,
    ratio_interval,
    t_interval,
)

DRAWS = 1000
COVERED = (0.93, 0.97)


def test_median_interval_of_few_values_is_min_to_max():
    assert median_interval([[3.0, 1.0, 2.0]]) == (2.0, 1.0, 3.0)
    assert median_interval([range(5)]) == (2.0, 0.0, 4.0)


def test_median_interval_by_order_statistics():
    """n = 30: ranks 10 and 21 cover with 95.7 %, ranks 11 and 20 would with 90.1 %."""
    assert median_interval([np.random.default_rng(0).permutation(np.arange(1, 31))]) == (15.5, 10, 21)


def test_median_interval_of_launches_has_launches_as_units():
    """Medians 1, 2 and 4: geometric mean 2; logs 0, ln 2, 2 ln 2 have a standard deviation of ln 2, t(2) is 4.303."""
    value, low, high = median_interval([[1.0] * 9, [2.0] * 9, [4.0] * 9])
    factor = np.exp(4.302653 * np.log(2) / np.sqrt(3))
    assert (value, low, high) == pytest.approx((2, 2 / factor, 2 * factor))


def test_layers_of_an_iteration_are_one_observation():
    """Two layers, one ten times slower: the median over iterations of their mean, and an interval from 7 values."""
    values_IL = np.arange(1, 8)[:, None] * np.array([1.0, 10.0])
    assert median_of(values_IL) == 22
    assert median_interval([values_IL]) == (22, 5.5, 38.5)


def test_a_launch_with_median_zero_is_on_a_linear_scale():
    value, low, high = t_interval([0.0, 2.0])
    assert (value, low + high) == pytest.approx((1, 2)) and low < 0


def test_one_value_or_one_unit_has_no_interval():
    for median, low, high in (median_interval([[7.0]]), t_interval([7.0])):
        assert median == pytest.approx(7) and np.isnan([low, high]).all()


def test_no_value_is_refused():
    with pytest.raises(ValueError, match="at least one value"):
        median_interval([])
    with pytest.raises(ValueError, match=r"at least one value in each launch; there are \[1, 0\]"):
        median_interval([[1.0], []])


def draw(rng, launches, iterations, launch_effect=0.0, correlation=0.0):
    """Times around 1: skewed, with a launch effect and neighbours that resemble one another, [S, I]."""
    noise_SI = rng.normal(size=(launches, iterations))
    for i in range(1, iterations):
        noise_SI[:, i] = correlation * noise_SI[:, i - 1] + np.sqrt(1 - correlation**2) * noise_SI[:, i]
    outlier_SI = 0.3 * (rng.random((launches, iterations)) < 0.05)
    return np.exp(rng.normal(0, launch_effect, (launches, 1)) + 0.1 * noise_SI + outlier_SI)


def coverage(interval, truth):
    """Share of DRAWS intervals that hold the truth; the draws are seeded, so it is one number for ever."""
    rng = np.random.default_rng(20261122)
    return np.mean([low <= truth <= high for _, low, high in (interval(rng) for _ in range(DRAWS))])


def test_order_statistic_interval_covers():
    """Skewed iid times, one launch of 30; the true median of a lognormal is 1."""
    assert COVERED[0] <= coverage(lambda rng: median_interval([rng.lognormal(size=30)]), 1) <= COVERED[1]


@pytest.mark.parametrize(
    ("launches", "iterations", "launch_effect", "correlation"),
    [
        (3, 30, 0, 0),
        (3, 30, 0.05, 0),
        (3, 30, 0.2, 0.5),
        (3, 30, 0, 0.5),
        (2, 6, 0, 0),
        (5, 30, 0.05, 0.3),
        (10, 30, 0, 0),
    ],
)
def test_ratio_interval_covers(launches, iterations, launch_effect, correlation):
    def interval(rng):
        above, below = (draw(rng, launches, iterations, launch_effect, correlation) for _ in "ab")
        return ratio_interval(list(4 * above), list(below))

    assert COVERED[0] <= coverage(interval, 4) <= COVERED[1]


@pytest.mark.parametrize("launch_effect", [0, 0.05])
def test_median_interval_of_launches_covers(launch_effect):
    """The true median is 1 but for the outliers, which move it: it is computed from many draws."""
    truth = np.exp(np.log(np.median(draw(np.random.default_rng(1), 20000, 30), axis=1)).mean())
    covered = coverage(lambda rng: median_interval(list(draw(rng, 3, 30, launch_effect))), truth)
    assert COVERED[0] <= covered <= COVERED[1]


def test_ratio_interval_of_one_launch_covers_neighbours_that_resemble_one_another():
    """Blocks of 5 iterations are the units; single iterations would cover 77 % of the time."""

    def interval(block):
        return lambda rng: ratio_interval(*(draw(rng, 1, 30, 0, 0.5)[:1] for _ in "ab"), block=(block, block))

    assert coverage(interval(5), 1) > 0.9 > 0.8 > coverage(interval(1), 1)


def test_ratio_of_constant_times_is_exact():
    assert ratio_interval([np.full(5, 6.0)] * 3, [np.full(5, 2.0)] * 3) == pytest.approx((3, 3, 3))


def test_ratio_is_that_of_the_medians():
    """What a table shows is consistent: the ratio of two systems is the ratio of their medians."""
    rng = np.random.default_rng(5)
    above, below = list(draw(rng, 3, 30)), list(draw(rng, 3, 30))
    assert ratio_interval(above, below)[0] == pytest.approx(median_interval(above)[0] / median_interval(below)[0])


def test_a_slow_launch_that_both_systems_share_cancels():
    """Paired: the second launch is twice as slow for both, so the ratio is 3 in each."""
    above, below = [np.full(9, 3.0), np.full(9, 6.0)], [np.full(9, 1.0), np.full(9, 2.0)]
    assert ratio_interval(above, below) == pytest.approx((3, 3, 3))


def test_a_drift_that_both_systems_share_cancels_within_a_launch():
    drift_I = np.linspace(1, 2, 30)
    _, low, high = ratio_interval([3 * drift_I], [drift_I])
    assert (low, high) == pytest.approx((3, 3))


def test_launches_must_be_those_of_both_sides():
    with pytest.raises(ValueError, match="there are 0 and 1"):
        ratio_interval([], [np.ones(3)])
    with pytest.raises(ValueError, match="there are 2 and 1"):
        ratio_interval([np.ones(3)] * 2, [np.ones(3)])


def test_paper_statistic_is_the_mean_over_layers_of_ratios_of_means():
    """Layer ratios 10/2 and 10/10, mean 3; the ratio of the overall means would be 20/12."""
    above, below = np.tile([10.0, 10.0], (4, 1)), np.tile([2.0, 10.0], (4, 1))
    assert ratio_interval([above], [below], statistic=mean_layer_ratio) == pytest.approx((3, 3, 3))


@pytest.mark.parametrize(
    ("iterations", "block", "sizes"),
    [(6, 3, [3, 3]), (7, 3, [4, 3]), (30, 5, [5] * 6), (4, 3, [1] * 4), (2, 5, [1, 1])],
)
def test_blocks(iterations, block, sizes):
    found = blocks(np.arange(iterations)[:, None], block)
    assert [len(one) for one in found] == sizes
    assert np.concatenate(found).ravel().tolist() == list(range(iterations))


@given(st.integers(1, 200), st.integers(1, 20))
def test_blocks_keep_every_iteration_in_order(iterations, block):
    found = blocks(np.arange(iterations)[:, None], block)
    assert np.concatenate(found).ravel().tolist() == list(range(iterations))
    assert len(found) == 1 or min(map(len, found)) >= (block if iterations >= 2 * block else 1)


def test_noise_floor_is_the_largest_of_few_pairs():
    assert noise_floor_of([1.0, 1 / 1.03, 1.02]) == pytest.approx((0.03, 3))


def test_noise_floor_of_many_pairs_is_their_95th_percentile():
    floor = noise_floor_of(np.exp(np.arange(1, 101) / 1000))
    assert floor == pytest.approx((np.expm1(0.096), 100))


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(1.03, 1.2, True), (1.01, 1.2, False), (0.9, 0.99, False), (0.8, 0.97, True), (0.9, 1.2, False)],
)
def test_outside_the_floor(low, high, expected):
    assert outside(low, high, Floor(0.02, 9)) is expected


def test_nothing_is_outside_an_unknown_floor_or_without_an_interval():
    assert not any(starmap(outside, [(2, 3, None), (np.nan, np.nan, Floor(0.01, 1))]))
