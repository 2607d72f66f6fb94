"""What simulated ranks do in the tests of systems; in a module of its own because other processes import it."""

from typing import Any

import torch

from clusters.session import Session
from clusters.simulated.timeline import Timeline
from systems.near_memory import ExpertSizes, Unit, join_near, near_ffn

UNIT = Unit(near_flops_per_s=1e9, near_bytes_per_s=1.0, link_bytes_per_s=1.0)


def near_unit(session: Session, timeline: Timeline, work_s: float) -> float:
    """Two rows of one byte through an expert with one byte of weights, while the device works."""
    x_ND = torch.ones(2, 1, dtype=torch.uint8, device=session.device)
    weights: list[Any] = [torch.ones(1, 1, 1, dtype=torch.uint8, device=session.device)]
    y_ND = near_ffn(x_ND, [2], weights, "relu", UNIT.compute_s(2, ExpertSizes(1.0, 1.0, 1.0)))
    timeline.compute("work", work_s)
    join_near(y_ND)
    return timeline.now_s
