import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from routers.balanced import BalancedRouter, balanced_counts


def counts(num_tokens: int, num_experts: int, rank: int, layer: int = 1, iteration: int = 0) -> np.ndarray:
    router = BalancedRouter(num_experts=num_experts, rank=rank, seed=0)
    return router.counts(num_tokens, layer=layer, iteration=iteration)


def test_turns_by_hand():
    # 7 tokens, 4 experts: 1 each, and the other 3 go round
    assert [balanced_counts(7, 4, turn).tolist() for turn in range(3)] == [[2, 2, 2, 1], [2, 2, 1, 2], [2, 1, 2, 2]]
    assert balanced_counts(8, 4, 3).tolist() == [2, 2, 2, 2]
    assert balanced_counts(2, 4, 1).tolist() == [0, 0, 1, 1]
    assert balanced_counts(0, 4, 1).tolist() == [0, 0, 0, 0]


@given(
    num_tokens=st.integers(0, 5000),
    num_experts=st.integers(1, 300),
    world_size=st.integers(1, 16),
    layer=st.integers(0, 40),
    iteration=st.integers(0, 100),
)
def test_a_rank_and_all_ranks_are_balanced_to_one_token(num_tokens, num_experts, world_size, layer, iteration):
    counts_GE = np.stack([counts(num_tokens, num_experts, rank, layer, iteration) for rank in range(world_size)])
    assert (counts_GE.sum(axis=1) == num_tokens).all()
    assert np.ptp(counts_GE, axis=1).max() <= 1
    assert np.ptp(counts_GE.sum(axis=0)) <= 1


@given(st.integers(0, 5000), st.integers(1, 300), st.integers(1, 60))
def test_no_expert_is_favoured_over_iterations(num_tokens, num_experts, iterations):
    total_E = sum(counts(num_tokens, num_experts, rank=1, layer=3, iteration=i) for i in range(iterations))
    assert np.ptp(total_E) <= 1


def test_layers_and_ranks_favour_different_experts():
    assert counts(3, 16, rank=0).tolist() != counts(3, 16, rank=1).tolist()
    assert counts(3, 16, rank=0).tolist() != counts(3, 16, rank=0, layer=3).tolist()
