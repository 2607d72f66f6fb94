from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from routers.drift import DriftRouter
from routers.synthetic import SyntheticRouter


def router(num_experts: int = 8, **options: Any) -> DriftRouter:
    return DriftRouter(num_experts=num_experts, rank=0, seed=0, **options)


def hot(drift: DriftRouter, iteration: int) -> set[int]:
    p_E = drift.probabilities(layer=1, iteration=iteration)
    return {int(expert) for expert in np.flatnonzero(p_E > p_E.min() * 1.5)}


def test_hot_ids_by_hand():
    drift = router(num_skewed=2, period=3, step=3)
    assert [hot(drift, i) for i in (0, 2, 3, 5)] == [{0, 1}, {0, 1}, {3, 4}, {3, 4}]
    assert [hot(drift, i) for i in (6, 9)] == [{6, 7}, {1, 2}]  # (9, 10) mod 8


def test_by_default_the_next_set_is_a_new_one():
    drift = router(num_experts=32, skewed_share=0.1, period=1)  # 4 hot
    assert [hot(drift, i) for i in (0, 1, 8)] == [{0, 1, 2, 3}, {4, 5, 6, 7}, {0, 1, 2, 3}]


@given(num_experts=st.integers(2, 64), period=st.integers(1, 9), step=st.integers(0, 99), iteration=st.integers(0, 500))
def test_drift_is_periodic_and_moves_by_step(num_experts, period, step, iteration):
    drift = router(num_experts=num_experts, num_skewed=num_experts // 2, period=period, step=step)
    p_E = drift.probabilities(layer=1, iteration=iteration)
    assert np.array_equal(p_E, drift.probabilities(layer=3, iteration=iteration // period * period))
    assert np.array_equal(p_E, drift.probabilities(layer=1, iteration=iteration + period * num_experts))
    next_E = drift.probabilities(layer=1, iteration=iteration + period)
    assert all(next_E[(expert + step) % num_experts] == p_E[expert] for expert in range(num_experts))


def test_step_zero_is_the_synthetic_router():
    still = SyntheticRouter(num_experts=8, rank=0, seed=0)
    for iteration in (0, 7):
        draws = [r.draw(200, layer=1, iteration=iteration)[:, 0].tolist() for r in (still, router(step=0, period=1))]
        assert draws[0] == draws[1]


def test_intended_moves_with_the_draws():
    drift = router(num_skewed=1, alpha=5, period=2, step=3)
    for iteration in range(8):
        realised_E = np.bincount(drift.draw(1000, layer=1, iteration=iteration)[:, 0], minlength=8)
        intended_E = drift.intended(1000, layer=1, iteration=iteration)
        assert intended_E.argmax() == realised_E.argmax() == 3 * (iteration // 2) % 8


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"period": 0}, r"router\.period is 0; it must be a whole number of at least 1"),
        ({"period": 2.5}, r"router\.period is 2\.5; it must be a whole number of at least 1"),
        ({"step": -1}, r"router\.step is -1; it must be a whole number of at least 0"),
        ({"step": True}, r"router\.step is True; it must be a whole number of at least 0"),
        ({"alpha": -1}, r"router\.alpha is -1; it must not be negative"),
    ],
)
def test_bad_option_is_named(options, sentence):
    with pytest.raises(ValueError, match=sentence):
        router(**options)
