"""The router that every load-balancing loss dreams of: all experts get the same number of tokens."""

import numpy as np

from routers.drawn import CountedRouter


def balanced_counts(num_tokens: int, num_experts: int, turn: int) -> np.ndarray:
    """int64 [E]: floor(T/E) tokens for every expert, and the T mod E left over to one expert each.

    Consecutive turns go on around the experts where the last one stopped, so the sum over any of them differs by at
    most one between experts.
    """
    share, left = divmod(num_tokens, num_experts)
    counts_E = np.full(num_experts, share)
    counts_E[(turn * left + np.arange(left)) % num_experts] += 1
    return counts_E


class BalancedRouter(CountedRouter):
    """Equal load to within one token on every rank, and over ranks that bring equally many tokens."""

    def counts(self, num_copies: int, *, layer: int, iteration: int) -> np.ndarray:
        return balanced_counts(num_copies, self.num_experts, self.rank + layer + iteration)
