"""A `torch.distributed` backend whose collectives take what a network model says, between ranks of one process.

A collective starts when every rank's device has reached it and every rank's link is free; its ranks' devices go on when
it has finished. What is moved between ranks keeps its values where it has any. One group object serves all ranks of
the process: it answers for the rank whose turn it is, so libraries that keep groups in global variables work.
"""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from functools import reduce
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch.utils._python_dispatch import _disable_current_modes

from clusters.clocks import Exchange
from clusters.emulated import REDUCTIONS
from clusters.network import NetworkModel
from clusters.simulated.operations import Simulation
from clusters.simulated.ranks import Turns
from clusters.simulated.timeline import Event, SimulatedClock
from clusters.simulated.values import Read

BACKEND = "simulated"


@dataclass(eq=False)
class Issue:
    """A collective as one rank issued it.

    ready_s: when its device reached it. sent_to_G, received_from_G: bytes to and from each rank of the group. read:
    what it brings, if that has values. finish: told what all ranks bring and what each sends to each, in bytes, once
    they are known. Until all ranks have issued it finished_s is None and started_s, off_rank_G and received (bytes to
    each other rank, and from all of them) mean nothing.
    """

    collective: str
    ready_s: float
    sent_to_G: list[float]
    received_from_G: list[float]
    read: Read | None
    finish: Callable[[list[Read | None], np.ndarray], None]
    asynchronous: bool
    finished_s: float | None = None
    started_s: float = 0.0
    off_rank_G: list[float] = field(default_factory=list)
    received: float = 0.0

    def exchange(self, resumed_s: float, waited_s: float) -> Exchange:
        """What its rank saw of it."""
        assert self.finished_s is not None
        times = (resumed_s, self.ready_s, waited_s, self.started_s, self.finished_s)
        return Exchange(self.collective, *times, self.off_rank_G, self.received, self.asynchronous)


@dataclass
class Meeting:
    """One collective of all members: their issues by rank of the cluster, in the order of the group."""

    members: tuple[int, ...]
    issues: dict[int, Issue] = field(default_factory=dict)


