from itertools import combinations, permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from systems.planners.base import Costs, as_replicas, owner_of, tokens_per_expert
from systems.planners.exflow import transitions
from systems.planners.moetuner import (
    MoETuner,
    deviation,
    flows,
    least_deviation,
    match,
    on_ranks,
    solve_clusters,
)
from systems.planners.packing import pack
from systems.planners.placement import contiguous

COSTS = Costs(row_s=1e-6, move_row_s=1e-6, move_expert_s=1e-3)
PLANNER = MoETuner(time_limit_s=0.2)
SIZES = st.tuples(st.integers(1, 4), st.integers(1, 3))  # ranks, experts a rank


def bottleneck(flow_CC: np.ndarray, following_C: np.ndarray) -> int:
    """The largest flow between two ranks: the second program's objective for one layer."""
    between_CC = flow_CC.copy()
    between_CC[np.arange(len(flow_CC)), following_C] = 0
    return int(between_CC.max())


def current(num_experts: int, ranks: int) -> np.ndarray:
    return as_replicas(contiguous(num_experts, ranks).numpy(), ranks)


def draw_profile(ranks: int, per_rank: int, layers: int, seed: int, tokens: int = 40) -> np.ndarray:
    """expert_LGM, skewed."""
    draw, num_experts = np.random.default_rng(seed), ranks * per_rank
    p_E = draw.dirichlet(np.full(num_experts, 0.5))
    return draw.choice(num_experts, (layers, ranks, tokens), p=p_E)


def test_clusters_by_hand():
    # 7 + 1 = 5 + 3, which longest processing time finds; 8 | 5 4 3 it may not: two experts a cluster
    assert deviation(np.array([7, 5, 3, 1]), pack(np.array([7, 5, 3, 1]), 2), 2) == 0
    assert pack(np.array([8, 5, 4, 3]), 2).tolist() == [0, 1, 1, 0]
    # 6 5 | 4 3 2 2: longest processing time pairs 6 3 2 and 5 4 2
    loads_E = np.array([6, 5, 4, 3, 2, 2])
    assert pack(loads_E, 2).tolist() == [0, 1, 1, 0, 0, 1]
    assert deviation(loads_E, solve_clusters(loads_E, 2, 5, 0), 2) == 0


def test_the_program_finds_what_longest_processing_time_misses():
    loads_E = np.array([9, 8, 7, 6, 5, 1])  # 9 8 1 = 7 6 5
    assert deviation(loads_E, pack(loads_E, 2), 2) == 4
    owner_E = owner_of(MoETuner(time_limit_s=5).place(np.tile(loads_E, (2, 1)), current(6, 2), COSTS))
    assert deviation(loads_E, owner_E, 2) == 0


@given(SIZES, st.integers(0, 99))
@settings(max_examples=20, deadline=None)
def test_clusters_are_equal_in_number_and_no_worse_than_simple_ones(sizes, seed):
    ranks, per_rank = sizes
    loads_GE = tokens_per_expert(draw_profile(ranks, per_rank, 1, seed)[0], ranks * per_rank)
    loads_E = loads_GE.sum(0)
    replicas_EG = PLANNER.place(loads_GE, current(ranks * per_rank, ranks), COSTS)
    assert (replicas_EG.sum(1) == 1).all() and (replicas_EG.sum(0) == per_rank).all()
    reached = deviation(loads_E, owner_of(replicas_EG), ranks)
    for simple_E in (contiguous(len(loads_E), ranks).numpy(), pack(loads_E, ranks)):
        assert reached <= deviation(loads_E, simple_E, ranks) + 1e-9
    assert reached >= least_deviation(loads_E, ranks) - 1e-9


@pytest.mark.parametrize("gap", [0.0, 0.025])
def test_the_program_alone_keeps_its_gap(gap):
    loads_E = np.random.default_rng(3).integers(1, 400, 12)
    halves = np.array([np.isin(range(12), (0, *others)) for others in combinations(range(1, 12), 5)])
    best = np.abs(2 * halves @ loads_E - loads_E.sum()).min()
    assert best <= deviation(loads_E, solve_clusters(loads_E, 2, 20, gap), 2) + 1e-9 <= best * (1 + gap) + 1e-6


def test_no_search_beyond_what_whole_loads_allow():
    assert least_deviation(np.array([3, 3, 3]), 4) == 1.5  # 3 2 2 2
    assert least_deviation(np.array([0.5, 2.0]), 4) == 0
    assert least_deviation(np.array([4, 4]), 4) == 0


