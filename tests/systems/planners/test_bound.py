"""The judge: by hand, against every set of ranks, and above no planner."""

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from systems.planners.base import Costs, as_replicas, owner_of, rows_per_rank
from systems.planners.bound import least_rows
from tests.systems.planners.test_invariants import PLANNERS


@st.composite
def held(draw, most_ranks: int = 5) -> tuple[np.ndarray, np.ndarray]:
    """tokens_E and replicas_EG, at least one of each expert."""
    ranks, experts = draw(st.integers(1, most_ranks)), draw(st.integers(1, 7))
    tokens_E = draw(arrays(np.int64, experts, elements=st.integers(0, 5) | st.integers(0, 10**6)))
    replicas_EG = draw(arrays(np.int64, (experts, ranks), elements=st.integers(0, 2)))
    replicas_EG[np.arange(experts), draw(arrays(np.int64, experts, elements=st.integers(0, ranks - 1)))] = 1
    return tokens_E, replicas_EG


def of_every_set(tokens_E: np.ndarray, replicas_EG: np.ndarray) -> int:
    """max over sets S of ranks of ceil(rows of the experts that only they hold / |S|)."""
    ranks = range(replicas_EG.shape[1])
    sets = [list(chosen) for size in ranks for chosen in combinations(ranks, size + 1)]
    held_only = [tokens_E[replicas_EG.sum(1) == replicas_EG[:, chosen].sum(1)].sum() for chosen in sets]
    return max(int(-(-rows // len(chosen))) for rows, chosen in zip(held_only, sets, strict=True))


def test_by_hand():
    """Expert 0 on ranks 0 and 1, expert 1 on rank 1, expert 2 on rank 2: ranks 0 and 1 share 7 + 6."""
    replicas_EG = np.array([[1, 1, 0], [0, 1, 0], [0, 0, 1]])
    most, shares_EG = least_rows(np.array([7, 6, 2]), replicas_EG)
    assert most == 7 and shares_EG[0].tolist() in ([7, 0, 0], [6, 1, 0])
    assert least_rows(np.array([0, 0, 0]), replicas_EG)[0] == 0


@settings(deadline=None)
@given(held())
def test_no_set_of_ranks_asks_for_more_and_the_split_has_it(case):
    tokens_E, replicas_EG = case
    most, shares_EG = least_rows(tokens_E, replicas_EG)
    assert most == of_every_set(tokens_E, replicas_EG) == shares_EG.sum(0).max()
    assert (shares_EG.sum(1) == tokens_E).all() and shares_EG.min() >= 0 and not shares_EG[replicas_EG == 0].any()


def test_several_cuts_are_needed_and_a_large_case_is_whole():
    """A chain in which each rank's expert is also on the next: the set that decides is found step by step."""
    generator = np.random.default_rng(0)
    replicas_EG = as_replicas(np.arange(256) // 4, 64) | as_replicas(np.arange(256) // 4 * 5 % 64, 64)
    tokens_E = generator.zipf(1.6, 256).clip(max=4000)
    most, shares_EG = least_rows(tokens_E, replicas_EG)
    assert most > -(-tokens_E.sum() // 64)
    assert shares_EG.sum(0).max() == most and (shares_EG.sum(1) == tokens_E).all()
    short_G = shares_EG.sum(0) == most
    assert short_G.any() and least_rows(tokens_E, np.ones((256, 64), int))[0] == -(-tokens_E.sum() // 64)


def test_counts_that_a_flow_cannot_hold_are_refused():
    with pytest.raises(ValueError, match=r"there are 2147483648 token copies; the judge takes at most 2147483647"):
        least_rows(np.array([2**30, 2**30]), np.ones((2, 1), int))


@pytest.mark.parametrize("name", PLANNERS)
@settings(deadline=None, max_examples=20)
@given(ranks=st.integers(1, 5), local=st.integers(1, 4), data=st.data())
def test_no_planner_beats_it(name, ranks, local, data):
    shape = (ranks, ranks * local)
    tokens_GE, loads_GE = (data.draw(arrays(np.int64, shape, elements=st.integers(0, 1000))) for _ in range(2))
    planner = PLANNERS[name][0](ranks, local)
    current_EG = as_replicas(np.arange(ranks * local) // local, ranks)
    replicas_EG = planner.place(loads_GE, current_EG, Costs(1e-4, 1e-4, 1e-4))
    still_E = replicas_EG[np.arange(len(replicas_EG)), owner_of(current_EG)] > 0
    owner_E = np.where(still_E, owner_of(current_EG), owner_of(replicas_EG))
    sent_GEG = planner.dispatch(tokens_GE, replicas_EG, owner_E)
    assert rows_per_rank(sent_GEG).max() >= least_rows(tokens_GE.sum(0), replicas_EG)[0]