class Ranks:
    """All simulated ranks of this process: whose turn it is, their operations and clocks, and what they exchange."""

    def __init__(self, world_size: int) -> None:
        self.turns = Turns(world_size)
        self.simulations: list[Simulation] = []
        self.clocks: list[SimulatedClock] = []
        self.network: NetworkModel
        self._pending: list[deque[Meeting]] = []
        self._open: dict[tuple[int, ...], list[Meeting]] = {}
        self._aligned: list[int] = []
        self._untold: list[deque[Issue]] = []

    @property
    def rank(self) -> int:
        return self.turns.rank

    @property
    def simulation(self) -> Simulation:
        return self.simulations[self.rank]

    def begin(self, simulations: list[Simulation], network: NetworkModel) -> None:
        """Start anew, on these timelines and this network."""
        self.turns = Turns(len(simulations))
        self.simulations, self.network = simulations, network
        self.clocks = [SimulatedClock(simulation.timeline, self.align) for simulation in simulations]
        self._pending = [deque() for _ in simulations]
        self._open = {}
        self._aligned = [0] * len(simulations)
        self._untold = [deque() for _ in simulations]

    def align(self) -> None:
        """Wait for all ranks; their devices go on at one moment."""
        self._aligned[self.rank] += 1
        count = self._aligned[self.rank]
        timelines = [simulation.timeline for simulation in self.simulations]
        if min(self._aligned) == count:
            now_s = max(timeline.now_s for timeline in timelines)
            for timeline in timelines:
                timeline.wait_for(now_s)
        self.turns.wait(lambda: min(self._aligned) >= count, lambda: "other ranks do not begin the same iteration")

    def issue(self, members: tuple[int, ...], issue: Issue) -> None:
        """Add this rank's part of a collective; the last one decides when it finishes."""
        meetings = self._open.setdefault(members, [])
        meeting = next((one for one in meetings if self.rank not in one.issues), None)
        if meeting is None:
            meetings.append(meeting := Meeting(members))
        meeting.issues[self.rank] = issue
        self._pending[self.rank].append(meeting)
        self._untold[self.rank].append(issue)
        while self._finish_next(members):
            pass

    def wait(self, issue: Issue) -> None:
        """Let other ranks run until all have issued it; this rank's device goes on when it has finished.

        Its clock is told of all that were issued up to it, which have finished too, in the order of issue.
        """
        self.turns.wait(
            lambda: issue.finished_s is not None,
            lambda: f"not all ranks of its group call the {issue.collective} that it is in",
        )
        line, told = self.simulation.timeline, self.clocks[self.rank].on_exchange
        resumed_s, waited_s = line.resumed_s, line.now_s
        while issue in self._untold[self.rank]:
            first = self._untold[self.rank].popleft()
            assert first.finished_s is not None
            if told is not None:
                told(first.exchange(resumed_s, max(waited_s, first.ready_s)))
            waited_s = max(waited_s, first.finished_s)
        assert issue.finished_s is not None
        line.wait_for(issue.finished_s)

    def _finish_next(self, members: tuple[int, ...]) -> bool:
        """Finish the first collective of some rank that all its members have issued and have come to."""
        for rank in members:
            if not self._pending[rank]:
                continue
            meeting = self._pending[rank][0]
            here = all(self._pending[one] and self._pending[one][0] is meeting for one in meeting.members)
            if here and len(meeting.issues) == len(meeting.members):
                for one in meeting.members:
                    self._pending[one].popleft()
                self._open[meeting.members].remove(meeting)
                self._finish(meeting)
                return True
        return False

    def _finish(self, meeting: Meeting) -> None:
        issues = [meeting.issues[rank] for rank in meeting.members]
        sent_GG = _sent(issues)
        for issue in issues:
            issue.finish([one.read for one in issues], sent_GG)
        np.fill_diagonal(sent_GG, 0)
        name, size = issues[0].collective, len(issues)
        timelines = [self.simulations[rank].timeline for rank in meeting.members]
        ready_G = [max(issue.ready_s, line.link_s) for issue, line in zip(issues, timelines, strict=True)]
        started_s = max(ready_G)
        network = self.network.when(name, size, started_s - min(ready_G))
        volumes = network.volumes(name, sent_GG, meeting.members)
        finished_s = started_s + network.seconds(name, volumes, size)
        for place, (issue, line) in enumerate(zip(issues, timelines, strict=True)):
            issue.started_s, issue.finished_s, line.link_s = started_s, finished_s, finished_s
            issue.off_rank_G, issue.received = sent_GG[place].tolist(), float(sent_GG[:, place].sum())
            if line.keep_events:
                line.events.append(Event("link", name, started_s, finished_s - started_s))


def _sent(issues: list[Issue]) -> np.ndarray:
    """sent_GG, bytes from each rank to each; ValueError where ranks call different things."""
    names = {issue.collective for issue in issues}
    if len(names) > 1:
        raise ValueError(f"the ranks of one group call different collectives at once: {', '.join(sorted(names))}")
    sent_GG = np.array([issue.sent_to_G for issue in issues])
    received_GG = np.array([issue.received_from_G for issue in issues]).T
    if (sent_GG != received_GG).any():
        source, target = np.argwhere(sent_GG != received_GG)[0]
        raise ValueError(
            f"{issues[0].collective}: rank {target} of the group expects {received_GG[source, target]:.0f} bytes from "
            f"rank {source}, which sends {sent_GG[source, target]:.0f}"
        )
    return sent_GG


class SimulatedWork(dist.Work):
    """A collective that has been issued; who waits lets other ranks run until all have issued it."""

    def __init__(self, ranks: Ranks, issue: Issue) -> None:
        super().__init__()
        self._ranks, self._issue = ranks, issue

    def wait(self, timeout: timedelta | None = None) -> bool:
        self._ranks.wait(self._issue)
        return True

    def is_completed(self) -> bool:
        return self._issue.finished_s is not None


