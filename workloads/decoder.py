"""Hugging Face's MoE decoders with our MoE layers in place of their experts.

Attention, norms, gates, shared experts and leading dense layers are Hugging Face's own modules. An MoE layer of ours is
called as their experts are: hidden states [T, D], and the experts and weights [T, K] that the model's gate chose.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from importlib import import_module
from threading import Lock
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from workloads.checkpoint import Checkpoint
from workloads.families import hugging_face_config
from workloads.layouts import stored_name
from workloads.model import ModelShape
from workloads.regimes import Prefill

BUILDING = Lock()  # of one decoder at a time in this process, whose ranks may be threads


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
    if blocks != model.moe_blocks:
        raise ValueError(
            f"model.settings put MoE layers into blocks {blocks}; the sizes want them in {model.moe_blocks}"
        )
    for at in blocks:
        mlp = decoder.model.layers[at].mlp
        mlp.experts = moe_layer(at)
        gate = mlp.gate if hasattr(mlp, "gate") else mlp.router
        gate.register_forward_hook(partial(_hand_over_scores, mlp.experts))
    decoder.to_empty(device=device)
    decoder.tie_weights()
    if device.type != "meta":  # which holds no values
        _initialise(decoder, seed)
    if checkpoint is not None and device.type != "meta":
        _read(decoder, checkpoint, model.family)
    return decoder.eval().requires_grad_(False)


def check_decoder(model: ModelShape, checkpoint: Checkpoint | None) -> None:
    """Raise ValueError, in one sentence, for a model that cannot be built, run or read: by trying it without values."""
    meta = torch.device("meta")
    decoder: Any = build_decoder(model, lambda block: _Unchanged(), seed=0, dtype=torch.float32, device=meta)
    try:
        with torch.inference_mode():
            Prefill().run(decoder, torch.empty(1, 2, model.d_model, device=meta), None)
    except (RuntimeError, TypeError, ValueError, ArithmeticError) as error:
        said = " ".join(str(error).split())
        raise ValueError(f"the sizes and model.settings of this {model.family} do not fit together: {said}") from error
    if checkpoint is not None:
        for _ in _stored(decoder, checkpoint, model.family):
            pass


def _hand_over_scores(experts: Any, gate: nn.Module, given: Any, found: Any) -> None:
    """A gate gives its scores [T, E] with weights and experts; experts are told of the latter two only."""
    experts.scores_TE = found[0] if isinstance(found, tuple) and len(found) == 3 else None


class _Unchanged(nn.Module):
    """Takes the place of experts whose results do not matter."""

    def forward(self, hidden: torch.Tensor, *chosen: torch.Tensor) -> torch.Tensor:
        return hidden


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
    """All but the experts."""
    for tensor, stored in _stored(decoder, checkpoint, family):
        tensor.copy_(checkpoint.read(stored))


def _stored(decoder: Any, checkpoint: Checkpoint, family: str) -> Iterator[tuple[torch.Tensor, str]]:
    """Tensors of the decoder and what they are called; ValueError naming what is missing or of another size."""
    for name, tensor in decoder.state_dict().items():
        stored = stored_name(family, name)
        if stored not in checkpoint and name == "lm_head.weight":  # which is that of the embedding
            stored = "model.embed_tokens.weight"
        found = checkpoint.size(stored) if stored in checkpoint else "missing"
        if found != list(tensor.shape):
            raise ValueError(
                f"checkpoint {checkpoint.folder}: {stored} is {found}; {family} wants {list(tensor.shape)}"
            )
        yield tensor, stored
