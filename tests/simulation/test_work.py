from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from simulation.work import FEATURES, MODELLED, Load
from systems.base import LayerShape
from systems.deepspeed_moe import DeepSpeedMoE
from systems.engines import find_engine

BYTES = 4
CASES = [
    ("systems.expert_parallel.ExpertParallel", {"placement": "contiguous"}),
    ("systems.expert_parallel.ExpertParallel", {"placement": "round_robin"}),
    ("systems.moeshard.MoEShard", {}),
    ("systems.deepspeed_moe.DeepSpeedMoE", {"capacity_factor": "paper"}),
    ("systems.deepspeed_moe.DeepSpeedMoE", {"drop_tokens": False}),
]


class NoWeights:
    def experts(self, expert_ids: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.empty(0), torch.empty(0)

    def shard(self, index: int, count: int) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.empty(0), torch.empty(0)


class UnbuiltDeepSpeedMoE(DeepSpeedMoE):
    def _build(self, weights: Any) -> Any:
        return None


@st.composite
def loads(draw) -> Load:
    """Two or four ranks, eight experts, and the same number of tokens on every rank, at least one expert's busy."""
    ranks, tokens = draw(st.sampled_from([2, 4])), draw(st.integers(8, 60))
    chosen = st.lists(st.integers(0, 7), min_size=tokens, max_size=tokens)
    tokens_GE = np.stack([np.bincount(draw(chosen), minlength=8) for _ in range(ranks)]).astype(float)
    return Load(LayerShape(8, 6, 16, tokens), tokens_GE, BYTES)


@pytest.mark.parametrize(("target", "options"), CASES)
@settings(deadline=None, max_examples=30)
@given(load=loads())
def test_bytes_and_flops_are_those_that_the_system_accounts_for(target, options, load):
    kind, form = MODELLED[target]
    kind = UnbuiltDeepSpeedMoE if kind is DeepSpeedMoE else kind
    work = form(load, **options)
    assert [np.trace(transfer.sent_GG) for transfer in work.transfers] == [0] * len(work.transfers)
    for rank in range(load.ranks):
        group: Any = SimpleNamespace(rank=lambda rank=rank: rank, size=lambda: load.ranks)
        system = kind(shape=load.shape, weights=NoWeights(), group=group, engine=find_engine("loop"), **options)
        account = system.account(torch.from_numpy(load.tokens_GE).long(), BYTES)
        assert sum(transfer.sent_GG[rank].sum() for transfer in work.transfers) == pytest.approx(account.bytes_sent)
        flops = account.rows_computed * 4 * load.shape.d_model * load.shape.d_ff
        assert work.features_GN[rank, FEATURES.index("flops")] == pytest.approx(flops)


def test_memory_by_hand():
    """Two ranks, two experts of 2 x 3 x 4 weights, two tokens a rank, all for expert 0; 4 bytes a number."""
    load = Load(LayerShape(2, 3, 4, 2), np.array([[2.0, 0.0], [2.0, 0.0]]), BYTES)
    _, ep = MODELLED["systems.expert_parallel.ExpertParallel"]
    # One expert; 2 tokens; on rank 0 four rows three times and their hidden layer.
    assert ep(load).memory_G.tolist() == [4 * (24 + 6 + 4 * (9 + 4)), 4 * (24 + 6)]
    _, shard = MODELLED["systems.moeshard.MoEShard"]
    # Two halves of experts; 2 tokens; four rows three times and half of their hidden layer, on both.
    assert shard(load).memory_G.tolist() == [4 * (24 + 6 + 4 * (9 + 2))] * 2
