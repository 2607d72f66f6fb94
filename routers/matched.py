"""Matched imbalance: a load of the ranks that is given instead of drawn, the same for every number of experts."""

from typing import Any

import numpy as np

from routers.balanced import balanced_counts
from routers.drawn import CountedRouter
from routers.options import check_whole_number


def matched_counts(num_tokens: int, num_experts: int, ranks: int, imbalance: float, turn: int) -> np.ndarray:
    """int64 [E]: the first E/G experts together get imbalance/G of the tokens, each next E/G an equal part of the rest.

    Parts are rounded to whole tokens; which of equal parts get one more goes round with `turn`.
    """
    hot = round(num_tokens * imbalance / ranks)
    others = balanced_counts(num_tokens - hot, ranks - 1, turn) if ranks > 1 else ()
    return np.concatenate([balanced_counts(int(load), num_experts // ranks, turn) for load in (hot, *others)])


class MatchedRouter(CountedRouter):
    """Max / mean load over `ranks` is `imbalance` where rank g owns experts g*E/G .. (g+1)*E/G - 1.

    Counts are exact, on every source rank and so over all of them; which tokens they are is drawn. `imbalance` is 1
    (balanced) to `ranks` (all on the first). Raises ValueError for another one, and unless `ranks` divides E.
    """

    def __init__(self, *, num_experts: int, ranks: int, imbalance: float = 2.0, **workload: Any) -> None:
        super().__init__(num_experts=num_experts, **workload)
        check_whole_number("ranks", ranks, 1)
        if num_experts % ranks:
            raise ValueError(f"model.num_experts ({num_experts}) must be divisible by router.ranks ({ranks})")
        if not 1 <= imbalance <= ranks:
            raise ValueError(f"router.imbalance is {imbalance}; it must be between 1 and router.ranks ({ranks})")
        self.ranks, self.imbalance = ranks, imbalance

    def counts(self, num_copies: int, *, layer: int, iteration: int) -> np.ndarray:
        turn = self.rank + layer + iteration
        return matched_counts(num_copies, self.num_experts, self.ranks, self.imbalance, turn)
