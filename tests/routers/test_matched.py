from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from routers.matched import MatchedRouter, matched_counts


def router(num_experts: int = 8, rank: int = 0, seed: int = 0, ranks: int = 4, **options: Any) -> MatchedRouter:
    return MatchedRouter(num_experts=num_experts, rank=rank, seed=seed, ranks=ranks, **options)


@pytest.mark.parametrize(
    ("imbalance", "counts"),
    [
        (1, [3, 3, 3, 3, 3, 3, 3, 3]),
        (1.5, [5, 4, 3, 2, 3, 2, 3, 2]),  # 9 of 24 on the first, 5 on each other
        (2, [6, 6, 2, 2, 2, 2, 2, 2]),
        (4, [12, 12, 0, 0, 0, 0, 0, 0]),
    ],
)
def test_counts_by_hand(imbalance, counts):
    assert matched_counts(24, 8, 4, imbalance, turn=0).tolist() == counts


def test_what_is_left_over_goes_round():
    # 4 of 10 on the first of three ranks of one expert; 6 = 3 + 3, and of 11 the one left over alternates
    assert matched_counts(10, 3, 3, 1.2, turn=5).tolist() == [4, 3, 3]
    assert [matched_counts(11, 3, 3, 1.2, turn).tolist() for turn in (0, 1)] == [[4, 4, 3], [4, 3, 4]]


@given(
    ranks=st.integers(1, 16),
    experts_per_rank=st.integers(1, 9),
    num_tokens=st.integers(1, 5000),
    share=st.floats(0, 1),
    layer=st.integers(0, 11),
    iteration=st.integers(0, 99),
)
def test_realised_imbalance_is_the_target_to_rounding(ranks, experts_per_rank, num_tokens, share, layer, iteration):
    imbalance = 1 + share * (ranks - 1)
    loads_G, num_experts = np.zeros(ranks), ranks * experts_per_rank
    for rank in range(ranks):
        source = router(num_experts, rank, ranks=ranks, imbalance=imbalance)
        counts_E = np.bincount(source.draw(num_tokens, layer=layer, iteration=iteration)[:, 0], minlength=num_experts)
        assert counts_E.sum() == num_tokens
        per_rank_Ge = counts_E.reshape(ranks, experts_per_rank)
        assert np.ptp(per_rank_Ge, axis=1).max() <= 1
        loads_G += per_rank_Ge.sum(1)
    # Each source is at most half a token off on the first rank; the others differ by one over all sources.
    assert loads_G.max() / loads_G.mean() == pytest.approx(imbalance, abs=(ranks / 2 + 1) / num_tokens)
    assert loads_G[0] / loads_G.mean() == pytest.approx(imbalance, abs=(ranks / 2 + 1e-6) / num_tokens)
    assert ranks < 3 or np.ptp(loads_G[1:]) <= 1


def test_one_rank_has_everything():
    assert matched_counts(7, 2, 1, 1, turn=0).tolist() == [4, 3]
    assert matched_counts(7, 2, 1, 1, turn=1).tolist() == [3, 4]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"imbalance": 0.9}, r"^router\.imbalance is 0\.9; it must be between 1 and router\.ranks \(4\)$"),
        ({"imbalance": 4.1}, r"router\.imbalance is 4\.1; it must be between 1 and router\.ranks \(4\)"),
        ({"imbalance": float("nan")}, r"router\.imbalance is nan; it must be between 1"),
        ({"num_experts": 10}, r"^model\.num_experts \(10\) must be divisible by router\.ranks \(4\)$"),
        ({"ranks": 0}, r"router\.ranks is 0; it must be a whole number of at least 1"),
    ],
)
def test_bad_option_is_named(options, sentence):
    with pytest.raises(ValueError, match=sentence):
        router(**options)
