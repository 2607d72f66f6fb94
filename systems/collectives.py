"""The three collectives of MoE layers, allocating their outputs; plain `torch.distributed` on a given group."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist

# torch 2.13 renamed these and warns about the old names.
_all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
_reduce_scatter = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor


@dataclass(frozen=True)
class InFlight:
    """The output of a collective; it is there after `wait`."""

    output: torch.Tensor
    work: dist.Work | None = None  # None where it is there already
    input: torch.Tensor | None = None  # must live as long as the collective may read it

    def wait(self) -> torch.Tensor:
        if self.work is not None:
            self.work.wait()
        return self.output


def all_gather(x: torch.Tensor, group: dist.ProcessGroup) -> torch.Tensor:
    """[n, ...] on each rank -> [G*n, ...], rank 0's rows first."""
    return start_all_gather(x, group, overlap=False).output


def start_all_gather(x: torch.Tensor, group: dist.ProcessGroup, *, overlap: bool = True) -> InFlight:
    """`all_gather` that may go on meanwhile, where it can overlap with something."""
    x, gathered = x.contiguous(), x.new_empty(group.size() * x.shape[0], *x.shape[1:])
    return InFlight(gathered, _all_gather(gathered, x, group=group, async_op=overlap), x)


def reduce_scatter(x: torch.Tensor, group: dist.ProcessGroup) -> torch.Tensor:
    """[G*n, ...] on each rank -> the sum over ranks of this rank's [n, ...]."""
    return start_reduce_scatter(x, group, overlap=False).output


def start_reduce_scatter(x: torch.Tensor, group: dist.ProcessGroup, *, overlap: bool = True) -> InFlight:
    """`reduce_scatter` that may go on meanwhile, where it can overlap with something."""
    x, summed = x.contiguous(), x.new_empty(x.shape[0] // group.size(), *x.shape[1:])
    return InFlight(summed, _reduce_scatter(summed, x, group=group, async_op=overlap), x)


def all_to_all(
    x: torch.Tensor,
    group: dist.ProcessGroup,
    received_G: Sequence[int] | None = None,
    sent_G: Sequence[int] | None = None,
) -> torch.Tensor:
    """Send sent_G[g] rows to rank g and receive received_G[g] rows from it (equal parts where not given)."""
    return start_all_to_all(x, group, received_G, sent_G, overlap=False).output


def start_all_to_all(
    x: torch.Tensor,
    group: dist.ProcessGroup,
    received_G: Sequence[int] | None = None,
    sent_G: Sequence[int] | None = None,
    *,
    into: torch.Tensor | None = None,
    overlap: bool = True,
) -> InFlight:
    """`all_to_all` that may go on meanwhile, where it can overlap with something.

    into: where to put what arrives, a contiguous tensor with room for it; a new one if not given.
    """
    x, rows = x.contiguous(), x.shape[0] if received_G is None else sum(received_G)
    exchanged = x.new_empty(rows, *x.shape[1:]) if into is None else into
    work = dist.all_to_all_single(
        exchanged,
        x,
        output_split_sizes=None if received_G is None else list(received_G),
        input_split_sizes=None if sent_G is None else list(sent_G),
        group=group,
        async_op=overlap,
    )
    return InFlight(exchanged, work, x)
