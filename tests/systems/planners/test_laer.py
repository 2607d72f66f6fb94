import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from systems.planners.base import Costs, imbalance, owner_of, rows_per_rank
from systems.planners.laer import LAER, evenly

COSTS = Costs(1.0, 0.0, 0.0)


def test_the_cheaper_layout_by_hand():
    """Expert 0 has 18 tokens and expert 3 has 6: 12 rows a rank where both are on both.

    With 6 slots equal numbers leave a second one for each of these two, and the queue two more for expert 0: 9 and 15
    rows. With 8 slots equal numbers are two of each, and the queue's are no cheaper.
    """
    tokens_GE, anywhere_EG = np.array([[9, 0, 0, 3], [9, 0, 0, 3]]), np.ones((4, 2), np.int64)
    for extra, once in [(2, [1, 2]), (4, [])]:
        planner = LAER(extra, node_size=1)
        replicas_EG = planner.place(tokens_GE, anywhere_EG, COSTS)
        assert (replicas_EG[[0, 3]] == 1).all() and np.flatnonzero(replicas_EG.sum(1) == 1).tolist() == once
        assert rows_per_rank(planner.dispatch(tokens_GE, replicas_EG, owner_of(replicas_EG))).tolist() == [12, 12]


def test_copies_are_spread_over_nodes_and_tokens_stay_in_theirs():
    """Two nodes of two ranks: the hot expert's two copies are in different nodes, and each serves its own."""
    tokens_GE = np.array([[4, 1, 1, 1]] * 4)
    planner = LAER(4, node_size=2)
    replicas_EG = planner.place(tokens_GE, np.ones((4, 4), np.int64), COSTS)
    in_nodes_EN = replicas_EG.reshape(4, 2, 2).sum(2)
    assert (in_nodes_EN == 1).all() and replicas_EG.sum(0).tolist() == [2, 2, 2, 2]
    sent_GEG = planner.dispatch(tokens_GE, replicas_EG, owner_of(replicas_EG))
    assert not sent_GEG[:2, :, 2:].any() and not sent_GEG[2:, :, :2].any()


@settings(deadline=None)
@given(st.integers(1, 6), st.integers(1, 4), st.integers(0, 9), st.integers(1, 4), st.integers(0, 2**32 - 1))
def test_layouts_have_equal_slots_and_dispatch_is_even_within_a_node(ranks, local, extra, node_size, seed):
    rng, num_experts = np.random.default_rng(seed), ranks * local
    tokens_GE, past_GE = (rng.geometric(0.05, (ranks, num_experts)) - 1 for _ in range(2))
    planner = LAER(extra, node_size)
    replicas_EG = planner.place(past_GE / 3, np.ones((num_experts, ranks), np.int64), COSTS)
    assert len(set(replicas_EG.sum(0).tolist())) == 1 and 0 <= replicas_EG.sum() - num_experts - extra < ranks
    sent_GEG = planner.dispatch(tokens_GE, replicas_EG, owner_of(replicas_EG))
    planner.check_sent(sent_GEG, tokens_GE, replicas_EG)
    node_G = np.arange(ranks) // node_size
    for source, expert in np.ndindex(ranks, num_experts):
        holders = np.flatnonzero(replicas_EG[expert])
        near = holders[node_G[holders] == node_G[source]]
        rows = sent_GEG[source, expert, near if len(near) else holders]
        assert rows.sum() == tokens_GE[source, expert] and rows.max() - rows.min() <= 1


def test_the_rest_goes_in_turn_from_the_ranks_own_number_on():
    rows_CG = evenly(np.array([[4], [4], [3]]), np.array([0, 0, 0]), np.ones((3, 3), bool))
    assert rows_CG.T.tolist() == [[2, 1, 1], [1, 2, 1], [1, 1, 1]]


def test_the_papers_point(tokens_GE, contiguous_EG):
    planner = LAER()
    replicas_EG = planner.place(tokens_GE, contiguous_EG, COSTS)
    sent_GEG = planner.dispatch(tokens_GE, replicas_EG, owner_of(replicas_EG))
    assert imbalance(sent_GEG) == pytest.approx(1.047, abs=0.004)


def test_bad_options_are_named():
    with pytest.raises(ValueError, match=r"planner\.node_size is 0; it must be a whole number of at least 1"):
        LAER(node_size=0)
    with pytest.raises(ValueError, match=r"planner\.extra_replicas is -1"):
        LAER(extra_replicas=-1)
