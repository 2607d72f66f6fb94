"""The best division of loads among holders: how low the largest load of a rank can be, in whole numbers."""

import numpy as np
from scipy.sparse import csr_array
from scipy.sparse.csgraph import breadth_first_order, maximum_flow


def least_maximum(load_E: np.ndarray, holds_EG: np.ndarray) -> np.ndarray:
    """quota_EG (int64), each expert's load (int64) on ranks that hold it, with the smallest possible largest load.

    That is the largest mean, rounded up, that a set of ranks has of what only they can take. Starting from the mean of
    all ranks, a maximum flow from experts through holders finds a set that is above the value tried, whose mean is
    tried next, until all flows.
    """
    ranks = holds_EG.shape[1]
    alone_E = holds_EG.sum(1) == 1
    fixed_EG = holds_EG * np.where(alone_E, load_E, 0)[:, None]
    fixed_G, free_X = fixed_EG.sum(0), np.flatnonzero(~alone_E & (load_E > 0))
    load_X, (expert_P, rank_P) = load_E[free_X], np.nonzero(holds_EG[free_X])
    source, first_rank, sink = 0, 1 + len(free_X), 1 + len(free_X) + ranks
    tail = np.concatenate([np.zeros_like(free_X), 1 + expert_P, first_rank + np.arange(ranks)])
    head = np.concatenate([1 + np.arange(len(free_X)), first_rank + rank_P, np.full(ranks, sink)])
    most = max(int(fixed_G.max()), -(-int(load_E.sum()) // ranks))
    while True:
        capacity = np.concatenate([load_X, load_X[expert_P], most - fixed_G]).astype(np.int32)
        graph = csr_array((capacity, (tail, head)), shape=(sink + 1, sink + 1))
        found = maximum_flow(graph, source, sink)
        if found.flow_value == load_X.sum():
            fixed_EG[free_X] = found.flow[1:first_rank, first_rank:sink].toarray()
            return fixed_EG
        left = graph - found.flow  # what experts that still have load can reach is full
        left.eliminate_zeros()
        reached = breadth_first_order(left, source, return_predecessors=False)
        full_G = np.isin(first_rank + np.arange(ranks), reached)
        stuck_X = np.isin(1 + np.arange(len(free_X)), reached)
        most = -(-int(load_X[stuck_X].sum() + fixed_G[full_G].sum()) // int(full_G.sum()))
