"""Prophet's lightweight placement (Wang et al., CLUSTER'23), per the text of Pro-Prophet (arXiv 2411.10003)."""

import math

import numpy as np

from systems.planners.base import Costs, Planner, as_replicas, owner_of
from systems.planners.dispatch import stay_or_go_to_owner
from systems.planners.options import check_whole_number
from systems.planners.shadowing import changes, forward_s, rows_at_owners


class Prophet(Planner):
    """The busiest rank's heaviest expert is sent to more ranks, again and again; the cheapest of the states seen wins.

    Experts live on one rank each: `current_EG` says where. A sent expert goes to all ranks but the `excluded` (n of the
    text) with the fewest tokens for it; tokens there still go to its owner. The search ends when ranks' rows differ by
    less than `stop_share` (alpha) of their mean: a smaller one takes longer and never predicts a worse plan.
    Unconfirmed: of Prophet itself only the abstract was available. No values of n and alpha are given; 0 and 0.05 are
    our defaults.
    Ours: the text has one expert per rank and ends when a rank is busiest a second time; here the rank's next expert
    follows, until it has none with tokens. An owner is not among the excluded. Costs are of a forward pass. A transfer
    is a broadcast, as in the text, but to all ranks, for (G - n)/G of which the text counts; and all of it counts,
    where the text takes off what the experts and the attention of the block before hide: here experts are sent inside
    the layer that waits for them.
    """

    def __init__(self, excluded: int = 0, stop_share: float = 0.05) -> None:
        check_whole_number("excluded", excluded, 0)
        if not 0 <= stop_share < math.inf:
            raise ValueError(f"planner.stop_share is {stop_share}; it must not be negative, infinite or NaN")
        self.excluded, self.stop_share = excluded, stop_share

    def place(self, loads_GE: np.ndarray, current_EG: np.ndarray, costs: Costs) -> np.ndarray:
        assert (current_EG.sum(1) == 1).all()
        owner_E = owner_of(current_EG)
        hosts_EG = self._hosts(loads_GE, owner_E)
        sent = self._choose(loads_GE, owner_E, hosts_EG, costs)
        replicas_EG = current_EG.copy()
        replicas_EG[sent] = hosts_EG[sent]
        return replicas_EG

    def dispatch(self, tokens_GE: np.ndarray, replicas_EG: np.ndarray, owner_E: np.ndarray) -> np.ndarray:
        return stay_or_go_to_owner(tokens_GE, replicas_EG, owner_E)

    def _hosts(self, loads_GE: np.ndarray, owner_E: np.ndarray) -> np.ndarray:
        """hosts_EG: where each expert would be if it were sent."""
        ranks = len(loads_GE)
        if self.excluded >= ranks:
            raise ValueError(f"planner.excluded is {self.excluded}; on {ranks} ranks it must be at most {ranks - 1}")
        hosts_EG = np.ones(loads_GE.T.shape, np.int64)
        if self.excluded:
            tokens_EG = np.where(as_replicas(owner_E, ranks), np.inf, loads_GE.T)
            fewest_EG = np.argsort(tokens_EG, axis=1, kind="stable")
            np.put_along_axis(hosts_EG, fewest_EG[:, : self.excluded], 0, axis=1)
        return hosts_EG

    def _choose(self, loads_GE: np.ndarray, owner_E: np.ndarray, hosts_EG: np.ndarray, costs: Costs) -> list[int]:
        """The experts to send, in the order of the search: as many as make the cheapest state, fewest of equal ones."""
        rows_G, received_G = rows_at_owners(loads_GE, owner_E)
        rows_EG, received_EG = changes(loads_GE, owner_E, hosts_EG)
        alone_s = float(forward_s(rows_G, received_G, costs))
        # A state that takes as long to send as the batch takes without can neither win nor lead to one that does.
        most = alone_s / costs.move_expert_s if costs.move_expert_s else math.inf
        order = self._search(loads_GE.sum(0), owner_E, rows_G, rows_EG, most)
        rows_XG = np.vstack([rows_G, rows_G + rows_EG[order].cumsum(0)])
        received_XG = np.vstack([received_G, received_G + received_EG[order].cumsum(0)])
        cost_X = forward_s(rows_XG, received_XG, costs) + costs.move_expert_s * np.arange(len(order) + 1)
        return order[: int(cost_X.argmin())]

    def _search(
        self, tokens_E: np.ndarray, owner_E: np.ndarray, rows_G: np.ndarray, rows_EG: np.ndarray, most: float
    ) -> list[int]:
        """The busiest rank's heaviest experts one after another, `most` or fewer; rows_EG: what each adds to rows_G."""
        waiting: list[list[int]] = [[] for _ in rows_G]  # heaviest last, the first of equal ones after the others
        for expert in np.argsort(-tokens_E, kind="stable")[::-1].tolist():
            if tokens_E[expert]:
                waiting[owner_E[expert]].append(expert)
        order, enough = [], self.stop_share * rows_G.mean()
        while len(order) < most and waiting[busiest := rows_G.argmax()] and rows_G[busiest] - rows_G.min() >= enough:
            order.append(waiting[busiest].pop())
            rows_G = rows_G + rows_EG[order[-1]]
        return order
