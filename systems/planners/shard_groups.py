"""Experts sharded among as many ranks as their load wants, in the memory of whole experts.

Expert e is cut into s_e = 1, 2, 4, ... parts for a group of s_e neighbouring ranks of one node; n experts that are cut
into s parts take n/s of a rank's E/G places, so s divides how many of them a group has. Every rank holds E/G experts'
worth of weights. With all s_e = 1 this is expert parallelism, with all s_e = G it is MoEShard. What it weighs:

    computing   max_r sum_{e on r} work_e / s_e,     work_e = max(L_e row_s, P(L_e > 0) read_expert_s)
    travelling  2 near_row_s max_r V_r,              V_r = T (1 - prod_{e on r} (1 - L_e / T))

L_e: the batch's token copies for expert e, of T tokens; V_r: the tokens that visit rank r, each once, if a token's
experts were independent. HD-MoE (arXiv:2509.09420) also splits experts by load, without a bound on a node's memory.
"""

import heapq
import itertools
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from systems.planners.base import Costs
from systems.planners.packing import pack


class Cut(NamedTuple):
    """How a node's experts are cut: of each size how many experts a group of so many ranks has."""

    experts_of_size: dict[int, int]

    def places(self) -> float:
        """How many of a rank's places they take."""
        return sum(experts / size for size, experts in self.experts_of_size.items())


@dataclass(frozen=True)
class ShardGroups:
    """Chooses sizes and groups by the cost above, for loads of one batch of num_tokens tokens.

    sizes: the numbers of parts that an expert may be cut into, powers of two that divide a node's ranks.
    """

    sizes: tuple[int, ...]

    def place(self, load_E: np.ndarray, num_tokens: float, ranks: int, costs: Costs) -> np.ndarray:
        """parts_EG (int64): into how many parts expert e is cut, where rank g has one of them, else 0."""
        per_node = costs.ranks_per_node or ranks
        node_E = pack(load_E, ranks // per_node)
        parts_EG = np.zeros((len(load_E), ranks), np.int64)
        for node in range(ranks // per_node):
            here = np.flatnonzero(node_E == node)
            parts_eg = self._place_on_node(load_E[here], num_tokens, per_node, costs)
            parts_EG[here, node * per_node : (node + 1) * per_node] = parts_eg
        return parts_EG

    def _place_on_node(self, load_e: np.ndarray, num_tokens: float, ranks: int, costs: Costs) -> np.ndarray:
        sizes = sorted(self.sizes, reverse=True)
        places = len(load_e) // ranks
        order_e = np.argsort(-load_e, kind="stable")
        node = _Node(load_e[order_e], num_tokens, ranks, costs)
        best = min(_cuts(sizes, places), key=lambda cut: node.seconds(node.placed(cut)))
        parts_eg = np.empty((len(load_e), ranks), np.int64)
        parts_eg[order_e] = node.placed(best)
        return parts_eg


def powers_of_two(most: int) -> list[int]:
    """Those that divide a number."""
    return [size for size in (1 << power for power in range(most.bit_length())) if most % size == 0]


def _cuts(sizes: list[int], places: int) -> list[Cut]:
    """Cuts that fill all places, each size taking none of them or a power of two, or all that are left."""
    first, *others = sizes
    if not others:
        return [Cut({first: first * places})]
    shares = sorted({0, places, *itertools.takewhile(lambda n: n < places, (1 << n for n in range(places)))})
    return [
        Cut({first: first * share} | rest.experts_of_size) for share in shares for rest in _cuts(others, places - share)
    ]


class _Node:
    """One node's experts, heaviest first, and what a placement of them costs."""

    def __init__(self, load_e: np.ndarray, num_tokens: float, ranks: int, costs: Costs) -> None:
        self._ranks, self._costs, self._num_tokens = ranks, costs, num_tokens
        active_e = -np.expm1(-load_e)
        self._work_e = np.maximum(costs.row_s * load_e, costs.read_expert_s * active_e)
        self._missed_e = np.log1p(-np.minimum(load_e / num_tokens, 0.999))
        self._near_row_s = costs.move_row_s if costs.near_row_s is None else costs.near_row_s

    def placed(self, cut: Cut) -> np.ndarray:
        """parts_eg: the heaviest experts to the largest groups, each to the lightest that has a place left."""
        parts_eg, work_g, first = np.zeros((len(self._work_e), self._ranks), np.int64), np.zeros(self._ranks), 0
        for size, experts in cut.experts_of_size.items():
            work_b = work_g.reshape(-1, size).max(1)
            taken = self._work_e[first : first + experts * len(work_b)]
            for expert, group in enumerate(_lightest(taken / size, work_b, experts), start=first):
                parts_eg[expert, group * size : (group + 1) * size] = size
            first += len(taken)
            work_g = self._work_g(parts_eg)
        return parts_eg

    def seconds(self, parts_eg: np.ndarray) -> float:
        """Of computing and of travelling within the node, there and back."""
        visits_g = -self._num_tokens * np.expm1(self._missed_e @ (parts_eg > 0))
        return float(self._work_g(parts_eg).max() + 2 * self._near_row_s * visits_g.max())

    def _work_g(self, parts_eg: np.ndarray) -> np.ndarray:
        return self._work_e @ np.divide(1, parts_eg, out=np.zeros(parts_eg.shape), where=parts_eg > 0)


def _lightest(weights: np.ndarray, start_b: np.ndarray, places: int) -> list[int]:
    """Each item's bin: in the order given to the lightest that has one of its places left."""
    bins = [(load, index, places) for index, load in enumerate(start_b.tolist()) if places]
    heapq.heapify(bins)
    chosen = []
    for weight in weights.tolist():
        load, index, left = heapq.heappop(bins)
        chosen.append(index)
        if left > 1:
            heapq.heappush(bins, (load + weight, index, left - 1))
    return chosen
