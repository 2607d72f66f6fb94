"""MoETuner: experts clustered to equal loads by integer programs, or packed where those find nothing better in time;
clusters matched to ranks by what flows between.

Letters beside those of base.py: C clusters of a layer, as many as ranks.
"""

import logging
from typing import Any

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, linear_sum_assignment, milp
from scipy.sparse import block_array, eye_array, kron

from systems.planners.base import Costs, Planner, as_replicas, per_rank, tokens_per_expert
from systems.planners.dispatch import to_owner
from systems.planners.exflow import transitions
from systems.planners.options import check_positive
from systems.planners.packing import pack
from systems.planners.placement import contiguous

logger = logging.getLogger(__name__)


class MoETuner(Planner):
    """Offline placement, without replicas, from the tokens of each expert and from layer to layer.

    Source: Go and Mahajan, arXiv 2502.06643 (their tolerance 0.025, by Gurobi; HiGHS here). First program: clusters of
    least sum |T_c - mean| in each layer. Second: clusters to ranks, least sum over layers of the largest flow between
    two ranks. Our interpretation: E/G experts in every cluster, which also keeps the paper's limit of memory over all
    layers; the same bandwidth between all ranks; of equally good matchings the one that keeps most tokens in place.
    Unconfirmed: how the authors square the second objective with outputs that return. Where they do, as here, traffic
    depends on a token's own rank, not on its last expert, so the second program changes nothing on the wire.
    Ours too: of the program's clusters, experts packed by load (`pack`) and contiguous ones those that deviate least.
    From 256 experts on this is packing, as a rule: HiGHS is then at a gap of 1 after 2 s and after 20 s. So it does not
    say what the authors' solver would reach there.
    Where time runs out the placement also depends on the machine's speed: one rank must place for all.
    """

    replicates = False

    def __init__(self, time_limit_s: float = 20, gap: float = 0.025) -> None:
        check_positive("time_limit_s", time_limit_s)
        check_positive("gap", gap)
        self.time_limit_s, self.gap = time_limit_s, gap

    def check(self, num_experts: int, world_size: int) -> None:
        per_rank(num_experts, world_size)  # trying would solve a program

    def place(self, loads_GE: np.ndarray, current_EG: np.ndarray, costs: Costs) -> np.ndarray:
        return as_replicas(self._clusters(loads_GE.sum(0), len(loads_GE)), len(loads_GE))

    def dispatch(self, tokens_GE: np.ndarray, replicas_EG: np.ndarray, owner_E: np.ndarray) -> np.ndarray:
        return to_owner(tokens_GE, replicas_EG, owner_E)

    def place_layers(self, expert_LGM: np.ndarray, current_EG: np.ndarray, costs: Costs) -> np.ndarray:
        num_experts, ranks = current_EG.shape
        loads_LE = np.stack([tokens_per_expert(expert_GM, num_experts).sum(0) for expert_GM in expert_LGM])
        cluster_LE = np.stack([self._clusters(loads_E, ranks) for loads_E in loads_LE])
        flows_LCC = flows(transitions(expert_LGM, num_experts), cluster_LE, ranks)
        return np.stack([as_replicas(owner_E, ranks) for owner_E in on_ranks(cluster_LE, flows_LCC)])

    def _clusters(self, loads_E: np.ndarray, ranks: int) -> np.ndarray:
        """int64 [E]: the first program's, or where it found nothing better in time packed or contiguous ones."""
        per_rank(len(loads_E), ranks)
        simple = [pack(loads_E, ranks), contiguous(len(loads_E), ranks).numpy()]
        solved_E = solve_clusters(loads_E, ranks, self.time_limit_s, self.gap)
        candidates = simple if solved_E is None else [solved_E, *simple]
        best_E = min(candidates, key=lambda cluster_E: deviation(loads_E, cluster_E, ranks))
        if best_E is not solved_E:
            logger.warning(
                "packed, not solved: no better clusters of %d experts in %g s", len(loads_E), self.time_limit_s
            )
        return best_E


def deviation(loads_E: np.ndarray, cluster_E: np.ndarray, ranks: int) -> float:
    """sum_c |T_c - mean|, the objective of the first program."""
    loads_C = np.bincount(cluster_E, weights=loads_E, minlength=ranks)
    return float(np.abs(loads_C - loads_C.mean()).sum())


