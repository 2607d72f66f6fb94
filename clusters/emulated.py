"""A `torch.distributed` backend whose ranks take turns on one device, in emulated time.

Every rank is a real process and the data really moves (over gloo), so results are real and third-party layers run
unmodified. Time is not: a rank computes only while it holds the baton, each segment between two collectives is
timed alone on the whole device (or beside those it shares a host with), and at a collective all clocks become

    max over ranks of the time it was issued, or when the link is free  +  the network model's time for its bytes.

Asynchronous collectives are carried out when somebody waits, in the order of issue over all groups (the same on all
ranks); their completion time comes from the time of issue, so computation in between overlaps with them as it would on
a real link.
"""

from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.distributed as dist

from clusters.clocks import Exchange, VirtualClock
from clusters.network import NetworkModel

BACKEND = "emulated"


def register(clock: VirtualClock, network: NetworkModel) -> None:
    """Make `init_process_group(backend="emulated")` create groups on this clock and network (once per process)."""

    def create(store: dist.Store, rank: int, size: int, timeout: timedelta) -> "EmulatedGroup":
        return EmulatedGroup(store, rank, size, timeout, clock, network)

    dist.Backend.register_backend(BACKEND, create, devices=["cpu", "cuda"])


class EmulatedWork(dist.Work):
    """A collective that has been issued and is carried out when somebody waits for it."""

    def __init__(self, group: "EmulatedGroup", issue: "Issue") -> None:
        super().__init__()
        self.group, self.issue = group, issue
        self.finished_s: float | None = None

    def wait(self, timeout: timedelta | None = None) -> bool:
        self.group.complete(self)
        return True

    def is_completed(self) -> bool:
        return self.finished_s is not None


class Issue(NamedTuple):
    """What a rank wants moved, when it said so, and how to move it. sent_to_G: bytes to each rank of the group."""

    collective: str
    issued_s: float
    sent_to_G: list[float]
    asynchronous: bool
    move: Callable[[], Any]


