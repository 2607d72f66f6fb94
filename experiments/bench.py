"""One rank's side of a launch: the encoder, the systems that take turns in it, the check and the clock."""

import gc
from collections.abc import Callable, Iterable
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist

from clusters.session import Session
from experiments.cells import (
    DTYPES,
    TOLERANCES,
    build_router,
    find_class,
    instantiate,
    layer_shape,
    options,
    set_precision,
)
from experiments.moe_layer import MoELayer
from experiments.recorder import Recorder
from routers.base import Routing
from systems.base import System
from systems.collectives import all_gather
from systems.dense import Dense
from systems.engines import find_engine
from systems.engines.loop import LoopEngine
from workloads.batches import TokenSource
from workloads.checkpoint import open_checkpoint
from workloads.encoder import build_encoder
from workloads.weights import CheckpointLayer, SeededLayer, SharedLayer

Progress = Callable[[str], None]


class Bench:
    """A workload on one rank. Systems are added by cell id; each has one instance per MoE block."""

    def __init__(self, config: dict[str, Any], session: Session, cache_dir: str) -> None:
        self.config, self.session = config, session
        self.dtype, self.device = DTYPES[config["precision"]], session.device
        set_precision(config["precision"])
        model = instantiate(config["model"])
        checkpoint = open_checkpoint(model.checkpoint) if model.checkpoint else None
        self.weights = {
            block: CheckpointLayer(model, block, checkpoint, self.dtype, self.device)
            if checkpoint
            else SeededLayer(model, block, config["seed"], self.dtype, self.device)
            for block in model.moe_blocks
        }
        self.shared = {block: SharedLayer(layer) for block, layer in self.weights.items()}
        self.recorder = Recorder(session.clock)
        router = build_router(config, rank=session.rank, classifier=lambda block: self.weights[block].router())
        self.layers = {block: MoELayer(block, router, self.recorder) for block in model.moe_blocks}
        self.encoder = build_encoder(
            model,
            lambda block: self.layers[block],
            seed=config["seed"],
            dtype=self.dtype,
            device=self.device,
            checkpoint=checkpoint,
        )
        self.tokens = TokenSource(
            instantiate(config["corpus"]), model.vocab_size, cache_dir, checkpoint.folder if checkpoint else None
        )
        self.systems: dict[str, dict[int, System]] = {}
        self.routings: dict[tuple[str, int, int], Routing] = {}

    def add(self, cell: str, node: dict[str, Any], engine: str) -> None:
        """Build a system; a system that brings its own engine is given one that it does not use."""
        kind = find_class(node)
        shape = layer_shape(self.config)
        self.systems[cell] = {
            block: kind(
                **options(node),
                shape=shape,
                weights=self.shared[block],
                group=self.session.group,
                engine=LoopEngine() if kind.own_engine else find_engine(engine),
                span=self.recorder.span,
            )
            for block in self.layers
        }

    @torch.inference_mode()
    def verify(self, cell: str) -> dict[str, Any]:
        """Compare every MoE layer's output with the dense model's on the same input and routing, on all ranks.

        Dropped tokens must be as many as the system's account says and are left out of the comparison.
        """
        for layer in self.layers.values():
            layer.remember = True
        with self.session.clock.running():
            self._forward(cell, self._embed(0), 0)
            self.recorder.discard()
            errors, dropped = zip(*(self._layer_error(block) for block in self.layers), strict=True)
        for layer in self.layers.values():
            layer.remember, layer.seen = False, None
        tokens_BGE = self._count_tokens([(cell, block, 0) for block in self.layers])
        accounted = [
            self.systems[cell][block].account(tokens_GE, self.dtype.itemsize).dropped
            for block, tokens_GE in zip(self.layers, tokens_BGE, strict=True)
        ]
        largest = float(torch.tensor(errors).max())  # keeps NaN, which Python's max may lose
        mine = torch.tensor([[largest, float(list(dropped) != accounted)]], device=self.device)
        worst, miscounted = all_gather(mine, self.session.group).amax(0).tolist()
        tolerance = TOLERANCES[self.config["precision"]]
        passed = worst <= tolerance and not miscounted
        return {
            "relative_error": worst,
            "tolerance": tolerance,
            "dropped_as_accounted": not miscounted,
            "passed": passed,
        }

    @torch.inference_mode()
    def measure(self, schedule: Iterable[tuple[str, range]], phase: str, progress: Progress) -> None:
        """Run the schedule; `phase` is warmup, measure or sections (the last one observes sections)."""
        self.recorder.observing = phase == "sections"
        with _no_garbage_collection():
            order = 0
            for cell, iterations in schedule:
                progress(cell)
                for iteration in iterations:
                    self._prefetch(iteration)
                with self.session.clock.running():
                    for iteration in iterations:
                        self._timed_forward(cell, iteration, phase=phase, order=order)
                        order += 1
        self.recorder.observing = False

    def accounts(self, cell: str, iterations: int) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        """Rows of what this rank computed, dropped and sent, and of its tokens per expert, of every iteration."""
        keys = [(cell, block, iteration) for block in self.layers for iteration in range(iterations)]
        counted, routed = [], []
        for (_, block, iteration), tokens_GE in zip(keys, self._count_tokens(keys), strict=True):
            account = self.systems[cell][block].account(tokens_GE, self.dtype.itemsize)
            labels = {"cell": cell, "iteration": iteration, "layer": block}
            for metric, unit in (
                ("rows_computed", "rows"),
                ("rows_useful", "rows"),
                ("dropped", "tokens"),
                ("bytes_sent", "bytes"),
            ):
                counted.append(
                    {**labels, "phase": "measure", "metric": metric, "value": getattr(account, metric), "unit": unit}
                )
            tokens_E = tokens_GE[self.session.rank]
            for expert in tokens_E.nonzero().flatten().tolist():
                routed.append({**labels, "expert": expert, "tokens": int(tokens_E[expert])})
        return counted, routed

    def _timed_forward(self, cell: str, iteration: int, **labels: Any) -> None:
        embedded_BLD = self._embed(iteration)
        self._align()
        with self.recorder.iteration(cell=cell, iteration=iteration, **labels):
            self._forward(cell, embedded_BLD, iteration)

    def _forward(self, cell: str, embedded_BLD: torch.Tensor, iteration: int) -> torch.Tensor:
        for block, layer in self.layers.items():
            layer.system, layer.iteration = self.systems[cell][block], iteration
        hidden_BLD = self.encoder(inputs_embeds=embedded_BLD).last_hidden_state
        for block, layer in self.layers.items():
            assert layer.routing is not None
            self.routings[cell, block, iteration] = layer.routing
        return hidden_BLD

    def _align(self) -> None:
        """Bring the ranks together without waiting for the device: the start mark follows on the same stream."""
        dist.all_reduce(torch.zeros(1, device=self.device), group=self.session.group)

    def _embed(self, iteration: int) -> torch.Tensor:
        tokens_BL = self.tokens.batch(
            rank=self.session.rank,
            iteration=iteration,
            world_size=self.session.world_size,
            batch_size=self.config["batch_size"],
            seq_len=self.config["seq_len"],
            seed=self.config["seed"],
        )
        return self.encoder.get_input_embeddings()(torch.from_numpy(tokens_BL).to(self.device))

    def _prefetch(self, iteration: int) -> None:
        num_tokens = self.config["batch_size"] * self.config["seq_len"]
        like = torch.empty(0, dtype=self.dtype, device=self.device)
        for block, layer in self.layers.items():
            layer.router.prefetch(num_tokens, layer=block, iteration=iteration, like=like)

    def _layer_error(self, block: int) -> tuple[float, int]:
        """(largest error relative to the largest output, number of zero rows where the dense model has none)."""
        seen = self.layers[block].seen
        assert seen is not None
        x_TD, routing, y_TD = seen
        exact = Routing(routing.expert_TK, routing.weight_TK.float())
        set_precision("ieee")
        oracle = Dense(
            resident=False,
            shape=layer_shape(self.config),
            weights=self.weights[block],
            group=self.session.group,
            engine=LoopEngine(),
        )
        expected_TD = oracle.forward(x_TD.float(), exact)
        set_precision(self.config["precision"])
        dropped_T = (y_TD == 0).all(1) & (expected_TD != 0).any(1)
        error = (y_TD.float() - expected_TD)[~dropped_T].abs().max() if not dropped_T.all() else torch.zeros(())
        return float(error / expected_TD.abs().max()), int(dropped_T.sum())

    def _count_tokens(self, keys: list[tuple[str, int, int]]) -> torch.Tensor:
        """int64 [n, G, E] on the host: token copies per source rank and expert, for each (cell, block, iteration)."""
        num_experts = self.config["model"]["num_experts"]
        tokens_nE = torch.stack([self.routings[key].tokens_per_expert(num_experts) for key in keys])
        return all_gather(tokens_nE.unsqueeze(0), self.session.group).transpose(0, 1).cpu()


@contextmanager
def _no_garbage_collection():
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
