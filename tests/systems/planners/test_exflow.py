from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from routers.synthetic import SyntheticRouter
from routers.token_trace import DEFAULT_PATH, TokenTrace
from systems.planners.base import NO_EXPERT, Costs, as_replicas, imbalance, owner_of, tokens_per_expert
from systems.planners.exflow import (
    ExFlow,
    assign,
    crossing_fraction,
    improve,
    independent_crossing,
    modelled_traffic,
    transitions,
)
from systems.planners.placement import contiguous

COSTS = Costs(row_s=1e-6, move_row_s=1e-6, move_expert_s=1e-3)
SIZES = st.tuples(st.integers(1, 4), st.integers(1, 4), st.integers(1, 4))  # ranks, experts a rank, layers


def current(num_experts: int, ranks: int) -> np.ndarray:
    return as_replicas(contiguous(num_experts, ranks).numpy(), ranks)


def place(expert_LGM: np.ndarray, num_experts: int, ranks: int, starts: int = 4) -> np.ndarray:
    """owner_LE"""
    replicas_LEG = ExFlow(starts).place_layers(expert_LGM, current(num_experts, ranks), COSTS)
    return np.stack([owner_of(replicas_EG) for replicas_EG in replicas_LEG])


def shuffled(num_experts: int, ranks: int, layers: int, seed: int) -> np.ndarray:
    owner_LE = np.tile(contiguous(num_experts, ranks).numpy(), (layers, 1))
    return np.random.default_rng(seed).permuted(owner_LE, axis=1)


