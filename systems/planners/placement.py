"""Placements that nothing moves while it runs: one owner per expert."""

from collections.abc import Callable

import numpy as np
import torch

from systems.planners.base import Costs, Planner, as_replicas, owner_of, per_rank
from systems.planners.dispatch import to_owner
from systems.planners.packing import pack


def contiguous(num_experts: int, world_size: int) -> torch.Tensor:
    """int64 [E]: rank g owns experts g*E/G .. (g+1)*E/G - 1, as DeepSpeed and most systems place them."""
    return torch.arange(num_experts) // (num_experts // world_size)


def round_robin(num_experts: int, world_size: int) -> torch.Tensor:
    """int64 [E]: expert e lives on rank e mod G, which spreads neighbouring hot experts."""
    return torch.arange(num_experts) % world_size


PLACEMENTS: dict[str, Callable[[int, int], torch.Tensor]] = {"contiguous": contiguous, "round_robin": round_robin}


class Home(Planner):
    """Experts stay where they are and every token goes there: dropless expert parallelism."""

    replicates = False

    def place(self, loads_GE: np.ndarray, current_EG: np.ndarray, costs: Costs) -> np.ndarray:
        return current_EG

    def dispatch(self, tokens_GE: np.ndarray, replicas_EG: np.ndarray, owner_E: np.ndarray) -> np.ndarray:
        return to_owner(tokens_GE, replicas_EG, owner_E)


class Packed(Planner):
    """Whole experts by load to the rank with the fewest tokens, E/G on each: what knowing the loads gives without
    replicas, moves or a change in the exchange.
    """

    replicates = False

    def place(self, loads_GE: np.ndarray, current_EG: np.ndarray, costs: Costs) -> np.ndarray:
        num_experts, ranks = current_EG.shape
        per_rank(num_experts, ranks)
        return as_replicas(pack(loads_GE.sum(0), ranks), ranks)

    def dispatch(self, tokens_GE: np.ndarray, replicas_EG: np.ndarray, owner_E: np.ndarray) -> np.ndarray:
        return to_owner(tokens_GE, replicas_EG, owner_of(replicas_EG))
