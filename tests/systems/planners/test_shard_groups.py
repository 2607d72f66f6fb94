"""Group sharding: whole experts' memory on every rank, groups inside a node, and never dearer than either extreme."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from systems.planners.base import Costs
from systems.planners.shard_groups import ShardGroups, powers_of_two

LAUNCHES = [(1, 1), (2, 2), (4, 2), (8, 4), (8, 8)]  # ranks, and those of a node


def costs_of(per_node: int, **given: float) -> Costs:
    return Costs(row_s=1.0, move_row_s=0.5, move_expert_s=1.0, near_row_s=0.1, ranks_per_node=per_node, **given)


@st.composite
def layers(draw):
    """Loads of E experts, tokens, ranks and costs."""
    ranks, per_node = draw(st.sampled_from(LAUNCHES))
    places = draw(st.integers(1, 3))
    load_E = np.array(draw(st.lists(st.integers(0, 60), min_size=ranks * places, max_size=ranks * places)), float)
    extra = {name: draw(st.sampled_from([0.0, 0.3])) for name in ("read_expert_s", "touch_row_s", "operation_s")}
    return load_E, max(1.0, load_E.sum() / 2), ranks, costs_of(per_node, **extra)


@settings(max_examples=40, deadline=None)
@given(layers(), st.booleans())
def test_every_expert_is_in_one_group_of_a_node_and_every_rank_holds_as_much(layer, gathered):
    load_E, num_tokens, ranks, costs = layer
    planner = ShardGroups(tuple(powers_of_two(costs.ranks_per_node)))
    parts_EG = (planner.gathered if gathered else planner.travelling)(load_E, num_tokens, ranks, costs).parts_EG
    for parts_G in parts_EG:
        (size,), holders = set(parts_G[parts_G > 0].tolist()), np.flatnonzero(parts_G)
        assert holders.tolist() == list(range(holders[0], holders[0] + size)) and holders[0] % size == 0
        assert len(set(holders // costs.ranks_per_node)) == 1
    shares_EG = np.divide(1, parts_EG, out=np.zeros(parts_EG.shape), where=parts_EG > 0)
    assert shares_EG.sum(0) == pytest.approx(len(load_E) / ranks, abs=1e-9)


@settings(max_examples=40, deadline=None)
@given(layers())
def test_its_choice_costs_no_more_than_whole_experts_or_experts_cut_for_all(layer):
    load_E, num_tokens, ranks, costs = layer
    sizes = powers_of_two(costs.ranks_per_node)

    def seconds(*sizes: int) -> float:
        return ShardGroups(sizes).travelling(load_E, num_tokens, ranks, costs).seconds

    assert seconds(*sizes) <= min(seconds(1), seconds(max(sizes))) * (1 + 1e-12)
    assert seconds(*sizes) == seconds(*reversed(sizes))


def test_the_busiest_experts_are_cut_until_travelling_costs_as_much():
    """One of eight experts has half of the copies, on four ranks."""
    load_E, planner = np.array([84.0, *[12.0] * 7]), ShardGroups((1, 2, 4))
    cheap, dear = (Costs(1.0, near_row_s, 1.0, near_row_s=near_row_s) for near_row_s in (0.1, 9.0))
    cut_E, whole_E = (planner.travelling(load_E, 168.0, 4, costs).parts_EG.max(1) for costs in (cheap, dear))
    assert cut_E[0] > 1 and whole_E.max() == 1


def test_where_tokens_are_everywhere_anyway_all_ranks_share_all_work():
    load_E = np.array([84.0, *[12.0] * 7])
    parts_EG = ShardGroups((1, 2, 4)).gathered(load_E, 84.0, 4, costs_of(4)).parts_EG
    assert np.ptp(load_E @ np.divide(1, parts_EG, out=np.zeros(parts_EG.shape), where=parts_EG > 0)) < 1e-9


def test_each_part_more_costs_the_handling_of_its_rows():
    load_E = np.array([84.0, *[12.0] * 7])
    parts_EG = ShardGroups((1, 2)).gathered(load_E, 84.0, 4, costs_of(4, touch_row_s=5.0)).parts_EG
    assert (parts_EG.max(1) == 1).all()


def test_experts_are_cut_for_all_ranks_only_where_tokens_are_gathered_and_that_is_cheapest():
    load_E, planner, free = np.array([84.0, *[12.0] * 7]), ShardGroups((1, 2, 4)), Costs(1.0, 0.0, 0.0, near_row_s=0.0)
    nodes = replace(free, ranks_per_node=2)
    assert (planner.gathered(load_E, 84.0, 4, nodes).parts_EG == 4).all()
    assert planner.travelling(load_E, 84.0, 4, nodes).parts_EG.max() <= 2
    handled = replace(nodes, touch_row_s=1.0)
    assert planner.gathered(load_E, 84.0, 4, handled).parts_EG.max() <= 2
