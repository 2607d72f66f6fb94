"""What a router gives to a system."""

from dataclasses import dataclass
from typing import Protocol

import torch


@dataclass(frozen=True)
class Routing:
    """The experts of every token on this rank.

    expert_TK: int64 expert ids. weight_TK: gate weights, in the dtype of the tokens.
    logits_TE: router scores where the router has any; None for the synthetic router.
    """

    expert_TK: torch.Tensor
    weight_TK: torch.Tensor
    logits_TE: torch.Tensor | None = None

    def tokens_per_expert(self, num_experts: int) -> torch.Tensor:
        """int64 [E]: how many token copies go to each expert."""
        return torch.bincount(self.expert_TK.flatten(), minlength=num_experts)


class Router(Protocol):
    """Routing is a function of (seed, layer, iteration, rank) and the tokens, so every system sees the same.

    A router is built with num_experts, rank, seed and classifier (block -> the model's router matrix [E, D]), needed
    or not, and the options of its configuration.
    """

    def prefetch(self, num_tokens: int, *, layer: int, iteration: int, like: torch.Tensor) -> None:
        """Draw ahead of the clock what does not depend on the tokens (a no-op for learned routers)."""
        ...

    def route(self, x_TD: torch.Tensor, *, layer: int, iteration: int) -> Routing:
        """Choose the experts of x_TD [T, D]; `layer` is the encoder block index."""
        ...
