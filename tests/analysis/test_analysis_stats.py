import numpy as np
import pytest

from analysis.stats import mean_layer_ratio, median_interval, ratio_interval


def test_median_interval_of_few_values_is_min_to_max():
    assert median_interval([3.0, 1.0, 2.0]) == (2.0, 1.0, 3.0)
    assert median_interval(range(5)) == (2.0, 0.0, 4.0)


def test_median_interval_by_order_statistics():
    """n = 30: ranks 10 and 21 cover with 95.7 %, ranks 11 and 20 would with 90.1 %."""
    assert median_interval(np.random.default_rng(0).permutation(np.arange(1, 31))) == (15.5, 10, 21)


def test_one_value_has_no_interval():
    median, low, high = median_interval([7.0])
    assert median == 7 and np.isnan(low) and np.isnan(high)


def test_no_value_is_refused():
    with pytest.raises(ValueError, match="at least one value"):
        median_interval([])


def test_median_interval_covers():
    rng = np.random.default_rng(1)
    intervals = [median_interval(rng.lognormal(size=30)) for _ in range(300)]
    assert np.mean([low <= 1 <= high for _, low, high in intervals]) > 0.93


def test_ratio_of_constant_times_is_exact():
    assert ratio_interval([np.full(5, 6.0)] * 3, [np.full(5, 2.0)] * 3) == (3, 3, 3)


def test_ratio_interval_is_seeded():
    rng = np.random.default_rng(2)
    above, below = [rng.lognormal(size=20)], [rng.lognormal(size=20)]
    assert ratio_interval(above, below) == ratio_interval(above, below)
    assert ratio_interval(above, below, seed=1) != ratio_interval(above, below)


def test_ratio_interval_covers_with_one_launch():
    rng = np.random.default_rng(3)
    hits = 0
    for _ in range(150):
        _, low, high = ratio_interval(
            [4 * rng.lognormal(sigma=0.2, size=40)], [rng.lognormal(sigma=0.2, size=40)], draws=400
        )
        hits += low <= 4 <= high
    assert hits / 150 > 0.88


def test_launches_that_disagree_widen_the_interval():
    """Ten launches whose level varies by 20 %, iterations by 1 %: iterations alone would claim a width of about 1 %."""
    rng = np.random.default_rng(4)
    launches = [rng.normal(level, 0.01, size=30) for level in rng.normal(1, 0.2, size=10)]
    one = [np.ones(30)]
    _, low, high = ratio_interval(launches, one)
    _, low_pooled, high_pooled = ratio_interval([np.concatenate(launches)], one)
    assert high - low > 2 * (high_pooled - low_pooled)


def test_a_slow_launch_that_both_systems_share_cancels():
    """Paired: the second launch is twice as slow for both, so the ratio is 3 whichever launches are drawn."""
    above, below = [np.full(9, 3.0), np.full(9, 6.0)], [np.full(9, 1.0), np.full(9, 2.0)]
    _, low, high = ratio_interval(above, below)
    assert (low, high) == pytest.approx((3, 3))


def test_unequal_numbers_of_launches_and_iterations():
    ratio, low, high = ratio_interval([np.full(5, 6.0), np.full(9, 6.0)], [np.full(3, 2.0)])
    assert (ratio, low, high) == (3, 3, 3)


def test_paper_statistic_is_the_mean_over_layers_of_ratios_of_means():
    """Layer ratios 10/2 and 10/10, mean 3; the ratio of the overall means would be 20/12."""
    above, below = np.tile([10.0, 10.0], (4, 1)), np.tile([2.0, 10.0], (4, 1))
    assert ratio_interval([above], [below], statistic=mean_layer_ratio) == (3, 3, 3)


def test_ratio_without_a_launch_is_refused():
    with pytest.raises(ValueError, match="there are 0 and 1"):
        ratio_interval([], [np.ones(3)])
