"""MoEShard: every expert is cut into G shards, so every rank does 1/G of every expert's work whatever the routing.

Source: "Accelerating MoE Model Inference with Expert Sharding" (EuroMLSys'25), section 3 and Algorithm 1. Every rank
receives the same number of rows from every other, so shapes are static and the algorithm's exchange of metadata
(step 2) is not needed: what is gathered is tokens in their original order, and their experts.
"""

import torch
from torch.nn.functional import pad

from routers.base import Routing
from systems.base import Account, LayerShape, System, divisible
from systems.collectives import all_gather, reduce_scatter
from systems.permute import group_by_expert


class MoEShard(System):
    """W_i by columns and W_o by rows; all tokens to all ranks; partial outputs summed and scattered."""

    def __init__(self, **layer) -> None:
        super().__init__(**layer)
        shard = layer["weights"].shard(self.rank, self.world_size)
        self._wi_EDf, self._wo_EfD = self.engine.prepare(*shard)

    @classmethod
    def check(cls, shape: LayerShape, world_size: int, **options: object) -> None:
        divisible("model.d_ff", shape.d_ff, world_size, "expert sharding gives each rank d_ff/G hidden units")

    @classmethod
    def hidden_width(cls, shape: LayerShape, world_size: int) -> int:
        return shape.d_ff // world_size

    def forward(self, x_TD: torch.Tensor, routing: Routing) -> torch.Tensor:
        num_tokens, padding = len(x_TD), self.shape.max_tokens - len(x_TD)
        if padding:  # ranks with fewer tokens fill up to the static shape; expert E means none
            x_TD = pad(x_TD, (0, 0, 0, padding))
            routing = Routing(
                pad(routing.expert_TK, (0, 0, 0, padding), value=self.shape.num_experts),
                pad(routing.weight_TK, (0, 0, 0, padding)),
            )
        with self.span("dispatch"):
            x_MD = all_gather(x_TD, self.group)  # M = G * max_tokens
            expert_MK = all_gather(routing.expert_TK.to(torch.int32), self.group).long()
        with self.span("experts"):
            order_N, rows_E = group_by_expert(expert_MK.flatten(), self.shape.num_experts)
            y_ND = self.engine(x_MD[order_N // self.shape.top_k], rows_E, self._wi_EDf, self._wo_EfD)
            partial_NKD = torch.empty_like(y_ND).index_copy_(0, order_N, y_ND)
        with self.span("combine"):
            y_TKD = reduce_scatter(partial_NKD, self.group).unflatten(0, (-1, self.shape.top_k))[:num_tokens]
            return (y_TKD * routing.weight_TK[:num_tokens].unsqueeze(2)).sum(1)

    def account(self, tokens_GE: torch.Tensor, element_size: int) -> Account:
        peers, copies = self.world_size - 1, self.shape.max_tokens * self.shape.top_k
        gathered = self.shape.max_tokens * self.shape.d_model * element_size + 4 * copies
        scattered = copies * self.shape.d_model * element_size
        return self.account_of_shards(tokens_GE, element_size, bytes_sent=peers * (gathered + scattered))

    def account_of_shards(self, tokens_GE: torch.Tensor, element_size: int, bytes_sent: float) -> Account:
        """Every rank takes every row through its shard."""
        rows_E = tokens_GE.sum(0)
        rows = float(rows_E.sum())
        return Account(
            rows_computed=rows / self.world_size,
            rows_useful=rows / self.world_size,
            dropped=0,
            bytes_sent=bytes_sent,
            memory_bytes=self.ffn_bytes(rows, int(rows_E.count_nonzero()), element_size),
        )


class MoEShardNoMegaBlocks(MoEShard):
    """The paper's ablation (section 4.4): one pair of matmuls per expert, whatever engine the others use."""

    own_engine = "loop"
