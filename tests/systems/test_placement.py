import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from systems.planners.placement import PLACEMENTS, contiguous, round_robin


def test_by_hand():
    assert contiguous(8, 4).tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    assert round_robin(8, 4).tolist() == [0, 1, 2, 3, 0, 1, 2, 3]
    assert contiguous(6, 2).tolist() == [0, 0, 0, 1, 1, 1]
    assert round_robin(6, 2).tolist() == [0, 1, 0, 1, 0, 1]


def test_one_rank_has_all_and_as_many_ranks_as_experts_have_one_each():
    for placement in PLACEMENTS.values():
        assert placement(4, 1).tolist() == [0, 0, 0, 0]
        assert placement(4, 4).tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("name", PLACEMENTS)
@settings(deadline=None)
@given(st.integers(1, 16), st.integers(1, 32))
def test_every_rank_owns_as_many_experts(name, world_size, num_local):
    owner_E = PLACEMENTS[name](world_size * num_local, world_size)
    assert owner_E.dtype == torch.int64
    assert torch.bincount(owner_E, minlength=world_size).tolist() == [num_local] * world_size


@settings(deadline=None)
@given(st.integers(1, 16), st.integers(1, 32), st.data())
def test_where_the_hot_first_experts_go(world_size, num_local, data):
    num_hot = data.draw(st.integers(1, world_size * num_local))
    hot = {
        name: torch.bincount(place(world_size * num_local, world_size)[:num_hot], minlength=world_size)
        for name, place in PLACEMENTS.items()
    }
    assert int(hot["contiguous"][0]) == min(num_hot, num_local)
    assert int(hot["round_robin"].max() - hot["round_robin"].min()) <= 1
