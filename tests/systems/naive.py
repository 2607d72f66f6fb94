"""What a padded system must compute, copy by copy, and layers small enough for that."""

from typing import Any

import torch

from experiments.conformance import D_FF, D_MODEL
from routers.base import Routing
from systems.base import LayerShape
from systems.engines import find_engine
from workloads.model import ModelShape
from workloads.weights import SeededLayer


def seeded_weights(num_experts: int) -> SeededLayer:
    """Those of the conformance kit."""
    model = ModelShape(num_experts, D_MODEL, D_FF, 4, 4, 2, 2, 32)
    return SeededLayer(model, block=1, seed=0, dtype=torch.float32, device=torch.device("cpu"))


def layer(num_experts: int, max_tokens: int, top_k: int, group: Any) -> dict[str, Any]:
    shape = LayerShape(num_experts, D_MODEL, D_FF, max_tokens, top_k)
    return {"shape": shape, "weights": seeded_weights(num_experts), "group": group, "engine": find_engine("loop")}


def draw(num_tokens: int, num_experts: int, top_k: int, seed: int) -> tuple[torch.Tensor, Routing]:
    """Tokens that prefer expert 0."""
    generator = torch.Generator().manual_seed(seed)
    popularity_E = torch.tensor([5.0] + [1.0] * (num_experts - 1))
    expert_TK = torch.stack([torch.multinomial(popularity_E, top_k, generator=generator) for _ in range(num_tokens)])
    weight_TK = torch.rand(num_tokens, top_k, generator=generator) + 0.1
    return torch.randn(num_tokens, D_MODEL, generator=generator), Routing(expert_TK, weight_TK)


def keep_first(x_TD: torch.Tensor, routing: Routing, num_experts: int, capacity: int) -> torch.Tensor:
    """y_TD when each expert takes the first `capacity` copies: all first choices, then all second ones."""
    wi_EDF, wo_EFD = seeded_weights(num_experts).experts(list(range(num_experts)))
    taken, y_TD = [0] * num_experts, torch.zeros_like(x_TD)
    for choice in range(routing.expert_TK.shape[1]):
        for token, expert in enumerate(routing.expert_TK[:, choice].tolist()):
            if taken[expert] < capacity:
                output_D = torch.relu(x_TD[token] @ wi_EDF[expert]) @ wo_EFD[expert]
                y_TD[token] += routing.weight_TK[token, choice] * output_D
                taken[expert] += 1
    return y_TD
