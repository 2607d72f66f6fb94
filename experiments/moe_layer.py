"""The MoE layer that stands in the model: router + system, whichever system is being measured."""

from dataclasses import replace

import torch
from torch import nn

from experiments.recorder import Recorder
from routers.base import Router, Routing
from systems.base import System


class MoELayer(nn.Module):
    """Hidden states [B, L, D] -> [B, L, D]; in a decoder [T, D] -> [T, D], with what its gate has chosen [T, K].
    `system` and `iteration` are set before each forward pass.

    scores_TE: those of a decoder's gate for the tokens of the next call. wait: the host waits for the device after each
    call. `before` is the MoE layer before this one, whose last routing belongs to the same tokens. `routing` is that of
    the last call; `seen` its input, routing and output while `remember` is set, for the check.
    """

    system: System

    def __init__(
        self,
        block: int,
        router: Router,
        recorder: Recorder,
        before: "MoELayer | None" = None,
        *,
        wait: bool = False,
    ) -> None:
        super().__init__()
        self._wait = wait
        self._before = (before,)  # in a tuple, so that it is no submodule
        self.block, self.router, self.recorder = block, router, recorder
        self.iteration = 0
        self.routing: Routing | None = None
        self.scores_TE: torch.Tensor | None = None
        self._begun: tuple[torch.Tensor, Routing] | None = None
        self.remember = False
        self.seen: tuple[torch.Tensor, Routing, torch.Tensor] | None = None

    @property
    def looks_ahead(self) -> bool:
        """Whether the system that is here starts while the block before computes."""
        return self.system.looks_ahead

    def begin_ahead(self, hidden: torch.Tensor) -> None:
        """Route and start with what the block before has after its attention; the result is that of the next call."""
        x_TD = hidden.flatten(0, -2)
        self._begun = x_TD, self._follow(self.router.route(x_TD, layer=self.block, iteration=self.iteration))
        self.system.begin(*self._begun)

    def forward(self, hidden: torch.Tensor, *chosen: torch.Tensor) -> torch.Tensor:
        """Route and compute, timed if the run is observed. chosen: expert_TK and weight_TK of a decoder's gate."""
        x_TD = hidden.flatten(0, -2)
        gated = Routing(chosen[0], chosen[1].to(x_TD.dtype), self.scores_TE) if chosen else None
        self.scores_TE = None
        with self.recorder.layer(self.block):
            if self._begun is None:
                with self.recorder.span("route"):
                    routing = self.router.route(x_TD, layer=self.block, iteration=self.iteration, chosen=gated)
                    routing = self._follow(routing)
            else:
                (x_TD, routing), self._begun = self._begun, None
            y_TD = self.system.forward(x_TD, routing)
        if self._wait:
            routing.expert_TK[0, 0].item()
        self.routing = replace(routing, logits_TE=None)  # which nobody asks for later
        if self.remember:
            self.seen = x_TD, routing, y_TD
        return y_TD.view_as(hidden)

    def _follow(self, routing: Routing) -> Routing:
        """The routing with what the layers before chose for the same tokens."""
        (before,) = self._before
        if before is None or before.routing is None:
            return routing
        return replace(routing, earlier=(*before.routing.earlier, before.routing.expert_TK))
