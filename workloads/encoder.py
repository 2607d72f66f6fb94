"""Hugging Face's Switch encoder with our MoE layers in place of its sparse MLPs, and fused attention."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, SwitchTransformersConfig, SwitchTransformersEncoderModel

from workloads.checkpoint import Checkpoint
from workloads.model import ModelShape

ATTENTION = "fused_with_position_bias"


def fused_attention(
    module: nn.Module,
    query_BHLd: torch.Tensor,
    key_BHLd: torch.Tensor,
    value_BHLd: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    position_bias: torch.Tensor,
    scaling: float,
    **unused: Any,
) -> tuple[torch.Tensor, None]:
    """Switch's attention by torch's fused kernels, which add the position bias [1, H, L, L]; returns [B, L, H, d].

    Sequences are whole: the model's mask, all zeros, would only make a copy of the bias for each of them.
    """
    bias_1HLL = position_bias.contiguous()  # GPU kernels take no other
    y_BHLd = scaled_dot_product_attention(query_BHLd, key_BHLd, value_BHLd, attn_mask=bias_1HLL, scale=scaling)
    return y_BHLd.transpose(1, 2), None


AttentionInterface.register(ATTENTION, fused_attention)


def _refuse_mask(encoder: nn.Module, inputs: tuple, named: dict[str, Any]) -> None:
    if len(inputs) > 1 or named.get("attention_mask") is not None:
        raise ValueError("this encoder takes whole sequences, and was given an attention_mask")


def build_encoder(
    model: ModelShape,
    moe_layer: Callable[[int], nn.Module],
    *,
    seed: int,
    dtype: torch.dtype,
    device: torch.device,
    checkpoint: Checkpoint | None = None,
) -> SwitchTransformersEncoderModel:
    """The encoder in evaluation mode; `moe_layer(block)` maps hidden states [B, L, D] to [B, L, D].

    It is built without memory, its sparse MLPs are replaced before their experts would take any, and the rest is
    initialised from the seed (the same on every rank) or read from the checkpoint.
    """
    config = SwitchTransformersConfig(
        vocab_size=model.vocab_size,
        d_model=model.d_model,
        d_kv=model.d_kv,
        d_ff=model.d_ff,
        num_heads=model.num_heads,
        num_layers=model.num_blocks,
        num_sparse_encoder_layers=len(model.moe_blocks),
        num_experts=1,
        dropout_rate=0.0,
        attn_implementation=ATTENTION if model.attention == "fused" else "eager",  # pyright: ignore[reportCallIssue]
    )
    config.encoder_sparse_step = model.sparse_step
    with torch.device("meta"):
        encoder = SwitchTransformersEncoderModel(config)
    blocks = [index for index, block in enumerate(encoder.encoder.block) if block.is_sparse]
    assert blocks == model.moe_blocks, (blocks, model.moe_blocks)
    for index in blocks:
        block: Any = encoder.encoder.block[index]
        block.layer[-1].mlp = moe_layer(index)
        if index and hasattr(block.layer[-1].mlp, "begin_ahead"):
            _tell_ahead(encoder.encoder.block[index - 1], block.layer[-1])
    encoder.to_empty(device=device)
    encoder.tie_weights()
    if device.type != "meta":  # which holds no values
        _initialise(encoder, seed) if checkpoint is None else _read(encoder, checkpoint)
    nn.Module.to(encoder, dtype=dtype)
    encoder.register_forward_pre_hook(_refuse_mask, with_kwargs=True)
    return encoder.eval().requires_grad_(False)


def _tell_ahead(before: Any, feed_forward: Any) -> None:
    """Let an MoE layer know what the block before has after its attention, and when it is through."""
    layer = feed_forward.mlp

    def after_attention(module: nn.Module, given: Any, found: Any) -> None:
        if layer.looks_ahead:
            layer.begin_ahead(feed_forward.layer_norm(found[0]))

    def after_block(module: nn.Module, given: Any, found: Any) -> None:
        if layer.looks_ahead:
            layer.system.go_on()

    before.layer[0].register_forward_hook(after_attention)
    before.register_forward_hook(after_block)


def _initialise(encoder: SwitchTransformersEncoderModel, seed: int) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        encoder.apply(encoder._init_weights)  # children first: a block's own rule wins over that of a linear layer


def _read(encoder: SwitchTransformersEncoderModel, checkpoint: Checkpoint) -> None:
    for name, parameter in encoder.named_parameters():
        stored = checkpoint.read(name)
        assert stored.shape == parameter.shape, (name, stored.shape, parameter.shape)
        parameter.data.copy_(stored)
