import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import norm

from routers.lognormal import LognormalRouter, lognormal_probabilities


def variation(p_E: np.ndarray) -> float:
    return float(p_E.std() / p_E.mean())


def test_two_experts_by_hand():
    # cv = (p_0 - p_1) / (p_0 + p_1), so cv 1/2 is 3 to 1
    np.testing.assert_allclose(lognormal_probabilities(2, 0.5), [0.75, 0.25], rtol=1e-9)


@given(st.integers(1, 300), st.floats(0, 1))
def test_cv_is_exact_up_to_the_largest_possible(num_experts, share):
    cv = share * math.sqrt(num_experts - 1)
    p_E = lognormal_probabilities(num_experts, cv)
    assert p_E.shape == (num_experts,) and p_E.min() >= 0 and p_E.sum() == pytest.approx(1)
    assert variation(p_E) == pytest.approx(cv, rel=1e-9, abs=1e-9)
    assert (np.diff(p_E) <= 0).all()


def test_logarithms_are_normal_quantiles():
    log_E = np.log(lognormal_probabilities(64, 1.5))
    quantile_E = norm.isf((np.arange(64) + 0.5) / 64)
    assert np.corrcoef(log_E, quantile_E)[0, 1] == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("num_experts", [2, 16, 256])
def test_the_bounds_are_uniform_and_one_expert_for_all(num_experts):
    np.testing.assert_allclose(lognormal_probabilities(num_experts, 0), 1 / num_experts, rtol=1e-12)
    most = lognormal_probabilities(num_experts, math.sqrt(num_experts - 1))
    assert most[0] == pytest.approx(1) and most[1:].max() < 1e-9


@pytest.mark.parametrize(
    ("cv", "sentence"),
    [
        (3.9, r"router\.cv is 3\.9; it must be at most sqrt\(num_experts - 1\) \(3\.873\)"),
        (-0.5, r"router\.cv is -0\.5; it must not be negative"),
        (float("nan"), r"router\.cv is nan; it must not be negative, infinite or NaN"),
    ],
)
def test_impossible_cv_is_named(cv, sentence):
    with pytest.raises(ValueError, match=sentence):
        LognormalRouter(num_experts=16, rank=0, seed=0, cv=cv)


def test_hot_experts_are_seeded_unless_asked_for_in_order():
    def build(**options: object) -> np.ndarray:
        return LognormalRouter(**{"num_experts": 64, "rank": 0, "seed": 0} | options).probabilities_E  # type: ignore

    assert np.array_equal(build(), build(rank=3)) and not np.array_equal(build(), build(seed=1))
    assert build(permute_hot=False).tolist() == sorted(build(), reverse=True)
    assert variation(build()) == pytest.approx(1, rel=1e-9)
