"""A `torch.distributed` backend whose ranks take turns on one device, in emulated time.

Every rank is a real process and the data really moves (through shared memory), so results are real and third-party
layers run unmodified. Time is not: a rank computes only while it holds the lock, each segment between two
collectives is timed alone on the whole device (or beside those it shares a host with), and at a collective all clocks
become

    max over ranks of the time it was issued, or when the link is free  +  the network model's time for its bytes,

as it is for ranks that come so far apart, where the network was measured for that.

Asynchronous collectives are carried out when somebody waits, in the order of issue over all groups (the same on all
ranks); their completion time comes from the time of issue, so computation in between overlaps with them as it would on
a real link.
"""

from collections.abc import Callable
from datetime import timedelta
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.distributed as dist

from clusters.clocks import Exchange, VirtualClock
from clusters.network import COLLECTIVES, NetworkModel
from clusters.reductions import reduction
from clusters.shared_memory import SharedBuffer

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
    """What a rank wants moved and when it said so.

    issued_s: emulated seconds. data: what it writes for the others, None if nothing. take: reads its share of what all
    have written, given the bytes that each sends to each [G, G]. sent_to_G, received_from_G: bytes that this rank sends
    to and expects from each rank of the group, itself included.
    """

    collective: str
    issued_s: float
    data: torch.Tensor | None
    take: Callable[[np.ndarray], None]
    sent_to_G: list[float]
    received_from_G: list[float]
    asynchronous: bool


