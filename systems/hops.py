"""Tokens to every rank that wants them, once: straight, or once to each node and from there to its ranks.

A token whose experts are on several ranks of another node crosses to that node once and comes back as one sum (as in
DeepSeek's DeepEP). Letters: G ranks, T tokens here, R rows here after a hop, D d_model.
"""

from collections.abc import Sequence

import torch
import torch.distributed as dist

from systems.collectives import all_to_all


class Hop:
    """One all-to-all in which a row may go to several ranks, and the way back, which sums.

    wanted_RM: whether row r goes to the m-th of `members`, ranks of the group. sent_M, received_M: how many rows.
    """

    def __init__(
        self,
        wanted_RM: torch.Tensor,
        members: Sequence[int],
        sent_M: Sequence[int],
        received_M: Sequence[int],
        group: dist.ProcessGroup,
    ) -> None:
        self._group, self._num_rows = group, len(wanted_RM)
        self._row_N = wanted_RM.T.nonzero()[:, 1]
        self._sent_G, self._received_G = ([0] * group.size() for _ in range(2))
        for member, sent, received in zip(members, sent_M, received_M, strict=True):
            self._sent_G[member], self._received_G[member] = sent, received

    def there(self, x_RX: torch.Tensor) -> torch.Tensor:
        """The rows that arrive, rank after rank."""
        return all_to_all(x_RX[self._row_N], self._group, self._received_G, self._sent_G)

    def back(self, y_ND: torch.Tensor) -> torch.Tensor:
        """y_RD: of each row the sum of what its copies come back as."""
        y_ND = all_to_all(y_ND, self._group, self._sent_G, self._received_G)
        return y_ND.new_zeros(self._num_rows, y_ND.shape[1]).index_add_(0, self._row_N, y_ND)

    def rows_sent(self, rank: int) -> tuple[int, int]:
        """How many rows a rank sends to others: there, and back."""
        return sum(self._sent_G) - self._sent_G[rank], sum(self._received_G) - self._received_G[rank]
