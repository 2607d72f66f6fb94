"""What a router gives to a system."""

import hashlib
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch


@dataclass(frozen=True)
class Routing:
    """The experts of every token on this rank.

    expert_TK: int64 expert ids. weight_TK: gate weights, in the dtype of the tokens.
    logits_TE: router scores where the router has any; None where experts are drawn. earlier: expert_TK of the same
    tokens in the MoE layers before this one, first layer first.
    """

    expert_TK: torch.Tensor
    weight_TK: torch.Tensor
    logits_TE: torch.Tensor | None = None
    earlier: tuple[torch.Tensor, ...] = ()

    def tokens_per_expert(self, num_experts: int) -> torch.Tensor:
        """int64 [E]: how many token copies go to each expert."""
        return torch.bincount(self.expert_TK.flatten(), minlength=num_experts)

    def digest(self) -> str:
        """16 hex digits of the SHA-256 of shape and expert ids (little-endian int64).

        Gate weights are left out: those of a learned router carry the rounding of the system before it.
        """
        expert_TK = self.expert_TK.cpu().numpy().astype("<i8")
        return hashlib.sha256(str(expert_TK.shape).encode() + expert_TK.tobytes()).hexdigest()[:16]


class Router(Protocol):
    """Routing is a function of (seed, layer, iteration, rank) and the tokens, so every system sees the same.

    A router is built with num_experts, top_k, rank, seed, moe_blocks (the blocks that have an MoE layer), classifier
    (block -> the model's router matrix [E, D]), sequences (how many this rank has; their tokens come one sequence after
    another) and regime (encode, prefill or decode), needed or not, and the options of its configuration; its
    constructor raises ValueError, in one sentence that names the option, before anything is launched.
    """

    def prefetch(self, num_tokens: int, *, layer: int, iteration: int, like: torch.Tensor) -> None:
        """Draw ahead of the clock what does not depend on the tokens (a no-op for learned routers)."""
        ...

    def route(self, x_TD: torch.Tensor, *, layer: int, iteration: int, chosen: Routing | None = None) -> Routing:
        """Choose the experts of x_TD [T, D]; `layer` is the block's index.

        chosen: what a decoder's own gate has chosen for them, which a learned router goes by.
        """
        ...

    def intended(self, num_tokens: int, *, layer: int, iteration: int) -> np.ndarray | None:
        """float64 [E]: how many of this rank's tokens each expert is asked to get; None for a learned router,
        and where that number is itself drawn.

        Probabilities x tokens where experts are drawn, the exact numbers where they are counted out: what
        `tokens_per_expert` of the routing is to be held against.
        """
        ...
