"""Closed forms of what a call costs a rank: by hand, as invariants, and against DeepSpeed's own gate."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from deepspeed.moe.sharded_moe import _capacity, top1gating, top2gating, topkgating
from hypothesis import given, settings
from hypothesis import strategies as st

from routers.base import Routing
from routers.synthetic import skewed_probabilities
from systems.base import Account, LayerShape, System
from systems.deepspeed_moe import LOGIT, DeepSpeedMoE, logits_of, lossless_capacity_factor
from systems.dense import Dense
from systems.engines import find_engine
from systems.expert_parallel import ExpertParallel
from systems.gshard import GShard
from systems.moeshard import MoEShard
from systems.moeshard_published import MoEShardPublished
from systems.tutel import Tutel

BYTES = 4  # of an element
# Two ranks of at most 5 tokens, four experts, rows of 2 elements.
SMALL = LayerShape(num_experts=4, d_model=2, d_ff=4, max_tokens=5)
TOKENS_GE = torch.tensor([[3, 0, 1, 1], [0, 0, 5, 0]])
# Table 1 and section 4 of the paper: Switch-Base, 128 experts, batch 250 x 120 tokens on each of 4 ranks.
PAPER = LayerShape(num_experts=128, d_model=768, d_ff=3072, max_tokens=30_000)


class UnbuiltDeepSpeedMoE(DeepSpeedMoE):
    """Only the arithmetic: DeepSpeed's layer needs a process group."""

    def _build(self, weights: Any) -> Any:
        return None


