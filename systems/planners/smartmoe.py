"""SmartMoE's online re-mapping of experts to ranks (Zhai et al., ATC'23, the greedy of its artifact): no replicas."""

import numpy as np

from systems.planners.base import Costs, Planner, as_replicas, owner_of, per_rank
from systems.planners.dispatch import to_owner
from systems.planners.packing import pack


class SmartMoE(Planner):
    """Experts by load to the rank with the fewest tokens and a free slot; a tie leaves them where they are.

    The new mapping is taken only if it lowers the largest load of a rank. The loads are meant to be the mean of recent
    batches, the decision one for many batches (ten in the artifact).
    Ours: what the busiest rank's rows, computed and sent both ways, take less until the next decision must be more than
    the move takes, where the artifact moves for any gain.
    Left out: the search of hybrid plans, the exact and the hybrid mapping. Second-hand: the text beyond the
    introduction was not read, the greedy is known from the artifact.
    """

    replicates = False

    def place(self, loads_GE: np.ndarray, current_EG: np.ndarray, costs: Costs) -> np.ndarray:
        num_experts, ranks = current_EG.shape
        per_rank(num_experts, ranks)
        load_E = loads_GE.sum(0)
        mapped_EG = as_replicas(pack(load_E, ranks, preferred_R=owner_of(current_EG)), ranks)
        fewer_rows = _busiest(load_E, current_EG) - _busiest(load_E, mapped_EG)
        saved_s = fewer_rows * (costs.row_s + 2 * costs.move_row_s) * costs.batches
        coming_G = (mapped_EG > current_EG).sum(0)  # as many as leave
        return mapped_EG if saved_s > coming_G.max() * costs.move_expert_s else current_EG.copy()

    def dispatch(self, tokens_GE: np.ndarray, replicas_EG: np.ndarray, owner_E: np.ndarray) -> np.ndarray:
        # The mapping moves owners: those of the plan count, whatever they were.
        return to_owner(tokens_GE, replicas_EG, owner_of(replicas_EG))


def _busiest(load_E: np.ndarray, mapping_EG: np.ndarray) -> float:
    return (load_E[:, None] * mapping_EG).sum(0).max()
