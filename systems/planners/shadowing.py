"""Shadows: copies of experts on more ranks for one batch, so that these ranks' tokens need not travel.

What a batch costs as FasterMoE and Prophet model it, and what one more shadow changes. Loads as in base.py.
"""

import numpy as np

from systems.planners.base import Costs, as_replicas


def rows_at_owners(loads_GE: np.ndarray, owner_E: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """rows_G and received_G without shadows: rows that each rank computes, and those of them from other ranks."""
    lives_EG = as_replicas(owner_E, len(loads_GE))
    rows_G = (loads_GE.sum(0)[:, None] * lives_EG).sum(0)
    return rows_G, rows_G - (loads_GE.T * lives_EG).sum(0)


def changes(loads_GE: np.ndarray, owner_E: np.ndarray, hosts_EG: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """rows_EG and received_EG: what each rank gains when expert e is on the ranks hosts_EG[e], its owner among them."""
    lives_EG = as_replicas(owner_E, len(loads_GE))
    staying_EG = loads_GE.T * (hosts_EG > lives_EG)
    spared_EG = staying_EG.sum(1, keepdims=True) * lives_EG
    return staying_EG - spared_EG, -spared_EG


def forward_s(rows_XG: np.ndarray, received_XG: np.ndarray, costs: Costs) -> np.ndarray:
    """Seconds of the busiest rank's experts and of the two exchanges, there and back, that its arrivals decide."""
    return rows_XG.max(-1) * costs.row_s + 2 * received_XG.max(-1) * costs.move_row_s
