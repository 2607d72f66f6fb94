"""What a model is asked for in one timed pass: to encode, to read a prompt, or to give one more token.

Letters in names: B sequences, L tokens of a sequence, D d_model.
"""

from abc import ABC, abstractmethod
from copy import copy
from typing import Any

import torch
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

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

    The cache is what a pass over them left, with whatever MoE layers the module had then. Every pass starts from it and
    writes the last token's place anew, as servers append to theirs; a window of attention is a small copy.
    """

    def prepare(self, module: Any, embedded_BLD: torch.Tensor) -> Any:
        """The cache of all tokens but the last; of a device without values only its sizes."""
        before_BLD = embedded_BLD[:, :-1]
        num_before, of_values = before_BLD.shape[1], before_BLD.device.type != "meta"
        cache: Any = DynamicCache(config=module.config)
        module.model(
            inputs_embeds=before_BLD if of_values else before_BLD[:, :1], past_key_values=cache, use_cache=True
        )
        if not of_values:  # of which only the sizes matter
            for layer in cache.layers:
                length = num_before
                if layer.is_sliding:  # it keeps a window and is asked for what it has seen
                    length, layer.cumulative_length = min(num_before, layer.sliding_window - 1), num_before
                sizes = (*layer.keys.shape[:2], length)
                layer.keys, layer.values = (x.new_empty(*sizes, x.shape[3]) for x in (layer.keys, layer.values))
        cache.layers = [layer if layer.is_sliding else _WithRoom(layer) for layer in cache.layers]
        return cache

    def run(self, module: Any, embedded_BLD: torch.Tensor, state: Any) -> torch.Tensor:
        again = copy(state)
        again.layers = [copy(layer) if layer.is_sliding else layer for layer in state.layers]
        return _last(module, embedded_BLD[:, -1:], again)


class _WithRoom(DynamicLayer):
    """Keys and values [B, heads, L, d] of a block, of which the last token's are written by every pass."""

    def __init__(self, layer: Any) -> None:
        super().__init__()
        self.keys, self.values = (torch.cat([x, x[:, :, -1:]], 2) for x in (layer.keys, layer.values))
        self.dtype, self.device, self.is_initialized = self.keys.dtype, self.keys.device, True

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        keys, values = self.keys, self.values
        assert keys is not None and values is not None
        keys[:, :, -1:], values[:, :, -1:] = key_states, value_states
        return keys, values

    def get_seq_length(self) -> int:
        """Tokens before the one that comes."""
        assert self.keys is not None
        return self.keys.shape[2] - 1


def _last(module: Any, embedded_BLD: torch.Tensor, cache: DynamicCache) -> torch.Tensor:
    """Last hidden states, after the head has made logits of each sequence's last one."""
    hidden_BLD = module.model(inputs_embeds=embedded_BLD, past_key_values=cache, use_cache=True).last_hidden_state
    module.lm_head(hidden_BLD[:, -1])
    return hidden_BLD


REGIMES: dict[str, Regime] = {ENCODE: Encode(), PREFILL: Prefill(), DECODE: Decode()}
