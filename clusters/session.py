"""What one rank sees of its cluster: its process group, clock and device."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

from clusters import emulated
from clusters.clocks import Clock, CudaClock, HostClock, ThreadClock, VirtualClock
from clusters.device_lock import DeviceLock
from clusters.network import NetworkModel

KINDS = ("emulated", "simulated", "gloo", "nccl", "torchrun")


@dataclass(frozen=True)
class ClusterSpec:
    """Where ranks run."""

    kind: str = field(default="emulated", metadata={"one_of": KINDS})
    """`emulated` (G processes taking turns on one device), `simulated` (G ranks of one process, on a described device),
    `gloo` or `nccl` (G processes on this machine), or `torchrun` (inside a launch that exists already, on one or many
    nodes); `cluster=` chooses it."""
    world_size: int = field(default=4, metadata={"least": 1})
    """The number of ranks, G."""
    device: str = field(default="cpu", metadata={"one_of": ("cpu", "cuda")})
    """`cpu` or `cuda`."""
    timeout_s: float = field(default=300.0, metadata={"above": 0})
    """Seconds without progress, after which a launch is stopped and stored as failed."""
    threads: int | None = field(default=None, metadata={"least": 1})
    """CPU threads a rank computes with; null: one if emulated, else its share of the cores."""
    concurrent_ranks: int | None = field(default=1, metadata={"least": 1})
    """Emulated ranks that compute at once: one that has the device to itself, or as many as share the caches and the
    memory of the CPU host that is emulated; null: as many as this machine has cores for."""

    def check(self) -> None:
        """Raise ValueError, in one sentence, if this machine cannot run the cluster."""
        if self.kind == "gloo" and self.device != "cpu":
            raise ValueError(
                f"cluster=gloo runs on cluster.device=cpu only, not {self.device!r}; on GPUs use cluster=nccl"
            )
        if self.kind == "nccl" and self.device != "cuda":
            raise ValueError(
                f"cluster=nccl runs on cluster.device=cuda only, not {self.device!r}; on CPUs use cluster=gloo"
            )
        if self.kind == "torchrun" and "RANK" not in os.environ:
            raise ValueError("cluster=torchrun runs inside a launch: start it as `torchrun ... -m experiments.run`")
        self._check_at_once()
        if self.kind == "torchrun" and self.world_size != int(os.environ["WORLD_SIZE"]):
            raise ValueError(
                f"cluster.world_size is {self.world_size}, but the launch has {os.environ['WORLD_SIZE']} ranks"
            )
        gpus_needed = {"emulated": 1, "nccl": self.world_size, "torchrun": 1}.get(self.kind, 0)
        if self.device == "cuda" and torch.cuda.device_count() < gpus_needed:
            found = torch.cuda.device_count()
            raise ValueError(f"cluster={self.kind} with cluster.device=cuda needs {gpus_needed} GPU(s); found {found}")

    def _check_at_once(self) -> None:
        if self.concurrent_ranks != 1 and (self.kind != "emulated" or self.device != "cpu"):
            asked = "null" if self.concurrent_ranks is None else self.concurrent_ranks
            raise ValueError(
                f"cluster.concurrent_ranks is {asked}; more than one rank computes at once on emulated CPU hosts only"
            )
        if self.ranks_at_once * self.threads_per_rank > max(_cores(), self.threads_per_rank):
            raise ValueError(
                f"cluster.concurrent_ranks is {self.concurrent_ranks} with {self.threads_per_rank} thread(s) a rank, "
                f"but there are {_cores()} cores: ranks that share a core would disturb one another"
            )

    @property
    def ranks_at_once(self) -> int:
        """How many emulated ranks compute at the same time."""
        if self.concurrent_ranks is None:
            return max(1, min(self.world_size, _cores() // self.threads_per_rank))
        return self.concurrent_ranks

    @property
    def source(self) -> str:
        """What numbers from this cluster are: emulated, simulated or measured."""
        return self.kind if self.kind in ("emulated", "simulated") else "measured"

    @property
    def processes(self) -> int:
        """How many processes a launch has."""
        return 1 if self.kind == "simulated" else self.world_size

    @property
    def threads_per_rank(self) -> int:
        """The threads asked for, or so many that all ranks together do not oversubscribe the cores.

        Emulated ranks take turns and might use every core, but the teams of several processes on the same cores
        disturb one another at every hand-over by more than a second thread gains (LOG.md, 2026-11-22).
        """
        if self.threads is not None:
            return self.threads
        ranks_here = int(os.environ.get("LOCAL_WORLD_SIZE", self.world_size))
        return 1 if self.kind in ("emulated", "simulated") else max(1, _cores() // ranks_here)


@dataclass(frozen=True)
class Session:
    """A rank's connection to the others."""

    rank: int
    world_size: int
    group: dist.ProcessGroup
    store: dist.Store
    clock: Clock
    device: torch.device


