"""The oracle: every token through its expert, on the rank where it is."""

import torch

from routers.base import Routing
from systems.base import Account, System
from systems.permute import group_by_expert


class Dense(System):
    """Every rank holds every expert and nothing is communicated.

    With `resident=False` experts are asked for one at a time, so that a check needs the memory of one.
    """

    def __init__(self, *, resident: bool = True, **layer) -> None:
        super().__init__(**layer)
        self._weights = layer["weights"]
        every = list(range(self.shape.num_experts))
        self._all = self.engine.prepare(*self._weights.experts(every)) if resident else None

    def forward(self, x_TD: torch.Tensor, routing: Routing) -> torch.Tensor:
        with self.span("experts"):
            order_N, rows_E = group_by_expert(routing.expert_TK.flatten(), self.shape.num_experts)
            token_N = order_N // self.shape.top_k
            y_ND = self._ffn(x_TD[token_N], rows_E)
        with self.span("combine"):
            weight_N1 = routing.weight_TK.flatten()[order_N].unsqueeze(1)
            return torch.zeros_like(x_TD).index_add_(0, token_N, y_ND * weight_N1)

    def _ffn(self, x_ND: torch.Tensor, rows_E: torch.Tensor) -> torch.Tensor:
        if self._all is not None:
            return self.engine(x_ND, rows_E, *self._all)
        parts = []
        for expert, x_RD in enumerate(x_ND.split(rows_E.tolist())):
            if len(x_RD):
                wi_1DF, wo_1FD = self._weights.experts([expert])
                parts.append(torch.relu(x_RD @ wi_1DF[0].to(x_RD.dtype)) @ wo_1FD[0].to(x_RD.dtype))
        return torch.cat(parts) if parts else x_ND

    def account(self, tokens_GE: torch.Tensor, element_size: int) -> Account:
        rows = float(tokens_GE[self.rank].sum())
        memory_bytes = self.ffn_bytes(rows, int(tokens_GE[self.rank].count_nonzero()), element_size)
        return Account(rows_computed=rows, rows_useful=rows, dropped=0, bytes_sent=0.0, memory_bytes=memory_bytes)
