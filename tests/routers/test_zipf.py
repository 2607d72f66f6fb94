import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from routers.zipf import ZipfRouter, zipf_probabilities


def test_probabilities_by_hand():
    # 1, 1/2, 1/3, 1/4 have the sum 25/12
    np.testing.assert_allclose(zipf_probabilities(4, 1), np.array([12, 6, 4, 3]) / 25, rtol=1e-14)
    np.testing.assert_allclose(zipf_probabilities(3, 2), np.array([36, 9, 4]) / 49, rtol=1e-14)
    np.testing.assert_allclose(zipf_probabilities(8, 0), 1 / 8, rtol=1e-14)


@given(st.integers(1, 300), st.floats(0, 1000))
def test_probabilities_fall_as_the_power(num_experts, exponent):
    p_E = zipf_probabilities(num_experts, exponent)
    assert p_E.shape == (num_experts,) and p_E.sum() == pytest.approx(1) and (np.diff(p_E) <= 0).all()
    if num_experts > 1:
        assert p_E[1] / p_E[0] == pytest.approx(2**-exponent, rel=1e-9, abs=1e-300)


@pytest.mark.parametrize("exponent", [-1.0, float("nan"), float("inf")])
def test_bad_exponent_is_named(exponent):
    with pytest.raises(ValueError, match=rf"router\.exponent is {exponent}; it must not be negative, infinite or NaN"):
        ZipfRouter(num_experts=4, rank=0, seed=0, exponent=exponent)


def test_permute_hot_keeps_the_loads_and_is_the_same_on_every_rank():
    plain = ZipfRouter(num_experts=64, rank=0, seed=3)
    moved = [ZipfRouter(num_experts=64, rank=rank, seed=3, permute_hot=True).probabilities_E for rank in (0, 1)]
    assert np.array_equal(*moved) and not np.array_equal(moved[0], plain.probabilities_E)
    assert sorted(moved[0]) == sorted(plain.probabilities_E)