class EmulatedGroup(dist.ProcessGroup):
    """G ranks that share a device and a link. A collective that is not here raises torch's own error."""

    def __init__(
        self, store: dist.Store, rank: int, size: int, timeout: timedelta, clock: VirtualClock, network: NetworkModel
    ) -> None:
        super().__init__(rank, size)  # pyright: ignore[reportCallIssue]  (torch's stubs lack this constructor)
        self.clock = clock
        self._network = network
        self._buffer = SharedBuffer(store, rank, size, timeout)

    def getBackendName(self) -> str:
        return BACKEND

    def complete(self, work: EmulatedWork) -> None:
        """Carry out everything issued up to `work`; this rank's clock then shows at least its completion."""
        with self.clock.paused() as arrivals:
            while work.finished_s is None:
                first = self.clock.pending.popleft()
                arrivals |= first.group.exchange(first)
            self.clock.time_s = max(self.clock.time_s, work.finished_s)

    @torch.inference_mode()
    def exchange(self, work: EmulatedWork) -> dict[int, int]:
        """Carry out one collective and give it its completion time; returns who took part: rank -> next arrival."""
        issue, clock, lock = work.issue, self.clock, self.clock.lock
        if issue.data is not None:
            self._buffer.write(issue.data)
        ready_s = max(issue.issued_s, clock.link_free_s)
        kind = COLLECTIVES.index(issue.collective)
        notes = self._buffer.meet([ready_s, lock.rank, lock.next_arrival, kind, *issue.sent_to_G])
        ready_s, ranks, arrivals, kinds = notes[:, :4].T
        sent_GG, members = notes[:, 4:].copy(), [int(rank) for rank in ranks]
        received_G = sent_GG[:, self.rank()].tolist()
        if (kinds != kind).any():
            others = ", ".join(COLLECTIVES[int(kind)] for kind in kinds)
            raise ValueError(f"{issue.collective}: the ranks of its group call {others}")
        if received_G != issue.received_from_G:
            raise ValueError(
                f"{issue.collective}: rank {lock.rank} expects {issue.received_from_G} bytes from the ranks of its "
                f"group, which send {received_G}"
            )
        issue.take(sent_GG)
        np.fill_diagonal(sent_GG, 0)
        started_s = float(ready_s.max())
        # A transport works off what was issued in order, so a rank comes when its link is free.
        network = self._network.when(issue.collective, members, started_s - float(ready_s.min()))
        volumes = network.volumes(issue.collective, sent_GG, members)
        work.finished_s = started_s + network.seconds(issue.collective, volumes, self.size())
        clock.link_free_s = work.finished_s
        if clock.on_exchange is not None:
            waited_s, sent_to_G = max(clock.time_s, issue.issued_s), sent_GG[self.rank()].tolist()
            times = (clock.resumed_s, issue.issued_s, waited_s, started_s, work.finished_s)
            received = float(sent_GG[:, self.rank()].sum())
            clock.on_exchange(Exchange(issue.collective, *times, sent_to_G, received, issue.asynchronous))
        clock.time_s = max(clock.time_s, work.finished_s)  # those issued later are waited for from here on
        self._buffer.meet()  # nobody writes the next, or computes, while others still read
        self._buffer.forget()
        return dict(zip(members, (int(arrival) for arrival in arrivals), strict=True))

    def _now_s(self, opts: Any) -> float:
        """When a collective is issued, asked before our own bookkeeping.

        The caller of a synchronous one waits at once: its segment ends here.
        """
        return self.clock.now_s() if opts.asyncOp else self.clock.hold()

    def _issue(
        self,
        name: str,
        opts: Any,
        issued_s: float,
        data: torch.Tensor | None,
        take: Callable[[np.ndarray], None],
        sent_to_G: list[float],
        received_from_G: list[float] | None = None,
    ) -> EmulatedWork:
        """Queue a collective; without received_from_G as much is received as sent."""
        received_from_G = sent_to_G if received_from_G is None else received_from_G
        work = EmulatedWork(self, Issue(name, issued_s, data, take, sent_to_G, received_from_G, bool(opts.asyncOp)))
        self.clock.pending.append(work)
        return work

    def _equally(self, num_bytes: float) -> list[float]:
        return [num_bytes] * self.size()

    # Each method below is one collective: what a rank writes, what it reads of the others, and how many bytes of it a
    # rank sends to each.

    def barrier(self, opts: Any) -> EmulatedWork:
        return self._issue("barrier", opts, self._now_s(opts), None, lambda sent_GG: None, self._equally(0))

    def allreduce(self, tensors: list[torch.Tensor], opts: Any) -> EmulatedWork:
        issued_s, (tensor,), reduced = self._now_s(opts), tensors, reduction(opts, BACKEND)

        def take(sent_GG: np.ndarray) -> None:
            tensor.copy_(reduced(self._buffer.read(tensor)))

        sent = self._equally(2 * tensor.nbytes / self.size())  # a reduce-scatter, then an all-gather
        return self._issue("all_reduce", opts, issued_s, tensor, take, sent)

    def broadcast(self, tensors: list[torch.Tensor], opts: Any) -> EmulatedWork:
        issued_s, (tensor,), root = self._now_s(opts), tensors, opts.rootRank

        def take(sent_GG: np.ndarray) -> None:
            if root != self.rank():
                tensor.copy_(self._buffer.read(tensor)[root])

        received = [float(tensor.nbytes if rank == root else 0) for rank in range(self.size())]
        data, num_bytes = (tensor, tensor.nbytes) if root == self.rank() else (None, 0)
        return self._issue("broadcast", opts, issued_s, data, take, self._equally(num_bytes), received)

    def _allgather_base(self, output: torch.Tensor, input: torch.Tensor, opts: Any) -> EmulatedWork:
        issued_s = self._now_s(opts)

        def take(sent_GG: np.ndarray) -> None:
            parts = output.unflatten(0, (self.size(), -1))
            parts.copy_(self._buffer.read(input).view(parts.shape))

        return self._issue("all_gather", opts, issued_s, input, take, self._equally(input.nbytes))

    def allgather(self, outputs: list[list[torch.Tensor]], inputs: list[torch.Tensor], opts: Any) -> EmulatedWork:
        issued_s, (parts,), (input,) = self._now_s(opts), outputs, inputs

        def take(sent_GG: np.ndarray) -> None:
            for part, theirs in zip(parts, self._buffer.read(input), strict=True):
                part.copy_(theirs)

        return self._issue("all_gather", opts, issued_s, input, take, self._equally(input.nbytes))

    def _reduce_scatter_base(self, output: torch.Tensor, input: torch.Tensor, opts: Any) -> EmulatedWork:
        issued_s, reduced = self._now_s(opts), reduction(opts, BACKEND)

        def take(sent_GG: np.ndarray) -> None:
            parts = self._buffer.read(input).view(self.size(), self.size(), *output.shape)
            output.copy_(reduced(parts[:, self.rank()]))

        return self._issue("reduce_scatter", opts, issued_s, input, take, self._equally(output.nbytes))

    def alltoall_base(
        self,
        output: torch.Tensor,
        input: torch.Tensor,
        output_splits: list[int],
        input_splits: list[int],
        opts: Any,
    ) -> EmulatedWork:
        """Rows input_splits[g] go to rank g, output_splits[g] come from it; equal parts where a list is empty.

        Raises ValueError for splits that are not the tensors' rows.
        """
        issued_s = self._now_s(opts)
        parts, sent = self._split(output, output_splits), self._split(input, input_splits)

        def take(sent_GG: np.ndarray) -> None:
            starts_G = sent_GG[:, : self.rank()].sum(1) // input.element_size()
            for rank, part in enumerate(parts):
                part.copy_(self._buffer.read(part, int(starts_G[rank]))[rank])

        sizes = [[float(part.nbytes) for part in split] for split in (sent, parts)]
        return self._issue("all_to_all", opts, issued_s, input, take, *sizes)

    def _split(self, tensor: torch.Tensor, rows_G: list[int]) -> tuple[torch.Tensor, ...]:
        """A tensor's rows for or from each rank; without rows_G, as many for each."""
        rows_G = rows_G or [len(tensor) // self.size()] * self.size()
        if len(rows_G) != self.size() or sum(rows_G) != len(tensor):
            raise ValueError(f"all_to_all: {len(tensor)} rows are not {rows_G} for {self.size()} ranks")
        return tensor.split(rows_G)

    # torch 2.13 renamed the single-tensor collectives.
    all_gather_single = _allgather_base  # pyright: ignore[reportAssignmentType]
    reduce_scatter_single = _reduce_scatter_base  # pyright: ignore[reportAssignmentType]
    all_to_all_single = alltoall_base  # pyright: ignore[reportAssignmentType]
