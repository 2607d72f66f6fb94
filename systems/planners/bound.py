"""The judge: how even the ranks' rows can be at best, once it is known which ranks hold which experts.

Any split of tokens among holders is a flow from experts to ranks, so the least possible maximum M of a rank's rows is
the smallest capacity of all ranks that lets every token through. By the theorem of Ford and Fulkerson it is

    M = max over sets S of ranks of ceil(rows of the experts that only ranks of S hold / |S|)

and a flow of whole tokens reaches it. It is found from below (Dinkelbach's method): a capacity that is too small has a
minimum cut, whose ranks are a set S that asks for more.
"""

import numpy as np
from scipy.sparse import coo_array, csr_array
from scipy.sparse.csgraph import breadth_first_order, maximum_flow

MOST = np.iinfo(np.int32).max  # scipy's flows are of this type, and wrap around beyond it


def least_rows(tokens_E: np.ndarray, replicas_EG: np.ndarray) -> tuple[int, np.ndarray]:
    """(the least possible maximum of a rank's rows, shares_EG: a split in whole tokens that has it).

    tokens_E: the copies of all ranks for each expert. shares_EG[e, g]: those of expert e that rank g computes, int64.
    Raises ValueError for 2**31 token copies and more. For judging, not for planning: it takes milliseconds.
    """
    if (total := int(tokens_E.sum())) > MOST:
        raise ValueError(f"there are {total} token copies; the judge takes at most {MOST}")
    holds_EG = replicas_EG > 0
    assert holds_EG.any(1).all(), "every expert needs a replica"
    shares_EG = tokens_E[:, None] * holds_EG
    free_E = (holds_EG.sum(1) > 1) & (tokens_E > 0)  # the others have no choice
    fixed_G = shares_EG[~free_E].sum(0)
    most = max(-(-total // len(fixed_G)), int(fixed_G.max()))
    while True:
        shares_EG[free_E], short_G = _flow(tokens_E[free_E], holds_EG[free_E], most - fixed_G)
        if not short_G.any():
            return most, shares_EG
        asked = fixed_G[short_G].sum() + tokens_E[free_E & ~holds_EG[:, ~short_G].any(1)].sum()
        most = int(-(-asked // short_G.sum()))


def _flow(tokens_E: np.ndarray, holds_EG: np.ndarray, room_G: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(shares_EG of the most tokens for which there is room, short_G: the ranks of the minimum cut; none if all pass).

    Vertices: experts, ranks, the source, the sink.
    """
    num_experts, ranks = holds_EG.shape
    source, sink = num_experts + ranks, num_experts + ranks + 1
    expert_N, rank_N = np.nonzero(holds_EG)
    start_N = np.concatenate([np.full(num_experts, source), expert_N, num_experts + np.arange(ranks)])
    end_N = np.concatenate([np.arange(num_experts), num_experts + rank_N, np.full(ranks, sink)])
    capacity_N = np.concatenate([tokens_E, tokens_E[expert_N], room_G]).astype(np.int32)
    graph = csr_array(coo_array((capacity_N, (start_N, end_N)), shape=(sink + 1, sink + 1)))
    passed = maximum_flow(graph, source, sink)
    shares_EG = passed.flow[:num_experts, num_experts:source].toarray().astype(np.int64)
    short_G = np.zeros(ranks, bool)
    if passed.flow_value < tokens_E.sum():
        residual = graph - passed.flow
        residual.eliminate_zeros()
        reached = breadth_first_order(residual, source, return_predecessors=False)
        short_G[reached[(reached >= num_experts) & (reached < source)] - num_experts] = True
    return shares_EG, short_G
