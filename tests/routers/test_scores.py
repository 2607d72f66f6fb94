"""Scores that agree with draws."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from routers.scores import below, scores_of


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 60), st.integers(1, 8), st.integers(0, 100))
def test_the_largest_scores_are_the_experts_that_were_drawn_in_their_order(num_tokens, top_k, seed):
    generator = np.random.default_rng(seed)
    expert_TK = np.stack([generator.permutation(9)[:top_k] for _ in range(num_tokens)])
    score_TE = scores_of(expert_TK, 9, generator)
    assert np.isfinite(score_TE).all()
    np.testing.assert_array_equal(np.argsort(-score_TE, 1)[:, :top_k], expert_TK)


def test_bounded_numbers_are_gumbel_numbers_of_which_those_above_are_left_out():
    """Against rejection: mean and spread of those below 1 at location 0.5."""
    generator = np.random.default_rng(0)
    wanted = generator.gumbel(0.5, size=400_000)
    wanted = wanted[wanted < 1]
    found = below(np.full(200_000, 0.5), np.full(200_000, 1.0), generator)
    assert found.max() <= 1
    assert found.mean() == pytest.approx(wanted.mean(), abs=0.01)
    assert found.std() == pytest.approx(wanted.std(), abs=0.01)


def test_popular_experts_that_were_not_taken_score_higher():
    expert_TK = np.random.default_rng(0).choice(4, size=(4000, 1), p=[0.6, 0.3, 0.05, 0.05])
    score_TE = scores_of(expert_TK, 4, np.random.default_rng(1))
    third_T = expert_TK[:, 0] == 2
    means_E = score_TE[third_T].mean(0)
    assert means_E[0] > means_E[1] > means_E[3]
