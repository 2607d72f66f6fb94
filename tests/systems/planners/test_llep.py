import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from systems.planners.base import Costs, as_replicas, imbalance, rows_per_rank
from systems.planners.dispatch import to_owner
from systems.planners.llep import LLEP

COSTS, HOME_E = Costs(1.0, 1.0, 1.0), np.array([0, 0, 1, 1, 2, 2])


def planned(planner: LLEP, tokens_GE: np.ndarray, owner_E: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    replicas_EG = planner.place(tokens_GE, as_replicas(owner_E, len(tokens_GE)), COSTS)
    return replicas_EG, planner.dispatch(tokens_GE, replicas_EG, owner_E)


def test_by_hand():
    """30 tokens on three ranks, cap 10. Expert 0 has 16 and expert 1, which is looked at later, 4 on the same rank: 6
    stay. Rank 2 has nothing and gets 10 of them; nothing is left. The first rank's tokens are the first.
    """
    tokens_GE = np.array([[6, 2, 10, 0, 0, 0], [10, 2, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0]])
    replicas_EG, sent_GEG = planned(LLEP(min_chunk=1), tokens_GE, HOME_E)
    assert replicas_EG.sum() == 7 and replicas_EG[0].tolist() == [1, 0, 1]
    assert sent_GEG[0].tolist() == [[6, 0, 0], [2, 0, 0], [0, 10, 0], *[[0, 0, 0]] * 3]
    assert sent_GEG[1].tolist() == [[0, 0, 10], [2, 0, 0], *[[0, 0, 0]] * 4]


def test_a_rest_for_which_there_is_little_room_is_forced_above_the_cap():
    """34 tokens, cap 11. Of expert 0's 8 tokens 3 stay; ranks 1 and 2 have 9 each and room for 2."""
    tokens_GE = np.array([[8, 8, 9, 0, 9, 0], *[[0] * 6] * 2])
    assert rows_per_rank(planned(LLEP(1.0, 3, 0), tokens_GE, HOME_E)[1]).tolist() == [11, 14, 9]
    assert rows_per_rank(planned(LLEP(1.0, 2, 0), tokens_GE, HOME_E)[1]).tolist() == [11, 12, 11]
    assert rows_per_rank(planned(LLEP(1.0, 9, 0), tokens_GE * 3, HOME_E)[1]).tolist() == [34, 41, 27], "34 - 27 < 9"


def test_the_gate():
    tokens_GE = np.array([[9, 0, 5, 1, 3, 3], [9, 0, 5, 1, 3, 3]])  # max/mean 28/21 of ranks, 18/7 of experts
    owner_E = np.array([0, 0, 0, 1, 1, 1])
    for gate, over, stays in [(1.3, "ranks", 0), (1.4, "ranks", 1), (2.5, "experts", 0), (2.6, "experts", 1)]:
        replicas_EG, _ = planned(LLEP(1.0, 1, gate, over), tokens_GE, owner_E)
        assert (replicas_EG == as_replicas(owner_E, 2)).all() == stays, (gate, over)


@settings(deadline=None)
@given(st.lists(st.lists(st.integers(0, 5000), min_size=12, max_size=12), min_size=4, max_size=4))
def test_an_infinite_gate_is_expert_parallelism(rows):
    tokens_GE, owner_E = np.array(rows), np.arange(12) // 3
    replicas_EG, sent_GEG = planned(LLEP(gate=float("inf")), tokens_GE, owner_E)
    assert (replicas_EG == as_replicas(owner_E, 4)).all()
    assert (sent_GEG == to_owner(tokens_GE, replicas_EG, owner_E)).all()


counts = st.lists(st.integers(0, 40) | st.integers(0, 4000), min_size=12, max_size=12)


@settings(deadline=None)
@given(st.lists(counts, min_size=4, max_size=4), st.integers(1, 300), st.sampled_from([1.0, 1.1, 1.5]))
def test_the_cap_is_exceeded_only_by_what_is_forced(rows, min_chunk, alpha):
    tokens_GE, owner_E = np.array(rows), np.arange(12) // 3
    cap = max(1, int(alpha * (tokens_GE.sum() // 4)))
    rows_EG = planned(LLEP(alpha, min_chunk, 0), tokens_GE, owner_E)[1].sum(0)
    assert (rows_EG * as_replicas(owner_E, 4)).sum(0).max() <= cap, "what a rank owns is never forced on it"
    rows_EG = planned(LLEP(alpha, 1, 0), tokens_GE, owner_E)[1].sum(0)
    assert rows_EG.sum(0).max() <= cap + 4, "only what the mean, rounded down, has no room for"


@settings(deadline=None)
@given(st.lists(counts, min_size=4, max_size=4), st.integers(1, 300))
def test_experts_go_only_where_tokens_of_them_go(rows, min_chunk):
    tokens_GE, owner_E = np.array(rows), np.arange(12) // 3
    replicas_EG, sent_GEG = planned(LLEP(1.0, min_chunk, 0), tokens_GE, owner_E)
    assert (sent_GEG.any(0) >= replicas_EG - as_replicas(owner_E, 4)).all()


def test_balanced_load_moves_nothing():
    replicas_EG, _ = planned(LLEP(1.0, 1, 0), np.full((4, 12), 1000), np.arange(12) // 3)
    assert (replicas_EG == as_replicas(np.arange(12) // 3, 4)).all()


def test_the_papers_point(tokens_GE, contiguous_EG):
    """128 experts on 4 ranks, imbalance 3.66: experts go to three other ranks until loads differ by rounding."""
    planner = LLEP()
    replicas_EG = planner.place(tokens_GE, contiguous_EG, COSTS)
    assert imbalance(planner.dispatch(tokens_GE, replicas_EG, np.arange(128) // 32)) < 1.001
    assert 10 <= replicas_EG.sum() - 128 <= 14


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"alpha": 0}, r"planner\.alpha is 0; it must be a positive number"),
        ({"min_chunk": 0}, r"planner\.min_chunk is 0; it must be a whole number of at least 1"),
        ({"gate": -1}, r"planner\.gate is -1; it must be a number of at least 0, \.inf included"),
        ({"gate_over": "rows"}, r"planner\.gate_over is 'rows'; it must be ranks or experts"),
    ],
)
def test_bad_options_are_named(options, sentence):
    with pytest.raises(ValueError, match=sentence):
        LLEP(**options)