def test_without_time_experts_are_packed_and_the_log_says_so(caplog):
    loads_GE = np.random.default_rng(0).integers(1, 1000, (4, 64))
    with caplog.at_level("INFO"):
        replicas_EG = MoETuner(time_limit_s=1e-4).place(loads_GE, current(64, 4), COSTS)
    assert (replicas_EG.sum(0) == 16).all()
    assert "clusters of 64 experts on 4 ranks: no solution, 0.025 wanted" in caplog.text
    assert "packed, not solved: no better clusters of 64 experts in 0.0001 s" in caplog.text


def test_flows_by_hand():
    # experts 0 1 | 2 3 and then 0 2 | 1 3: of tokens 0 -> 1, 0 -> 2, 3 -> 3, the first leads to the other cluster
    moves_LEE = transitions(np.array([[[0, 0, 3]], [[1, 2, 3]]]), 4)
    cluster_LE = np.array([[0, 0, 1, 1], [0, 1, 0, 1]])
    assert flows(moves_LEE, cluster_LE, 2).tolist() == [[[1, 1], [0, 1]]]


def test_match_by_hand():
    # 9 and 8 cannot both stay, one row; 7 and 9 can, and then 8 is the largest that moves
    flow_CC = np.array([[9, 8, 0], [0, 0, 7], [0, 1, 0]])
    assert match(flow_CC).tolist() == [0, 2, 1]
    assert bottleneck(flow_CC, match(flow_CC)) == 8
    assert match(np.array([[5]])).tolist() == [0]


def viterbi(flows_LCC: np.ndarray) -> int:
    """The least sum of bottlenecks over all assignments of clusters to ranks, layer by layer."""
    orders = [np.array(order) for order in permutations(range(len(flows_LCC[0])))]  # rank of each cluster
    costs = np.zeros(len(orders))
    for flow_CC in flows_LCC:
        steps = [[bottleneck(flow_CC, np.argsort(after)[before]) for before in orders] for after in orders]
        costs = (np.array(steps) + costs).min(1)
    return int(costs.min())


@given(st.integers(1, 4), st.integers(1, 3), st.integers(0, 999), st.sampled_from([2, 50]))
@settings(max_examples=25, deadline=None)
def test_matching_layer_by_layer_is_the_exact_second_program(ranks, steps, seed, largest):
    flows_LCC = np.random.default_rng(seed).integers(0, largest, (steps, ranks, ranks))
    reached = sum(bottleneck(flow_CC, match(flow_CC)) for flow_CC in flows_LCC)
    assert reached == viterbi(flows_LCC)
    assert reached <= sum(bottleneck(flow_CC, np.arange(ranks)) for flow_CC in flows_LCC)


def test_clusters_follow_one_another_over_ranks():
    cluster_LE = np.array([[0, 1, 2], [0, 1, 2], [0, 1, 2]])
    turn_CC = 10 * np.eye(3, dtype=int)[[1, 2, 0]]  # all of cluster c goes to c + 1
    assert on_ranks(cluster_LE, np.stack([turn_CC, turn_CC])).tolist() == [[0, 1, 2], [2, 0, 1], [1, 2, 0]]


@given(SIZES, st.integers(1, 3), st.integers(0, 99))
@settings(max_examples=15, deadline=None)
def test_layers_are_placed_whole_and_dispatch_loses_no_token(sizes, layers, seed):
    ranks, per_rank = sizes
    expert_LGM = draw_profile(ranks, per_rank, layers, seed)
    now_EG = current(ranks * per_rank, ranks)
    replicas_LEG = PLANNER.place_layers(expert_LGM, now_EG, COSTS)
    assert (replicas_LEG.sum(2) == 1).all() and (replicas_LEG.sum(1) == per_rank).all()
    for expert_GM, replicas_EG in zip(expert_LGM, replicas_LEG, strict=True):
        tokens_GE = tokens_per_expert(expert_GM, ranks * per_rank)
        sent_GEG = PLANNER.dispatch(tokens_GE, replicas_EG, owner_of(replicas_EG))
        assert (sent_GEG.sum(2) == tokens_GE).all() and (sent_GEG[:, replicas_EG == 0] == 0).all()
        # the rows of the profile's own tokens are those that the first program predicted
        predicted_G = tokens_GE.sum(0) @ replicas_EG
        assert sent_GEG.sum((0, 1)).tolist() == predicted_G.tolist()


def test_the_same_profile_gives_the_same_placement():
    expert_LGM = draw_profile(4, 8, 3, seed=1, tokens=500)
    first, second = (MoETuner(time_limit_s=20).place_layers(expert_LGM, current(32, 4), COSTS) for _ in range(2))
    assert (first == second).all()


def test_ranks_must_divide_experts():
    with pytest.raises(ValueError, match=r"^model.num_experts \(6\) must be divisible by cluster.world_size \(4\): "):
        MoETuner().place(np.ones((4, 6), int), np.ones((6, 4), int), COSTS)
