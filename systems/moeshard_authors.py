"""MoEShard with the operations of its authors' program, one by one, to be held against the times that they published.

Source: github.com/sacs-epfl/moe-inference, commit 322b414, read and written anew. `systems.moeshard_published` is the
paper's Algorithm 1 as well as a program can follow it; this one also keeps what that program does besides: a one-hot
mask of tokens and experts, a slice for each expert and rank whose ends are read from tensors on the host, and
lists of tensors joined again and again. Its shards are made for d_ff = 2048, so that a third of each expert of 3072 is
missing from its outputs (option `hidden`).
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from routers.base import Routing
from systems.base import Account, LayerShape, System, divisible
from systems.collectives import all_gather, reduce_scatter
from systems.engines import Copies
from systems.engines.loop import LoopEngine
from systems.moeshard_published import filled_up


class MoEShardAuthors(System):
    """Ranks with fewer tokens fill up to the most, which the authors' never do. Top-1 routing.

    engine: loop, or what computes all experts at once.

    hidden: how many of the d_ff hidden units are sharded; all of them, if not given, and then it is exact.
    """

    exactness = "approximate"  # in what it leaves out
    stateful = False

    def __init__(self, *, hidden: int | None = None, **layer: Any) -> None:
        super().__init__(**layer)
        width = (hidden or self.shape.d_ff) // self.world_size
        wi_EDf, wo_EfD = layer["weights"].shard(self.rank, self.world_size)
        wi_EDf, wo_EfD = wi_EDf[:, :, :width], wo_EfD[:, :width]
        self._width = width
        if isinstance(self.engine, LoopEngine):
            self._experts = [Expert(*pair) for pair in zip(wi_EDf, wo_EfD, strict=True)]
        else:
            self._wi, self._wo = self.engine.prepare(wi_EDf, wo_EfD)

    @classmethod
    def check(cls, shape: LayerShape, world_size: int, *, hidden: int | None, **_: Any) -> None:
        divisible("model.d_ff", shape.d_ff, world_size, "expert sharding gives each rank d_ff/G hidden units")
        if hidden is not None and (hidden % world_size or not 0 < hidden <= shape.d_ff):
            raise ValueError(
                f"system.hidden is {hidden!r}; it must be a multiple of cluster.world_size ({world_size}) of at most "
                f"model.d_ff ({shape.d_ff})"
            )
        if shape.top_k != 1:
            raise ValueError(f"system moeshard_authors has top-1 routing as in the paper, got top_k = {shape.top_k}")
        if shape.activation != "relu" or shape.biased:
            raise ValueError(f"system moeshard_authors has ReLU experts as in the paper, got {shape.activation}")

    @classmethod
    def hidden_width(cls, shape: LayerShape, world_size: int) -> int:
        return shape.d_ff // world_size

    def forward(self, x_TD: torch.Tensor, routing: Routing) -> torch.Tensor:
        """Mask and gather by expert, exchange sizes and rows, slice and join by expert, compute, and all that back."""
        with self.span("dispatch"):
            mask_TE = _mask(routing.expert_TK, self.shape.num_experts)
            y_TD = x_TD.clone()  # what no expert gets stays as it is
            tokens = [x_TD[mask_TE[:, expert]] for expert in range(self.shape.num_experts)]
            leaving_TD = torch.cat(tokens)
        with self.span("metadata"):
            sizes_E = torch.tensor([len(rows) for rows in tokens], device=x_TD.device)
            sizes_GE = all_gather(sizes_E.unsqueeze(0), self.group)
            totals = [int(sizes_E.sum()) for sizes_E in sizes_GE]
            most = max(totals)
            arriving = [x_TD.new_empty(most, x_TD.shape[1]) for _ in totals]
        with self.span("dispatch"):
            dist.all_gather(arriving, filled_up(leaving_TD, most), group=self.group)
            arriving = [rows[:total] if total < most else rows for rows, total in zip(arriving, totals, strict=True)]
        with self.span("experts"):
            begins_GE, begins_EG = _begins(sizes_GE).cpu(), _begins(sizes_GE.T.contiguous()).cpu()
            computed = self._compute(self._by_expert(arriving, begins_GE))
            partial_MD = torch.cat([filled_up(torch.cat(parts), most) for parts in self._by_rank(computed, begins_EG)])
        with self.span("combine"):
            self._write_back(y_TD, mask_TE, reduce_scatter(partial_MD, self.group)[: len(x_TD)], begins_GE[self.rank])
            return routing.weight_TK * y_TD

    def _by_expert(self, arriving: list[torch.Tensor], begins_GE: torch.Tensor) -> list[torch.Tensor]:
        """The rows of each expert, of all ranks, from slices of what each rank sent."""
        pieces = [_slices(rows, begins_E) for rows, begins_E in zip(arriving, begins_GE, strict=True)]
        return [torch.cat(from_rank) for from_rank in zip(*pieces, strict=True)]

    def _compute(self, workload: list[torch.Tensor]) -> list[torch.Tensor]:
        if isinstance(self.engine, LoopEngine):
            return [expert(rows) if len(rows) else rows for expert, rows in zip(self._experts, workload, strict=True)]
        x_ND = torch.cat(workload)
        rows_E = torch.tensor([len(rows) for rows in workload], device=x_ND.device)
        order_N = torch.arange(len(x_ND), device=x_ND.device)
        return list(self.engine(x_ND, Copies(order_N, rows_E), self._wi, self._wo).split(rows_E.tolist()))

    def _by_rank(self, computed: list[torch.Tensor], begins_EG: torch.Tensor) -> list[list[torch.Tensor]]:
        """The results of each rank's tokens, expert by expert."""
        pieces = [_slices(rows, begins_G) for rows, begins_G in zip(computed, begins_EG, strict=True)]
        return [list(of_rank) for of_rank in zip(*pieces, strict=True)]

    def _write_back(
        self, y_TD: torch.Tensor, mask_TE: torch.Tensor, grouped_TD: torch.Tensor, begins_E: torch.Tensor
    ) -> None:
        for expert, rows in enumerate(_slices(grouped_TD, begins_E)):
            y_TD[mask_TE[:, expert]] = rows

    def account(self, tokens_GE: torch.Tensor, element_size: int) -> Account:
        rows_E, share = tokens_GE.sum(0), self._width / self.shape.d_ff
        row_bytes = self.shape.d_model * element_size
        sent = 8 * self.shape.num_experts + 2 * int(tokens_GE.sum(1).max()) * row_bytes
        rows = float(rows_E.sum()) * share
        weights = 2 * int(rows_E.count_nonzero()) * self.shape.d_model * self._width
        moved = float(weights + float(rows_E.sum()) * 2 * (self.shape.d_model + self._width)) * element_size
        return Account(rows, rows, dropped=0, bytes_sent=float((self.world_size - 1) * sent), memory_bytes=moved)

    def experts_held(self) -> float:
        return self.shape.num_experts * self._width / self.shape.d_ff


