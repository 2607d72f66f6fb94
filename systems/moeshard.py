"""MoEShard: every expert is cut into G shards, so every rank does 1/G of every expert's work whatever the routing.

Source: "Accelerating MoE Model Inference with Expert Sharding" (EuroMLSys'25), section 3 and Algorithm 1. Every rank
receives the same number of rows from every other, so shapes are static and the algorithm's exchange of metadata
(step 2) is not needed: what is gathered is tokens in their original order, and their experts.
"""

from collections import deque

import torch
from torch.nn.functional import pad

from routers.base import Routing
from systems.base import Account, LayerShape, System, divisible
from systems.collectives import InFlight, start_all_gather, start_reduce_scatter
from systems.permute import weighted_sum


class MoEShard(System):
    """W_i by columns and W_o by rows; all tokens to all ranks; partial outputs summed and scattered.

    chunks: parts of the tokens whose exchange overlaps with the computation of the part before. More parts hide more
    and give each expert fewer rows at a time, so weights are read once a part.
    """

    def __init__(self, *, chunks: int = 1, **layer) -> None:
        super().__init__(**layer)
        self.check(self.shape, self.world_size, chunks=chunks)
        shard = layer["weights"].shard(self.rank, self.world_size)
        self._wi_EDf, self._wo_EfD = self.engine.prepare(*shard)
        self._chunks = chunks

    @classmethod
    def check(cls, shape: LayerShape, world_size: int, **options: object) -> None:
        divisible("model.d_ff", shape.d_ff, world_size, "expert sharding gives each rank d_ff/G hidden units")
        chunks = options.get("chunks", 1)
        if type(chunks) is not int or chunks < 1:
            raise ValueError(f"system.chunks is {chunks!r}; it must be a whole number of at least 1")

    @classmethod
    def hidden_width(cls, shape: LayerShape, world_size: int) -> int:
        return shape.d_ff // world_size

    def forward(self, x_TD: torch.Tensor, routing: Routing) -> torch.Tensor:
        num_copies = routing.expert_TK.numel()
        with self.span("dispatch"):
            x_TD, expert_TK = self._to_static_shape(x_TD, routing.expert_TK)
            parts = zip(expert_TK.chunk(self._chunks), x_TD.chunk(self._chunks), strict=True)
            arriving = deque((self._gather(experts), self._gather(tokens)) for experts, tokens in parts)
        leaving = [self._compute(*arriving.popleft()) for _ in range(len(arriving))]
        with self.span("combine"):
            y_ND = torch.cat([part.wait() for part in leaving]) if len(leaving) > 1 else leaving[0].wait()
            return weighted_sum(y_ND[:num_copies], routing.weight_TK)

    def _compute(self, experts: InFlight, tokens: InFlight) -> InFlight:
        """The tokens of all ranks (M rows), once here, go through this shard; the sums over ranks are on the way."""
        with self.span("dispatch"):
            order_N, rows_E = self.engine.group(experts.wait().flatten().long(), self.shape.num_experts)
            x_MD = tokens.wait()
        with self.span("experts"):
            partial_ND = self.engine(x_MD, order_N, rows_E, self._wi_EDf, self._wo_EfD, top_k=self.shape.top_k)
        with self.span("combine"):
            return start_reduce_scatter(partial_ND, self.group, overlap=self._chunks > 1)

    def _gather(self, x: torch.Tensor) -> InFlight:
        return start_all_gather(x, self.group, overlap=self._chunks > 1)

    def _to_static_shape(self, x_TD: torch.Tensor, expert_TK: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Ranks with fewer tokens fill up to max_tokens; expert E means none."""
        expert_TK = expert_TK.to(torch.int32)
        if not (padding := self.shape.max_tokens - len(x_TD)):
            return x_TD, expert_TK
        return pad(x_TD, (0, 0, 0, padding)), pad(expert_TK, (0, 0, 0, padding), value=self.shape.num_experts)

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
            memory_bytes=self.ffn_bytes(rows, self._chunks * int(rows_E.count_nonzero()), element_size),
        )


class MoEShardNoMegaBlocks(MoEShard):
    """The paper's ablation (section 4.4): one pair of matmuls per expert, whatever engine the others use."""

    own_engine = "loop"
