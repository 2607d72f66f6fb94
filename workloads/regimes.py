"""What a model is asked for in one timed pass: to encode, to read a prompt, or to give one more token.

Letters in names: B sequences, L tokens of a sequence, D d_model.
"""

from abc import ABC, abstractmethod
from copy import copy
from typing import Any

import torch
from transformers import DynamicCache

from workloads.model import DECODE, ENCODE, PREFILL


class Regime(ABC):
    """`prepare` is outside the time of a pass and `run` is the pass; both get embedded tokens [B, L, D]."""

    def prepare(self, module: Any, embedded_BLD: torch.Tensor) -> Any:
        """What a pass starts from."""
        return None

    @abstractmethod
    def run(self, module: Any, embedded_BLD: torch.Tensor, state: Any) -> torch.Tensor:
        """The last hidden states [B, L, D] of the tokens that the pass is given."""


class Encode(Regime):
    """All tokens of a sequence at once, each attending to all: one full forward pass of an encoder."""

    def run(self, module: Any, embedded_BLD: torch.Tensor, state: Any) -> torch.Tensor:
        return module(inputs_embeds=embedded_BLD).last_hidden_state


class Prefill(Regime):
    """A prompt of L tokens into an empty KV cache, and the logits of what comes next: the time to the first token."""

    def run(self, module: Any, embedded_BLD: torch.Tensor, state: Any) -> torch.Tensor:
        cache = DynamicCache(config=module.config)
        return _last(module, embedded_BLD, cache)


class Decode(Regime):
    """The last of L tokens where a KV cache has the others: the time for one more token of each sequence.

    The cache is what a pass over them left, with whatever MoE layers the module had then; every pass starts from it.
    """

    def prepare(self, module: Any, embedded_BLD: torch.Tensor) -> Any:
        cache = DynamicCache(config=module.config)
        before_BLD = embedded_BLD[:, :-1]
        if before_BLD.device.type != "meta":
            module.model(inputs_embeds=before_BLD, past_key_values=cache, use_cache=True)
            return cache
        module.model(inputs_embeds=before_BLD[:, :1], past_key_values=cache, use_cache=True)
        layers: list[Any] = cache.layers
        for layer in layers:  # of which only the sizes matter
            sizes = (*layer.keys.shape[:2], before_BLD.shape[1])
            layer.keys, layer.values = (x.new_empty(*sizes, x.shape[3]) for x in (layer.keys, layer.values))
        return cache

    def run(self, module: Any, embedded_BLD: torch.Tensor, state: Any) -> torch.Tensor:
        again = copy(state)
        again.layers = [copy(layer) for layer in state.layers]  # which get new tensors, and leave these as they are
        return _last(module, embedded_BLD[:, -1:], again)


def _last(module: Any, embedded_BLD: torch.Tensor, cache: DynamicCache) -> torch.Tensor:
    """Last hidden states, after the head has made logits of each sequence's last one."""
    hidden_BLD = module.model(inputs_embeds=embedded_BLD, past_key_values=cache, use_cache=True).last_hidden_state
    module.lm_head(hidden_BLD[:, -1])
    return hidden_BLD


REGIMES: dict[str, Regime] = {ENCODE: Encode(), PREFILL: Prefill(), DECODE: Decode()}
