"""MoEShard as published: Algorithm 1 of the paper step by step, with the host work that it asks for.

Source: "Accelerating MoE Model Inference with Expert Sharding" (EuroMLSys'25), section 3.1, Algorithm 1, and the first
optimisation of section 3.3 (one product per expert, not per expert and source rank). `systems.moeshard` computes the
same without the exchange of metadata and without loops over experts: what lies between the two is implementation.
The authors' code builds shards for d_ff = 2048 from experts of 3072; this is the whole d_ff.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch.nn.functional import pad

from routers.base import Routing
from systems.base import Account, LayerShape
from systems.collectives import all_gather, reduce_scatter
from systems.engines import ACTIVATIONS
from systems.engines.activations import expert_ffn
from systems.moeshard import MoEShard


class MoEShardPublished(MoEShard):
    """Tokens are gathered by boolean masks, sent expert by expert, computed in a loop, and written back by masks.

    Ranks that bring different numbers of tokens fill up to the largest, because not every backend takes lists of
    unequal parts; where all bring the same, as in the paper, nothing is filled up. Top-1 routing.
    """

    own_engine = "loop"

    @classmethod
    def check(cls, shape: LayerShape, world_size: int, *, chunks: int, **_: Any) -> None:
        super().check(shape, world_size, chunks=chunks)
        if chunks != 1:
            raise ValueError("system moeshard_published sends its tokens at once; system.chunks is for moeshard")
        if shape.top_k != 1:
            raise ValueError(f"system moeshard_published has top-1 routing as in the paper, got top_k = {shape.top_k}")

    def forward(self, x_TD: torch.Tensor, routing: Routing) -> torch.Tensor:
        """Algorithm 1, step by step: group by expert, exchange sizes, gather, compute every shard, scatter, ungroup."""
        expert_T = routing.expert_TK.squeeze(1)
        with self.span("dispatch"):
            tokens = [x_TD[expert_T == expert] for expert in range(self.shape.num_experts)]
        with self.span("metadata"):
            sizes_E = torch.tensor([len(rows) for rows in tokens], device=x_TD.device)
            sizes_GE: list[list[int]] = all_gather(sizes_E.unsqueeze(0), self.group).tolist()
        with self.span("dispatch"):
            gathered = self._gather(torch.cat(tokens), sizes_GE)
        with self.span("experts"):
            computed = self._compute(gathered)
        with self.span("combine"):
            y_TD = self._scatter(computed, sizes_GE)
            return self._ungroup(y_TD, expert_T, sizes_GE[self.rank]) * routing.weight_TK

    def _gather(self, x_TD: torch.Tensor, sizes_GE: list[list[int]]) -> list[tuple[torch.Tensor, ...]]:
        """W of the paper: W[g][e] are the tokens of rank g for expert e."""
        largest = max(map(sum, sizes_GE))
        parts = [x_TD.new_empty(largest, self.shape.d_model) for _ in sizes_GE]
        dist.all_gather(parts, filled_up(x_TD, largest), group=self.group)
        return [x_MD[: sum(sizes_E)].split(sizes_E) for x_MD, sizes_E in zip(parts, sizes_GE, strict=True)]

    def _compute(self, gathered: list[tuple[torch.Tensor, ...]]) -> list[list[torch.Tensor]]:
        """W with every entry replaced by this shard's partial output."""
        computed: list[list[torch.Tensor]] = [[] for _ in gathered]
        activation = ACTIVATIONS[self.shape.activation]
        for expert, from_rank in enumerate(zip(*gathered, strict=True)):
            y_RD = expert_ffn(torch.cat(from_rank), activation, *(shards[expert] for shards in self._shards))
            for entries, rows in zip(computed, y_RD.split([len(x) for x in from_rank]), strict=True):
                entries.append(rows)
        return computed

    def _scatter(self, computed: list[list[torch.Tensor]], sizes_GE: list[list[int]]) -> torch.Tensor:
        """This rank's tokens, still grouped by expert, summed over shards."""
        largest = max(map(sum, sizes_GE))
        partial_MD = torch.cat([filled_up(torch.cat(entries), largest) for entries in computed])
        return reduce_scatter(partial_MD, self.group)[: sum(sizes_GE[self.rank])]

    def _ungroup(self, y_TD: torch.Tensor, expert_T: torch.Tensor, sizes_E: list[int]) -> torch.Tensor:
        """From the order of experts to that of tokens."""
        ordered_TD = torch.empty_like(y_TD)
        for expert, rows in enumerate(y_TD.split(sizes_E)):
            ordered_TD[expert_T == expert] = rows
        return ordered_TD

    def account(self, tokens_GE: torch.Tensor, element_size: int) -> Account:
        row_bytes = self.shape.d_model * element_size
        sent = 8 * self.shape.num_experts + 2 * int(tokens_GE.sum(1).max()) * row_bytes
        return self.account_of_shards(tokens_GE, element_size, bytes_sent=float((self.world_size - 1) * sent))


def filled_up(x_TD: torch.Tensor, rows: int) -> torch.Tensor:
    """x_TD with zeros behind, so many rows in all."""
    return pad(x_TD, (0, 0, 0, rows - len(x_TD))) if len(x_TD) < rows else x_TD
