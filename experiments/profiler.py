"""What systems are told before they run: what the machine reaches, and which experts other tokens take."""

import json
import math
import os
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch.nn.functional import pad

from clusters.clocks import ModelledClock, VirtualClock
from clusters.network import NetworkModel
from clusters.session import Session
from experiments.ceilings import measure_ceilings, measure_link, near_rate
from experiments.configuration import instantiate, layer_shape, set_precision
from experiments.program import Program
from experiments.records import Workload
from experiments.schedule import PROFILED, iterations_of
from routers.drawn import PROFILE_FROM, DrawnRouter
from systems.collectives import all_gather
from systems.engines.base import DTYPES
from systems.planners.base import NO_EXPERT, Profile, Rates


def ceilings_here(workload: Workload, session: Session) -> dict[str, Any]:
    """What this machine can do at most, as rank 0 finds it while the others sleep; the same on all ranks."""
    set_precision(workload.precision)
    shape, dtype = layer_shape(workload), DTYPES[workload.precision]
    rank_bytes = shape.max_tokens * shape.d_model * dtype.itemsize
    network = instantiate(workload.network, "network")
    link = measure_link(session, network, rank_bytes)
    dist.barrier(group=session.group)
    if session.rank == 0:
        found = measure_ceilings(session.device, dtype)
        found["link_bytes_per_s"] = link if link < float("inf") else None
        found |= _nodes(session, network, rank_bytes)
        session.store.set("ceilings", json.dumps(found))
    return json.loads(session.store.get("ceilings"))


class Profiler:
    """Looks at a program beforehand; what all ranks have to find together is found once, when it is first asked for."""

    def __init__(self, program: Program, ceilings: dict[str, Any]) -> None:
        self._program, self._ceilings = program, ceilings
        # No cached properties: in Python 3.11 ranks that are threads would wait for one another at their lock.
        self.profile, self.max_expert_tokens = cache(self._profile), cache(self._max_expert_tokens)

    @property
    def rates(self) -> Rates:
        """What is measured to the nearest power of four: launches that find the machine faster or slower plan alike."""
        told = self._ceilings
        link, memory = told["link_bytes_per_s"] or math.inf, told.get("copy_bytes_per_s", math.inf)
        modelled = isinstance(self._program.session.clock, ModelledClock)
        nodes = told.get("near_bytes_per_s"), told.get("ranks_per_node")
        operation_s = 1e-6 * told.get("operation_us", 0.0)
        if told.get("scheduling") == "simulated":
            return Rates(told["matmul_flops_per_s"], link, *nodes, memory, operation_s)
        flops = _nearest(told["matmul_flops_per_s"])
        return Rates(flops, link if modelled else _nearest(link), *nodes, _nearest(memory), _nearest(operation_s))

    def _max_expert_tokens(self) -> int | None:
        """The most tokens of any rank for one expert, over all blocks and planned iterations.

        None where the router draws nothing before it sees the tokens.
        """
        program, router = self._program, self._program.router
        if not isinstance(router, DrawnRouter):
            return None
        planned = iterations_of(program.workload.tier).values()
        keys = [(block, i) for block in program.layers for iterations in planned for i in iterations]
        drawn = (router.draw(program.num_tokens, layer=block, iteration=i) for block, i in keys)
        mine = max(np.bincount(expert_TK.flatten()).max() for expert_TK in drawn)
        return int(all_gather(torch.tensor([mine], device=program.device), program.session.group).max())

    def _profile(self) -> dict[int, Profile]:
        """By block: the experts of other tokens than those measured, of all ranks and layers, gathered once."""
        program, batches = self._program, range(PROFILE_FROM, PROFILE_FROM + PROFILED)
        experts_of = self._drawn if isinstance(program.router, DrawnRouter) else self._routed
        expert_LM = torch.cat([experts_of(iteration) for iteration in batches], 1)
        most = PROFILED * program.shape.max_tokens * program.shape.top_k
        expert_LM = pad(expert_LM, (0, most - expert_LM.shape[1]), value=NO_EXPERT)
        expert_GLM = all_gather(expert_LM.int().unsqueeze(0), program.session.group)
        first = Profile(cache(lambda: expert_GLM.cpu().numpy().transpose(1, 0, 2)), 0)
        return {block: replace(first, layer=layer) for layer, block in enumerate(program.layers)}

    def _drawn(self, iteration: int) -> torch.Tensor:
        """int64 [L, M]: the experts that this rank's token copies of one batch take in each layer."""
        router, num_tokens = self._program.router, self._program.num_tokens
        drawn = [router.draw(num_tokens, layer=block, iteration=iteration).flatten() for block in self._program.layers]
        return torch.from_numpy(np.stack(drawn)).to(self._program.device)

    @torch.inference_mode()
    def _routed(self, iteration: int) -> torch.Tensor:
        """The same of a router that looks at tokens, by a forward pass of its own."""
        program = self._program
        batch = iterations_of(program.workload.tier)["warmup"].stop + iteration - PROFILE_FROM
        program.forward(program.references, program.start(batch), iteration)
        routings = (layer.routing for layer in program.layers.values())
        return torch.stack([routing.expert_TK.flatten() for routing in routings if routing is not None])


def _nodes(session: Session, network: NetworkModel, num_bytes: int) -> dict[str, Any]:
    """Which ranks are near: by the modelled network, or those that torchrun put on one host."""
    if isinstance(session.clock, VirtualClock):
        return near_rate(network, session.world_size, num_bytes)
    here = int(os.environ.get("LOCAL_WORLD_SIZE", session.world_size))
    return {"ranks_per_node": here} if here < session.world_size else {}


def _nearest(rate: float) -> float:
    return 4.0 ** round(math.log(rate, 4)) if 0 < rate < math.inf else rate
