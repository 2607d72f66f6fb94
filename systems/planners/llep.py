"""Least-Loaded Expert Parallelism (Nguyen et al., arXiv 2601.17111): what is above a cap is spilled to other ranks."""

import math
from collections import defaultdict

import numpy as np

from systems.planners.chunks import BatchPlanner, Chunks, in_order
from systems.planners.options import check_positive, check_whole_number


class LLEP(BatchPlanner):
    """Experts in order of load fill their owners up to `alpha` times the mean load of a rank; what does not fit goes,
    in chunks of at least `min_chunk` tokens (m of the paper), to the least loaded of the other ranks.

    A rank's load is what it has been given and what its own experts, not looked at yet, will bring. Where the least
    loaded rank has less room than `min_chunk` it gets all that is left, above the cap: so does the authors' code
    (03497462), while the text leaves such a rest at home. A batch with an imbalance (max/mean) below `gate` (lambda)
    stays with the owners; it is that of the ranks in the code and that of the experts in the text: `gate_over`.
    Defaults are those of text and README; the code has alpha 1.1 and no gate (0 here).
    Left out: weights travel before the tokens and not beside them.
    """

    def __init__(self, alpha: float = 1.0, min_chunk: int = 1024, gate: float = 1.3, gate_over: str = "ranks") -> None:
        check_positive("alpha", alpha)
        check_whole_number("min_chunk", min_chunk, 1)
        if isinstance(gate, bool) or not isinstance(gate, int | float) or not gate >= 0:
            raise ValueError(f"planner.gate is {gate!r}; it must be a number of at least 0, .inf included")
        if gate_over not in ("ranks", "experts"):
            raise ValueError(f"planner.gate_over is {gate_over!r}; it must be ranks or experts")
        self.alpha, self.min_chunk, self.gate, self.gate_over = alpha, min_chunk, gate, gate_over

    def divide(self, tokens_GE: np.ndarray, owner_E: np.ndarray) -> Chunks:
        """At home below the gate; else what is above the cap goes to helpers."""
        load_E, ranks = tokens_GE.sum(0), len(tokens_GE)
        load_G = np.bincount(owner_E, load_E, ranks).astype(np.int64)
        gated = load_G if self.gate_over == "ranks" else load_E
        if not gated.any() or gated.max() < self.gate * gated.mean():
            busy_E = np.flatnonzero(load_E)
            return Chunks(busy_E, owner_E[busy_E], tokens_GE.T[busy_E])
        cap = max(1, math.floor(self.alpha * (int(load_G.sum()) // ranks)))
        quotas = spill(load_E, owner_E, load_G, cap, self.min_chunk)
        expert_C, rank_C, quota_C = np.array([(*pair, rows) for pair, rows in quotas.items()]).T
        order_C = np.argsort(expert_C, kind="stable")  # of an expert the owner's chunk first, then as they were spilled
        expert_C, rank_C, quota_C = expert_C[order_C], rank_C[order_C], quota_C[order_C]
        return Chunks(expert_C, rank_C, in_order(tokens_GE, expert_C, quota_C))


def spill(
    load_E: np.ndarray, owner_E: np.ndarray, load_G: np.ndarray, cap: int, min_chunk: int
) -> dict[tuple[int, int], int]:
    """(expert, rank) -> rows. load_G: of each rank's own experts."""
    quotas: dict[tuple[int, int], int] = defaultdict(int)
    load, owners, tokens = load_G.tolist(), owner_E.tolist(), load_E.tolist()
    for expert in np.argsort(-load_E, kind="stable")[: np.count_nonzero(load_E)].tolist():
        owner, rest = owners[expert], tokens[expert]
        free = cap - (load[owner] - rest)
        if free < rest:
            others = [rank for rank in range(len(load)) if rank != owner]
            stay = max(free, 0) if others else rest
            load[owner] -= rest - stay
            rest, tokens[expert] = rest - stay, stay
            while rest:
                helper = min(others, key=load.__getitem__)
                room = cap - load[helper]
                chunk = rest if room < min_chunk else min(rest, room)
                quotas[expert, helper] += chunk
                load[helper] += chunk
                rest -= chunk
    at_home = {(expert, owner): rows for expert, (owner, rows) in enumerate(zip(owners, tokens, strict=True)) if rows}
    return at_home | quotas
