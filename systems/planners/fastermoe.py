"""FasterMoE's dynamic shadowing (He et al., PPoPP'22, Algorithm 1): popular experts visit every rank for one batch."""

import numpy as np

from systems.planners.base import Costs, Planner, owner_of
from systems.planners.dispatch import stay_or_go_to_owner
from systems.planners.shadowing import changes, forward_s, rows_at_owners


class FasterMoE(Planner):
    """Experts in order of load are shadowed as long as each one more lowers the predicted time of the batch.

    Experts live on one rank each: `current_EG` says where. A shadow costs a broadcast, which counts as one move of an
    expert, as in the paper.
    Ours: the cost of a forward pass alone, so one computation, two exchanges and no reduction of gradients. An exchange
    counts the rows from other ranks only, and is kept for what is not shadowed, as in the code and not in equation 8.
    Loads are of ranks, as in Algorithm 1: the code (FastMoE v1.1.0) compares single experts and sums along the wrong
    axis, so that it shadows none where all ranks have equally many tokens.
    As published, the first expert that does not lower the cost ends the search, so nothing is shadowed where the most
    popular expert is not on the busiest rank.
    Left out: the smart schedule, and the gate that knows the topology (it changes the routing).
    """

    def place(self, loads_GE: np.ndarray, current_EG: np.ndarray, costs: Costs) -> np.ndarray:
        assert (current_EG.sum(1) == 1).all()
        owner_E = owner_of(current_EG)
        popular_E = np.argsort(-loads_GE.sum(0), kind="stable")
        num_shadows = count_shadows(loads_GE[:, popular_E], owner_E[popular_E], costs)
        replicas_EG = current_EG.copy()
        replicas_EG[popular_E[:num_shadows]] = 1
        return replicas_EG

    def dispatch(self, tokens_GE: np.ndarray, replicas_EG: np.ndarray, owner_E: np.ndarray) -> np.ndarray:
        return stay_or_go_to_owner(tokens_GE, replicas_EG, owner_E)


def count_shadows(loads_GE: np.ndarray, owner_E: np.ndarray, costs: Costs) -> int:
    """How many of the first experts to shadow: up to the first that does not lower the cost."""
    everywhere_EG = np.ones(loads_GE.T.shape, np.int64)
    # All prefixes at once: row p is the state of the ranks with the first p experts shadowed.
    states = zip(rows_at_owners(loads_GE, owner_E), changes(loads_GE, owner_E, everywhere_EG), strict=True)
    rows_PG, received_PG = (np.vstack([first_G, change_EG]).cumsum(0) for first_G, change_EG in states)
    cost_P = forward_s(rows_PG, received_PG, costs) + np.arange(len(rows_PG)) * costs.move_expert_s
    return int(np.append(np.diff(cost_P) >= 0, True).argmax())