class Expert(nn.Module):
    """relu(x W_i) W_o of modules within modules, as the authors' experts are: each call is work of the host."""

    def __init__(self, wi_Df: torch.Tensor, wo_fD: torch.Tensor) -> None:
        super().__init__()
        self.wi, self.wo = Shard(wi_Df), Shard(wo_fD)
        self.act, self.dropout = nn.ReLU(), nn.Dropout(0.0)

    def forward(self, x_RD: torch.Tensor) -> torch.Tensor:
        return self.wo(self.dropout(self.act(self.wi(x_RD))))


class Shard(nn.Module):
    """A linear layer with this rank's part of a matrix."""

    def __init__(self, w_KN: torch.Tensor) -> None:
        super().__init__()
        with torch.device("meta"):
            self.linear = nn.Linear(*w_KN.shape, bias=False)
        self.linear.weight = nn.Parameter(w_KN.T.contiguous(), requires_grad=False)

    def forward(self, x_RK: torch.Tensor) -> torch.Tensor:
        return self.linear(x_RK)


def _mask(expert_TK: torch.Tensor, num_experts: int) -> torch.Tensor:
    """bool [T, E], by way of a one-hot matrix of float32, from which the experts' numbers are taken again."""
    one_hot_TE = torch.zeros(len(expert_TK), num_experts, device=expert_TK.device)
    one_hot_TE.scatter_(1, expert_TK, 1.0)
    torch.argmax(one_hot_TE, dim=-1)
    return one_hot_TE.bool()


def _begins(sizes_AB: torch.Tensor) -> torch.Tensor:
    """Where each piece of a row begins."""
    return sizes_AB.cumsum(1) - sizes_AB


def _slices(rows: torch.Tensor, begins_N: torch.Tensor) -> list[torch.Tensor]:
    """One slice after another, whose ends are elements of a tensor on the host."""
    last = len(begins_N) - 1
    return [rows[begins_N[place] : begins_N[place + 1] if place < last else len(rows)] for place in range(last + 1)]
