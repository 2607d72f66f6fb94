from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chisquare

from routers.synthetic import SyntheticRouter, count_skewed, skewed_probabilities


def router(num_experts: int = 16, rank: int = 0, seed: int = 0, **options: Any) -> SyntheticRouter:
    return SyntheticRouter(num_experts=num_experts, rank=rank, seed=seed, **options)


def test_probabilities_by_hand():
    # weights 0.25 + 0.6, 0.25, 0.25, 0.25; their sum is 1.6
    np.testing.assert_allclose(skewed_probabilities(4, 0.6, 1), [0.53125, 0.15625, 0.15625, 0.15625], rtol=1e-14)
    np.testing.assert_allclose(skewed_probabilities(4, 0.25, 2), [1 / 3, 1 / 3, 1 / 6, 1 / 6], rtol=1e-14)


@pytest.mark.parametrize(("alpha", "num_skewed"), [(0.0, 3), (0.6, 0), (0.6, 8)])
def test_no_skew_is_uniform(alpha, num_skewed):
    np.testing.assert_allclose(skewed_probabilities(8, alpha, num_skewed), 1 / 8, rtol=1e-14)


@given(st.integers(1, 300), st.floats(0, 100), st.data())
def test_probabilities_are_a_distribution_in_two_steps(num_experts, alpha, data):
    num_skewed = data.draw(st.integers(0, num_experts))
    p_E = skewed_probabilities(num_experts, alpha, num_skewed)
    assert p_E.shape == (num_experts,) and p_E.min() > 0 and p_E.sum() == pytest.approx(1)
    assert len(set(p_E[:num_skewed])) <= 1 and len(set(p_E[num_skewed:])) <= 1
    if 0 < num_skewed < num_experts:
        assert p_E[0] / p_E[-1] == pytest.approx(1 + alpha * num_experts)


@pytest.mark.parametrize(
    ("num_experts", "num_skewed"), [(8, 1), (16, 2), (32, 4), (64, 7), (128, 13), (256, 26), (10, 1), (20, 2), (30, 3)]
)
def test_ten_percent_is_rounded_up(num_experts, num_skewed):
    assert count_skewed(num_experts, None, 0.1) == num_skewed


@pytest.mark.parametrize(("share", "num_skewed"), [(0, 0), (0.5, 5), (0.51, 6), (0.7, 7), (1, 10)])
def test_share_of_ten_experts(share, num_skewed):
    assert count_skewed(10, None, share) == num_skewed


def test_share_is_not_rounded_up_for_the_noise_of_a_float():
    assert 0.07 * 100 > 7 and 0.55 * 100 > 55
    assert (count_skewed(100, None, 0.07), count_skewed(100, None, 0.55)) == (7, 55)


def test_number_wins_over_share():
    assert count_skewed(128, 5, 0.1) == 5
    assert count_skewed(128, 0, None) == 0


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"num_skewed": 17}, r"router\.num_skewed is 17; it must be between 0 and num_experts \(16\)"),
        ({"num_skewed": -1}, r"router\.num_skewed is -1; it must be a whole number of at least 0"),
        ({"num_skewed": 2.5}, r"router\.num_skewed is 2\.5; it must be a whole number of at least 0"),
        ({"alpha": -0.1}, r"router\.alpha is -0\.1; it must not be negative"),
        ({"alpha": float("nan")}, r"router\.alpha is nan; it must not be negative, infinite or NaN"),
        ({"permute_hot": "maybe"}, r"router\.permute_hot is 'maybe'; it must be true or false"),
        ({"skewed_share": 1.5}, r"router\.skewed_share is 1\.5; it must be between 0 and 1"),
        ({"skewed_share": -0.5}, r"router\.skewed_share is -0\.5; it must be between 0 and 1"),
        ({"skewed_share": None}, r"router\.skewed_share is None; it must be between 0 and 1"),
    ],
)
def test_bad_option_is_named(options, sentence):
    with pytest.raises(ValueError, match=sentence):
        router(**options)


