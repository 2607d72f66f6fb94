import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from systems.planners.packing import count_replicas, pack


def test_by_hand():
    # 7 to rank 0, 5 and 4 to rank 1, which is then full though lighter later.
    assert pack(np.array([4, 7, 1, 5]), 2).tolist() == [1, 0, 0, 1]
    assert pack(np.array([9, 1, 1, 1]), 2).tolist() == [0, 1, 1, 0]


def test_the_preferred_of_equally_light_ranks_wins():
    assert pack(np.array([5, 5, 5, 5]), 2).tolist() == [0, 1, 0, 1]
    assert pack(np.array([5, 5, 5, 5]), 2, np.array([1, 1, 0, 0])).tolist() == [1, 0, 0, 1]
    assert pack(np.array([5, 5, 5, 5]), 2, np.array([1, 0, 1, 0])).tolist() == [1, 0, 1, 0]


@settings(deadline=None)
@given(st.integers(1, 6), st.integers(1, 6), st.data())
def test_every_rank_is_full_and_the_greedy_bound_holds(world_size, slots, data):
    weights_R = np.array(
        data.draw(st.lists(st.integers(0, 99), min_size=world_size * slots, max_size=world_size * slots))
    )
    rank_R = pack(weights_R, world_size)
    assert np.bincount(rank_R, minlength=world_size).tolist() == [slots] * world_size
    load_G = np.bincount(rank_R, weights_R, minlength=world_size)
    # With equal numbers of slots no two ranks need differ by more than the heaviest item.
    assert load_G.max() - load_G.min() <= weights_R.max()


def test_replicas_are_counted_by_expert_and_rank():
    replicas_EG = count_replicas(np.array([0, 2, 2, 2]), np.array([1, 0, 1, 1]), 3, 2)
    assert replicas_EG.tolist() == [[0, 1], [0, 0], [1, 2]]
