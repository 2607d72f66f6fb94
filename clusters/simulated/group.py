"""A `torch.distributed` backend whose collectives take what a network model says, between ranks of one process.

What is moved between ranks keeps its values where it has any. One group object serves all ranks of
the process: it answers for the rank whose turn it is, so libraries that keep groups in global variables work.
"""

import math
from collections.abc import Callable, Sequence
from datetime import timedelta
from functools import reduce
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch.utils._python_dispatch import _disable_current_modes

from clusters.reductions import REDUCTIONS, reduction
from clusters.simulated.meetings import Issue, Ranks
from clusters.simulated.values import Read

BACKEND = "simulated"


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
        reduction(opts, BACKEND)  # refuses what there is not; values are known by the operation itself
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
        reduction(opts, BACKEND)  # refuses what there is not; values are known by the operation itself
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


def _row_bytes(tensor: torch.Tensor) -> int:
    return math.prod(tensor.shape[1:]) * tensor.element_size()  # also where there are no rows


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
