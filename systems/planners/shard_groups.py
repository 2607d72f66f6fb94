"""Experts sharded among as many ranks as their load wants, in the memory of whole experts.

Expert e is cut into s_e = 1, 2, 4, ... parts for a group of s_e neighbouring ranks of one node; n experts that are cut
into s parts take n/s of a rank's E/G places, so s divides how many of them a group has. Every rank holds E/G experts'
worth of weights. With all s_e = 1 this is expert parallelism, with all s_e = G it is MoEShard. What it weighs:

    computing   max_r sum_{e on r} work_e / s_e + 7 L_e touch_row_s (5, if a rank has parts of all experts),
                                                     work_e = max(L_e row_s, P(L_e > 0) read_expert_s)
    travelling  2 near_row_s max_r V_r,              V_r = T (1 - prod_{e on r} (1 - L_e / T))
    issuing     for every size 25 operations, if copies have to be picked out

and between nodes, where tokens travel, 2 move_row_s max_n V_n / (ranks a node). L_e: the batch's token copies for
expert e, of T tokens; V_r, V_n: the tokens that visit a rank or a node, each once, if a token's experts were
independent. HD-MoE (arXiv:2509.09420) also splits experts by load, without a bound on a node's memory.
"""

import itertools
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from systems.planners.base import Costs
from systems.planners.packing import pack

PICKED_TOUCHES = 7  # of a copy's row in memory, however narrow the part: picked out, weighted and added up
TOUCHES = 5  # where a rank has a part of every expert and need not pick out copies
PICK_OPERATIONS = 25  # that a device waits for, for each size, because the host waits for the number of picked copies
Cut = dict[int, int]  # how a node's experts are cut: by size, how many experts a group of so many ranks has


class Placement(NamedTuple):
    """parts_EG (int64): into how many parts expert e is cut, where rank g has one of them, else 0.

    seconds: what a layer is expected to take.
    """

    parts_EG: np.ndarray
    seconds: float

    def later(self, seconds: float) -> "Placement":
        """The same with more time."""
        return self._replace(seconds=self.seconds + seconds)


