from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from systems.planners.base import Costs, imbalance, rows_per_rank
from systems.planners.lazarus import (
    Lazarus,
    allocate,
    locally_first,
    maximum_rank_overlap,
    renumber,
)
from systems.planners.packing import count_replicas

COSTS = Costs(row_s=1e-6, move_row_s=1e-6, move_expert_s=1e-3)
seeds = st.integers(0, 2**32 - 1)


def test_allocation_by_hand():
    # Of 8 slots floor(8 x 1/8) = 1, of the 7 left floor(7 x 2/7) = 2, and the last 5.
    assert allocate(np.array([1, 2, 5]), 8, 1).tolist() == [1, 2, 5]
    assert allocate(np.array([5, 1, 2]), 8, 1).tolist() == [5, 1, 2]
    assert allocate(np.array([1, 8, 1]), 8, 2).tolist() == [2, 4, 2]  # shares of 0.8 and 0.6 are raised to 2
    assert allocate(np.array([0, 0, 9]), 8, 1).tolist() == [1, 1, 6]


def test_without_load_slots_are_shared_evenly():
    assert allocate(np.zeros(3, np.int64), 8, 1).tolist() == [2, 3, 3]


@settings(deadline=None, max_examples=300)
@given(st.integers(1, 12), st.integers(1, 3), st.integers(0, 40), st.booleans(), seeds)
def test_all_slots_are_used_and_more_popular_experts_have_no_fewer(num_experts, least, more, fractions, seed):
    load_E = np.random.default_rng(seed).geometric(0.05, num_experts) / (7 if fractions else 1)
    count_E = allocate(load_E, num_experts * least + more, least)
    assert count_E.sum() == num_experts * least + more and count_E.min() >= least
    assert (np.diff(count_E[np.argsort(load_E, kind="stable")]) >= 0).all()


def test_overlap_by_hand():
    # Expert 0 has one replica, so 0 and 1 share one rank, likewise 2 and 3 the next two. Rank 3 takes what remains.
    placed = maximum_rank_overlap(np.array([1, 2, 2, 3]), 4, 2)
    assert placed.tolist() == [[1, 0, 0, 0], [1, 0, 0, 1], [0, 1, 1, 0], [0, 1, 1, 1]]
    # What remains goes where most slots are vacant: all of it to rank 1, until it has as few as rank 0.
    assert maximum_rank_overlap(np.array([1, 3, 4]), 2, 4).tolist() == [[1, 0], [1, 2], [2, 2]]


def test_a_last_group_that_does_not_fit_gets_the_ranks_that_are_left():
    placed = maximum_rank_overlap(np.array([2, 2, 2, 2, 2, 2, 3]), 3, 5)
    assert placed[:5].tolist() == [[1, 1, 0]] * 5 and placed[5:].tolist() == [[0, 0, 2], [0, 0, 3]]