def draw_profile(ranks: int, num_experts: int, layers: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(num_experts, size=(layers, ranks, 30))


def test_transitions_and_crossings_by_hand():
    expert_LGM = np.array([[[0, 0], [1, 2]], [[2, 2], [1, 0]], [[0, 1], [2, 2]]])
    moves_LEE = transitions(expert_LGM, 3)
    filled_up_LGM = np.insert(expert_LGM, 2, NO_EXPERT, axis=2)
    assert np.array_equal(transitions(filled_up_LGM, 3), moves_LEE)
    assert np.array_equal(tokens_per_expert(filled_up_LGM[0], 3), tokens_per_expert(expert_LGM[0], 3))
    assert moves_LEE[0].tolist() == [[0, 0, 2], [0, 1, 0], [1, 0, 0]]
    assert moves_LEE[1].tolist() == [[0, 0, 1], [0, 0, 1], [1, 1, 0]]
    # expert 2 on rank 1 in every layer: 0 -> 2 -> 0, 0 -> 2 -> 1, 1 -> 1 -> 2, 2 -> 0 -> 2 cross all but once
    assert crossing_fraction(expert_LGM, np.tile([0, 0, 1], (3, 1))) == 7 / 8
    assert crossing_fraction(expert_LGM[:1], np.array([[0, 0, 1]])) == 0


def test_independent_crossing_by_hand():
    # rank 0 has 3 of 4 tokens, then 2 of 4: alike with probability 3/8 + 1/8
    expert_LGM = np.array([[[0, 0, 0, 1]], [[0, 0, 1, 1]]])
    assert independent_crossing(expert_LGM, np.array([[0, 1], [0, 1]])) == 0.5
    assert crossing_fraction(expert_LGM, np.array([[0, 1], [0, 1]])) == 0.25


def test_traffic_by_hand():
    # rank 0's token: experts on 1, 1, 0; rank 1's: on 1, 0, 0
    expert_LGM = np.array([[[1], [1]], [[1], [0]], [[0], [0]]])
    traffic = modelled_traffic(expert_LGM, np.tile([0, 1], (3, 1)))
    assert traffic.round_trip == 2 * (2 + 2)  # rank 0's twice away, rank 1's twice
    assert traffic.single == 2 + 1  # 0 -> 1 -> 1 -> 0, 1 -> 1 -> 0 -> 0
    assert traffic.context == 2


def test_assign_by_hand():
    # experts 0 and 1 both want rank 0, 2 a little less: rank 1 gets the one that loses least, and 3
    assert assign(np.array([[9, 0], [8, 1], [7, 5], [0, 4]])).tolist() == [0, 0, 1, 1]


def test_a_deterministic_chain_never_crosses():
    chain_LE = np.stack([np.random.default_rng(layer).permutation(16) for layer in range(4)])
    expert_LGM = chain_LE[:, np.random.default_rng(9).integers(16, size=(4, 50))]
    assert crossing_fraction(expert_LGM, place(expert_LGM, 16, 4)) == 0


@given(st.integers(0, 99))
@settings(max_examples=10, deadline=None)
def test_topics_are_found_whatever_experts_are_called(seed):
    """Tokens stay with the four experts of their topic; labels are drawn in every layer."""
    draw = np.random.default_rng(seed)
    topic_GM = draw.integers(4, size=(4, 200))
    expert_LGM = topic_GM * 4 + draw.integers(4, size=(3, 4, 200))
    label_LE = np.stack([draw.permutation(16) for _ in range(3)])
    relabelled_LGM = np.stack([label_E[expert_GM] for label_E, expert_GM in zip(label_LE, expert_LGM, strict=True)])
    assert crossing_fraction(relabelled_LGM, place(relabelled_LGM, 16, 4, starts=16)) == 0


@given(SIZES, st.integers(0, 99))
@settings(max_examples=30, deadline=None)
def test_relabelled_experts_at_their_old_owners_cross_as_often(sizes, seed):
    ranks, per_rank, layers = sizes
    num_experts = ranks * per_rank
    expert_LGM = draw_profile(ranks, num_experts, layers, seed)
    owner_LE = shuffled(num_experts, ranks, layers, seed)
    label_E = np.random.default_rng(seed).permutation(num_experts)
    moved_LE = np.empty_like(owner_LE)
    moved_LE[:, label_E] = owner_LE
    assert crossing_fraction(label_E[expert_LGM], moved_LE) == crossing_fraction(expert_LGM, owner_LE)
    assert modelled_traffic(label_E[expert_LGM], moved_LE) == modelled_traffic(expert_LGM, owner_LE)


@given(SIZES, st.integers(0, 99))
@settings(max_examples=30, deadline=None)
def test_placements_are_legal_the_same_again_and_no_worse_than_where_they_start(sizes, seed):
    ranks, per_rank, layers = sizes
    num_experts = ranks * per_rank
    expert_LGM = draw_profile(ranks, num_experts, layers, seed)
    owner_LE = place(expert_LGM, num_experts, ranks)
    assert (owner_LE == place(expert_LGM, num_experts, ranks)).all()
    for owner_E in owner_LE:
        assert np.bincount(owner_E, minlength=ranks).tolist() == [per_rank] * ranks
    crossing = crossing_fraction(expert_LGM, owner_LE)
    assert crossing <= crossing_fraction(expert_LGM, np.tile(contiguous(num_experts, ranks).numpy(), (layers, 1)))
    start_LE = shuffled(num_experts, ranks, layers, seed)
    better_LE = improve(start_LE, transitions(expert_LGM, num_experts), ranks)
    assert crossing_fraction(expert_LGM, better_LE) <= crossing_fraction(expert_LGM, start_LE)


@given(SIZES, st.integers(0, 99))
@settings(max_examples=15, deadline=None)
def test_dispatch_loses_no_token(sizes, seed):
    ranks, per_rank, _ = sizes
    tokens_GE = np.random.default_rng(seed).integers(0, 9, (ranks, ranks * per_rank))
    replicas_EG = ExFlow().place(tokens_GE, current(ranks * per_rank, ranks), COSTS)
    sent_GEG = ExFlow().dispatch(tokens_GE, replicas_EG, owner_of(replicas_EG))
    assert (sent_GEG.sum(2) == tokens_GE).all() and (sent_GEG[:, replicas_EG == 0] == 0).all()


def test_ranks_must_divide_experts():
    for planner in (ExFlow().place, lambda loads_GE, *rest: ExFlow().place_layers(loads_GE[None], *rest)):
        with pytest.raises(ValueError, match=r"^model.num_experts \(6\) must be divisible by cluster.world_size"):
            planner(np.ones((4, 6), int), np.ones((6, 4), int), COSTS)


# Held out: what a placement made from one half of a text does on the other. 128 experts, 4 ranks.


def iid(alpha: float) -> np.ndarray:
    """expert_LGM of 8,000 tokens that draw their expert anew in each of two layers."""
    router = SyntheticRouter(num_experts=128, rank=0, seed=0, moe_blocks=[1, 3], alpha=alpha, permute_hot=True)
    return np.stack([router.draw(8000, layer=block, iteration=0)[:, 0] for block in (1, 3)])[:, None]


def recorded() -> np.ndarray:
    """expert_LGM of the sample."""
    return TokenTrace.read(DEFAULT_PATH).expert_LTK[None, :, :, 0].transpose(1, 0, 2).astype(np.int64)


def held_out(profile: Callable[[], np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """The second half, and owner_LE from the first; sequences are whole in both."""
    expert_LGM = profile()
    half = expert_LGM.shape[2] // 240 * 120
    return expert_LGM[:, :, half:], place(expert_LGM[:, :, :half], 128, 4)


def noise(expert_LGM: np.ndarray) -> np.ndarray:
    """Crossing fractions of a hundred random placements."""
    return np.array([crossing_fraction(expert_LGM, shuffled(128, 4, 2, seed)) for seed in range(100)])


def test_iid_tokens_of_even_loads_gain_nothing():
    expert_LGM, owner_LE = held_out(lambda: iid(alpha=0))
    assert abs(crossing_fraction(expert_LGM, owner_LE) - noise(expert_LGM).mean()) < 0.02  # 3 sigma of 4,000 tokens


def test_iid_tokens_of_skewed_loads_gain_by_crowding_alone():
    """Fewer transitions cross, as the layers share their hot rank: not more so than their loads alone would do."""
    expert_LGM, owner_LE = held_out(lambda: iid(alpha=0.6))
    crossing = crossing_fraction(expert_LGM, owner_LE)
    assert crossing < noise(expert_LGM).min()
    assert abs(crossing - independent_crossing(expert_LGM, owner_LE)) < 0.02
    tokens_GE = tokens_per_expert(expert_LGM[0], 128)
    sent_GEG = ExFlow().dispatch(np.tile(tokens_GE, (4, 1)), as_replicas(owner_LE[0], 4), owner_LE[0])
    assert imbalance(sent_GEG) > 3


def test_tokens_of_the_trained_model_have_affinity():
    expert_LGM, owner_LE = held_out(recorded)
    crossing = crossing_fraction(expert_LGM, owner_LE)
    assert crossing < noise(expert_LGM).min() - 0.2
    assert crossing < independent_crossing(expert_LGM, owner_LE) - 0.2