class NoWeights:
    def experts(self, expert_ids: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.empty(0), torch.empty(0)

    def shard(self, index: int, count: int) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.empty(0), torch.empty(0)


SYSTEMS: dict[str, tuple[type[System], dict[str, Any]]] = {
    "dense": (Dense, {}),
    "moeshard": (MoEShard, {}),
    "moeshard_published": (MoEShardPublished, {}),
    "contiguous": (ExpertParallel, {"placement": "contiguous"}),
    "round_robin": (ExpertParallel, {"placement": "round_robin"}),
    "deepspeed_tight": (UnbuiltDeepSpeedMoE, {"capacity_factor": 1.0}),
    "deepspeed_paper": (UnbuiltDeepSpeedMoE, {"capacity_factor": "paper"}),
    "deepspeed_lossless": (UnbuiltDeepSpeedMoE, {"capacity_factor": "lossless"}),
    "deepspeed_dropless": (UnbuiltDeepSpeedMoE, {"drop_tokens": False}),
    "tutel": (Tutel, {}),
    "tutel_overlap": (Tutel, {"overlap_degree": 2}),
    "tutel_gathered_weights": (Tutel, {"r": 0}),
    "tutel_tight": (Tutel, {"capacity_factor": 1.0}),
    "gshard": (GShard, {}),
}
PADDED = ("deepspeed", "tutel", "gshard")


def build(name: str, shape: LayerShape, world_size: int, rank: int) -> Any:
    kind, options = SYSTEMS[name]
    group: Any = SimpleNamespace(rank=lambda: rank, size=lambda: world_size)
    return kind(shape=shape, weights=NoWeights(), group=group, engine=find_engine("loop"), **options)


def accounts(name: str, shape: LayerShape, tokens_GE: torch.Tensor) -> list[Account]:
    """The account of every rank."""
    world_size, shape = len(tokens_GE), replace(shape, max_expert_tokens=int(tokens_GE.max()))
    return [build(name, shape, world_size, rank).account(tokens_GE, BYTES) for rank in range(world_size)]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        # Memory: 3 and 1 experts of 16 weights, 5 rows of 2 + 4 + 4 + 2 elements, of 4 bytes.
        ("dense", [Account(5, 5, 0, 0, 432), Account(5, 5, 0, 0, 304)]),
        # To the other rank: 5 rows of 8 bytes, 5 ids and weights of 4 bytes each, 5 rows of partial outputs.
        # Memory: 3 shards of 8 weights, 10 rows of 2 + 2 + 2 + 2 elements.
        ("moeshard", [Account(5, 5, 0, 120, 416)] * 2),
        # 4 counts of 8 bytes, 5 rows of 8 bytes there and back
        ("moeshard_published", [Account(5, 5, 0, 112, 416)] * 2),
        # 2 rows leave rank 0 and come back; 2 counts of 8 bytes.
        ("contiguous", [Account(3, 3, 0, 32, 208), Account(7, 7, 0, 32, 464)]),
        # 1 row leaves rank 0, 5 leave rank 1.
        ("round_robin", [Account(9, 9, 0, 64, 560), Account(1, 1, 0, 64, 112)]),
        # C = max(ceil(5 / 4), 4) = 4; half of 16 rows go there and back.
        ("deepspeed_tight", [Account(16, 3, 0, 128, 896), Account(16, 6, 1, 128, 896)]),
        # C = ceil(5 / 4 * 4) = 5
        ("deepspeed_paper", [Account(20, 3, 0, 160, 1088), Account(20, 7, 0, 160, 1088)]),
        # C = 5, the largest count
        ("deepspeed_lossless", [Account(20, 3, 0, 160, 1088), Account(20, 7, 0, 160, 1088)]),
        # The same, which both ranks learn from an all-reduce of 8 bytes.
        ("deepspeed_dropless", [Account(20, 3, 0, 168, 1088), Account(20, 7, 0, 168, 1088)]),
        ("tutel", [Account(20, 3, 0, 168, 1088), Account(20, 7, 0, 168, 1088)]),
        # C = 6, the next even number; each of two chunks reads the weights.
        ("tutel_overlap", [Account(24, 3, 0, 200, 1408), Account(24, 7, 0, 200, 1408)]),
        # Two experts of 16 weights to the other rank, 8 bytes of all-reduce; four experts read here.
        ("tutel_gathered_weights", [Account(20, 5, 0, 136, 1216), Account(20, 5, 0, 136, 1216)]),
        # C = 1 * ceil(5 / 4) = 2
        ("tutel_tight", [Account(8, 2, 1, 64, 512), Account(8, 4, 3, 64, 512)]),
        ("gshard", [Account(8, 2, 1, 64, 512), Account(8, 4, 3, 64, 512)]),
    ],
)
def test_by_hand(name, expected):
    assert accounts(name, SMALL, TOKENS_GE) == expected


def test_published_moeshard_fills_up_to_the_rank_with_most_tokens():
    tokens_GE = torch.tensor([[3, 0, 1, 0], [0, 0, 2, 0]])
    assert accounts("moeshard_published", SMALL, tokens_GE) == [Account(3, 3, 0, 32 + 2 * 4 * 8, 4 * (16 + 48))] * 2


def test_top_2_by_hand():
    shape = LayerShape(num_experts=4, d_model=2, d_ff=4, max_tokens=5, top_k=2)
    tokens_GE = torch.tensor([[5, 3, 1, 1], [0, 0, 5, 5]])
    # 5 rows of 8 bytes, 10 ids and weights of 4 bytes each, 5 rows of outputs summed over a token's copies
    assert accounts("moeshard", shape, tokens_GE) == [Account(10, 10, 0, 160, 768)] * 2
    assert accounts("contiguous", shape, tokens_GE) == [Account(8, 8, 0, 32, 512), Account(12, 12, 0, 32, 704)]


def test_one_rank_sends_nothing():
    for name in SYSTEMS:
        (account,) = accounts(name, SMALL, TOKENS_GE[:1])
        assert account.bytes_sent == 0, name