def overlap_cases(seed: int) -> tuple[np.ndarray, int, int]:
    rng = np.random.default_rng(seed)
    ranks, num_experts, least = rng.integers([2, 2, 1], [6, 8, 3])
    slots = -(-num_experts * least // ranks) + rng.integers(0, 4)
    count_E = allocate(rng.multinomial(1000, rng.dirichlet(np.full(num_experts, 0.5))), int(ranks * slots), int(least))
    return np.sort(count_E), int(ranks), int(slots)


@settings(deadline=None, max_examples=200)
@given(seeds)
def test_ranks_of_the_least_popular_of_a_group_have_all_of_the_group(seed):
    count_E, ranks, slots = overlap_cases(seed)
    hosts_EG = maximum_rank_overlap(count_E, ranks, slots) > 0
    for group in range(0, len(count_E), slots):
        assert (hosts_EG[group] <= hosts_EG[group : group + slots]).all()


def recovery_probability(replicas_EG: np.ndarray, failures: int) -> float:
    """The share of sets of failing ranks that leave a replica of every expert."""
    alive = combinations(range(replicas_EG.shape[1]), replicas_EG.shape[1] - failures)
    return float(np.mean([replicas_EG[:, ranks].any(1).all() for ranks in alive]))


@settings(deadline=None, max_examples=200)
@given(seeds)
def test_recovery_is_no_less_likely_than_with_replicas_spread_over_ranks_in_turn(seed):
    count_E, ranks, slots = overlap_cases(seed)
    if count_E[::slots].sum() > ranks:
        return  # the last group has fewer ranks than the paper gives it
    expert_R = np.repeat(np.arange(len(count_E)), count_E)
    spread_EG = count_replicas(expert_R, np.arange(len(expert_R)) % ranks, len(count_E), ranks)
    overlap_EG = maximum_rank_overlap(count_E, ranks, slots)
    for failures in range(1, ranks):
        assert recovery_probability(overlap_EG, failures) >= recovery_probability(spread_EG, failures)


def test_a_plan_that_only_renames_ranks_moves_nothing():
    current_EG = np.array([[1, 0, 0], [1, 0, 0], [0, 1, 0], [0, 1, 1]])
    for order in ([0, 1, 2], [2, 0, 1], [1, 0, 2]):
        assert (renumber(current_EG[:, order], current_EG) == current_EG).all()


def test_dispatch_by_hand():
    # 3 tokens a replica: ranks 0 and 1 keep 3 and 1, rank 0's other 5 share the room for 2 and 3.
    sent_GEG = locally_first(np.array([[8], [1], [0]]), np.array([[1, 1, 1]]))
    assert sent_GEG[:, 0].tolist() == [[3, 2, 3], [0, 1, 0], [0, 0, 0]]
    # Rank 2 has no replica, rank 1 has two of three: room for 4 and 8, of which 4 and 0 are used at once.
    sent_GEG = locally_first(np.array([[6], [0], [6]]), np.array([[1, 2, 0]]))
    assert sent_GEG[:, 0].tolist() == [[4, 2, 0], [0, 0, 0], [0, 6, 0]]
    # 2.5 tokens a replica.
    assert locally_first(np.array([[5], [0], [0]]), np.array([[1, 1, 0]]))[0].tolist() == [[3, 2, 0]]


def test_no_rank_is_favoured_by_rounding():
    # Rank 3 alone has tokens, one for each of 8 experts on 4 ranks. Real numbers send 2 of them to each rank.
    tokens_GE = np.zeros((4, 8), int)
    tokens_GE[3] = 1
    assert rows_per_rank(locally_first(tokens_GE, np.ones((8, 4), int))).max() <= 3


@pytest.mark.parametrize("copies", [256, 1024, 32_768])
def test_few_tokens_are_as_balanced_as_real_numbers_would_be(copies, costs):
    """256 experts with DeepSeek-V3's spread on 32 ranks, 48 replicas each, where real numbers leave 1.003."""
    rng = np.random.default_rng(0)
    tokens_GE = rng.multinomial(copies, rng.dirichlet(np.full(256, 1.6)), size=32)
    planner = Lazarus(6.0, balanced=True)
    replicas_EG = planner.place(tokens_GE, np.ones((256, 32), int), costs)
    assert imbalance(planner.dispatch(tokens_GE, replicas_EG, np.zeros(256, int))) < 1.05


@settings(deadline=None, max_examples=300)
@given(st.integers(1, 5), st.integers(1, 6), st.sampled_from([3, 100, 10**6]), seeds)
def test_every_replica_gets_as_many_and_local_tokens_stay_while_there_is_capacity(ranks, num_experts, tokens, seed):
    rng = np.random.default_rng(seed)
    tokens_GE = rng.integers(0, tokens, (ranks, num_experts))
    replicas_EG = rng.integers(0, 3, (num_experts, ranks))
    replicas_EG[np.arange(num_experts), rng.integers(0, ranks, num_experts)] += 1
    sent_GEG = locally_first(tokens_GE, replicas_EG)
    total_E, count_E = tokens_GE.sum(0)[:, None], replicas_EG.sum(1)[:, None]
    rows_EG = sent_GEG.sum(0)
    assert (sent_GEG.sum(2) == tokens_GE).all() and not sent_GEG[:, replicas_EG == 0].any()
    assert (rows_EG >= total_E // count_E * replicas_EG).all() and (
        rows_EG <= -(-total_E // count_E) * replicas_EG
    ).all()
    assert (np.einsum("geg->ge", sent_GEG) == np.minimum(tokens_GE, rows_EG.T)).all()


@settings(deadline=None)
@given(st.integers(2, 6), st.sampled_from([30, 10**4]), seeds)
def test_others_share_what_is_left_in_proportion_but_for_what_is_dealt_out(ranks, tokens, seed):
    """A share is rounded down, and of what that leaves, less than one token for each rank, a part comes on top."""
    rng = np.random.default_rng(seed)
    tokens_GE, replicas_EG = rng.integers(0, tokens, (ranks, 1)), np.ones((1, ranks), int)
    sent_GG = locally_first(tokens_GE, replicas_EG)[:, 0]
    spare_G = sent_GG.sum(0) - sent_GG.diagonal()
    left_G = tokens_GE[:, 0] - sent_GG.diagonal()
    np.fill_diagonal(sent_GG, 0)
    assert (np.abs(sent_GG - left_G[:, None] * spare_G / max(left_G.sum(), 1)) < ranks).all()


def test_options_are_checked():
    with pytest.raises(
        ValueError, match=r"^planner.slot_ratio is 1.5; with planner.min_replicas 2 it must be at least 2$"
    ):
        Lazarus(min_replicas=2)
    with pytest.raises(ValueError, match=r"planner.slot_ratio is 'many'; it must be a positive number"):
        Lazarus("many")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match=r"planner.min_replicas is 0; it must be a whole number of at least 1"):
        Lazarus(min_replicas=0)
    with pytest.raises(ValueError, match=r"planner.balanced is 'no'; it must be true or false"):
        Lazarus(balanced="no")  # pyright: ignore[reportArgumentType]


@settings(deadline=None)
@given(st.integers(1, 5), st.integers(1, 40), st.integers(10, 60))
def test_slots_are_the_next_whole_number(ranks, local, tenths):
    replicas_EG = Lazarus(tenths / 10).place(
        np.ones((ranks, ranks * local)), np.ones((ranks * local, ranks), int), COSTS
    )
    assert replicas_EG.sum(0).tolist() == [-(-tenths * local // 10)] * ranks


@settings(deadline=None, max_examples=300)
@given(
    st.lists(st.integers(0, 50), min_size=1, max_size=9),
    st.integers(1, 3),
    st.integers(0, 30),
    st.sampled_from([3, 7, 10]),
)
def test_loads_with_fractions_are_allocated_as_whole_ones(load_E, least, more, parts):
    slots = len(load_E) * least + more
    assert (allocate(np.array(load_E) / parts, slots, least) == allocate(np.array(load_E), slots, least)).all()
