import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from systems.planners.base import Costs, as_replicas, owner_of
from systems.planners.smartmoe import SmartMoE

FREE_MOVES = Costs(row_s=1, move_row_s=0, move_expert_s=0)


def mapped(load_E: list[int], owner_E: list[int], costs: Costs = FREE_MOVES) -> list[int]:
    replicas_EG = SmartMoE().place(np.array([load_E]), as_replicas(np.array(owner_E), max(owner_E) + 1), costs)
    return owner_of(replicas_EG).tolist()


def test_by_hand():
    # 14 and 2 rows become 9 and 7: expert 2 goes to the lighter rank, expert 3 to the free slot.
    assert mapped([8, 6, 1, 1], [0, 0, 1, 1]) == [0, 1, 1, 0]


def test_a_tie_leaves_an_expert_where_it_is():
    assert mapped([8, 6, 1, 1], [1, 1, 0, 0]) == [1, 0, 0, 1]


def test_it_is_taken_only_if_the_largest_load_falls():
    assert mapped([3, 3, 3, 3], [0, 1, 1, 0]) == [0, 1, 1, 0]
    # The greedy would swap the light experts (5 + 0 and 5 + 1), to the same largest load.
    assert mapped([5, 5, 1, 0], [0, 1, 0, 1]) == [0, 1, 0, 1]


@pytest.mark.parametrize(
    ("costs", "moves"),
    [
        (Costs(row_s=1, move_row_s=0, move_expert_s=4.9), True),
        (Costs(row_s=1, move_row_s=0, move_expert_s=5), False),
        (Costs(row_s=0, move_row_s=1, move_expert_s=9.9), True),
        (Costs(row_s=1, move_row_s=0, move_expert_s=49, batches=10), True),
        (Costs(row_s=1, move_row_s=0, move_expert_s=50, batches=10), False),
    ],
)
def test_five_rows_less_for_one_expert_that_comes_to_each_rank(costs, moves):
    assert mapped([8, 6, 1, 1], [0, 0, 1, 1], costs) == ([0, 1, 1, 0] if moves else [0, 0, 1, 1])


def test_a_stream_that_does_not_change_is_mapped_once():
    """256 experts with DeepSeek-V3's spread on 32 ranks; a move costs as much as 1,250 rows, as on an H100."""
    rng = np.random.default_rng(0)
    share_E, costs = rng.dirichlet(np.full(256, 1.6)), Costs(1.0, 0.0, 1250.0, batches=10)
    at_home_EG = as_replicas(np.arange(256) // 8, 32)
    first_EG = SmartMoE().place(rng.multinomial(32_768, share_E, size=32), at_home_EG, costs)
    assert (first_EG > at_home_EG).sum() > 100
    for _ in range(10):
        assert (SmartMoE().place(rng.multinomial(32_768, share_E, size=32), first_EG, costs) == first_EG).all()


def test_tokens_go_to_the_new_owners():
    tokens_GE, owner_E = np.array([[8, 6, 1, 1]]).repeat(2, 0), np.array([0, 0, 1, 1])
    replicas_EG = SmartMoE().place(tokens_GE, as_replicas(owner_E, 2), FREE_MOVES)
    sent_GEG = SmartMoE().dispatch(tokens_GE, replicas_EG, owner_E)
    assert sent_GEG[0].tolist() == [[8, 0], [0, 6], [0, 1], [1, 0]]


def test_experts_that_cannot_be_divided(costs):
    with pytest.raises(ValueError, match=r"model.num_experts \(3\) must be divisible by cluster.world_size \(2\)"):
        SmartMoE().place(np.ones((2, 3)), as_replicas(np.array([0, 0, 1]), 2), costs)


@settings(deadline=None)
@given(st.integers(1, 6), st.integers(1, 6), st.integers(0, 2**32 - 1))
def test_as_many_experts_a_rank_and_never_a_larger_load(ranks, slots, seed):
    rng = np.random.default_rng(seed)
    loads_GE = rng.geometric(0.02, (ranks, ranks * slots))
    current_EG = as_replicas(rng.permutation(ranks * slots) // slots, ranks)
    replicas_EG = SmartMoE().place(loads_GE, current_EG, Costs(1, 1, 1))
    assert replicas_EG.sum(0).tolist() == [slots] * ranks and replicas_EG.sum(1).tolist() == [1] * ranks * slots
    before, after = ((loads_GE.sum(0) @ placed_EG).max() for placed_EG in (current_EG, replicas_EG))
    assert after < before or (replicas_EG == current_EG).all()
