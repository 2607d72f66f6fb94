"""A `torch.distributed` backend whose ranks take turns on one device, in emulated time.

Every rank is a real process and the data really moves (over gloo), so results are real and third-party layers run
unmodified. Time is not: a rank computes only while it holds the baton, each segment between two collectives is
timed alone on the whole device, and at a collective all clocks become

    max over ranks of the time it was issued, or when the link is free  +  the network model's time for its bytes.

Asynchronous collectives are carried out when somebody waits, in the order of issue; their completion time comes
from the time of issue, so computation in between overlaps with them as it would on a real link.
"""

from collections import deque
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from clusters.clocks import VirtualClock
from clusters.network import Network

BACKEND = "emulated"


def register(clock: VirtualClock, network: Network) -> None:
    """Make `init_process_group(backend="emulated")` create groups on this clock and network (once per process)."""

    def create(store: dist.Store, rank: int, size: int, timeout: timedelta) -> "EmulatedGroup":
        return EmulatedGroup(store, rank, size, timeout, clock, network)

    dist.Backend.register_backend(BACKEND, create, devices=["cpu", "cuda"])


class EmulatedWork(dist.Work):
    """A collective that has been issued and is carried out when somebody waits for it."""

    def __init__(
        self, group: "EmulatedGroup", issued_s: float, move: Callable[[], Any], volume_bytes: float, hops: int
    ) -> None:
        super().__init__()
        self.group, self.issued_s, self.move = group, issued_s, move
        self.volume_bytes, self.hops = volume_bytes, hops
        self.finished_s: float | None = None

    def wait(self, timeout: timedelta | None = None) -> bool:
        self.group.complete(self)
        return True

    def is_completed(self) -> bool:
        return self.finished_s is not None


class EmulatedGroup(dist.ProcessGroup):
    """G ranks that share a device and a link. A collective that is not here raises torch's own error."""

    def __init__(
        self, store: dist.Store, rank: int, size: int, timeout: timedelta, clock: VirtualClock, network: Network
    ) -> None:
        super().__init__(rank, size)  # pyright: ignore[reportCallIssue]  (torch's stubs lack this constructor)
        self.clock = clock
        self._network = network
        self._gloo: Any = dist.ProcessGroupGloo(dist.PrefixStore("gloo", store), rank, size, timeout)
        self._pending: deque[EmulatedWork] = deque()
        self._link_free_s = 0.0

    def getBackendName(self) -> str:
        return BACKEND

    def complete(self, work: EmulatedWork) -> None:
        """Carry out everything issued up to `work`; this rank's clock then shows at least its completion."""
        with self.clock.paused() as arrivals:
            while work.finished_s is None:
                arrivals |= self._exchange(self._pending.popleft())
            self.clock.time_s = max(self.clock.time_s, work.finished_s)

    def _exchange(self, work: EmulatedWork) -> dict[int, int]:
        """Carry out one collective and give it its completion time; returns who took part: rank -> next arrival."""
        work.move()
        # This second, tiny exchange is also the barrier that keeps a rank from computing while others still copy.
        baton = self.clock.baton
        stamp = torch.tensor([work.issued_s, work.volume_bytes, baton.rank, baton.next_arrival], dtype=torch.float64)
        stamps = torch.empty(self.size() * 4, dtype=torch.float64)
        self._gloo._allgather_base(stamps, stamp).wait()
        issued_s, volume_bytes, ranks, arrivals = stamps.view(-1, 4).unbind(1)
        start_s = max(float(issued_s.max()), self._link_free_s)
        self._link_free_s = start_s + self._network.seconds(float(volume_bytes.max()), work.hops)
        work.finished_s = self._link_free_s
        return {int(rank): int(arrival) for rank, arrival in zip(ranks, arrivals, strict=True)}

    def _issue(
        self,
        opts: Any,
        collective: Callable[..., Any],
        tensors: Sequence[torch.Tensor],
        volume_bytes: float,
        hops: int | None = None,
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

        work = EmulatedWork(self, issued_s, move, volume_bytes, self.size() - 1 if hops is None else hops)
        self._pending.append(work)
        return work

    # Each method below is one collective: how gloo moves it and how many bytes a rank sends or receives off itself.

    def barrier(self, opts: Any) -> EmulatedWork:
        return self._issue(opts, self._gloo.barrier, [], 0)

    def allreduce(self, tensors: list[torch.Tensor], opts: Any) -> EmulatedWork:
        volume = 2 * (self.size() - 1) / self.size() * _nbytes(tensors[0])
        return self._issue(opts, lambda t: self._gloo.allreduce([t], opts), tensors, volume, hops=2 * (self.size() - 1))

    def broadcast(self, tensors: list[torch.Tensor], opts: Any) -> EmulatedWork:
        volume = _nbytes(tensors[0]) if self.size() > 1 else 0
        return self._issue(opts, lambda t: self._gloo.broadcast([t], opts), tensors, volume)

    def _allgather_base(self, output: torch.Tensor, input: torch.Tensor, opts: Any) -> EmulatedWork:
        return self._issue(opts, self._gloo._allgather_base, [output, input], (self.size() - 1) * _nbytes(input))

    def allgather(self, outputs: list[list[torch.Tensor]], inputs: list[torch.Tensor], opts: Any) -> EmulatedWork:
        def gather(input: torch.Tensor, *parts: torch.Tensor) -> Any:
            return self._gloo.allgather([list(parts)], [input], opts)

        return self._issue(opts, gather, [inputs[0], *outputs[0]], (self.size() - 1) * _nbytes(inputs[0]))

    def _reduce_scatter_base(self, output: torch.Tensor, input: torch.Tensor, opts: Any) -> EmulatedWork:
        def scatter(output: torch.Tensor, input: torch.Tensor) -> Any:
            return self._gloo._reduce_scatter_base(output, input, opts)

        return self._issue(opts, scatter, [output, input], (self.size() - 1) * _nbytes(output))

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

        volume = max(self._off_rank_bytes(input, input_splits), self._off_rank_bytes(output, output_splits))
        return self._issue(opts, exchange, [output, input], volume)

    # torch 2.13 renamed the single-tensor collectives.
    all_gather_single = _allgather_base  # pyright: ignore[reportAssignmentType]
    reduce_scatter_single = _reduce_scatter_base  # pyright: ignore[reportAssignmentType]
    all_to_all_single = alltoall_base  # pyright: ignore[reportAssignmentType]

    def _off_rank_bytes(self, tensor: torch.Tensor, splits: list[int]) -> float:
        if not splits:
            return _nbytes(tensor) * (self.size() - 1) / self.size()
        total = sum(splits)
        return _nbytes(tensor) * (total - splits[self.rank()]) / total if total else 0.0


def _nbytes(tensor: torch.Tensor) -> int:
    return tensor.numel() * tensor.element_size()
