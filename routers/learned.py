"""The model's own router: a decoder's gate, or Switch's softmax over all experts, dropless."""

from collections.abc import Callable

import torch

from routers.base import Routing


class LearnedRouter:
    """softmax(x W^T) in float32, the K experts of highest probability, weighted by that probability.

    Source: Switch Transformers, equations 1 and 2; Hugging Face's SwitchTransformersTop1Router without its expert
    capacity, so that no token is dropped before a system sees it, and with ties broken before rounding to bf16.
    `classifier(layer)` gives the router matrix [E, D] of an encoder block; None of a decoder, which has gates.
    """

    def __init__(self, *, classifier: Callable[[int], torch.Tensor] | None, top_k: int = 1, **unused: object) -> None:
        self._classifier, self._top_k = classifier, top_k
        self._weight_ED: dict[int, torch.Tensor] = {}

    def prefetch(self, num_tokens: int, *, layer: int, iteration: int, like: torch.Tensor) -> None:
        if layer not in self._weight_ED and self._classifier is not None:
            self._weight_ED[layer] = self._classifier(layer).to(like.device, torch.float32)

    def route(self, x_TD: torch.Tensor, *, layer: int, iteration: int, chosen: Routing | None = None) -> Routing:
        if chosen is not None:
            return chosen
        self.prefetch(len(x_TD), layer=layer, iteration=iteration, like=x_TD)
        logits_TE = x_TD.float() @ self._weight_ED[layer].T
        weight_TK, expert_TK = logits_TE.softmax(dim=-1).topk(self._top_k, dim=-1)
        return Routing(expert_TK, weight_TK.to(x_TD.dtype), logits_TE)

    def intended(self, num_tokens: int, *, layer: int, iteration: int) -> None:
        """None: nobody asks a learned router for a load."""
