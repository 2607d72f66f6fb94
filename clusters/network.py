"""Network models: how long a collective takes for the bytes it moves.

    t = base + hops * hop + table(V)        V = bytes a rank sends or receives, the larger, maximum over ranks

The table is read by linear interpolation: on a doubling grid log-log interpolation is biased by more than 10 %.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Network:
    """A link model fitted to measured collectives.

    base_us, hop_us: latency of one collective and of each step of its ring.
    points: ((bytes, microseconds), ...) beyond that latency, ascending, starting where bytes are 0.
    bandwidth_gbs: GB/s (1e9) beyond the last point.
    source: where the constants come from.

    Raises ValueError for points that do not ascend or a bandwidth that is not positive.
    """

    name: str
    base_us: float = 0.0
    hop_us: float = 0.0
    points: Sequence[Sequence[float]] = ((0, 0),)
    bandwidth_gbs: float = float("inf")
    source: str = ""

    def __post_init__(self) -> None:
        sizes = [size for size, _ in self.points]
        if sizes != sorted(set(sizes)) or not sizes or sizes[0] != 0:
            raise ValueError(f"network {self.name}: points must start at 0 bytes and ascend, got sizes {sizes}")
        if self.bandwidth_gbs <= 0:
            raise ValueError(f"network {self.name}: bandwidth_gbs must be positive, got {self.bandwidth_gbs}")

    def seconds(self, volume_bytes: float, hops: int) -> float:
        """Seconds for a collective that moves `volume_bytes` per rank in a ring of `hops` steps."""
        sizes, times_us = np.asarray(self.points, dtype=float).T
        beyond_us = max(0.0, volume_bytes - sizes[-1]) / (self.bandwidth_gbs * 1e3)
        table_us = float(np.interp(volume_bytes, sizes, times_us)) + beyond_us
        return float(self.base_us + hops * self.hop_us + table_us) * 1e-6
