"""The encoder around our MoE layers: its parameters, and the whole of it against Hugging Face's own."""

from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from transformers import (
    SwitchTransformersConfig,
    SwitchTransformersEncoderModel,
    SwitchTransformersForConditionalGeneration,
)

from clusters.clocks import HostClock
from experiments.moe_layer import MoELayer
from experiments.recorder import Recorder
from routers.learned import LearnedRouter
from systems.base import LayerShape
from systems.dense import Dense
from systems.engines import find_engine
from workloads.checkpoint import open_checkpoint
from workloads.encoder import build_encoder
from workloads.model import ModelShape
from workloads.weights import CheckpointLayer

CPU = torch.device("cpu")
MODEL = ModelShape(num_experts=4, d_model=16, d_ff=32, d_kv=8, num_heads=2, num_blocks=4, sparse_step=2, vocab_size=40)
B, L = 3, 10


class Halve(nn.Module):
    """Stands for an MoE layer; keeps the shape it saw."""

    seen: tuple[int, ...] = ()

    def forward(self, hidden_BLD: torch.Tensor) -> torch.Tensor:
        self.seen = tuple(hidden_BLD.shape)
        return hidden_BLD / 2


def build(moe_layer: Callable[[int], nn.Module] = lambda block: Halve(), model=MODEL, seed=0, **options: Any) -> Any:
    return build_encoder(model, moe_layer, seed=seed, dtype=options.pop("dtype", torch.float32), device=CPU, **options)


def token_ids() -> torch.Tensor:
    return torch.randint(MODEL.vocab_size, (B, L), generator=torch.Generator().manual_seed(0))


@pytest.fixture
def nan_where_nothing_was_written() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)  # fills fresh memory with NaN
    yield
    torch.use_deterministic_algorithms(False)


def test_every_parameter_is_initialised_from_the_seed(nan_where_nothing_was_written):
    torch.manual_seed(0)
    first = dict(build().named_parameters())
    torch.manual_seed(1)
    state = torch.get_rng_state()
    again, other = dict(build().named_parameters()), dict(build(seed=1).named_parameters())
    assert torch.equal(torch.get_rng_state(), state)
    for name, parameter in first.items():
        assert torch.isfinite(parameter).all() and not parameter.requires_grad, name
        assert torch.equal(parameter, again[name]), name
        assert torch.equal(parameter, other[name]) == name.endswith("norm.weight"), name


def test_moe_blocks_are_replaced_and_no_expert_takes_memory():
    asked = []

    def moe_layer(block: int) -> nn.Module:
        asked.append(block)
        return Halve()

    encoder = build(moe_layer)
    assert asked == MODEL.moe_blocks == [1, 3]
    replaced = [isinstance(block.layer[-1].mlp, Halve) for block in encoder.encoder.block]
    assert replaced == [False, True, False, True]
    attention, feed_forward, norms = 4 * (4 * 16 * 16), 2 * (2 * 16 * 32), 9 * 16
    expected = 40 * 16 + 32 * 2 + attention + feed_forward + norms  # 32 buckets of relative positions, 2 heads
    assert sum(parameter.numel() for parameter in encoder.parameters()) == expected
    assert all(parameter.device.type == "cpu" for parameter in encoder.parameters())
    assert encoder.shared.weight is encoder.encoder.embed_tokens.weight


def test_moe_layers_see_hidden_states():
    layers = {}
    encoder = build(lambda block: layers.setdefault(block, Halve()))
    with torch.inference_mode():
        output = encoder(input_ids=token_ids())
    assert output.last_hidden_state.shape == (B, L, 16)
    assert {block: layer.seen for block, layer in layers.items()} == {1: (B, L, 16), 3: (B, L, 16)}


def test_dtype():
    encoder = build(dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in encoder.parameters()} == {torch.bfloat16}
    with torch.inference_mode():
        assert encoder(input_ids=token_ids()).last_hidden_state.dtype == torch.bfloat16


@pytest.mark.parametrize(("num_blocks", "sparse_step", "blocks"), [(3, 1, [0, 1, 2]), (5, 2, [1, 3]), (7, 3, [1, 4])])
def test_which_blocks_are_sparse(num_blocks, sparse_step, blocks):
    model = ModelShape(4, 16, 32, 8, 2, num_blocks, sparse_step, 40)
    encoder = build(model=model)
    assert [i for i, block in enumerate(encoder.encoder.block) if isinstance(block.layer[-1].mlp, Halve)] == blocks


def hugging_face(kind: type) -> Any:
    """Hugging Face's model with the sizes of MODEL, other seed, and a capacity that drops nothing."""
    torch.manual_seed(7)
    config = SwitchTransformersConfig(
        vocab_size=40,
        d_model=16,
        d_kv=8,
        d_ff=32,
        num_heads=2,
        num_layers=4,
        num_sparse_encoder_layers=2,
        num_decoder_layers=2,
        num_sparse_decoder_layers=1,
        num_experts=4,
        expert_capacity=10**6,
    )
    return kind(config).eval()


@pytest.mark.parametrize("max_shard_size", ["1GB", "10KB"], ids=["single_file", "sharded"])
@pytest.mark.parametrize("kind", [SwitchTransformersEncoderModel, SwitchTransformersForConditionalGeneration])
def test_equals_hugging_face_on_its_own_checkpoint(tmp_path, kind, max_shard_size, nan_where_nothing_was_written):
    theirs = hugging_face(kind)
    theirs.save_pretrained(tmp_path, max_shard_size=max_shard_size)
    checkpoint = open_checkpoint(str(tmp_path))
    checkpoint.check(MODEL)
    layers = {block: CheckpointLayer(MODEL, block, checkpoint, torch.float32, CPU) for block in MODEL.moe_blocks}
    router = LearnedRouter(classifier=lambda block: layers[block].router())
    recorder = Recorder(HostClock(), align=lambda: None)
    group: Any = SimpleNamespace(rank=lambda: 0, size=lambda: 1)

    def moe_layer(block: int) -> MoELayer:
        layer = MoELayer(block, router, recorder)
        layer.system = Dense(
            shape=LayerShape(4, 16, 32, B * L), weights=layers[block], group=group, engine=find_engine("grouped")
        )
        return layer

    ours = build(moe_layer, checkpoint=checkpoint)
    with torch.inference_mode():
        expected_BLD = theirs.get_encoder()(input_ids=token_ids()).last_hidden_state
        output_BLD = ours(input_ids=token_ids()).last_hidden_state
    torch.testing.assert_close(output_BLD, expected_BLD, rtol=1e-5, atol=1e-5)
    for block in MODEL.moe_blocks:
        counts_E = ours.encoder.block[block].layer[-1].mlp.routing.tokens_per_expert(4)
        assert int(counts_E.sum()) == B * L and int((counts_E > 0).sum()) > 1


def test_an_attention_mask_is_refused():
    encoder = build_encoder(MODEL, lambda block: nn.Identity(), seed=0, dtype=torch.float32, device=torch.device("cpu"))
    with pytest.raises(ValueError, match="whole sequences"):
        encoder(input_ids=torch.zeros(1, 4, dtype=torch.int64), attention_mask=torch.ones(1, 4))
