"""What the conformance kit does not say of the planners' executor: options, moves, accounts."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from systems import sharded_weights
from systems.base import LayerShape
from systems.costs import costs_of
from systems.engines import find_engine
from systems.migration import Held, Persistent, SwapIn
from systems.moves import moves
from systems.planned import PlannedExpertParallel
from systems.planners.base import Costs, Rates, as_replicas
from systems.planners.eplb import EPLB
from systems.planners.fastermoe import FasterMoE
from systems.planners.lazarus import Lazarus
from systems.planners.lina import Lina
from systems.planners.moetuner import MoETuner
from systems.planners.placement import Home, Packed
from systems.planners.prophet import Prophet
from systems.planners.smartmoe import SmartMoE
from systems.sharded_weights import Sharded

SHAPE = LayerShape(num_experts=8, d_model=4, d_ff=8, max_tokens=10)


class Weights:
    """Expert e is filled with e."""

    def experts(self, expert_ids: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
        e = torch.tensor(expert_ids, dtype=torch.float32)[:, None, None]
        return e.expand(-1, 4, 8).contiguous(), e.expand(-1, 8, 4).contiguous()


def build(rank: int = 0, world_size: int = 2, **options: Any) -> PlannedExpertParallel:
    group: Any = SimpleNamespace(rank=lambda: rank, size=lambda: world_size)
    return PlannedExpertParallel(
        shape=SHAPE,
        weights=Weights(),
        group=group,
        engine=find_engine("loop"),
        **({"planner": Home(), "rates": Rates(1e11, 2e11)} | options),
    )


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"loads": "guessed"}, r"system\.loads is 'guessed'; it must be one of none, oracle, lagged, profiled"),
        (
            {"migration": "train"},
            r"system\.migration is 'train'; it must be one of static, broadcast, point_to_point, persistent",
        ),
        ({"placement": "nowhere"}, r"system\.placement is 'nowhere'; it must be one of contiguous, round_robin"),
        ({"every": 0}, r"system\.every is 0; it must be a whole number of at least 1"),
        ({"window": 0}, r"system\.window is 0; it must be a whole number of at least 1"),
        (
            {"loads": "oracle"},
            r"experts that stay where they are cannot follow the batches: use system\.loads=profiled",
        ),
        ({"loads": "profiled"}, r"system\.loads is 'profiled' and there is no profile"),
    ],
)
def test_bad_options_are_named(options: dict, sentence: str):
    with pytest.raises(ValueError, match=sentence):
        build(**options)


def check(**options: Any) -> None:
    PlannedExpertParallel.check(SHAPE, 2, **PlannedExpertParallel.every_option(**options))


@pytest.mark.parametrize("kind", [Home, Packed, EPLB, FasterMoE, Lazarus, Lina, MoETuner, Prophet, SmartMoE])
def test_planners_and_executor_refuse_experts_that_ranks_do_not_divide_in_the_same_words(kind):
    planner = kind()
    words = r"^model.num_experts \(8\) must be divisible by cluster.world_size \(3\): every rank owns E/G experts$"
    with pytest.raises(ValueError, match=words):
        planner.check(8, 3)
    with pytest.raises(ValueError, match=words):
        PlannedExpertParallel.check(SHAPE, 3, **PlannedExpertParallel.every_option(planner=planner))


def test_what_a_planner_cannot_place_is_known_before_anything_is_launched():
    with pytest.raises(ValueError, match=r"planner\.excluded is 2; on 2 ranks it must be at most 1"):
        check(planner=Prophet(excluded=2), loads="lagged", migration="point_to_point")
    with pytest.raises(ValueError, match=r"system\.planner is None; it must name a class of planners"):
        check(planner=None)
    with pytest.raises(ValueError, match=r"system\.migration is 'swap' and FasterMoE makes replicas"):
        check(loads="oracle", migration="swap", planner=FasterMoE())
    check(loads="oracle", migration="swap", planner=EPLB(extra_replicas=0))


@settings(deadline=None)
@given(st.data())
def test_moves_bring_every_expert_where_it_is_wanted_and_nothing_that_is_there(data):
    num_experts, ranks = data.draw(st.integers(1, 9)), data.draw(st.integers(1, 4))
    numbers = st.lists(st.integers(0, 2), min_size=num_experts * ranks, max_size=num_experts * ranks)
    before_EG, after_EG = (np.reshape(data.draw(numbers), (num_experts, ranks)) for _ in range(2))
    before_EG[:, 0] += ~before_EG.any(1)
    moves_GEG = moves(before_EG, after_EG)
    assert (((before_EG > 0) | moves_GEG.any(0)) >= (after_EG > 0)).all()
    assert not (moves_GEG & (before_EG > 0)).any() and moves_GEG.sum(0).max() <= 1
    assert not (moves_GEG & (before_EG.T == 0)[:, :, None]).any(), "only a rank that has an expert sends it"
    times_GE = np.where(before_EG.T > 0, moves_GEG.sum(2), moves_GEG.sum((0, 2)) // (before_EG > 0).sum(1))
    assert (times_GE.max(0) - times_GE.min(0) <= 1).all(), "they share the work"


class Sent(Persistent):
    """Experts arrive without other ranks."""

    def _exchange(self, moves_GEG: np.ndarray) -> Held:
        experts = np.nonzero(moves_GEG[:, :, self.rank])[1].tolist()
        return Held(Weights().experts(experts), experts)


@settings(deadline=None)
@given(st.lists(st.sets(st.integers(0, 7)), min_size=1, max_size=5))
def test_experts_that_stay_keep_their_slots_and_others_take_those_of_experts_that_go(wanted):
    """Rank 0 is to have these experts of eight, one set after another; rank 1 has all."""
    group: Any = SimpleNamespace(rank=lambda: 0, size=lambda: 2)
    replicas_EG = np.array([[1, 1]] * 3 + [[0, 1]] * 5)
    migration = Sent(replicas_EG=replicas_EG, weights=Weights(), engine=find_engine("loop"), group=group)
    for experts in wanted:
        before, replicas_EG = list(migration.held.experts), replicas_EG.copy()
        replicas_EG[:, 0] = [expert in experts for expert in range(8)]
        held = migration.bring(replicas_EG)
        assert sorted(held.experts) == sorted(experts) and migration.replicas_EG is replicas_EG
        assert held.weights[0][:, 0, 0].tolist() == held.weights[1][:, 0, 0].tolist() == held.experts
        stayed = [slot for slot, expert in enumerate(before) if expert in experts]
        assert all(held.experts[slot] == before[slot] for slot in stayed if slot < len(experts))


def test_swapped_in_experts_take_the_slots_of_those_not_wanted():
    group: Any = SimpleNamespace(rank=lambda: 0, size=lambda: 2)
    owner_EG = as_replicas(np.arange(8) // 4, 2)
    migration = SwapIn(replicas_EG=owner_EG, weights=Weights(), engine=find_engine("loop"), group=group)
    for wanted in ([0, 1, 2, 7], [0, 5, 6, 7], [1, 2, 3, 4, 5, 6], [3]):
        replicas_EG = owner_EG.copy()
        replicas_EG[:, 0] = np.isin(np.arange(8), wanted)
        held = migration.bring(replicas_EG)
        assert set(wanted) <= set(held.experts)
        assert held.weights[0][:, 0, 0].tolist() == held.weights[1][:, 0, 0].tolist() == held.experts


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_sharded_experts_are_put_together_as_they_were_and_cost_as_much_wherever_they_go(ranks, monkeypatch):
    """Of experts with 32 numbers three ranks keep 11 each, of which the last is padding."""
    home_EG = as_replicas(np.arange(8) * ranks // 8, ranks)
    groups: list[Any] = [SimpleNamespace(rank=lambda rank=rank: rank) for rank in range(ranks)]
    layer = {"replicas_EG": home_EG, "weights": Weights(), "engine": find_engine("loop")}
    all_ranks = [Sharded(group=group, **layer) for group in groups]
    for seed in range(3):
        plan_EG = np.zeros((8, ranks), np.int64)
        for rank in range(ranks):
            plan_EG[np.random.default_rng((seed, rank)).permutation(8)[:4], rank] = 1
        for rank, here in enumerate(all_ranks):
            mine, tensors = (
                np.flatnonzero(plan_EG[:, rank]),
                iter(zip(*(one._parts_En for one in all_ranks), strict=True)),
            )
            sent = [parts_En[mine] for parts_En in next(tensors)], [parts_En[mine] for parts_En in next(tensors)]
            arriving = iter(sent)
            monkeypatch.setattr(sharded_weights, "all_to_all", lambda *_, arriving=arriving: torch.cat(next(arriving)))
            held = here.bring(plan_EG)
            assert held.experts == mine.tolist() and here.kept_beside == 8 / ranks
            assert all(torch.equal(w, v) for w, v in zip(held.weights, Weights().experts(held.experts), strict=True))
            assert here.experts_sent(home_EG, plan_EG) == pytest.approx(4 * (ranks - 1) / ranks)


def test_account_of_shadowed_experts():
    """FasterMoE: both busy experts are worth a broadcast where rows are dear, so no token travels."""
    tokens_GE = torch.tensor([[1000, 0, 0, 0, 5, 0, 0, 0], [1000, 0, 0, 0, 5, 0, 0, 0]])
    system = build(planner=FasterMoE(), loads="oracle", migration="broadcast", rates=Rates(1.0, 2e11))
    system._replicas_EG = system._planner.place(tokens_GE.numpy(), system._replicas_EG, system._costs)
    account = system.account(tokens_GE, element_size=4)
    expert, counts = 2 * 4 * 8 * 4, 8 * 8
    assert account.rows_computed == 1005 and account.bytes_sent == counts + expert
    assert account.least_rows == 1005  # of 2010 rows, which both ranks may have


@pytest.mark.parametrize(
    ("sent", "sentence"),
    [
        (np.zeros((2, 8, 2), np.int64), r"planner Home sends 0 of rank 0's 5 tokens for expert 0$"),
        (np.full((2, 8, 2), [0, 5]), r"planner Home sends tokens for expert 0 to rank 1, which has no replica of it$"),
    ],
)
def test_a_plan_that_breaks_a_rule_is_named(sent, sentence):
    planner, tokens_GE, replicas_EG = Home(), np.full((2, 8), 5), as_replicas(np.arange(8) // 4, 2)
    right_GEG = planner.dispatch(tokens_GE, replicas_EG, np.arange(8) // 4)
    planner.check_sent(right_GEG, tokens_GE, replicas_EG)
    with pytest.raises(ValueError, match=sentence):
        planner.check_sent(sent, tokens_GE, replicas_EG)
    with pytest.raises(ValueError, match=r"planner Home places expert 0 nowhere; every expert needs a replica"):
        planner.check_sent(right_GEG, tokens_GE, np.zeros((8, 2)))
    with pytest.raises(ValueError, match=r"planner Home\.dispatch returns float64 \(2, 8, 2\); it must be int64"):
        planner.check_sent(right_GEG / 1, tokens_GE, replicas_EG)


def test_lagged_loads_place_after_the_first_batch_and_then_every_so_many():
    system = build(planner=SmartMoE(), loads="lagged", migration="swap", every=3, window=2)
    placed = []
    for call in range(8):
        placed.append(system._expected(np.full((2, 8), call), routing=None) is not None)  # pyright: ignore
        system._past.append(np.full((2, 8), call))
        system._calls += 1
    assert placed == [False, True, False, False, True, False, False, True]


def test_costs_by_hand():
    costs = costs_of(SHAPE, 2, Rates(flops_per_s=128.0, bytes_per_s=8.0), batches=3)
    assert costs == Costs(row_s=1.0, move_row_s=1.0, move_expert_s=16.0, near_row_s=1.0, batches=3)
