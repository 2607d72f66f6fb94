"""Run a program on simulated ranks of this process."""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cache
from typing import Protocol, TypeVar

import torch
import torch.distributed as dist
from torch.nn.modules.module import register_module_forward_pre_hook

from clusters.network import NetworkModel
from clusters.session import Session
from clusters.simulated.group import BACKEND, register
from clusters.simulated.meetings import Ranks
from clusters.simulated.on_device import OnDevice
from clusters.simulated.operations import Declared, Simulation
from clusters.simulated.prices import Prices
from clusters.simulated.schemas import META
from clusters.simulated.timeline import Host, Timeline
from clusters.simulated.values import Storages

Result = TypeVar("Result")


class Device(Prices, Protocol):
    """What is to be known of a described device."""

    host: Host
    memory_bytes: float


@dataclass(frozen=True)
class Simulated:
    """A cluster of like devices. declared: see `Simulation`."""

    device: Device
    network: NetworkModel
    world_size: int
    precision: str
    declared: Declared

    def run(self, program: Callable[[Session, Timeline], Result], *, keep_events: bool = False) -> list[Result]:
        """`program(session, timeline)` on every rank, one at a time, from time 0 on empty devices; results by rank.

        Raises what the first rank that fails raises. All runs of a process have the same number of ranks.
        """
        ranks, storages = _ranks(self.world_size), Storages()
        lines = [Timeline(rank, self.device.host, self.device.memory_bytes) for rank in range(self.world_size)]
        for line in lines:
            line.keep_events = keep_events
        ranks.begin(
            [Simulation(line, self.device, storages, self.precision, self.declared) for line in lines], self.network
        )
        group = dist.group.WORLD
        assert group is not None

        def run_rank(rank: int) -> Result:
            session = Session(rank, self.world_size, group, _store(), ranks.clocks[rank], META)
            with ExitStack() as modes:
                modes.enter_context(OnDevice(storages))
                modes.enter_context(ranks.simulations[rank])
                return program(session, lines[rank])

        return ranks.turns.run(run_rank)


@cache
def _store() -> dist.Store:
    return dist.HashStore()


@cache
def _ranks(world_size: int) -> Ranks:
    """The ranks of this process, whose number cannot change: libraries keep process groups."""
    if dist.is_initialized():
        raise ValueError(f"this process has simulated {dist.get_world_size()} ranks already, not {world_size}")
    ranks = Ranks(world_size)
    register(ranks)
    # Calling a module is work of the host that no operation shows.
    register_module_forward_pre_hook(
        lambda module, inputs: ranks.simulation.timeline.view() if ranks.rank >= 0 else None
    )
    dist.init_process_group(BACKEND, store=dist.HashStore(), rank=0, world_size=world_size)
    torch.set_num_threads(1)
    return ranks