def test_paper_point():
    """128 experts on 4 ranks: DeepSpeed computes 50 rows for each that is used and sends 3.46 GB each way."""
    share_E = torch.from_numpy(skewed_probabilities(128, 0.6, 13))
    tokens_GE = (share_E * 30_000).round().long().expand(4, -1)
    (deepspeed, *_), (moeshard, *_) = (accounts(name, PAPER, tokens_GE) for name in ("deepspeed_paper", "moeshard"))
    assert deepspeed.rows_computed == 1_500_032 == 128 * 11_719
    assert deepspeed.dropped == 0
    assert deepspeed.bytes_sent / 2 == pytest.approx(3.46e9, rel=2e-3)
    assert moeshard.rows_computed == int(tokens_GE.sum()) / 4 == pytest.approx(30_000, rel=2e-3)
    assert moeshard.bytes_sent / 2 == pytest.approx(276.8e6, rel=1e-3)
    # 128 shards of 2 x 768 x 768 weights; 120 000 rows of 768 read, 768 hidden written and read, 768 written.
    assert moeshard.memory_bytes == pytest.approx(604e6 + 1475e6, rel=2e-3)


@pytest.mark.parametrize(
    ("num_experts", "rows"),
    [(8, 240_000), (16, 480_000), (32, 960_000), (64, 1_500_032), (128, 1_500_032), (256, 1_500_160)],
)
def test_deepspeed_rows_of_the_paper_do_not_depend_on_the_routing(num_experts, rows):
    shape = LayerShape(num_experts, 768, 3072, 30_000)
    uniform_GE = torch.full((4, num_experts), 30_000 // num_experts)
    one_GE = torch.zeros_like(uniform_GE)
    one_GE[:, 0] = 30_000
    for tokens_GE in (uniform_GE, one_GE):
        assert {account.rows_computed for account in accounts("deepspeed_paper", shape, tokens_GE)} == {rows}


@pytest.mark.parametrize(("name", "imbalance"), [("contiguous", 3.659), ("round_robin", 1.2045), ("moeshard", 1.0)])
def test_imbalance_under_the_papers_router(name, imbalance):
    """Rows of the busiest rank over the mean: 13 of 128 experts are hot, and contiguous puts them all on rank 0."""
    share_E = torch.from_numpy(skewed_probabilities(128, 0.6, 13))
    rows = [account.rows_computed for account in accounts(name, PAPER, share_E.expand(4, -1))]
    assert 4 * max(rows) / sum(rows) == pytest.approx(imbalance, abs=1e-3)


@st.composite
def routings(draw) -> tuple[LayerShape, torch.Tensor]:
    """A layer of 8 experts, and the tokens of each of 1, 2 or 4 ranks."""
    world_size, max_tokens = draw(st.sampled_from([1, 2, 4])), draw(st.integers(4, 40))
    experts = st.lists(st.integers(0, 7), max_size=max_tokens)
    tokens = [torch.bincount(torch.tensor(draw(experts), dtype=torch.int64), minlength=8) for _ in range(world_size)]
    return LayerShape(num_experts=8, d_model=3, d_ff=8, max_tokens=max_tokens), torch.stack(tokens)


@pytest.mark.parametrize("name", SYSTEMS)
@settings(deadline=None)
@given(routings())
def test_every_copy_is_computed_once_or_dropped(name, drawn):
    shape, tokens_GE = drawn
    ranks = accounts(name, shape, tokens_GE)
    assert sum(rank.rows_useful + rank.dropped for rank in ranks) == pytest.approx(int(tokens_GE.sum()))
    assert all(rank.rows_computed >= rank.rows_useful for rank in ranks)
    if not name.startswith(PADDED):
        assert all(rank.rows_computed == rank.rows_useful and rank.dropped == 0 for rank in ranks)
    if name == "deepspeed_lossless":
        slots = 8 * max(int(tokens_GE.max()), DeepSpeedMoE.MIN_CAPACITY)
        assert all(rank.dropped == 0 and rank.rows_computed == slots for rank in ranks)
    if name in ("tutel", "tutel_gathered_weights"):
        slots = 8 * max(int(tokens_GE.max()), 1)
        assert all(rank.dropped == 0 and rank.rows_computed == slots for rank in ranks)
    if name == "deepspeed_dropless":
        assert all(rank.dropped == 0 and rank.rows_computed == 8 * int(tokens_GE.max()) for rank in ranks)


@pytest.mark.parametrize("placement", ["contiguous", "round_robin"])
@settings(deadline=None)
@given(routings())
def test_expert_parallelism_sends_each_row_that_is_not_at_its_owner_there_and_back(placement, drawn):
    shape, tokens_GE = drawn
    world_size = len(tokens_GE)
    owner_E = [(e * world_size // 8 if placement == "contiguous" else e % world_size) for e in range(8)]
    away = sum(int(tokens_GE[g, e]) for g in range(world_size) for e in range(8) if owner_E[e] != g)
    counts = 8 * 8 * (world_size - 1)  # 8 bytes for each expert of another rank, from each rank
    sent = sum(account.bytes_sent for account in accounts(placement, shape, tokens_GE))
    assert sent == pytest.approx(2 * away * 3 * BYTES + counts)


@settings(deadline=None)
@given(
    num_experts=st.integers(1, 12),
    experts=st.lists(st.integers(0, 11), min_size=4, max_size=60),
    capacity_factor=st.one_of(st.floats(0.1, 12), st.integers(1, 50).map(float)),
)
def test_capacity_and_drops_are_those_of_deepspeeds_gate(num_experts, experts, capacity_factor):
    expert_T = torch.tensor(experts) % num_experts
    logits_TE = torch.nn.functional.one_hot(expert_T, num_experts).float() * LOGIT
    gate: Any = top1gating(logits_TE, capacity_factor, 4, drop_tokens=True, use_rts=False, sparse_routes=True)
    capacity, expert_KT, weight_KT = gate[1], gate[3], gate[5]

    shape = LayerShape(num_experts, 2, 4, len(experts))
    group: Any = SimpleNamespace(rank=lambda: 0, size=lambda: 1)
    engine = find_engine("loop")
    system = UnbuiltDeepSpeedMoE(
        capacity_factor=capacity_factor, shape=shape, weights=NoWeights(), group=group, engine=engine
    )
    account = system.account(torch.bincount(expert_T, minlength=num_experts).unsqueeze(0), BYTES)
    assert account.rows_computed == num_experts * int(capacity)
    assert account.dropped == int((expert_KT < 0).sum())
    assert set(weight_KT[expert_KT >= 0].tolist()) <= {1.0}


@settings(deadline=None)
@given(
    top_k=st.integers(2, 4),
    more=st.integers(0, 8),
    num_tokens=st.integers(0, 30),
    absent=st.integers(0, 9),
    capacity_factor=st.floats(0.1, 12),
    seed=st.integers(0, 2**20),
)
def test_gates_of_more_experts_drop_as_accounted_and_weigh_what_they_keep(
    top_k, more, num_tokens, absent, capacity_factor, seed
):
    """The rank brings fewer tokens than another, so that the capacity is given to it as the least one."""
    num_experts, generator = top_k + more, torch.Generator().manual_seed(seed)
    popularity_E = torch.rand(num_experts, generator=generator) ** 2 + 1e-3
    drawn_TK = torch.multinomial(popularity_E.expand(num_tokens + 1, -1), top_k, generator=generator)
    expert_TK, weight_TK = drawn_TK[:num_tokens], torch.rand(num_tokens, top_k, generator=generator) + 0.01
    routing = Routing(expert_TK, weight_TK)
    shape = LayerShape(num_experts, 2, 4, num_tokens + absent + 1, top_k=top_k)
    group: Any = SimpleNamespace(rank=lambda: 0, size=lambda: 1)
    layer = {"shape": shape, "weights": NoWeights(), "group": group, "engine": find_engine("loop")}
    account = UnbuiltDeepSpeedMoE(capacity_factor=capacity_factor, **layer).account(
        routing.tokens_per_expert(num_experts).unsqueeze(0), BYTES
    )
    given = (capacity_factor, int(account.rows_computed) // num_experts)
    logits_TE = logits_of(routing, num_experts)
    gate: Any = (
        top2gating(logits_TE, *given, top2_2nd_expert_sampling=False, sparse_routes=True)
        if top_k == 2
        else topkgating(logits_TE, top_k, *given, sparse_routes=True)
    )
    capacity, kept_KT, weight_KT = int(gate[1]), gate[3] >= 0, gate[5]
    assert account.rows_computed == num_experts * capacity
    assert account.dropped == int((~kept_KT).sum())
    order_TK = weight_TK.argsort(descending=True, stable=True)
    sorted_TK, kept_TK = weight_TK.gather(1, order_TK), kept_KT.T
    expected_TK = sorted_TK * kept_TK / (sorted_TK * kept_TK).sum(1, keepdim=True).clamp(min=1e-20)
    torch.testing.assert_close(weight_KT.T * kept_TK, expected_TK, rtol=1e-5, atol=1e-6)


@settings(deadline=None)
@given(
    num_experts=st.integers(1, 1024),
    num_tokens=st.integers(4, 1_000_000),
    share=st.floats(0, 1),
    top_k=st.sampled_from([1, 2, 8]),
)
def test_lossless_capacity_is_exactly_the_largest_count_in_deepspeeds_arithmetic(num_experts, num_tokens, share, top_k):
    wanted = round(share * num_tokens)
    factor = lossless_capacity_factor(num_tokens, num_experts, wanted, top_k)
    gates: Any = SimpleNamespace(shape=(num_tokens, num_experts))
    assert int(_capacity(gates, torch.tensor(factor * top_k), torch.tensor(4))) == max(wanted, 4)


def test_deepspeeds_top_1_gate_wants_its_least_capacity_of_tokens():
    with pytest.raises(ValueError, match="a rank brings 3 tokens to an MoE layer; DeepSpeed's top-1 gate needs at"):
        DeepSpeedMoE.check(replace(SMALL, max_tokens=3), 2, capacity_factor=1.0)
    DeepSpeedMoE.check(replace(SMALL, max_tokens=3, top_k=2), 2, capacity_factor=1.0)


def test_lossless_capacity_needs_known_draws():
    assert DeepSpeedMoE.needs(capacity_factor="lossless", drop_tokens=True) == {"draws"}
    assert not DeepSpeedMoE.needs(capacity_factor="lossless", drop_tokens=False)
    assert not DeepSpeedMoE.needs(capacity_factor=2.0, drop_tokens=True) and not MoEShard.needs()
    with pytest.raises(ValueError, match="'lossless'; it must be a number or 'paper' where the router's draws are not"):
        build("deepspeed_lossless", SMALL, world_size=2, rank=0)


def test_padding_that_estimates_rest_on():
    def padding(max_expert_tokens: int | None, **options: object) -> float:
        shape, every = replace(PAPER, max_expert_tokens=max_expert_tokens), DeepSpeedMoE.every_option(**options)
        return DeepSpeedMoE.padding(shape, 4, **every)

    assert padding(None) == 50 and padding(None, capacity_factor=2) == 2
    assert padding(None, capacity_factor="lossless") == padding(None, drop_tokens=False) == 1
    assert padding(2100, capacity_factor="lossless") == pytest.approx(2100 * 128 / 30_000, rel=1e-3)


@pytest.mark.parametrize("factor", ["papers", 0, -1.0])
def test_unknown_capacity_factor_is_named(factor):
    with pytest.raises(ValueError, match=r"system\.capacity_factor is .*; it must be a positive number, 'paper' or"):
        DeepSpeedMoE.check(SMALL, 2, capacity_factor=factor)


def test_published_moeshard_is_top_1():
    with pytest.raises(ValueError, match="moeshard_published has top-1 routing as in the paper, got top_k = 2"):
        MoEShardPublished.check(replace(SMALL, top_k=2), 2, chunks=1)
