"""One rank's side of a launch: the encoder, the systems that take turns in it, the checks and the clock."""

import gc
import json
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Generic, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray

from clusters.clocks import IdleClock, ModelledClock
from clusters.session import Session
from experiments.agreement import sketch
from experiments.ceilings import measure_ceilings, measure_link
from experiments.configuration import (
    build_router,
    find_class,
    instantiate,
    layer_shape,
    options,
    set_precision,
    token_source,
)
from experiments.moe_layer import MoELayer
from experiments.recorder import Recorder
from experiments.records import Member, Node, Workload
from experiments.schedule import PROFILED, iterations_of
from routers.base import Routing
from routers.drawn import PROFILE_FROM, DrawnRouter
from systems.base import Account, System
from systems.collectives import all_gather
from systems.engines import find_engine
from systems.engines.base import DTYPES
from systems.engines.loop import LoopEngine
from systems.planners.base import Profile, Rates
from workloads.checkpoint import Checkpoint, open_checkpoint
from workloads.encoder import build_encoder
from workloads.model import ModelShape
from workloads.weights import CheckpointLayer, Layer, SeededLayer, ShapedLayer, SharedLayer

Progress = Callable[[str], None]
Kept = TypeVar("Kept")


class kept(Generic[Kept]):
    """`functools.cached_property` without its lock, at which ranks that are threads would wait for one another."""

    def __init__(self, find: Callable[[Any], Kept]) -> None:
        self._find = find

    def __get__(self, bench: Any, owner: type) -> Kept:
        found = vars(bench)[self._find.__name__] = self._find(bench)
        return found