class EmulatedGroup(dist.ProcessGroup):
    """G ranks that share a device and a link. A collective that is not here raises torch's own error."""

    def __init__(
        self, store: dist.Store, rank: int, size: int, timeout: timedelta, clock: VirtualClock, network: NetworkModel
    ) -> None:
        super().__init__(rank, size)  # pyright: ignore[reportCallIssue]  (torch's stubs lack this constructor)
        self.clock = clock
        self._network = network
        self._gloo: Any = dist.ProcessGroupGloo(dist.PrefixStore("gloo", store), rank, size, timeout)

    def getBackendName(self) -> str:
        return BACKEND

    def complete(self, work: EmulatedWork) -> None:
        """Carry out everything issued up to `work`; this rank's clock then shows at least its completion."""
        with self.clock.paused() as arrivals:
            while work.finished_s is None:
                first = self.clock.pending.popleft()
                arrivals |= first.group.exchange(first)
            self.clock.time_s = max(self.clock.time_s, work.finished_s)

    def exchange(self, work: EmulatedWork) -> dict[int, int]:
        """Carry out one collective and give it its completion time; returns who took part: rank -> next arrival."""
        issue, clock, baton = work.issue, self.clock, self.clock.baton
        issue.move()
        # This second, tiny exchange is also the barrier that keeps a rank from computing while others still copy.
        ready_s = max(issue.issued_s, clock.link_free_s)
        stamp = torch.tensor([ready_s, baton.rank, baton.next_arrival, *issue.sent_to_G], dtype=torch.float64)
        stamps = torch.empty(self.size() * len(stamp), dtype=torch.float64)
        self._gloo._allgather_base(stamps, stamp).wait()
        ready_s, ranks, arrivals, *sent = stamps.view(self.size(), -1).numpy().T
        sent_GG, members = np.stack(sent, axis=1), [int(rank) for rank in ranks]
        volumes = self._network.volumes(issue.collective, sent_GG, members)
        started_s = float(ready_s.max())
        work.finished_s = started_s + self._network.seconds(issue.collective, volumes, self.size())
        clock.link_free_s = work.finished_s
        if clock.on_exchange is not None:
            waited_s, received = max(clock.time_s, issue.issued_s), float(sent_GG[:, self.rank()].sum())
            times = (clock.resumed_s, issue.issued_s, waited_s, started_s, work.finished_s)
            clock.on_exchange(Exchange(issue.collective, *times, issue.sent_to_G, received, issue.asynchronous))
        clock.time_s = max(clock.time_s, work.finished_s)  # those issued later are waited for from here on
        return dict(zip(members, (int(arrival) for arrival in arrivals), strict=True))

    def _issue(
        self,
        name: str,
        opts: Any,
        collective: Callable[..., Any],
        tensors: Sequence[torch.Tensor],
        sent_to_G: Sequence[float],
    ) -> EmulatedWork:
        """Queue `collective(*tensors on the host)`; gloo moves host memory, so device tensors are copied around it.

        The caller of a synchronous collective waits at once: its segment ends here, before our own bookkeeping.
        """
        issued_s = self.clock.now_s() if opts.asyncOp else self.clock.hold()

        def move() -> None:
            host = [tensor.cpu() for tensor in tensors]
            collective(*host).wait()
            for tensor, copy in zip(tensors, host, strict=True):
                if tensor.device != copy.device:
                    tensor.copy_(copy)

        others = [0.0 if rank == self.rank() else float(sent) for rank, sent in enumerate(sent_to_G)]
        work = EmulatedWork(self, Issue(name, issued_s, others, bool(opts.asyncOp), move))
        self.clock.pending.append(work)
        return work

    def _equally(self, num_bytes: float) -> list[float]:
        return [num_bytes] * self.size()

    # Each method below is one collective: how gloo moves it and how many bytes of it a rank sends to each other one.

    def barrier(self, opts: Any) -> EmulatedWork:
        return self._issue("barrier", opts, self._gloo.barrier, [], self._equally(0))

    def allreduce(self, tensors: list[torch.Tensor], opts: Any) -> EmulatedWork:
        sent = self._equally(2 * _nbytes(tensors[0]) / self.size())  # a reduce-scatter, then an all-gather
        return self._issue("all_reduce", opts, lambda t: self._gloo.allreduce([t], opts), tensors, sent)

    def broadcast(self, tensors: list[torch.Tensor], opts: Any) -> EmulatedWork:
        sent = self._equally(_nbytes(tensors[0]) if opts.rootRank == self.rank() else 0)
        return self._issue("broadcast", opts, lambda t: self._gloo.broadcast([t], opts), tensors, sent)

    def _allgather_base(self, output: torch.Tensor, input: torch.Tensor, opts: Any) -> EmulatedWork:
        return self._issue(
            "all_gather", opts, self._gloo._allgather_base, [output, input], self._equally(_nbytes(input))
        )

    def allgather(self, outputs: list[list[torch.Tensor]], inputs: list[torch.Tensor], opts: Any) -> EmulatedWork:
        def gather(input: torch.Tensor, *parts: torch.Tensor) -> Any:
            return self._gloo.allgather([list(parts)], [input], opts)

        return self._issue("all_gather", opts, gather, [inputs[0], *outputs[0]], self._equally(_nbytes(inputs[0])))

    def _reduce_scatter_base(self, output: torch.Tensor, input: torch.Tensor, opts: Any) -> EmulatedWork:
        def scatter(output: torch.Tensor, input: torch.Tensor) -> Any:
            return self._gloo._reduce_scatter_base(output, input, opts)

        return self._issue("reduce_scatter", opts, scatter, [output, input], self._equally(_nbytes(output)))

    def alltoall_base(
        self,
        output: torch.Tensor,
        input: torch.Tensor,
        output_splits: list[int],
        input_splits: list[int],
        opts: Any,
    ) -> EmulatedWork:
        def exchange(output: torch.Tensor, input: torch.Tensor) -> Any:
            return self._gloo.alltoall_base(output, input, output_splits, input_splits)

        splits = input_splits or [1] * self.size()
        sent = [_nbytes(input) * split / max(1, sum(splits)) for split in splits]
        return self._issue("all_to_all", opts, exchange, [output, input], sent)

    # torch 2.13 renamed the single-tensor collectives.
    all_gather_single = _allgather_base  # pyright: ignore[reportAssignmentType]
    reduce_scatter_single = _reduce_scatter_base  # pyright: ignore[reportAssignmentType]
    all_to_all_single = alltoall_base  # pyright: ignore[reportAssignmentType]


def _nbytes(tensor: torch.Tensor) -> int:
    return tensor.numel() * tensor.element_size()
