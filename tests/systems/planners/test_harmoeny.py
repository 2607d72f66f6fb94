import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from systems.planners import harmoeny
from systems.planners.base import Costs, as_replicas, imbalance, rows_per_rank
from systems.planners.dispatch import to_owner
from systems.planners.harmoeny import HarMoEny, heaviest_first

COSTS = Costs(1.0, 1.0, 1.0)


def planned(planner: HarMoEny, tokens_GE: np.ndarray, owner_E: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    replicas_EG = planner.place(tokens_GE, as_replicas(owner_E, len(tokens_GE)), COSTS)
    return replicas_EG, planner.dispatch(tokens_GE, replicas_EG, owner_E)


def test_by_hand():
    """24 tokens on three ranks, the mean is 8. Rank 0 has 7 + 6 of its experts, rank 1 has 8 and rank 2 has 3.

    Expert 0 gives rank 2 the 5 that it has room for, the 4 of rank 1 first; then nobody is above 8.
    """
    tokens_GE, owner_E = np.array([[3, 0, 8, 0, 1, 0], [4, 0, 0, 0, 1, 0], [0, 6, 0, 0, 1, 0]]), np.arange(6) // 2
    replicas_EG, sent_GEG = planned(HarMoEny(5), tokens_GE, owner_E)
    assert replicas_EG.sum() == 7 and sent_GEG[:, 0].tolist() == [[2, 0, 1], [0, 0, 4], [0, 0, 0]]
    assert rows_per_rank(sent_GEG).tolist() == [8, 8, 8]
    assert planned(HarMoEny(6), tokens_GE, owner_E)[0].sum() == 6, "there is room for 5 only"


def test_the_heaviest_sender_first():
    assert heaviest_first(np.array([2, 5, 0, 5]), 7).tolist() == [0, 5, 0, 2]
    assert heaviest_first(np.array([2, 5, 0, 5]), 99).tolist() == [2, 5, 0, 5]


counts = st.lists(st.integers(0, 40) | st.integers(0, 4000), min_size=12, max_size=12)


@settings(deadline=None)
@given(st.lists(counts, min_size=4, max_size=4), st.integers(1, 300))
def test_moves_are_large_enough_and_nobody_who_receives_exceeds_the_mean(rows, least_move):
    tokens_GE, owner_E, moves = np.array(rows), np.arange(12) // 3, []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(harmoeny, "heaviest_first", lambda *given: moves.append(heaviest_first(*given)) or moves[-1])
        replicas_EG, sent_GEG = planned(HarMoEny(least_move), tokens_GE, owner_E)
    assert all(moved_G.sum() >= least_move for moved_G in moves)
    mean, home_EG = tokens_GE.sum() // 4, as_replicas(owner_E, 4)
    before_G = rows_per_rank(to_owner(tokens_GE, home_EG, owner_E))
    assert (rows_per_rank(sent_GEG) <= np.maximum(before_G, mean)).all()
    assert ((sent_GEG.sum(0) > 0) >= replicas_EG - home_EG).all(), "no expert is fetched in vain"


@settings(deadline=None)
@given(st.lists(counts, min_size=4, max_size=4))
def test_without_a_least_move_ranks_are_level(rows):
    tokens_GE = np.array(rows)
    rows_G = rows_per_rank(planned(HarMoEny(1), tokens_GE, np.arange(12) // 3)[1])
    assert rows_G.max() <= tokens_GE.sum() // 4 + 4, "but for what the mean, rounded down, has no room for"


def test_balanced_load_moves_nothing():
    replicas_EG, _ = planned(HarMoEny(1), np.full((4, 12), 1000), np.arange(12) // 3)
    assert (replicas_EG == as_replicas(np.arange(12) // 3, 4)).all()


def test_the_papers_point(tokens_GE, contiguous_EG):
    planner = HarMoEny()
    replicas_EG = planner.place(tokens_GE, contiguous_EG, COSTS)
    assert imbalance(planner.dispatch(tokens_GE, replicas_EG, np.arange(128) // 32)) < 1.006, "150 tokens of 30,000"


def test_bad_options_are_named():
    with pytest.raises(ValueError, match=r"planner\.least_move is 0; it must be a whole number of at least 1"):
        HarMoEny(least_move=0)
