"""The oracle: every token through its expert, on the rank where it is."""

import torch

from routers.base import Routing
from systems.base import Account, ExpertFfn, System
from systems.engines import ACTIVATIONS, Copies
from systems.engines.activations import expert_ffn
from systems.permute import summed_copies, weighted_sum


class Dense(System):
    """Every rank holds every expert and nothing is communicated.

    With `resident=False` experts are asked for one at a time, so that a check needs the memory of one.
    """

    stateful = False

    def __init__(self, *, resident: bool = True, **layer) -> None:
        super().__init__(**layer)
        self._weights = layer["weights"]
        every = list(range(self.shape.num_experts))
        self._all = self.engine.prepare(*self._weights.experts(every)) if resident else None

    def forward(self, x_TD: torch.Tensor, routing: Routing) -> torch.Tensor:
        with self.span("experts"):
            order_N, rows_E = self.engine.group(routing.expert_TK.flatten(), self.shape.num_experts)
            if self._all is None:
                return weighted_sum(self._one_by_one(x_TD, order_N, rows_E, self._plain), routing.weight_TK)
            copies = Copies(order_N, rows_E, self.shape.top_k, routing.weight_TK.flatten().float())
            return summed_copies(self.engine(x_TD, copies, *self._all), self.shape.top_k)

    def through(self, x_TD: torch.Tensor, routing: Routing, ffn: ExpertFfn) -> torch.Tensor:
        """`systems.base.Reference.through`."""
        order_N, rows_E = self.engine.group(routing.expert_TK.flatten(), self.shape.num_experts)
        return weighted_sum(self._one_by_one(x_TD, order_N, rows_E, ffn), routing.weight_TK)

    def _plain(self, _: int, __: torch.Tensor, x_RD: torch.Tensor, weights: tuple[torch.Tensor, ...]) -> torch.Tensor:
        return expert_ffn(x_RD, ACTIVATIONS[self.shape.activation], *weights)

    def _one_by_one(
        self, x_TD: torch.Tensor, order_N: torch.Tensor, rows_E: torch.Tensor, ffn: ExpertFfn
    ) -> torch.Tensor:
        y_ND = x_TD.new_empty(len(order_N), x_TD.shape[1])
        for expert, copies_R in enumerate(order_N.split(rows_E.tolist())):
            if len(copies_R):
                x_RD = x_TD[copies_R // self.shape.top_k]
                weights = tuple(weight[0].to(x_RD.dtype) for weight in self._weights.experts([expert]))
                y_ND[copies_R] = ffn(expert, copies_R, x_RD, weights)
        return y_ND

    def experts_held(self) -> float:
        return float(self.shape.num_experts)

    def account(self, tokens_GE: torch.Tensor, element_size: int) -> Account:
        rows = float(tokens_GE[self.rank].sum())
        memory_bytes = self.ffn_bytes(rows, int(tokens_GE[self.rank].count_nonzero()), element_size)
        return Account(rows_computed=rows, rows_useful=rows, dropped=0, bytes_sent=0.0, memory_bytes=memory_bytes)
