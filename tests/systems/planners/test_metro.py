from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from systems.planners.base import imbalance
from systems.planners.metro import METRO, fewest_active


def active(sent_GEG: np.ndarray) -> np.ndarray:
    """int64 [G]: experts with tokens on each rank."""
    return sent_GEG.any(0).sum(0)


def test_by_hand():
    """Of their own rank 0 has two experts and rank 1 one: experts 0 and 1 go to ranks 1 and 0."""
    holds_EG = np.array([[1, 1], [1, 1], [1, 0], [1, 0], [0, 1]]) > 0
    assert fewest_active(np.array([1, 1, 1, 0, 1]) > 0, holds_EG).tolist() == [0, 1, 0, 0, 1]
    assert fewest_active(np.ones(5) > 0, holds_EG).tolist() == [1, 0, 0, 0, 1]


@settings(deadline=None)
@given(st.integers(1, 3), st.lists(st.sets(st.integers(0, 2), min_size=1), min_size=1, max_size=6), st.data())
def test_one_rank_computes_each_expert_and_the_exact_variant_has_the_smallest_maximum(ranks, held, data):
    replicas_EG = np.array([[int(rank in {holder % ranks for holder in one}) for rank in range(ranks)] for one in held])
    counts = st.lists(st.integers(0, 3), min_size=len(held), max_size=len(held))
    tokens_GE = np.array([data.draw(counts) for _ in range(ranks)])
    owner_E = (replicas_EG > 0).argmax(1)
    greedy_G, exact_G = (
        active(checked(planner, tokens_GE, replicas_EG, owner_E)) for planner in (METRO(), METRO(exact=True))
    )
    ways = product(*(np.flatnonzero(holds_G) for holds_G in replicas_EG[tokens_GE.any(0)]))
    best = min(np.bincount(np.array(way, np.int64), minlength=1).max() for way in ways)
    assert exact_G.max() == best <= greedy_G.max()


def checked(planner: METRO, tokens_GE: np.ndarray, replicas_EG: np.ndarray, owner_E: np.ndarray) -> np.ndarray:
    sent_GEG = planner.dispatch(tokens_GE, replicas_EG, owner_E)
    planner.check_sent(sent_GEG, tokens_GE, replicas_EG)
    assert (sent_GEG.any(0).sum(1) == tokens_GE.any(0)).all(), "one rank for each expert with tokens"
    return sent_GEG


def test_many_tokens_are_levelled_instead():
    tokens_GE, replicas_EG, owner_E = np.array([[20, 4], [20, 4]]), np.array([[1, 1], [1, 0]]), np.array([0, 0])
    for planner, expected in [
        (METRO(), 40 / 24),
        (METRO(token_form_above=24), 40 / 24),
        (METRO(token_form_above=23), 1),
    ]:
        assert imbalance(planner.dispatch(tokens_GE, replicas_EG, owner_E)) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"exact": 1}, r"planner\.exact is 1; it must be true or false"),
        ({"token_form_above": -1}, r"planner\.token_form_above is -1; it must be a whole number of at least 0"),
        ({"extra_replicas": -1}, r"planner\.extra_replicas is -1"),
    ],
)
def test_bad_options_are_named(options, sentence):
    with pytest.raises(ValueError, match=sentence):
        METRO(**options)