class SimulatedGroup(dist.ProcessGroup):
    """Some ranks of the cluster. A collective that is not here raises torch's own error."""

    def __init__(self, ranks: Ranks, members: tuple[int, ...]) -> None:
        super().__init__(0, len(members))  # pyright: ignore[reportCallIssue]  (torch's stubs lack this constructor)
        self.ranks, self.members = ranks, members

    def getBackendName(self) -> str:
        return BACKEND

    def rank(self) -> int:
        """The rank, in this group, of whoever's turn it is; 0 before any runs."""
        return self.members.index(self.ranks.rank) if self.ranks.rank >= 0 else 0

    def size(self) -> int:
        return len(self.members)

    def _issue(
        self,
        name: str,
        opts: Any,
        brings: torch.Tensor | None,
        finish: Callable[[list[Read | None], np.ndarray], None],
        sent_to_G: list[float],
        received_from_G: list[float] | None = None,
    ) -> SimulatedWork:
        """Issue a collective; without received_from_G as much is received as sent."""
        simulation = self.ranks.simulation
        ready_s = simulation.timeline.issue_collective(name)
        received_from_G = sent_to_G if received_from_G is None else received_from_G
        with _disable_current_modes():  # keeping books takes no rank's time
            read = None if brings is None else simulation.storages.read(brings)
            issue = Issue(name, ready_s, sent_to_G, received_from_G, read, finish, bool(opts.asyncOp))
            self.ranks.issue(self.members, issue)
        return SimulatedWork(self.ranks, issue)

    def _equally(self, num_bytes: float) -> list[float]:
        return [float(num_bytes)] * self.size()

    def _writer(self, output: torch.Tensor, function: Any, *options: Any) -> Callable[..., None]:
        """What gives `output` the value `function(output, what the ranks bring, *options)`, if all of that is known."""
        simulation = self.ranks.simulation

        def finish(reads: list[Read | None], sent_GG: np.ndarray) -> None:
            known = None if any(read is None for read in reads) else ((reads, *options), {})
            simulation.overwrite(output, function, known)

        return finish

    # Each method below is one collective: what it writes, and how many bytes a rank sends to each.

    def barrier(self, opts: Any) -> SimulatedWork:
        return self._issue("barrier", opts, None, lambda reads, sent_GG: None, self._equally(0))

    def allreduce(self, tensors: list[torch.Tensor], opts: Any) -> SimulatedWork:
        _check_reduction(opts)
        (tensor,) = tensors
        sent = self._equally(2 * tensor.nbytes / self.size())  # a reduce-scatter, then an all-gather
        return self._issue("all_reduce", opts, tensor, self._writer(tensor, _reduce_into, opts.reduceOp.op), sent)

    def broadcast(self, tensors: list[torch.Tensor], opts: Any) -> SimulatedWork:
        (tensor,), root = tensors, opts.rootRank
        own = root == self.rank()
        received = [float(tensor.nbytes if rank == root else 0) for rank in range(self.size())]
        simulation = self.ranks.simulation

        def finish(reads: list[Read | None], sent_GG: np.ndarray) -> None:
            if not own:
                simulation.overwrite(tensor, _copy_into, None if reads[root] is None else ((reads[root],), {}))

        return self._issue("broadcast", opts, tensor, finish, self._equally(tensor.nbytes if own else 0), received)

    def _allgather_base(self, output: torch.Tensor, input: torch.Tensor, opts: Any) -> SimulatedWork:
        self._check_parts("all_gather", output, input)
        return self._issue("all_gather", opts, input, self._writer(output, _gather_into), self._equally(input.nbytes))

    def allgather(self, outputs: list[list[torch.Tensor]], inputs: list[torch.Tensor], opts: Any) -> SimulatedWork:
        (parts,), (input,) = outputs, inputs
        simulation = self.ranks.simulation

        def finish(reads: list[Read | None], sent_GG: np.ndarray) -> None:
            for part, read in zip(parts, reads, strict=True):
                simulation.overwrite(part, _copy_into, None if read is None else ((read,), {}))

        return self._issue("all_gather", opts, input, finish, self._equally(input.nbytes))

    def _reduce_scatter_base(self, output: torch.Tensor, input: torch.Tensor, opts: Any) -> SimulatedWork:
        self._check_parts("reduce_scatter", input, output)
        _check_reduction(opts)
        finish = self._writer(output, _reduce_share_into, opts.reduceOp.op, self.rank(), self.size())
        return self._issue("reduce_scatter", opts, input, finish, self._equally(output.nbytes))

    def alltoall_base(
        self,
        output: torch.Tensor,
        input: torch.Tensor,
        output_splits: list[int],
        input_splits: list[int],
        opts: Any,
    ) -> SimulatedWork:
        """Rows input_splits[g] go to rank g, output_splits[g] come from it; equal parts where a list is empty.

        Raises ValueError for splits that are not the tensors' rows.
        """
        sent, received = self._bytes(input, input_splits), self._bytes(output, output_splits)
        simulation, here, row_bytes = self.ranks.simulation, self.rank(), _row_bytes(input)

        def finish(reads: list[Read | None], sent_GG: np.ndarray) -> None:
            known = None
            if all(read is not None for read in reads):
                rows_Gh = (sent_GG[:, : here + 1] // row_bytes).astype(int)  # to the ranks before this one, and to it
                begins_G, rows_G = rows_Gh[:, :-1].sum(1).tolist(), rows_Gh[:, -1].tolist()
                known = ((reads, tuple(begins_G), tuple(rows_G)), {})
            simulation.overwrite(output, _exchange_into, known)

        return self._issue("all_to_all", opts, input, finish, sent, received)

    def _check_parts(self, name: str, whole: torch.Tensor, part: torch.Tensor) -> None:
        """Raise ValueError unless a tensor has room for a part of every rank."""
        if whole.numel() != self.size() * part.numel():
            raise ValueError(
                f"{name}: {whole.numel()} elements are not those of {self.size()} ranks with {part.numel()} each"
            )

    def _bytes(self, tensor: torch.Tensor, rows_G: list[int]) -> list[float]:
        """Bytes for or from each rank; without rows_G, as many for each."""
        rows_G = rows_G or [len(tensor) // self.size()] * self.size()
        if len(rows_G) != self.size() or sum(rows_G) != len(tensor):
            raise ValueError(f"all_to_all: {len(tensor)} rows are not {rows_G} for {self.size()} ranks")
        row_bytes = _row_bytes(tensor)
        return [float(rows * row_bytes) for rows in rows_G]

    # torch 2.13 renamed the single-tensor collectives.
    all_gather_single = _allgather_base  # pyright: ignore[reportAssignmentType]
    reduce_scatter_single = _reduce_scatter_base  # pyright: ignore[reportAssignmentType]
    all_to_all_single = alltoall_base  # pyright: ignore[reportAssignmentType]


def _check_reduction(opts: Any) -> None:
    op = opts.reduceOp.op
    if op not in REDUCTIONS:
        known = ", ".join(known.name for known in REDUCTIONS)
        raise ValueError(f"simulated ranks reduce with {known}; not with {op.name}")


def _row_bytes(tensor: torch.Tensor) -> int:
    return tensor.nbytes // len(tensor) if len(tensor) else max(1, tensor.element_size())


def _copy_into(output: torch.Tensor, read: torch.Tensor) -> torch.Tensor:
    return output.copy_(read)


def _gather_into(output: torch.Tensor, parts: Sequence[torch.Tensor]) -> torch.Tensor:
    return output.copy_(torch.cat([part.flatten() for part in parts]).view_as(output))


def _reduced(parts: Sequence[torch.Tensor], op: Any) -> torch.Tensor:
    return reduce(REDUCTIONS[op], parts)


def _reduce_into(output: torch.Tensor, parts: Sequence[torch.Tensor], op: Any) -> torch.Tensor:
    return output.copy_(_reduced(parts, op))


def _reduce_share_into(
    output: torch.Tensor, parts: Sequence[torch.Tensor], op: Any, rank: int, size: int
) -> torch.Tensor:
    return output.copy_(_reduced([part.chunk(size)[rank] for part in parts], op).view_as(output))


def _exchange_into(
    output: torch.Tensor, parts: Sequence[torch.Tensor], begins_G: Sequence[int], rows_G: Sequence[int]
) -> torch.Tensor:
    arriving = [part[begin : begin + rows] for part, begin, rows in zip(parts, begins_G, rows_G, strict=True)]
    return output.copy_(torch.cat(arriving).view_as(output))


def register(ranks: Ranks) -> None:
    """Make `init_process_group(backend="simulated")` create groups of these ranks."""

    def create(options: Any, backend_options: Any) -> SimulatedGroup:
        members = tuple(options.global_ranks_in_group) or tuple(range(options.group_size))
        return SimulatedGroup(ranks, members)

    dist.Backend.register_backend(BACKEND, create, extended_api=True, devices=["cpu", "cuda", "meta"])
