from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from systems.planners.base import Costs
from systems.planners.eplb import EPLB, replicate


def placed(load_E: list[int], ranks: int, extra: int, costs, **options: int) -> list[list[int]]:
    """The experts of each rank."""
    num_experts = len(load_E)
    loads_GE = np.zeros((ranks, num_experts), np.int64)
    loads_GE[0] = load_E
    replicas_EG = EPLB(extra, **options).place(loads_GE, np.ones((num_experts, ranks), np.int64), costs)
    return [np.repeat(np.arange(num_experts), replicas_G).tolist() for replicas_G in replicas_EG.T]


def test_by_hand(costs):
    # Expert 0 is halved. 4 to rank 0; 3 and 3 to rank 1, which is full; 2 to rank 0.
    assert placed([6, 2, 4], 2, 1, costs) == [[1, 2], [0, 0]]
    assert placed([6, 2, 4, 4], 2, 0, costs) == [[0, 1], [2, 3]]


def test_one_slot_a_rank_keeps_the_replicas_in_order(costs):
    assert placed([6, 2, 4], 4, 1, costs) == [[0], [1], [2], [0]]
    assert placed([1, 9], 2, 0, costs) == [[0], [1]]


def test_the_loads_of_the_upstream_readme(costs):
    """Its two layers of 12 experts in 16 replicas on 8 GPUs: what the published code gives by its global policy."""
    assert placed([90, 132, 40, 61, 104, 165, 39, 4, 73, 56, 183, 86], 8, 4, costs) == [
        *([6, 10], [7, 10], [0, 2], [4, 11], [5, 9], [4, 5], [3, 8], [1, 1])
    ]
    assert placed([20, 107, 104, 64, 19, 197, 187, 157, 172, 86, 16, 27], 8, 4, costs) == [
        *([1, 10], [2, 4], [5, 11], [0, 5], [6, 7], [3, 6], [8, 8], [7, 9])
    ]


def test_the_example_of_the_upstream_readme(costs):
    """The same loads in 4 groups on 2 nodes, by the hierarchical policy: what the published code prints."""
    options = {"groups": 4, "ranks_per_node": 4}
    assert placed([90, 132, 40, 61, 104, 165, 39, 4, 73, 56, 183, 86], 8, 4, costs, **options) == [
        *([5, 6], [5, 7], [4, 8], [3, 4], [9, 10], [2, 10], [0, 1], [1, 11])
    ]
    assert placed([20, 107, 104, 64, 19, 197, 187, 157, 172, 86, 16, 27], 8, 4, costs, **options) == [
        *([7, 10], [6, 8], [6, 11], [8, 9], [2, 4], [1, 5], [0, 5], [1, 3])
    ]


@settings(deadline=None)
@given(
    nodes=st.integers(1, 3),
    ranks_per_node=st.integers(1, 3),
    groups_per_node=st.integers(1, 3),
    group=st.integers(1, 4),
    extra=st.integers(0, 20),
    seed=st.integers(0, 2**32 - 1),
)
def test_groups_stay_in_one_node(nodes, ranks_per_node, groups_per_node, group, extra, seed):
    groups, ranks = nodes * groups_per_node, nodes * ranks_per_node
    loads_GE = np.random.default_rng(seed).geometric(0.01, (1, groups * group))
    extra += -(groups * group + extra) % ranks
    planner = EPLB(extra, groups, ranks_per_node)
    replicas_EG = planner.place(loads_GE, np.ones((groups * group, ranks), np.int64), Costs(1, 1, 1))
    assert set(replicas_EG.sum(0)) == {(groups * group + extra) // ranks} and replicas_EG.sum(1).min() >= 1
    nodes_XN = replicas_EG.reshape(groups, group, nodes, ranks_per_node).sum((1, 3)) > 0
    assert (nodes_XN.sum(1) == 1).all() and (nodes_XN.sum(0) == groups_per_node).all()


def test_where_nodes_do_not_divide_the_groups_all_ranks_are_one_node(costs):
    load_E = [9, 8, 7, 6, 5, 4, 3, 2, 1, 1, 1, 1]
    together = placed(load_E, 6, 6, costs)
    assert placed(load_E, 6, 6, costs, groups=4, ranks_per_node=2) == together, "four groups, three nodes"
    assert placed(load_E, 6, 6, costs, groups=3, ranks_per_node=2) != together
    assert placed(load_E, 6, 6, costs, groups=1, ranks_per_node=2) == together


def test_replicas_in_the_order_they_are_given_out():
    # 9, 4, 2; then 4.5, 4, 2; then 3, 4, 2.
    assert replicate(np.array([9, 4, 2]), 3).tolist() == [0, 1, 2, 0, 0, 1]


@settings(deadline=None)
@given(st.lists(st.integers(0, 50), min_size=1, max_size=4), st.integers(0, 4))
def test_no_other_numbers_of_replicas_have_a_lighter_heaviest_one(load_E, extra):
    load_E = np.array(load_E)
    count_E = np.bincount(replicate(load_E, extra))
    assert count_E.sum() == len(load_E) + extra and count_E.min() >= 1
    others = product(range(1, extra + 2), repeat=len(load_E))
    best = min((load_E / other).max() for other in others if sum(other) == count_E.sum())
    assert (load_E / count_E).max() == best


def test_equal_parts_whatever_is_near(costs):
    planner, tokens_GE = EPLB(1), np.array([[10, 0, 0], [0, 4, 2]])
    replicas_EG = planner.place(tokens_GE, np.ones((3, 2), np.int64), costs)
    assert replicas_EG.tolist() == [[1, 1], [1, 0], [0, 1]]
    sent_GEG = planner.dispatch(tokens_GE, replicas_EG, np.zeros(3, np.int64))
    assert sent_GEG.tolist() == [[[5, 5], [0, 0], [0, 0]], [[0, 0], [4, 0], [0, 2]]]


def test_ranks_get_equally_many_replicas(costs):
    """Eight experts and two replicas more on four ranks take two further ones."""
    assert [len(experts) for experts in placed([1] * 8, 4, 2, costs)] == [3] * 4


def test_numbers_that_cannot_be_are_named(costs):
    with pytest.raises(ValueError, match=r"model.num_experts \(7\) must be divisible by cluster.world_size \(4\)"):
        placed([1] * 7, 4, 0, costs)
    with pytest.raises(ValueError, match=r"planner.extra_replicas is -4; it must be a whole number of at least 0"):
        EPLB(-4)
    with pytest.raises(ValueError, match=r"planner.groups is 3; it must divide the 8 experts"):
        placed([1] * 8, 4, 0, costs, groups=3)
    with pytest.raises(ValueError, match=r"planner.ranks_per_node is 3; 4 ranks do not fill nodes of so many"):
        placed([1] * 8, 4, 0, costs, groups=2, ranks_per_node=3)
