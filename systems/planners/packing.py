"""Items with weights to ranks that have as many slots each. R items: experts, or replicas of them."""

import math

import numpy as np


def pack(
    weights_R: np.ndarray, world_size: int, preferred_R: np.ndarray | None = None, start_G: np.ndarray | None = None
) -> np.ndarray:
    """int64 [R]: each item's rank by longest processing time: heaviest first, to the lightest rank with a free slot.

    Every rank takes R/G items. Of equally light ranks the item's preferred one wins, else the first. start_G: what
    ranks have already.
    """
    assert len(weights_R) % world_size == 0
    rank_R = np.empty(len(weights_R), np.int64)
    weights, preferred = weights_R.tolist(), ([0] * len(weights_R) if preferred_R is None else preferred_R.tolist())
    loads = [0.0] * world_size if start_G is None else start_G.tolist()
    free = [len(weights_R) // world_size] * world_size
    for item in np.argsort(-weights_R, kind="stable").tolist():
        lightest = min(loads)
        rank = preferred[item] if loads[preferred[item]] == lightest else loads.index(lightest)
        free[rank] -= 1
        loads[rank] = loads[rank] + weights[item] if free[rank] else math.inf
        rank_R[item] = rank
    return rank_R


def count_replicas(expert_R: np.ndarray, rank_R: np.ndarray, num_experts: int, world_size: int) -> np.ndarray:
    """replicas_EG of replicas given one by one."""
    pair_R = expert_R * world_size + rank_R
    return np.bincount(pair_R, minlength=num_experts * world_size).reshape(num_experts, world_size)
