import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from routers.synthetic import SyntheticRouter
from routers.token_trace import DEFAULT_PATH, TokenTrace
from systems.planners.base import Costs, imbalance, owner_of
from systems.planners.lina import Lina, PathProfile, encode, pack, same_top, shares

COSTS = Costs(row_s=1e-6, move_row_s=1e-6, move_expert_s=1e-3)
NOWHERE = np.zeros((0, 0), np.int64)


def loads_of(expert_T: np.ndarray, num_experts: int) -> np.ndarray:
    return np.bincount(expert_T, minlength=num_experts)


def test_shares_by_hand():
    assert shares(np.array([6, 1, 1, 0]), 4).tolist() == [3, 0.5, 0.5, 0]
    assert shares(np.zeros(3), 2).tolist() == [0, 0, 0]


def test_pack_by_hand():
    # 2.4 ranks' worth of expert 0: three parts of 0.8. 0.7 fits on rank 3; 0.6 nowhere, so to the least loaded;
    # 0.2 and 0.1 fit on ranks 0 and 1; what has no load goes where one expert is
    replicas_EG = pack(np.array([2.4, 0.7, 0.6, 0.2, 0.1, 0.0]), 4, capacity=3)
    hosts = [np.flatnonzero(replicas_G).tolist() for replicas_G in replicas_EG]
    assert hosts == [[0, 1, 2], [3], [3], [0], [1], [2]]


def test_a_full_rank_is_passed_over():
    assert pack(np.array([0.4, 0.3, 0.2, 0.1]), 2, capacity=2)[:, 0].tolist() == [1, 1, 0, 0]


@given(
    st.integers(1, 5).flatmap(lambda ranks: st.tuples(st.just(ranks), st.integers(ranks, 20))),
    st.sampled_from([0.02, 0.3, 5.0]),
    st.integers(1, 3),
    st.integers(0, 999),
)
@settings(max_examples=60, deadline=None)
def test_placements_are_legal_the_same_again_and_dispatch_loses_no_token(sizes, evenness, slack, seed):
    ranks, num_experts = sizes
    draw = np.random.default_rng(seed)
    tokens_GE = np.stack([draw.multinomial(500, p_E) for p_E in draw.dirichlet(np.full(num_experts, evenness), ranks)])
    planner = Lina(slack)
    replicas_EG = planner.place(tokens_GE, NOWHERE, COSTS)
    assert (replicas_EG == Lina(slack).place(tokens_GE, NOWHERE, COSTS)).all()
    assert replicas_EG.max() == 1 and replicas_EG.sum(1).min() >= 1
    assert replicas_EG.sum(0).max() <= math.ceil(num_experts / ranks) + slack
    share_E = shares(tokens_GE.sum(0), ranks)
    assert share_E.sum() == pytest.approx(ranks)
    assert (replicas_EG.sum(1) <= np.maximum(np.ceil(share_E - 1e-9), 1)).all()
    sent_GEG = planner.dispatch(tokens_GE, replicas_EG, owner_of(replicas_EG))
    assert (sent_GEG.sum(2) == tokens_GE).all() and (sent_GEG[:, replicas_EG == 0] == 0).all()


def test_a_batch_without_tokens_leaves_experts_spread():
    assert Lina().place(np.zeros((4, 8)), NOWHERE, COSTS).sum(0).tolist() == [2, 2, 2, 2]


def test_loads_of_the_paper_are_balanced():
    """128 experts, the first 13 hot, 4 ranks: contiguous placement has 3.7."""
    tokens_GE = np.round(1000 * (1 / 128 + 0.6 * (np.arange(128) < 13)) * np.ones((4, 1))).astype(int)
    replicas_EG = Lina().place(tokens_GE, NOWHERE, COSTS)
    assert imbalance(Lina().dispatch(tokens_GE, replicas_EG, owner_of(replicas_EG))) < 1.2


@pytest.mark.parametrize("slack", [0, -1, 1.5, True])
def test_bad_slack_is_named(slack):
    with pytest.raises(ValueError, match=r"^planner\.slack is .*; it must be a whole number of at least 1$"):
        Lina(slack)


def test_same_top_by_hand():
    assert same_top(np.array([5, 1, 4, 0]), np.array([2.0, 0.1, 2.5, 0.2]), 2)  # 0 and 2, in another order
    assert not same_top(np.array([5, 1, 4, 0]), np.array([2.0, 3.0, 2.5, 0.2]), 2)
    assert same_top(np.array([3, 3, 3]), np.array([9, 1, 1]), 1)  # of equal ones the first


@given(st.lists(st.integers(0, 5), min_size=1, max_size=12), st.integers(0, 999), st.integers(1, 4))
def test_same_top_is_equality_of_sets(actual, seed, count):
    estimated = np.random.default_rng(seed).integers(0, 6, len(actual))
    tops = [set(sorted(range(len(of)), key=lambda e: (-of[e], e))[:count]) for of in (actual, estimated)]
    assert same_top(np.array(actual), estimated, count) == (tops[0] == tops[1])


