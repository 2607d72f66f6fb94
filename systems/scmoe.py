"""ScMoE: routed experts read the block before through a shortcut, so that their exchanges hide behind its feed-forward.

Source: "Shortcut-connected Expert Parallelism for Accelerating Mixture-of-Experts" (ICML'25), its second position: of a
pair of blocks, one with a dense feed-forward network and one with experts, tokens are routed by what the first has
after its attention; they travel while its network and the second's attention compute, and their experts' outputs are
added where the second's would be. The model is another one, and weights that were trained without the shortcut guess
badly with it: what is measured is time. Ours: no shared expert, which Switch has not; experts compute at one of three
moments, not four, because the fourth lies before the shared expert.
"""

from typing import Any, ClassVar, NamedTuple

import torch

from routers.base import Routing
from systems.base import LayerShape
from systems.collectives import InFlight, start_all_to_all
from systems.expert_parallel import Counts, ExpertParallel
from systems.permute import weighted_sum
from systems.planners.base import Rates

AT_ONCE, AFTER_BLOCK, AT_END = SLOTS = (0, 1, 2)  # when experts compute
ATTENTION = 8  # FLOPs of attention's four products, for each number of a token and of d_model


class Call(NamedTuple):
    """Rows under way to their experts, and what is needed to bring results back."""

    dispatched: InFlight
    counts: Counts
    weight_TK: torch.Tensor


class ScMoE(ExpertParallel):
    """slot: when experts compute. 0: as soon as their tokens are here; 1: when the block before is through; 2: after
    the attention of their own block; `auto`: where exchanges are hidden best, by the rates of the ranks.
    """

    exactness = "changes-architecture"
    own_rule = True  # the dense experts, on other tokens
    looks_ahead = True
    fixed: ClassVar[dict[str, Any]] = {"placement": "contiguous"}

    def __init__(self, *, slot: int | str = "auto", rates: Rates, **layer) -> None:
        super().__init__(**layer)
        element_size = layer["weights"].experts([])[0].element_size()
        self.slot = best_slot(self.shape, rates, element_size) if slot == "auto" else int(slot)
        self._call: Call | None = None
        self._combined: InFlight | None = None

    @classmethod
    def check(cls, shape: LayerShape, world_size: int, *, slot: int | str, **options: Any) -> None:
        super().check(shape, world_size, **options)
        if slot not in ("auto", *SLOTS):
            raise ValueError(f"system.slot is {slot!r}; it must be auto, 0, 1 or 2")
        if shape.activation != "relu":
            raise ValueError("system scmoe reads the block before in Switch's encoder; decoders do not show theirs")

    @classmethod
    def needs(cls, **_: Any) -> frozenset[str]:
        return frozenset({"rates"})

    def begin(self, x_TD: torch.Tensor, routing: Routing) -> None:
        """Counts and rows leave; the rows are waited for when their experts compute."""
        with self.span("metadata"):
            counts = self.count(routing)
        with self.span("dispatch"):
            x_ND = x_TD[counts.order_N // self.shape.top_k]
            self._call = Call(
                start_all_to_all(x_ND, self.group, counts.received_G, counts.sent_G), counts, routing.weight_TK
            )
        if self.slot == AT_ONCE:
            self._compute()

    def go_on(self) -> None:
        if self.slot == AFTER_BLOCK:
            self._compute()

    def forward(self, x_TD: torch.Tensor, routing: Routing) -> torch.Tensor:
        """The result of what was begun; RuntimeError where nothing was."""
        if self._call is None:
            raise RuntimeError("system scmoe was given nothing by the block before this one, whose attention it reads")
        if self._combined is None:
            self._compute()
        call, combined, self._call, self._combined = self._call, self._combined, None, None
        assert call is not None and combined is not None
        with self.span("combine"):
            y_ND = combined.wait()
            y_ND = torch.empty_like(y_ND).index_copy_(0, call.counts.order_N, y_ND)
            return weighted_sum(y_ND, call.weight_TK)

    def _compute(self) -> None:
        """Experts compute what has come, and it leaves."""
        assert self._call is not None
        dispatched, counts, _ = self._call
        with self.span("dispatch"):
            x_RD = dispatched.wait()
        with self.span("experts"):
            y_RD = self.compute(x_RD, counts)
        with self.span("combine"):
            self._combined = start_all_to_all(y_RD, self.group, counts.sent_G, counts.received_G)


def best_slot(shape: LayerShape, rates: Rates, element_size: int) -> int:
    """The slot whose computation before it is nearest to the time of the exchange there, and after it to that back.

    K* = argmin |sum of computation before K - dispatch| + |sum after K - combine| (section 4.3 of the paper), of the
    dense network of the block before and the attention of this one, with tokens spread evenly over ranks.
    """
    rows = shape.max_tokens * shape.top_k
    exchange_s = rows * shape.d_model * element_size / rates.bytes_per_s
    network_s = shape.max_tokens * shape.row_flops(shape.d_ff) / rates.flops_per_s
    attention_s = shape.max_tokens * ATTENTION * shape.d_model**2 / rates.flops_per_s
    windows = ((0.0, network_s + attention_s), (network_s, attention_s), (network_s + attention_s, 0.0))
    return min(SLOTS, key=lambda slot: sum(abs(window_s - exchange_s) for window_s in windows[slot]))
