"""Lina: loads predicted from the experts that tokens have visited, busy experts on several ranks, the rest packed.

Letters beside those of base.py: T tokens of a batch, P paths of a profile, N pairs of a path and its next expert.
"""

import math
from dataclasses import dataclass

import numpy as np

from systems.planners.base import Costs, Planner, paths
from systems.planners.dispatch import evenly
from systems.planners.options import check_whole_number
from systems.planners.packing import count_replicas


class Lina(Planner):
    """Expert i gets n_i = G x its share of the load: with n_i > 1 ceil(n_i) replicas, else part of a rank.

    Source: Li et al., "Accelerating Distributed MoE Training and Inference with Lina", ATC'23, section on inference.
    Phase 1: `place` the loads that `PathProfile.predict` foresees before the gate. Phase 2: after the gate, keep the
    placement if `same_top`, else `place` the true loads. Our interpretation: equal parts of n_i/ceil(n_i) on ranks of
    their own, because every replica serves an equal share; first fit decreasing into ranks of 1, where none has room on
    the least loaded; for the paper's four experts a rank, at one expert a rank, ceil(E/G) + slack; experts without load
    on the ranks with most room, where the paper takes a random one.
    """

    def __init__(self, slack: int = 8) -> None:
        check_whole_number("slack", slack, 1)
        self.slack = slack

    def place(self, loads_GE: np.ndarray, current_EG: np.ndarray, costs: Costs) -> np.ndarray:
        ranks, num_experts = loads_GE.shape
        return pack(shares(loads_GE.sum(0), ranks), ranks, math.ceil(num_experts / ranks) + self.slack)

    def dispatch(self, tokens_GE: np.ndarray, replicas_EG: np.ndarray, owner_E: np.ndarray) -> np.ndarray:
        return evenly(tokens_GE, replicas_EG, owner_E)


def shares(loads_E: np.ndarray, ranks: int) -> np.ndarray:
    """float64 [E]: the ranks' worth of work of each expert, G in all; 0 where there is no load."""
    return loads_E * ranks / (loads_E.sum() or 1)


def pack(share_E: np.ndarray, ranks: int, capacity: int) -> np.ndarray:
    """replicas_EG: first fit decreasing, at most `capacity` experts a rank and one replica of an expert."""
    parts_E = np.maximum(np.ceil(share_E - 1e-9), 1).astype(np.int64)  # a share of 1 is 1 whatever the rounding
    size_E = share_E / parts_E
    order_E = np.argsort(-size_E, kind="stable")
    load, held = [0.0] * ranks, [0] * ranks  # plain numbers, because a step is a few of them; inf: takes no more
    hosts: list[tuple[int, int]] = []
    for expert, parts, size in zip(order_E.tolist(), parts_E[order_E].tolist(), size_E[order_E].tolist(), strict=True):
        now: dict[int, float] = {}
        for _ in range(parts):
            rank = held.index(min(held)) if size == 0 else _first_fit(load, size)
            if load[rank] == math.inf:
                break
            now[rank], load[rank] = load[rank] + size, math.inf
        for rank in now:
            held[rank] += 1
            load[rank] = now[rank] if held[rank] < capacity else math.inf
            hosts.append((expert, rank))
    expert_R, rank_R = np.array(hosts).T
    return count_replicas(expert_R, rank_R, len(share_E), ranks)


def _first_fit(load: list[float], size: float) -> int:
    """The first rank with room for `size`, where there is none the least loaded."""
    for rank, have in enumerate(load):
        if have + size <= 1 + 1e-9:
            return rank
    return load.index(min(load))


def same_top(actual_E: np.ndarray, estimated_E: np.ndarray, count: int) -> bool:
    """Whether the `count` busiest experts (the paper's 2k) are those predicted; of equal ones the first count."""
    return set(busiest(actual_E, count)) == set(busiest(estimated_E, count))


def busiest(loads_E: np.ndarray, count: int) -> list[int]:
    """The experts with most load, the first of equal ones."""
    return np.argsort(-loads_E, kind="stable")[:count].tolist()


@dataclass(frozen=True)
class Histograms:
    """Psi: for each path seen, how many tokens went to which expert next.

    path_P: paths, rising. tokens_P: tokens of each. path_N (an index of path_P), expert_N and tokens_N: the histograms.
    """

    path_P: np.ndarray
    tokens_P: np.ndarray
    path_N: np.ndarray
    expert_N: np.ndarray
    tokens_N: np.ndarray

    @classmethod
    def count(cls, path_M: np.ndarray, next_M: np.ndarray, num_experts: int) -> "Histograms":
        pair_N, tokens_N = np.unique(path_M * num_experts + next_M, return_counts=True)
        path_P, path_N = np.unique(pair_N // num_experts, return_inverse=True)
        tokens_P = np.bincount(path_N, weights=tokens_N)
        return cls(path_P, tokens_P, path_N, pair_N % num_experts, tokens_N)

    def find(self, path_T: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Index of each path in path_P, and whether it is there."""
        index_T = np.minimum(np.searchsorted(self.path_P, path_T), len(self.path_P) - 1)
        return index_T, self.path_P[index_T] == path_T

    def expected(self, index_T: np.ndarray, num_experts: int) -> np.ndarray:
        """float64 [E]: the loads of tokens with these paths."""
        weight_P = np.bincount(index_T, minlength=len(self.path_P)) / self.tokens_P
        return np.bincount(self.expert_N, weights=weight_P[self.path_N] * self.tokens_N, minlength=num_experts)


@dataclass(frozen=True)
class PathProfile:
    """Where tokens go next, given the experts of their last MoE layers: histograms[layer][n] for paths of n layers.

    The paper's length is 3 and it keeps the likeliest expert of a path only; here all are kept.
    """

    num_experts: int
    histograms: list[list[Histograms]]

    @classmethod
    def fit(cls, expert_LGM: np.ndarray, num_experts: int, length: int = 3) -> "PathProfile":
        expert_ML = paths(expert_LGM).T
        return cls(
            num_experts,
            [
                [
                    Histograms.count(encode(expert_ML[:, :layer], n, num_experts), expert_ML[:, layer], num_experts)
                    for n in range(min(length, layer) + 1)
                ]
                for layer in range(expert_ML.shape[1])
            ],
        )

    def predict(self, path_TL: np.ndarray, layer: int) -> np.ndarray:
        """float64 [E]: expected loads of MoE layer `layer`, from the experts in the layers before it.

        A path that the profile lacks is shortened from its far end until it has it; the empty path is the marginal.
        """
        loads_E = np.zeros(self.num_experts)
        for n in reversed(range(len(self.histograms[layer]))):
            histograms = self.histograms[layer][n]
            index_T, seen_T = histograms.find(encode(path_TL, n, self.num_experts))
            loads_E += histograms.expected(index_T[seen_T], self.num_experts)
            path_TL = path_TL[~seen_T]
        return loads_E


def encode(path_TL: np.ndarray, length: int, num_experts: int) -> np.ndarray:
    """int64 [T]: the last `length` experts of each path as one number in base E."""
    code_T = np.zeros(len(path_TL), np.int64)
    for layer in range(path_TL.shape[1] - length, path_TL.shape[1]):
        code_T = code_T * num_experts + path_TL[:, layer]
    return code_T