def test_encode_takes_the_last_layers():
    path_TL = np.array([[1, 2, 3], [0, 9, 9]])
    assert encode(path_TL, 3, 10).tolist() == [123, 99]
    assert encode(path_TL, 1, 10).tolist() == [3, 9]
    assert encode(path_TL, 0, 10).tolist() == [0, 0]


def test_predict_by_hand():
    # Layer 2 after 0 -> 0: half 0, half 1; after 1 -> 0: 2; after 0 -> 1: 1.
    expert_LGM = np.array([[[0, 0, 1, 0]], [[0, 0, 0, 1]], [[0, 1, 2, 1]]])
    profile = PathProfile.fit(expert_LGM, 3, length=2)
    assert profile.predict(np.array([[0, 0], [0, 0], [1, 0]]), 2).tolist() == [1, 1, 1]
    # 2 -> 0 was not seen: after 0 all of 0, 1, 2 once; 2 -> 2: the marginal, 1 half of the time
    assert profile.predict(np.array([[2, 0]]), 2).tolist() == pytest.approx([1 / 3, 1 / 3, 1 / 3])
    assert profile.predict(np.array([[2, 2], [2, 2]]), 2).tolist() == [0.5, 1, 0.5]
    # the first layer has no path
    assert profile.predict(np.zeros((4, 0), int), 0).tolist() == [3, 1, 0]


@given(st.integers(1, 4), st.integers(0, 4), st.integers(0, 99))
@settings(max_examples=30, deadline=None)
def test_predicted_loads_sum_to_the_tokens_and_are_exact_on_the_profile_itself(layers, length, seed):
    expert_LGM = np.random.default_rng(seed).integers(5, size=(layers, 2, 40))
    profile = PathProfile.fit(expert_LGM, 5, length)
    expert_TL = expert_LGM.reshape(layers, -1).T
    for layer in range(layers):
        predicted_E = profile.predict(expert_TL[:, :layer], layer)
        assert predicted_E == pytest.approx(loads_of(expert_TL[:, layer], 5))
        other_TL = np.random.default_rng(seed + 1).integers(5, size=(30, layer))
        assert profile.predict(other_TL, layer).sum() == pytest.approx(30)


def test_a_perfect_prediction_gives_the_plan_of_the_true_loads():
    chain_LE = np.stack([np.random.default_rng(layer).permutation(32) for layer in range(3)])
    profile = PathProfile.fit(chain_LE[:, None], 32)
    batch_T = np.random.default_rng(5).integers(32, size=400) ** 2 // 32
    expert_TL = chain_LE[:, batch_T].T
    predicted_E, actual_E = profile.predict(expert_TL[:, :2], 2), loads_of(expert_TL[:, 2], 32)
    assert same_top(actual_E, predicted_E, 8)
    plans = [Lina().place(np.tile(loads_E / 4, (4, 1)), NOWHERE, COSTS) for loads_E in (predicted_E, actual_E)]
    assert (plans[0] == plans[1]).all()


# Held out: a profile of one half of a text, the loads of batches of 480 tokens of the other, in the last layer.


def iid() -> np.ndarray:
    """expert_LT of 8,000 tokens that draw their expert anew in each of two layers, skewed as in the paper."""
    router = SyntheticRouter(num_experts=128, rank=0, seed=0, moe_blocks=[1, 3], permute_hot=True)
    return np.stack([router.draw(8000, layer=block, iteration=0)[:, 0] for block in (1, 3)])


def recorded() -> np.ndarray:
    return TokenTrace.read(DEFAULT_PATH).expert_LTK[:, :, 0].astype(np.int64)


def errors(expert_LT: np.ndarray, batch: int = 480) -> tuple[np.ndarray, np.ndarray]:
    """The share of each batch's tokens that the path's and the marginal's prediction put at a wrong expert."""
    half = expert_LT.shape[1] // 240 * 120
    profile = PathProfile.fit(expert_LT[:, None, :half], 128)
    marginal = PathProfile.fit(expert_LT[:, None, :half], 128, length=0)
    batches = [expert_LT[:, at : at + batch] for at in range(half, expert_LT.shape[1] - batch + 1, batch)]
    found = [
        [np.abs(by.predict(part_LT[:1].T, 1) - loads_of(part_LT[1], 128)).sum() / 2 / batch for part_LT in batches]
        for by in (profile, marginal)
    ]
    return np.array(found[0]), np.array(found[1])


def test_on_iid_tokens_the_path_says_what_the_marginal_says():
    expert_LT = iid()
    profile = PathProfile.fit(expert_LT[:, None, :4000], 128)
    marginal_E = loads_of(expert_LT[1, :4000], 128)
    # Half the summed deviation of 128 cells; 4,000 draws of one distribution are as far from another 4,000.
    assert np.abs(profile.predict(expert_LT[:1, 4000:].T, 1) - marginal_E).sum() / 2 / 4000 < 0.06


def test_on_iid_tokens_the_path_gains_nothing():
    by_path, by_marginal = errors(iid())
    assert by_path.mean() > by_marginal.mean() - 0.005


def test_on_tokens_of_the_trained_model_the_path_gains():
    by_path, by_marginal = errors(recorded())
    assert by_path.mean() < 0.95 * by_marginal.mean()
    assert (by_path < by_marginal).all()
