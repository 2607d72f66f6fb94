"""MoEShard: every expert is cut into G shards, so every rank does 1/G of every expert's work whatever the routing.

Source: "Accelerating MoE Model Inference with Expert Sharding" (EuroMLSys'25), section 3 and Algorithm 1. Every rank
receives the same number of rows from every other, so shapes are static and the algorithm's exchange of metadata
(step 2) is not needed: what is gathered is tokens in their original order, and their experts with the gate weights.
"""

from collections import deque
from typing import Any

import torch

from routers.base import Routing
from systems.base import Account, LayerShape, System, divisible
from systems.collectives import InFlight, start_all_gather, start_reduce_scatter
from systems.engines import Copies
from systems.permute import filled_up, packed_choices, summed_copies, unpacked_choices


class MoEShard(System):
    """W_i by columns and W_o by rows; all tokens to all ranks; partial outputs summed and scattered.

    chunks: parts of the tokens whose exchange overlaps with the computation of the part before. More parts hide more
    and give each expert fewer rows at a time, so weights are read once a part.
    """

    stateful = False

    def __init__(self, *, chunks: int = 1, **layer) -> None:
        super().__init__(**layer)
        shard = layer["weights"].shard(self.rank, self.world_size)
        self._shards = self.engine.prepare(*shard)
        self._chunks = chunks

    @classmethod
    def check(cls, shape: LayerShape, world_size: int, *, chunks: int, **_: Any) -> None:
        divisible("model.d_ff", shape.d_ff, world_size, "expert sharding gives each rank d_ff/G hidden units")
        if chunks < 1:
            raise ValueError(f"system.chunks is {chunks!r}; it must be a whole number of at least 1")

    @classmethod
    def hidden_width(cls, shape: LayerShape, world_size: int) -> int:
        return shape.d_ff // world_size

    def forward(self, x_TD: torch.Tensor, routing: Routing) -> torch.Tensor:
        """Parts of the tokens one after another: while one is computed, the next arrive and the sums before leave."""
        num_tokens = len(x_TD)
        with self.span("dispatch"):
            padding = self.shape.max_tokens - num_tokens
            choices_T2K = filled_up(
                packed_choices(routing.expert_TK, routing.weight_TK), padding, self.shape.num_experts
            )
            x_TD = filled_up(x_TD, padding, 0)
            parts = zip(choices_T2K.chunk(self._chunks), x_TD.chunk(self._chunks), strict=True)
            arriving = deque((self._gather(choices), self._gather(tokens)) for choices, tokens in parts)
        leaving = [self._compute(*arriving.popleft()) for _ in range(len(arriving))]
        with self.span("combine"):
            y_TD = torch.cat([part.wait() for part in leaving]) if len(leaving) > 1 else leaving[0].wait()
            return y_TD[:num_tokens]

    def _compute(self, choices: InFlight, tokens: InFlight) -> InFlight:
        """The tokens of all ranks (M rows), once here, go through this shard; the sums over ranks are on the way.

        A token's copies are weighted and summed here, so that one row a token travels back whatever top_k is.
        """
        with self.span("dispatch"):
            expert_N, weight_N = unpacked_choices(choices.wait())
            order_N, rows_E = self.engine.group(expert_N, self.shape.num_experts)
            x_MD = tokens.wait()
        with self.span("experts"):
            copies = Copies(order_N, rows_E, self.shape.top_k, weight_N)
            partial_MD = summed_copies(self.engine(x_MD, copies, *self._shards), self.shape.top_k)
        with self.span("combine"):
            return start_reduce_scatter(partial_MD, self.group, overlap=self._chunks > 1)

    def _gather(self, x: torch.Tensor) -> InFlight:
        return start_all_gather(x, self.group, overlap=self._chunks > 1)

    def account(self, tokens_GE: torch.Tensor, element_size: int) -> Account:
        row_bytes, choice_bytes = self.shape.d_model * element_size, 8 * self.shape.top_k
        bytes_sent = (self.world_size - 1) * self.shape.max_tokens * (2 * row_bytes + choice_bytes)
        return self.account_of_shards(tokens_GE, element_size, bytes_sent)

    def account_of_shards(self, tokens_GE: torch.Tensor, element_size: int, bytes_sent: float) -> Account:
        """Every rank takes every row through its shard."""
        rows_E = tokens_GE.sum(0)
        rows = float(rows_E.sum())
        return Account(
            rows_computed=rows / self.world_size,
            rows_useful=rows / self.world_size,
            dropped=0,
            bytes_sent=bytes_sent,
            memory_bytes=self.ffn_bytes(rows, self._chunks * int(rows_E.count_nonzero()), element_size),
        )


class MoEShardNoMegaBlocks(MoEShard):
    """The paper's ablation (section 4.4): one pair of matmuls per expert, whatever engine the others use."""

    own_engine = "loop"
