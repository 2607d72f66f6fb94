"""Expert weights: a rank makes or reads only what its system places there.

Expert e of block l is a function of (seed, l, e), or a slice of a checkpoint, so every system holds the same model.
"""

import hashlib
import os
from abc import ABC, abstractmethod
from collections.abc import Hashable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch

from systems.engines.activations import ACTIVATIONS
from workloads.checkpoint import Checkpoint
from workloads.layouts import read_expert, router_name
from workloads.model import ModelShape

Experts = tuple[torch.Tensor, ...]  # wi and wo, and where experts have biases bi and bo
BIAS = 0.02  # standard deviation of seeded biases, as decoders are initialised
MOST_THREADS = 8  # of a rank that draws or reads experts


class Layer(ABC):
    """The expert weights of one block, of which only what is asked for is made; few whole experts exist at a time."""

    model: ModelShape
    dtype: torch.dtype
    device: torch.device

    def experts(self, expert_ids: list[int]) -> Experts:
        """(wi_eDI, wo_eFD[, bi_eI, bo_eD]) of whole experts, as `systems.base.LayerWeights` has them."""
        return self._stack(expert_ids, slice(0, self.model.d_ff))

    def shard(self, index: int, count: int, expert_ids: list[int] | None = None) -> Experts:
        """The same of hidden units index*F/count ... of these experts, or all; b_o is with the first, else zeros."""
        width, every = self.model.d_ff // count, list(range(self.model.num_experts))
        hidden = slice(index * width, (index + 1) * width)
        wi, wo, *biases = self._stack(every if expert_ids is None else expert_ids, hidden)
        if index:
            biases[1:] = [bias.zero_() for bias in biases[1:]]
        return wi, wo, *biases

    @abstractmethod
    def router(self) -> torch.Tensor:
        """[E, D], float32."""

    @abstractmethod
    def _expert(self, expert: int, hidden: slice) -> Experts:
        """(wi_DI, wo_FD[, bi_I, bo_D]) of some hidden units, of any type, on the CPU."""

    def _empty(self, num_experts: int, hidden: slice) -> Experts:
        """Room for so many hidden units of so many experts."""
        model, width = self.model, hidden.stop - hidden.start
        in_width = ACTIVATIONS[model.activation].in_width(width)
        sizes = [(model.d_model, in_width), (width, model.d_model), (in_width,), (model.d_model,)]
        kept = sizes if model.biased else sizes[:2]
        return tuple(torch.empty(num_experts, *size, dtype=self.dtype, device=self.device) for size in kept)

    def _stack(self, expert_ids: list[int], hidden: slice) -> Experts:
        stacked = self._empty(len(expert_ids), hidden)

        def place(at: int) -> None:
            with torch.inference_mode(stacked[0].is_inference()):  # a thread's own mode is another
                for tensor, own in zip(stacked, self._expert(expert_ids[at], hidden), strict=True):
                    tensor[at] = own

        # A GPU's host has many cores and nothing else to do meanwhile; drawing is most of a launch's building.
        with ThreadPoolExecutor(min(MOST_THREADS, len(os.sched_getaffinity(0)))) as threads:
            list(threads.map(place, range(len(expert_ids))))
        return stacked


@dataclass(frozen=True)
class SeededLayer(Layer):
    """Normal weights with the standard deviations of Switch's initialisation, drawn expert by expert on the CPU."""

    model: ModelShape
    block: int
    seed: int
    dtype: torch.dtype
    device: torch.device

    def router(self) -> torch.Tensor:
        generator = _generator(self.seed, self.block, "router")
        return torch.randn(self.model.num_experts, self.model.d_model, generator=generator) * self.model.d_model**-0.5

    def _expert(self, expert: int, hidden: slice) -> Experts:
        d_model, d_ff = self.model.d_model, self.model.d_ff
        activation, generator = ACTIVATIONS[self.model.activation], _generator(self.seed, self.block, expert)
        wi_DI = torch.randn(d_model, activation.in_width(d_ff), generator=generator) * d_model**-0.5
        wo_FD = torch.randn(d_ff, d_model, generator=generator) * d_ff**-0.5
        weights = activation.units(wi_DI, hidden), wo_FD[hidden]
        if not self.model.biased:
            return weights
        bi_I, bo_D = (torch.randn(size, generator=generator) * BIAS for size in (wi_DI.shape[1], d_model))
        return *weights, activation.units(bi_I, hidden), bo_D


@dataclass(frozen=True)
class CheckpointLayer(Layer):
    """Slices of safetensors: of a shard only its hidden units are read from the file."""

    model: ModelShape
    block: int
    checkpoint: Checkpoint
    dtype: torch.dtype
    device: torch.device

    def router(self) -> torch.Tensor:
        return self.checkpoint.read(router_name(self.block)).float()

    def _expert(self, expert: int, hidden: slice) -> Experts:
        return read_expert(self.checkpoint, self.model, self.block, expert, hidden)


@dataclass(frozen=True)
class ShapedLayer(Layer):
    """Weights that have sizes and no content, for a device that holds none (torch's `meta`)."""

    model: ModelShape
    dtype: torch.dtype
    device: torch.device

    def router(self) -> torch.Tensor:
        return torch.empty(self.model.num_experts, self.model.d_model, device=self.device)

    def _expert(self, expert: int, hidden: slice) -> Experts:
        raise NotImplementedError  # `_stack` needs no single ones

    def _stack(self, expert_ids: list[int], hidden: slice) -> Experts:
        return self._empty(len(expert_ids), hidden)


class SharedLayer:
    """Remembers what it gave, so that systems with the same placement hold one copy."""

    def __init__(self, layer: Layer) -> None:
        self._layer = layer
        self._given: dict[Hashable, Experts] = {}

    def experts(self, expert_ids: list[int]) -> Experts:
        key = tuple(expert_ids)
        if key not in self._given:
            self._given[key] = self._layer.experts(expert_ids)
        return self._given[key]

    def shard(self, index: int, count: int, expert_ids: list[int] | None = None) -> Experts:
        key = ("shard", index, count, None if expert_ids is None else tuple(expert_ids))
        if key not in self._given:
            self._given[key] = self._layer.shard(index, count, expert_ids)
        return self._given[key]


def _generator(*key: object) -> torch.Generator:
    digest = hashlib.sha256(repr(key).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little", signed=True))
