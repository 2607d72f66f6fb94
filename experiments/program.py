"""The program of one rank: the model of a workload, in whose MoE layers whichever system is put there computes."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from clusters.session import Session
from experiments.configuration import build_router, layer_shape, set_precision, token_source
from experiments.moe_layer import MoELayer
from experiments.recorder import Recorder
from experiments.records import Workload
from routers.drawn import PROFILE_FROM
from systems.base import System
from systems.dense import Dense
from systems.engines import find_engine
from systems.engines.base import DTYPES
from workloads.checkpoint import Checkpoint, open_checkpoint
from workloads.decoder import build_decoder
from workloads.encoder import build_encoder
from workloads.regimes import REGIMES
from workloads.weights import CheckpointLayer, Layer, SeededLayer, ShapedLayer, SharedLayer

SMALL_BYTES = 2**28  # on the host, which ranks share
SMALL_SHARE = 1 / 32  # of a GPU, which emulated ranks share
BEFORE = 3 * PROFILE_FROM  # iterations from here on are drawn for tokens before those of a pass


class Start(NamedTuple):
    """What a pass starts from: embedded tokens [B, L, D], and of a decoding step the KV cache of those before."""

    embedded_BLD: torch.Tensor
    state: Any


class Program:
    """Weights, router, model and tokens; its MoE layers are told of by their blocks."""

    def __init__(self, workload: Workload, session: Session, recorder: Recorder, cache_dir: str) -> None:
        self.workload, self.session, self.recorder = workload, session, recorder
        self.dtype, self.device, self.shape = DTYPES[workload.precision], session.device, layer_shape(workload)
        self.num_tokens = workload.tokens_G[session.rank]  # in one pass; up to shape.max_tokens
        set_precision(workload.precision)
        model = workload.model
        checkpoint = open_checkpoint(model.checkpoint) if model.checkpoint else None
        self.weights = {block: self._weights(block, checkpoint) for block in model.moe_blocks}
        # A described device has one system, whose engine keeps the weights in a layout of its own.
        alone = self.device.type == "meta"
        self._shared = {block: layer if alone else SharedLayer(layer) for block, layer in self.weights.items()}
        # The oracle's own copy: a system that changed the shared one in place would be compared with itself.
        self.oracle_weights = {block: SharedLayer(layer) for block, layer in self.weights.items()}
        classifier = None if model.is_decoder else lambda block: self.weights[block].router()
        self.router = build_router(workload, rank=session.rank, classifier=classifier)
        self.layers: dict[int, MoELayer] = {}
        for block in model.moe_blocks:
            before = next(reversed(self.layers.values()), None)
            self.layers[block] = MoELayer(block, self.router, recorder, before, wait=model.wait_for_layers)
        build = build_decoder if model.is_decoder else build_encoder
        self.module = build(
            model,
            self.layers.__getitem__,
            seed=workload.seed,
            dtype=self.dtype,
            device=self.device,
            checkpoint=checkpoint,
        )
        self._regime = REGIMES[model.regime(workload.regime)]
        self._state: tuple[int, Any] = (-1, None)  # of the last iteration alone: a KV cache may be half of a device
        self.references = {block: self._reference(block) for block in self.layers}
        self._tokens = token_source(workload, cache_dir)

    def _weights(self, block: int, checkpoint: Checkpoint | None) -> Layer:
        model = self.workload.model
        if self.device.type == "meta":
            return ShapedLayer(model, self.dtype, self.device)
        if checkpoint:
            return CheckpointLayer(model, block, checkpoint, self.dtype, self.device)
        return SeededLayer(model, block, self.workload.seed, self.dtype, self.device)

    def _reference(self, block: int) -> Dense:
        """The dense model of a layer, one expert after another: what checks, profiles and KV caches go by."""
        engine = find_engine("loop", self.shape.activation)
        weights = (self.oracle_weights if self.keeps_every_expert else self.weights)[block]
        return Dense(resident=False, shape=self.shape, weights=weights, group=self.session.group, engine=engine)

    @property
    def keeps_every_expert(self) -> bool:
        """Whether a rank may keep all experts for the dense model instead of making them anew at every use."""
        expert_bytes = self.shape.expert_elements(self.shape.d_ff) * self.dtype.itemsize
        small = SMALL_BYTES
        if self.device.type == "cuda":
            small = SMALL_SHARE * torch.cuda.get_device_properties(self.device).total_memory
        return self.device.type != "meta" and len(self.layers) * self.shape.num_experts * expert_bytes <= small

    def given(self, block: int) -> dict[str, Any]:
        """What every system of a block is built with, beside its engine, the shape and its own options."""
        return {"weights": self._shared[block], "group": self.session.group, "span": self.recorder.span}

    def forward(self, systems: Mapping[int, System], start: Start, iteration: int) -> torch.Tensor:
        """The model's output with these systems, by block; what each layer was routed is in the layer."""
        self._place(systems, iteration)
        return self._regime.run(self.module, start.embedded_BLD, start.state)

    def _place(self, systems: Mapping[int, Any], iteration: int) -> None:
        for block, layer in self.layers.items():
            layer.system, layer.iteration = systems[block], iteration

    def start(self, iteration: int) -> Start:
        """The model's input on this rank; a cache that the pass starts from is made now if the last had another."""
        tokens_BL = torch.from_numpy(self.token_batch(iteration))
        embedded_BLD = self.module.get_input_embeddings()(tokens_BL.to(self.device))
        if self._state[0] != iteration:
            self._state = (-1, None)
            self._state = iteration, self._prepared(embedded_BLD, iteration)
        return Start(embedded_BLD, self._state[1])

    def _prepared(self, embedded_BLD: torch.Tensor, iteration: int) -> Any:
        """What a pass of this iteration starts from, whichever system it has; nothing of it is recorded."""
        self._place(self.references, BEFORE + iteration)
        observing, self.recorder.observing = self.recorder.observing, False
        state = self._regime.prepare(self.module, embedded_BLD)
        self.recorder.observing = observing
        return state

    def token_batch(self, iteration: int) -> NDArray[np.int64]:
        """The tokens [B, L] of this rank: where ranks have unequal batches, the first of a whole one."""
        workload = self.workload
        whole_BL = self._tokens.batch(
            rank=self.session.rank,
            iteration=iteration,
            world_size=self.session.world_size,
            batch_size=workload.batch_size,
            seq_len=workload.seq_len,
            seed=workload.seed,
        )
        return whole_BL[: workload.sequences_G[self.session.rank]]

    def prefetch(self, iteration: int) -> None:
        """Let routers draw beforehand what is not to be timed."""
        like = torch.empty(0, dtype=self.dtype, device=self.device)
        for block in self.layers:
            self.router.prefetch(self.num_tokens, layer=block, iteration=iteration, like=like)