class Bench:
    """A workload on one rank. Systems are added by cell id; each has one instance per MoE block."""

    def __init__(
        self,
        workload: Workload,
        session: Session,
        cache_dir: str,
        ceilings: dict[str, Any] | None = None,
    ) -> None:
        self.workload, self.session = workload, session
        self.dtype, self.device = DTYPES[workload.precision], session.device
        set_precision(workload.precision)
        model = workload.model
        checkpoint = open_checkpoint(model.checkpoint) if model.checkpoint else None
        self.weights = {block: self._layer(model, block, checkpoint) for block in model.moe_blocks}
        self.shared = {block: SharedLayer(layer) for block, layer in self.weights.items()}
        # The oracle's own copy: a system that changed the shared one in place would be compared with itself.
        self.oracle_weights = {block: SharedLayer(layer) for block, layer in self.weights.items()}
        self.recorder = Recorder(session.clock, self._align)
        router = build_router(workload, rank=session.rank, classifier=lambda block: self.weights[block].router())
        self.layers: dict[int, MoELayer] = {}
        for block in model.moe_blocks:
            before = next(reversed(self.layers.values()), None)
            self.layers[block] = MoELayer(block, router, self.recorder, before, wait=model.wait_for_layers)
        self.encoder = build_encoder(
            model,
            lambda block: self.layers[block],
            seed=workload.seed,
            dtype=self.dtype,
            device=self.device,
            checkpoint=checkpoint,
        )
        self.tokens = token_source(workload, cache_dir)
        self.names: dict[str, str] = {}
        self.twins: set[str] = set()
        self.systems: dict[str, dict[int, System]] = {}
        self.routings: dict[tuple[str, int, int], Routing] = {}  # by cell, block, iteration; plans too
        self.plans: dict[tuple[str, int, int], Any] = {}
        self.sketches: dict[str, dict[int, torch.Tensor]] = defaultdict(dict)
        self._order: Counter[str] = Counter()
        if ceilings is not None:
            vars(self)["ceilings"] = ceilings

    def _layer(self, model: ModelShape, block: int, checkpoint: Checkpoint | None) -> Layer:
        if self.device.type == "meta":
            return ShapedLayer(model, self.dtype, self.device)
        if checkpoint:
            return CheckpointLayer(model, block, checkpoint, self.dtype, self.device)
        return SeededLayer(model, block, self.workload.seed, self.dtype, self.device)

    def add(self, cell: str, member: Member) -> None:
        """Build a system; a system that brings its own engine is given one that it does not use."""
        self.names[cell] = member.system.name
        self.twins |= {cell} if member.twin else set()
        kind, given = find_class(member.system), options(member.system, "system")
        shape = layer_shape(self.workload)
        needed = kind.needs(**kind.every_option(**given))
        if "draws" in needed:
            shape = replace(shape, max_expert_tokens=self.max_expert_tokens)
        if "rates" in needed:
            given["rates"] = self.rates
        self.systems[cell] = {
            block: kind(
                **given,
                **({"profile": self.profile[block]} if "profile" in needed else {}),
                shape=shape,
                weights=self.shared[block],
                group=self.session.group,
                engine=LoopEngine() if kind.own_engine else find_engine(member.engine),
                span=self.recorder.span,
            )
            for block in self.layers
        }

    @kept
    def ceilings(self) -> dict[str, Any]:
        """What this machine can do at most, as rank 0 finds it while the others sleep; the same on all ranks."""
        shape = layer_shape(self.workload)
        rank_bytes = shape.max_tokens * shape.d_model * self.dtype.itemsize
        link = measure_link(self.session, instantiate(self.workload.network, "network"), rank_bytes)
        dist.barrier(group=self.session.group)  # all are built
        if self.session.rank == 0:
            found = measure_ceilings(self.device, self.dtype)
            found["link_bytes_per_s"] = link if link < float("inf") else None
            self.session.store.set("ceilings", json.dumps(found))
        return json.loads(self.session.store.get("ceilings"))

    @property
    def rates(self) -> Rates:
        """What is measured to the nearest power of four: launches that find the machine faster or slower plan alike."""
        link = self.ceilings["link_bytes_per_s"] or float("inf")
        modelled = isinstance(self.session.clock, ModelledClock)
        return Rates(_nearest(self.ceilings["matmul_flops_per_s"]), link if modelled else _nearest(link))

    @kept
    def max_expert_tokens(self) -> int | None:
        """The most tokens of any rank for one expert, over all blocks and planned iterations.

        None where the router draws nothing before it sees the tokens.
        """
        router = next(iter(self.layers.values())).router
        if not isinstance(router, DrawnRouter):
            return None
        num_tokens, planned = layer_shape(self.workload).max_tokens, iterations_of(self.workload.tier)
        keys = [(block, i) for block in self.layers for iterations in planned.values() for i in iterations]
        mine = max(np.bincount(router.draw(num_tokens, layer=block, iteration=i)).max() for block, i in keys)
        return int(all_gather(torch.tensor([mine], device=self.device), self.session.group).max())

    @kept
    def profile(self) -> dict[int, Profile]:
        """By block: the experts of other tokens than those measured, of all ranks and layers, gathered once."""
        drawn = [[self._profiled(block, i) for i in range(PROFILED)] for block in self.layers]
        expert_LM = torch.stack([torch.cat(draws) for draws in drawn])
        expert_GLM = all_gather(expert_LM.unsqueeze(0), self.session.group).cpu().numpy()
        first = Profile(expert_GLM.transpose(1, 0, 2), 0)
        return {block: replace(first, layer=layer) for layer, block in enumerate(self.layers)}

    def _profiled(self, block: int, batch: int) -> torch.Tensor:
        """int64 [T]: the experts that this rank's tokens of one batch of the profile take in one layer."""
        router, iteration = self.layers[block].router, PROFILE_FROM + batch
        if isinstance(router, DrawnRouter):
            expert_T = router.draw(layer_shape(self.workload).max_tokens, layer=block, iteration=iteration)
            return torch.from_numpy(expert_T).to(self.device)
        return self._routed[block, iteration].expert_TK[:, 0]

    @kept
    @torch.inference_mode()
    def _routed(self) -> dict[tuple[int, int], Routing]:
        """What a router that looks at tokens says of the profile's batches, in forward passes of their own."""
        dense = Node(_target_="systems.dense.Dense", name="profile", resident=False)
        self.add("profile", Member(dense, "loop"))
        last = iterations_of(self.workload.tier)["warmup"].stop
        for batch in range(PROFILED):
            self._forward("profile", self._embed(last + batch), PROFILE_FROM + batch)
        del self.systems["profile"], self.names["profile"]
        routed = {key: self.routings.pop(key) for key in list(self.routings) if key[0] == "profile"}
        return {(block, iteration): routing for (_, block, iteration), routing in routed.items()}

    @torch.inference_mode()
    def measure(self, schedule: Iterable[tuple[str, range]], phase: str, progress: Progress) -> None:
        """Run the schedule; `phase` is warmup, measure or instrumented (the last one observes layers and sections)."""
        self.recorder.observing = phase == "instrumented"
        with _no_garbage_collection():
            for cell, iterations in schedule:
                progress(cell)
                for iteration in iterations:
                    self.prefetch(iteration)
                with self.session.clock.running():
                    for iteration in iterations:
                        hidden_BLD = self.timed_forward(cell, iteration, phase=phase)
                        if phase != "warmup":
                            self.sketches[cell][iteration] = sketch(hidden_BLD)
        self.recorder.observing = False

    def last_ttft_s(self, cells: list[str], phase: str) -> dict[str, float]:
        """Seconds of each cell's last forward pass of a phase, the slowest rank's; the same on all ranks."""
        mine_C = torch.tensor([self.recorder.ttft_ms(cell, phase)[-1] for cell in cells], device=self.device)
        slowest_C = all_gather(mine_C.unsqueeze(0), self.session.group).amax(0) / 1e3
        return dict(zip(cells, slowest_C.tolist(), strict=True))

    def timed_forward(self, cell: str, iteration: int, *, phase: str) -> torch.Tensor:
        embedded_BLD = self._embed(iteration)
        self._align()
        with self.recorder.iteration(cell=cell, iteration=iteration, phase=phase, order=self._order[phase]):
            hidden_BLD = self._forward(cell, embedded_BLD, iteration)
        self._order[phase] += 1
        return hidden_BLD

    def _forward(self, cell: str, embedded_BLD: torch.Tensor, iteration: int) -> torch.Tensor:
        for block, layer in self.layers.items():
            layer.system, layer.iteration = self.systems[cell][block], iteration
        hidden_BLD = self.encoder(inputs_embeds=embedded_BLD).last_hidden_state
        for block, layer in self.layers.items():
            assert layer.routing is not None
            self.routings[cell, block, iteration] = layer.routing
            self.plans[cell, block, iteration] = self.systems[cell][block].plan
        return hidden_BLD

    def _align(self) -> None:
        """Bring the ranks together without waiting for the device: the start mark follows on the same stream."""
        if isinstance(self.session.clock, IdleClock):
            self.session.clock.align()
            return
        dist.all_reduce(torch.zeros(1, device=self.device), group=self.session.group)

    def _embed(self, iteration: int) -> torch.Tensor:
        tokens_BL = torch.from_numpy(self.token_batch(iteration))
        return self.encoder.get_input_embeddings()(tokens_BL.to(self.device))

    def token_batch(self, iteration: int) -> NDArray[np.int64]:
        return self.tokens.batch(
            rank=self.session.rank,
            iteration=iteration,
            world_size=self.session.world_size,
            batch_size=self.workload.batch_size,
            seq_len=self.workload.seq_len,
            seed=self.workload.seed,
        )

    def prefetch(self, iteration: int) -> None:
        num_tokens = self.workload.batch_size * self.workload.seq_len
        like = torch.empty(0, dtype=self.dtype, device=self.device)
        for block, layer in self.layers.items():
            layer.router.prefetch(num_tokens, layer=block, iteration=iteration, like=like)

    def accounts(self, keys: list[tuple[str, int, int]]) -> list[tuple[torch.Tensor, Account]]:
        """(tokens_GE on the host, what the call cost this rank) for each (cell, block, iteration) that was run."""
        accounts = []
        for (cell, block, iteration), tokens_GE in zip(keys, self._tokens_of(keys), strict=True):
            system = self.systems[cell][block]
            system.plan = self.plans[cell, block, iteration]
            accounts.append((tokens_GE, system.account(tokens_GE, self.dtype.itemsize)))
        return accounts

    def _tokens_of(self, keys: list[tuple[str, int, int]]) -> torch.Tensor:
        """int64 [n, G, E] on the host: token copies per source rank and expert, for each (cell, block, iteration)."""
        num_experts = self.workload.model.num_experts
        tokens_nE = torch.stack([self.routings[key].tokens_per_expert(num_experts) for key in keys])
        return all_gather(tokens_nE.unsqueeze(0), self.session.group).transpose(0, 1).cpu()


def _nearest(rate: float) -> float:
    return 4.0 ** round(math.log(rate, 4)) if math.isfinite(rate) else rate


@contextmanager
def _no_garbage_collection():
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