@dataclass(frozen=True)
class ShardGroups:
    """Chooses sizes and groups by the cost above, for loads of one batch of num_tokens tokens.

    sizes: the numbers of parts that an expert may be cut into: powers of two that divide a node's ranks, and the number
    of all ranks, for which experts are cut only where tokens are gathered.
    """

    sizes: tuple[int, ...]

    def travelling(self, load_E: np.ndarray, num_tokens: float, ranks: int, costs: Costs) -> Placement:
        """For tokens that travel only to the ranks that have a part of one of their experts."""
        per_node = costs.ranks_per_node or ranks
        placement = self._placed(load_E, num_tokens, ranks, costs)
        if ranks == per_node:
            return placement
        on_EN = placement.parts_EG.reshape(len(load_E), -1, per_node).any(2)
        visits_N = num_tokens * -np.expm1(_log_missed(load_E, num_tokens) @ on_EN)
        return placement.later(2 * costs.move_row_s * float(visits_N.max()) / per_node)

    def gathered(self, load_E: np.ndarray, num_tokens: float, ranks: int, costs: Costs) -> Placement:
        """For tokens that all ranks have: an all-gather crosses to a node once, and both kinds of link work at once."""
        nodes, near_row_s = ranks // (costs.ranks_per_node or ranks), _near_row_s(costs)
        slower_s = max(costs.move_row_s * (nodes - 1), near_row_s * (ranks - nodes))
        here = replace(costs, near_row_s=0.0)
        placements = [self._cut_for_all(load_E, num_tokens, ranks, here)] if ranks in self.sizes else []
        if min(self.sizes) <= ranks // nodes:
            placements.append(self._placed(load_E, num_tokens, ranks, here))
        return min(placements, key=lambda each: each.seconds).later(2 * slower_s * num_tokens / ranks)

    def _cut_for_all(self, load_E: np.ndarray, num_tokens: float, ranks: int, costs: Costs) -> Placement:
        """Every expert cut for all ranks, also of other nodes."""
        parts_EG = np.full((len(load_E), ranks), ranks)
        return Placement(parts_EG, _Node(load_E, num_tokens, ranks, costs, True).seconds(parts_EG))

    def _placed(self, load_E: np.ndarray, num_tokens: float, ranks: int, costs: Costs) -> Placement:
        """Experts to nodes by their load, as many to each; then each node by itself."""
        per_node = costs.ranks_per_node or ranks
        node_E, parts_EG, slowest_s = pack(load_E, ranks // per_node), np.zeros((len(load_E), ranks), np.int64), 0.0
        for number in range(ranks // per_node):
            here = np.flatnonzero(node_E == number)
            here = here[np.argsort(-load_E[here], kind="stable")]
            node = _Node(load_E[here], num_tokens, per_node, costs, per_node == ranks)
            sizes = sorted((size for size in self.sizes if size <= per_node), reverse=True)
            cuts = [node.placed(cut) for cut in _cuts(sizes, len(here) // per_node)]
            seconds = [node.seconds(parts_eg) for parts_eg in cuts]
            parts_EG[here, number * per_node : (number + 1) * per_node] = cuts[int(np.argmin(seconds))]
            slowest_s = max(slowest_s, min(seconds))
        return Placement(parts_EG, slowest_s)


def powers_of_two(most: int) -> list[int]:
    """Those that divide a number."""
    return [size for size in (1 << power for power in range(most.bit_length())) if most % size == 0]


def _cuts(sizes: list[int], places: int) -> list[Cut]:
    """Cuts that fill all places, each size taking none of them or a power of two, or all that are left."""
    first, *others = sizes
    if not others:
        return [{first: first * places}]
    shares = sorted({0, places, *itertools.takewhile(lambda n: n < places, (1 << n for n in range(places)))})
    return [{first: first * share} | rest for share in shares for rest in _cuts(others, places - share)]


class _Node:
    """One node's experts, heaviest first, and what a placement of them costs. has_all: there is no other node."""

    def __init__(self, load_e: np.ndarray, num_tokens: float, ranks: int, costs: Costs, has_all: bool) -> None:
        self._ranks, self._costs, self._num_tokens, self._has_all = ranks, costs, num_tokens, has_all
        active_e = -np.expm1(-load_e)
        self._work_e = np.maximum(costs.row_s * load_e, costs.read_expert_s * active_e)
        self._touched_e = costs.touch_row_s * load_e
        self._missed_e = _log_missed(load_e, num_tokens)

    def placed(self, cut: Cut) -> np.ndarray:
        """parts_eg: the heaviest experts to the largest groups, each to the lightest that has a place left."""
        parts_eg, work_g, first = np.zeros((len(self._work_e), self._ranks), np.int64), np.zeros(self._ranks), 0
        for size, experts in cut.items():
            work_b = work_g.reshape(-1, size).max(1)
            own = slice(first, first + experts * len(work_b))
            taken = self._work_e[own] / size + PICKED_TOUCHES * self._touched_e[own]
            for expert, group in enumerate(pack(taken, len(work_b), start_G=work_b), start=first):
                parts_eg[expert, group * size : (group + 1) * size] = size
            first += len(taken)
            work_g = self._work_g(parts_eg)
        return parts_eg

    def seconds(self, parts_eg: np.ndarray) -> float:
        """Of computing, of travelling within the node, there and back, and of issuing."""
        visits_g = -self._num_tokens * np.expm1(self._missed_e @ (parts_eg > 0))
        picks = np.count_nonzero(np.bincount(parts_eg.max(1))) if self._picks(parts_eg) else 0
        issued_s = picks * PICK_OPERATIONS * self._costs.operation_s
        return float(self._work_g(parts_eg).max() + 2 * _near_row_s(self._costs) * visits_g.max() + issued_s)

    def _work_g(self, parts_eg: np.ndarray) -> np.ndarray:
        shares_eg = np.divide(1, parts_eg, out=np.zeros(parts_eg.shape), where=parts_eg > 0)
        touches = PICKED_TOUCHES if self._picks(parts_eg) else TOUCHES
        return self._work_e @ shares_eg + touches * self._touched_e @ (parts_eg > 0)

    def _picks(self, parts_eg: np.ndarray) -> bool:
        """Whether ranks pick out copies, because they have not a part of every expert."""
        return not self._has_all or bool((parts_eg == 0).any())


def _log_missed(load_E: np.ndarray, num_tokens: float) -> np.ndarray:
    """How likely, as a logarithm, a token does not have an expert."""
    return np.log1p(-np.minimum(load_E / num_tokens, 0.999))


def _near_row_s(costs: Costs) -> float:
    return costs.move_row_s if costs.near_row_s is None else costs.near_row_s
