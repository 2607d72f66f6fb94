"""A token's experts are different ones, and every expert gets what it is meant to."""

from itertools import permutations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from routers.sampling import at_most, deal, inclusion, one_after_another

probabilities = st.lists(st.integers(0, 9), min_size=4, max_size=6).filter(lambda one: np.count_nonzero(one) > 3)


@given(
    wanted=st.lists(st.integers(0, 40), min_size=1, max_size=9).filter(any),
    num_tokens=st.integers(1, 12),
    top_k=st.integers(1, 9),
    seed=st.integers(0, 9),
)
def test_dealt_experts_are_different_and_as_many_as_were_asked_for(wanted, num_tokens, top_k, seed):
    top_k = min(top_k, len(wanted))
    counts_E = np.bincount(np.arange(num_tokens * top_k) * sum(wanted) // (num_tokens * top_k) % len(wanted))
    counts_E = at_most(np.pad(counts_E, (0, len(wanted) - len(counts_E))), num_tokens)
    assert counts_E.sum() == num_tokens * top_k and counts_E.max() <= num_tokens and counts_E.min() >= 0
    expert_TK = deal(counts_E, num_tokens, np.random.default_rng(seed))
    assert expert_TK.shape == (num_tokens, top_k)
    assert np.bincount(expert_TK.flatten(), minlength=len(wanted)).tolist() == counts_E.tolist()
    assert all(len(set(experts)) == top_k for experts in expert_TK.tolist())


def test_what_is_beyond_the_tokens_goes_to_the_others_in_proportion():
    assert at_most(np.array([90, 6, 3, 1]), 50).tolist() == [50, 30, 15, 5]
    assert at_most(np.array([7, 0, 0]), 3).tolist() == [3, 2, 2]


def test_a_token_of_the_shared_expert_swaps_with_others():
    """Two experts that every token gets, and one that ends the first row and begins the second."""
    for seed in range(50):
        expert_TK = deal(np.array([4, 4, 4]), 6, np.random.default_rng(seed))
        assert all(len(set(experts)) == 2 for experts in expert_TK.tolist())


@given(weights=probabilities, top_k=st.integers(1, 3))
def test_inclusion_is_that_of_all_sequences(weights, top_k):
    probability_E = np.array(weights) / sum(weights)
    expected_E = np.zeros(len(weights))
    for sequence in permutations(np.flatnonzero(probability_E).tolist(), top_k):
        left, likely = 1.0, 1.0
        for expert in sequence:
            likely *= probability_E[expert] / left
            left -= probability_E[expert]
        expected_E[list(sequence)] += likely
    assert inclusion(probability_E, top_k) == pytest.approx(expected_E, abs=1e-7)


def test_draws_are_as_likely_as_inclusion_says_and_the_first_as_the_probabilities():
    probability_E = np.array([0.5, 0.2, 0.1, 0.1, 0.1, 0.0])
    expert_TK = one_after_another(probability_E[None], 60_000, 3, np.random.default_rng(0))
    assert all(len(set(experts)) == 3 for experts in expert_TK[:200].tolist())
    assert np.bincount(expert_TK[:, 0], minlength=6) / 60_000 == pytest.approx(probability_E, abs=0.01)
    assert np.bincount(expert_TK.flatten(), minlength=6) / 60_000 == pytest.approx(
        inclusion(probability_E, 3), abs=0.01
    )


def test_experts_that_are_hardly_ever_drawn_are_drawn_where_no_others_are_left():
    probability_E = np.array([1 - 3e-9, 1e-9, 1e-9, 1e-9])
    expert_TK = one_after_another(probability_E[None], 9_000, 2, np.random.default_rng(0))
    assert (expert_TK[:, 0] == 0).all()
    assert np.bincount(expert_TK[:, 1], minlength=4)[1:] / 9_000 == pytest.approx(1 / 3, abs=0.03)


def test_every_sequence_draws_from_its_own_probabilities():
    probability_SE = np.array([[1, 1, 2, 0, 0, 0], [0, 0, 0, 2, 1, 1]])
    expert_TK = one_after_another(probability_SE, 12_000, 2, np.random.default_rng(0))
    assert expert_TK[:6000].max() == 2 and expert_TK[6000:].min() == 3
    assert np.bincount(expert_TK[:6000, 0])[2] / 6000 == pytest.approx(0.5, abs=0.03)
    assert np.bincount(expert_TK[6000:, 0])[3] / 6000 == pytest.approx(0.5, abs=0.03)


@given(
    size=st.integers(1, 3),
    groups=st.integers(1, 5),
    most_groups=st.integers(1, 5),
    skew=st.sampled_from([0.0, 1.0, 9.0]),
    seed=st.integers(0, 99),
)
def test_a_tokens_experts_are_different_and_of_few_groups(size, groups, most_groups, skew, seed):
    """Also with a skew that leaves most tokens to the clocks."""
    most_groups = min(most_groups, groups)
    probability_SE = np.exp(-skew * np.arange(groups * size))[None].repeat(2, 0)
    top_k = size * most_groups
    expert_TK = one_after_another(
        probability_SE, 12, top_k, np.random.default_rng(seed), groups=groups, most_groups=most_groups
    )
    assert all(len(set(one)) == top_k for one in expert_TK.tolist())
    assert all(len(set(one)) == most_groups for one in (expert_TK // size).tolist())
    assert expert_TK.min() >= 0 and expert_TK.max() < groups * size


def test_inclusion_of_deepseeks_size_is_quick_and_sums_to_top_k():
    probability_E = np.arange(1, 257.0) ** -1.1
    included_E = inclusion(probability_E / probability_E.sum(), 8)
    assert included_E.sum() == pytest.approx(8) and (np.diff(included_E) < 0).all() and included_E[0] < 1