def least_deviation(loads_E: np.ndarray, ranks: int) -> float:
    """What no clusters of whole loads go below, lest a solver search on: `over` of them have one token more."""
    over = loads_E.sum() % ranks if (loads_E % 1 == 0).all() else 0
    return 2 * over * (ranks - over) / ranks


def solve_clusters(loads_E: np.ndarray, ranks: int, time_limit_s: float, gap: float) -> np.ndarray | None:
    """int64 [E]: clusters that solve the first program to within `gap`, or as far as the time goes; None if not at all.

    Variables: x[c, e] in {0, 1}, then d[c] >= |T_c - mean|.
    """
    experts, mean = len(loads_E), loads_E.sum() / ranks
    each_cluster, each_expert = eye_array(ranks), eye_array(experts)
    load_C = kron(each_cluster, loads_E[None].astype(float))
    rows: list[Any] = [  # left of x, left of d, at least, at most
        (kron(np.ones((1, ranks)), each_expert), None, np.ones(experts), np.ones(experts)),
        (kron(each_cluster, np.ones((1, experts))), None, *[np.full(ranks, experts // ranks)] * 2),
        (load_C, -each_cluster, np.full(ranks, -np.inf), np.full(ranks, mean)),
        (load_C, each_cluster, np.full(ranks, mean), np.full(ranks, np.inf)),
        (None, np.ones((1, ranks)), [least_deviation(loads_E, ranks)], [np.inf]),
    ]
    _, _, least, most = zip(*rows, strict=True)
    is_x: Any = np.repeat([1, 0], [ranks * experts, ranks])
    highest: Any = np.where(is_x, 1, np.inf)
    limits: Any = np.concatenate(least), np.concatenate(most)
    solution = milp(
        1 - is_x,
        integrality=is_x,
        bounds=Bounds(0, highest),
        constraints=LinearConstraint(block_array([row[:2] for row in rows]), *limits),
        options={"time_limit": time_limit_s, "mip_rel_gap": gap},
    )
    reached = "no solution" if solution.x is None else f"gap {solution.mip_gap:.3g}"
    logger.info("clusters of %d experts on %d ranks: %s, %g wanted", experts, ranks, reached, gap)
    return None if solution.x is None else solution.x[: ranks * experts].reshape(ranks, experts).argmax(0)


def flows(transitions_LEE: np.ndarray, cluster_LE: np.ndarray, ranks: int) -> np.ndarray:
    """int64 [L-1, C, C]: tokens from each cluster of a layer to each of the next."""
    member_LEC = (cluster_LE[:, :, None] == np.arange(ranks)).astype(np.int64)
    return member_LEC[:-1].transpose(0, 2, 1) @ transitions_LEE @ member_LEC[1:]


def match(flow_CC: np.ndarray) -> np.ndarray:
    """int64 [C]: the cluster of the next layer that shares a rank with each cluster of this one.

    Least largest flow between ranks, then least flow in all. Only one flow of a row or column can stay in place, so
    the second largest of each is the least that the largest can be; what is above all of those can stay, and must.
    """
    if len(flow_CC) == 1:
        return np.zeros(1, np.int64)
    largest = max(np.sort(flow_CC, 0)[-2].max(), np.sort(flow_CC, 1)[:, -2].max())
    return linear_sum_assignment(flow_CC + (flow_CC > largest) * flow_CC.sum(), maximize=True)[1]


def on_ranks(cluster_LE: np.ndarray, flows_LCC: np.ndarray) -> np.ndarray:
    """owner_LE: the second program, exactly.

    With one bandwidth only who shares a rank with whom counts, so each layer is matched to the one before.
    """
    rank_C = np.arange(cluster_LE.max() + 1)
    owner_LE = [cluster_LE[0]]
    for cluster_E, flow_CC in zip(cluster_LE[1:], flows_LCC, strict=True):
        following_C = np.empty_like(rank_C)
        following_C[match(flow_CC)] = rank_C
        rank_C = following_C
        owner_LE.append(rank_C[cluster_E])
    return np.stack(owner_LE)
