"""Hugging Face's MoE decoders with our MoE layers in place of their experts.

Attention, norms, gates, shared experts and leading dense layers are Hugging Face's own modules. An MoE layer of ours is
called as their experts are: hidden states [T, D], and the experts and weights [T, K] that the model's gate chose.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from threading import Lock
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from workloads.checkpoint import Checkpoint
from workloads.layouts import stored_name
from workloads.model import ModelShape

BUILDING = Lock()  # of one decoder at a time in this process, whose ranks may be threads


@dataclass(frozen=True)
class Family:
    """What a family's configuration calls the sizes that every family has; the others are called alike."""

    num_experts: str
    d_ff: str = "moe_intermediate_size"
    dense_blocks: str | None = None
    head_dim: str | None = "head_dim"


FAMILIES = {
    "mixtral": Family("num_local_experts", d_ff="intermediate_size"),
    "olmoe": Family("num_experts", d_ff="intermediate_size", head_dim=None),
    "qwen2_moe": Family("num_experts", head_dim=None),
    "qwen3_moe": Family("num_experts"),
    "deepseek_v3": Family("n_routed_experts", dense_blocks="first_k_dense_replace", head_dim=None),
    "glm4_moe": Family("n_routed_experts", dense_blocks="first_k_dense_replace"),
    "gpt_oss": Family("num_local_experts", d_ff="intermediate_size"),
    "minimax_m2": Family("num_local_experts", d_ff="intermediate_size"),
}


def hugging_face_config(model: ModelShape) -> PretrainedConfig:
    """The configuration of a model; ValueError, in one sentence, for sizes that the family cannot have."""
    family = FAMILIES[model.family]
    if model.sparse_step != 1 or (model.dense_blocks and not family.dense_blocks):
        asked = f"model.sparse_step {model.sparse_step} and model.dense_blocks {model.dense_blocks}"
        least = "" if family.dense_blocks else " and no dense ones"
        raise ValueError(f"{model.family} has {asked}; it must have a sparse_step of 1{least}")
    sizes = {
        "vocab_size": model.vocab_size,
        "hidden_size": model.d_model,
        "num_hidden_layers": model.num_blocks,
        "num_attention_heads": model.num_heads,
        "num_experts_per_tok": model.top_k,
        family.num_experts: model.num_experts,
        family.d_ff: model.d_ff,
    }
    sizes |= {family.head_dim: model.d_kv} if family.head_dim else {}
    sizes |= {family.dense_blocks: model.dense_blocks} if family.dense_blocks else {}
    sizes |= dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"))  # of another vocabulary; none is used
    try:
        return AutoConfig.for_model(model.family, **{**model.settings, **sizes})
    except (TypeError, ValueError) as error:
        raise ValueError(f"model.settings are none of {model.family}'s: {' '.join(str(error).split())}") from error


def build_decoder(
    model: ModelShape,
    moe_layer: Callable[[int], nn.Module],
    *,
    seed: int,
    dtype: torch.dtype,
    device: torch.device,
    checkpoint: Checkpoint | None = None,
) -> PreTrainedModel:
    """The decoder with its head in evaluation mode; `moe_layer(block)` takes the place of a block's experts.

    It is built without its experts and without memory, and the rest is initialised from the seed, the same on every
    rank, or read from the checkpoint.
    """
    config = hugging_face_config(model)
    attention = "sdpa" if model.attention == "fused" and model.family != "gpt_oss" else "eager"
    with torch.device("meta"), _no_experts(config):
        decoder = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation=attention)
    blocks = [at for at, block in enumerate(decoder.model.layers) if hasattr(block.mlp, "experts")]
    assert blocks == model.moe_blocks, (blocks, model.moe_blocks)
    for at in blocks:
        decoder.model.layers[at].mlp.experts = moe_layer(at)
    decoder.to_empty(device=device)
    decoder.tie_weights()
    if device.type != "meta":  # which holds no values
        _initialise(decoder, seed)
    if checkpoint is not None and device.type != "meta":
        _read(decoder, checkpoint, model.family)
    return decoder.eval().requires_grad_(False)


@contextmanager
def _no_experts(config: PretrainedConfig) -> Iterator[None]:
    """Decoders are built with nothing where their experts will be; a described device would have no room for all."""
    modeling = import_module(AutoModelForCausalLM._model_mapping[type(config)].__module__)
    known = {name: kind for name, kind in vars(modeling).items() if name.endswith("Experts")}
    with BUILDING:
        for name in known:
            setattr(modeling, name, lambda config: nn.Identity())
        try:
            yield
        finally:
            for name, kind in known.items():
                setattr(modeling, name, kind)


def _initialise(decoder: Any, seed: int) -> None:
    """Weights by the family's own rules; buffers such as rotary frequencies too, which no checkpoint has."""
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(seed)
        decoder.apply(decoder._init_weights)


@torch.no_grad()
def _read(decoder: Any, checkpoint: Checkpoint, family: str) -> None:
    """All but the experts; ValueError naming what is missing or of another size."""
    for name, tensor in decoder.state_dict().items():
        stored = stored_name(family, name)
        if stored not in checkpoint and name == "lm_head.weight":  # which is that of the embedding
            stored = "model.embed_tokens.weight"
        found = checkpoint.size(stored) if stored in checkpoint else "missing"
        if found != list(tensor.shape):
            raise ValueError(
                f"checkpoint {checkpoint.folder}: {stored} is {found}; {family} wants {list(tensor.shape)}"
            )
        tensor.copy_(checkpoint.read(stored))
