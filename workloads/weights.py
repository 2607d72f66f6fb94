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

from workloads.checkpoint import Checkpoint, expert_name, router_name
from workloads.model import ModelShape

Pair = tuple[torch.Tensor, torch.Tensor]
MOST_THREADS = 8  # of a rank that draws or reads experts


class Layer(ABC):
    """The expert weights of one block, of which only what is asked for is made; few whole experts exist at a time."""

    model: ModelShape
    dtype: torch.dtype
    device: torch.device

    def experts(self, expert_ids: list[int]) -> Pair:
        """(wi_eDF, wo_eFD) of whole experts."""
        return self._stack(expert_ids, slice(0, self.model.d_ff))

    def shard(self, index: int, count: int) -> Pair:
        """(wi_EDf, wo_EfD): hidden units index*F/count ... of every expert."""
        width = self.model.d_ff // count
        return self._stack(list(range(self.model.num_experts)), slice(index * width, (index + 1) * width))

    @abstractmethod
    def router(self) -> torch.Tensor:
        """[E, D], float32."""

    @abstractmethod
    def _expert(self, expert: int, hidden: slice) -> Pair:
        """(wi_Df, wo_fD) of some hidden units, of any type, on the CPU."""

    def _stack(self, expert_ids: list[int], hidden: slice) -> Pair:
        width = hidden.stop - hidden.start
        wi_eDF = torch.empty(len(expert_ids), self.model.d_model, width, dtype=self.dtype, device=self.device)
        wo_eFD = torch.empty(len(expert_ids), width, self.model.d_model, dtype=self.dtype, device=self.device)

        def place(at: int) -> None:
            with torch.inference_mode(wi_eDF.is_inference()):  # a thread's own mode is another
                wi_eDF[at], wo_eFD[at] = self._expert(expert_ids[at], hidden)

        # A GPU's host has many cores and nothing else to do meanwhile; drawing is most of a launch's building.
        with ThreadPoolExecutor(min(MOST_THREADS, len(os.sched_getaffinity(0)))) as threads:
            list(threads.map(place, range(len(expert_ids))))
        return wi_eDF, wo_eFD


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

    def _expert(self, expert: int, hidden: slice) -> Pair:
        d_model, d_ff = self.model.d_model, self.model.d_ff
        generator = _generator(self.seed, self.block, expert)
        wi_DF = torch.randn(d_model, d_ff, generator=generator) * d_model**-0.5
        wo_FD = torch.randn(d_ff, d_model, generator=generator) * d_ff**-0.5
        return wi_DF[:, hidden], wo_FD[hidden]


@dataclass(frozen=True)
class CheckpointLayer(Layer):
    """Slices of safetensors: a shard reads F/count rows of each W_i and columns of each W_o from the file."""

    model: ModelShape
    block: int
    checkpoint: Checkpoint
    dtype: torch.dtype
    device: torch.device

    def router(self) -> torch.Tensor:
        return self.checkpoint.read(router_name(self.block)).float()

    def _expert(self, expert: int, hidden: slice) -> Pair:
        wi_FD = self.checkpoint.read(expert_name(self.block, expert, "wi"), rows=hidden)
        wo_DF = self.checkpoint.read(expert_name(self.block, expert, "wo"), columns=hidden)
        return wi_FD.T, wo_DF.T


@dataclass(frozen=True)
class ShapedLayer(Layer):
    """Weights that have sizes and no content, for a device that holds none (torch's `meta`)."""

    model: ModelShape
    dtype: torch.dtype
    device: torch.device

    def router(self) -> torch.Tensor:
        return torch.empty(self.model.num_experts, self.model.d_model, device=self.device)

    def _expert(self, expert: int, hidden: slice) -> Pair:
        raise NotImplementedError  # `_stack` needs no single ones

    def _stack(self, expert_ids: list[int], hidden: slice) -> Pair:
        sizes = (len(expert_ids), self.model.d_model, hidden.stop - hidden.start)
        wi_eDF = torch.empty(*sizes, dtype=self.dtype, device=self.device)
        return wi_eDF, wi_eDF.new_empty(sizes[0], sizes[2], sizes[1])


class SharedLayer:
    """Remembers what it gave, so that systems with the same placement hold one copy."""

    def __init__(self, layer: Layer) -> None:
        self._layer = layer
        self._given: dict[Hashable, Pair] = {}

    def experts(self, expert_ids: list[int]) -> Pair:
        key = tuple(expert_ids)
        if key not in self._given:
            self._given[key] = self._layer.experts(expert_ids)
        return self._given[key]

    def shard(self, index: int, count: int) -> Pair:
        key = ("shard", index, count)
        if key not in self._given:
            self._given[key] = self._layer.shard(index, count)
        return self._given[key]


def _generator(*key: object) -> torch.Generator:
    digest = hashlib.sha256(repr(key).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little", signed=True))