def test_same_key_same_draws():
    again = router().draw(500, layer=3, iteration=7)[:, 0]
    assert again.dtype == np.int64 and again.tobytes() == router().draw(500, layer=3, iteration=7)[:, 0].tobytes()


def test_draws_that_stored_campaigns_rest_on():
    """The same on every machine; a change here makes old results and new ones incomparable."""
    drawn_T = router(rank=2, seed=5, alpha=0.1).draw(12, layer=1, iteration=3)[:, 0]
    assert drawn_T.tolist() == [13, 11, 1, 7, 6, 7, 0, 0, 11, 0, 11, 5]


@pytest.mark.parametrize("other", [{"rank": 1}, {"seed": 1}, {"layer": 1}, {"iteration": 1}])
def test_other_key_other_draws(other):
    key = {"rank": 0, "seed": 0, "layer": 3, "iteration": 7}

    def draw(rank: int, seed: int, layer: int, iteration: int) -> np.ndarray:
        return router(rank=rank, seed=seed, alpha=0).draw(4000, layer=layer, iteration=iteration)[:, 0]

    # Independent uniform draws agree on 1 in 16 tokens.
    assert np.mean(draw(**key) == draw(**key | other)) == pytest.approx(1 / 16, abs=0.02)


def test_order_of_calls_changes_nothing():
    forwards, backwards = router(), router()
    seen = [forwards.draw(50, layer=1, iteration=i)[:, 0].tolist() for i in range(3)]
    assert seen == [backwards.draw(50, layer=1, iteration=i)[:, 0].tolist() for i in (2, 1, 0)][::-1]


@pytest.mark.parametrize("options", [{}, {"alpha": 0.0}, {"num_skewed": 3}, {"permute_hot": True}])
def test_frequencies_are_the_probabilities(options):
    ranks = [router(rank=rank, **options) for rank in range(4)]
    draws = [rank.draw(5000, layer=layer, iteration=0)[:, 0] for rank in ranks for layer in (1, 3)]
    counts_E = np.bincount(np.concatenate(draws), minlength=16)
    assert chisquare(counts_E, 40_000 * ranks[0].probabilities_E).pvalue > 0.01


def test_permute_hot_moves_the_hot_ids_alike_on_every_rank():
    plain, moved = router(num_experts=128), router(num_experts=128, permute_hot=True)
    assert sorted(plain.probabilities_E) == sorted(moved.probabilities_E)
    assert set(np.argsort(plain.probabilities_E)[-13:]) == set(range(13))
    assert set(np.argsort(moved.probabilities_E)[-13:]) != set(range(13))
    other_rank = router(num_experts=128, permute_hot=True, rank=3)
    other_seed = router(num_experts=128, permute_hot=True, seed=1)
    assert np.array_equal(moved.probabilities_E, other_rank.probabilities_E)
    assert not np.array_equal(moved.probabilities_E, other_seed.probabilities_E)


@pytest.mark.parametrize("prefetch", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_route_gives_the_draws_with_weight_one(dtype, prefetch):
    x_TD = torch.randn(10, 4).to(dtype)
    synthetic = router()
    if prefetch:
        for iteration in range(3):
            synthetic.prefetch(10, layer=1, iteration=iteration, like=x_TD)
    routing = synthetic.route(x_TD, layer=1, iteration=1)
    assert routing.expert_TK[:, 0].tolist() == router().draw(10, layer=1, iteration=1)[:, 0].tolist()
    assert routing.expert_TK.dtype == torch.int64 and routing.expert_TK.shape == (10, 1)
    assert routing.weight_TK.dtype == dtype and torch.equal(routing.weight_TK, torch.ones(10, 1, dtype=dtype))
    assert routing.logits_TE is None
    counts_E = np.bincount(router().draw(10, layer=1, iteration=1)[:, 0], minlength=16)
    assert routing.tokens_per_expert(16).tolist() == counts_E.tolist()


def test_routing_lives_where_the_tokens_are():
    routing = router().route(torch.empty(3, 4, device="meta"), layer=1, iteration=0)
    assert routing.expert_TK.device.type == routing.weight_TK.device.type == "meta"