@contextmanager
def connect(spec: ClusterSpec, network: NetworkModel, lock_path: Path) -> Iterator[Session]:
    """Join the process group named by the launcher's environment (RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT).

    network and lock_path (a file that all ranks of this launch share) matter to emulated clusters only.
    """
    torch.set_num_threads(spec.threads_per_rank)
    device = _device(spec)
    clock = _stopwatch(spec, device)
    backend = {"gloo": "gloo", "nccl": "nccl", "torchrun": "nccl" if device.type == "cuda" else "gloo"}.get(spec.kind)
    store, rank, world_size = next(dist.rendezvous("env://", timeout=timedelta(seconds=spec.timeout_s)))
    if spec.kind == "emulated":
        clock = VirtualClock(DeviceLock(lock_path, rank, world_size, spec.ranks_at_once), clock)
        emulated.register(clock, network)
        backend = emulated.BACKEND
    elif backend == "gloo":
        forbid_wakeup_preemption()
    dist.init_process_group(
        backend, store=store, rank=rank, world_size=world_size, timeout=timedelta(seconds=spec.timeout_s)
    )
    assert dist.group.WORLD is not None
    yield Session(rank, world_size, dist.group.WORLD, dist.PrefixStore("session", store), clock, device)
    # Not on an exception: closing connections would make the others fail before this rank has told why.
    dist.destroy_process_group()


def forbid_wakeup_preemption() -> None:
    """Keep the threads that this one starts from preempting those that run when they wake up (Linux: SCHED_BATCH).

    Gloo's event loop wakes up when bytes arrive, while a sender may hold the lock that it needs; it does not wait for
    the lock but asks for the event again and again. Where it has preempted that sender it spins until the scheduler
    takes the core away, milliseconds later (scripts/compare_scheduling.py). Where a sandbox refuses the policy all
    stays as it was; `scheduling` tells.
    """
    with suppress(OSError):
        os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))


def scheduling() -> str:
    """How this thread and those that it starts are scheduled: other (the default), batch, or the policy's number."""
    policy = os.sched_getscheduler(0)
    return {os.SCHED_OTHER: "other", os.SCHED_BATCH: "batch"}.get(policy, str(policy))


def _stopwatch(spec: ClusterSpec, device: torch.device) -> Clock:
    """What times this rank's own computation.

    An emulated rank of one thread computes alone and waits for nothing, so its CPU time is what it takes on a core of
    its own. Threads that wait for one another, and real ranks, need the clock on the wall.
    """
    if device.type == "cuda":
        return CudaClock()
    alone = spec.kind == "emulated" and spec.threads_per_rank == 1
    return ThreadClock() if alone else HostClock()


def _cores() -> int:
    return len(os.sched_getaffinity(0))


def _device(spec: ClusterSpec) -> torch.device:
    if spec.device == "cpu":
        return torch.device("cpu")
    device = torch.device("cuda", 0 if spec.kind == "emulated" else int(os.environ.get("LOCAL_RANK", 0)))
    torch.cuda.set_device(device)
    return device
