"""MoNDE: hot experts are fetched to the device, cold ones computed where their weights lie, both at once.

Source: "MoNDE: Mixture of Near-Data Experts for Large-Scale Sparse Models" (DAC'24). All experts of a rank lie in a
memory beside its device. In every call the H with most rows are copied to the device and computed there, one after the
other, while a unit at the memory computes the rest, to which rows travel and from which results do. Not confirmed, and
ours: H is the number that takes least by the closed form of both sides' times, all numbers tried. On a machine at hand
the unit is the host, and nothing overlaps: a stand-in whose results are right and whose time is nobody's.
"""

from typing import Any, NamedTuple

import numpy as np
import torch

from systems.base import LayerShape
from systems.counted import CountedExpertParallel
from systems.engines import ACTIVATIONS
from systems.engines.activations import expert_ffn
from systems.near_memory import ExpertSizes, Unit, fetch_expert, join_near, near_ffn
from systems.planners.base import Rates


class Split(NamedTuple):
    """Slots of this rank's experts with rows: those that the device computes, most rows first, and the others."""

    hot: list[int]
    cold: list[int]


class MoNDE(CountedExpertParallel):
    """near_flops_per_s, near_bytes_per_s, link_bytes_per_s: of the unit beside the memory (`systems.near_memory.Unit`).
    hot: how many experts a rank fetches; if not given, as many as take least time.
    """

    own_engine = "near"

    def __init__(
        self,
        *,
        near_flops_per_s: float = 2e12,
        near_bytes_per_s: float = 512e9,
        link_bytes_per_s: float = 25e9,
        hot: int | None = None,
        rates: Rates,
        **layer: Any,
    ) -> None:
        super().__init__(**layer)
        self._unit = Unit(near_flops_per_s, near_bytes_per_s, link_bytes_per_s)
        self._hot, self._rates = hot, rates
        self._sizes = ExpertSizes.of(self.shape, self._whole[0].element_size())
        self._host = tuple(weight.cpu() for weight in self._whole)
        self._whole = self._weights = self._whole[:0]

    @classmethod
    def check(
        cls,
        shape: LayerShape,
        world_size: int,
        *,
        near_flops_per_s: float,
        near_bytes_per_s: float,
        link_bytes_per_s: float,
        hot: int | None,
        **_: Any,
    ) -> None:
        super().check(shape, world_size)
        Unit(near_flops_per_s, near_bytes_per_s, link_bytes_per_s)
        if hot is not None and (type(hot) is not int or not 0 <= hot <= shape.num_experts):
            raise ValueError(f"system.hot is {hot!r}; it must be null or a number from 0 to {shape.num_experts}")

    @classmethod
    def needs(cls, **_: Any) -> frozenset[str]:
        return frozenset({"rates"})

    def experts_held(self) -> float:
        """One that is computed and one that is fetched."""
        return 2.0

    def note(self, rows_GS: torch.Tensor) -> Split:
        rows_e = rows_GS[:, self._mine].sum(0).numpy()
        order_e = np.argsort(-rows_e, kind="stable")[: np.count_nonzero(rows_e)]
        hot = self._hot
        if hot is None:
            hot = best_split(rows_e[order_e], self._sizes, self._unit, self._rates.flops_per_s)
        return Split(order_e[:hot].tolist(), sorted(order_e[hot:].tolist()))

    def compute(self, x_RD: torch.Tensor, group_R: torch.Tensor) -> torch.Tensor:
        """The unit's work is issued first, because it goes on beside the device's."""
        split, rows_GS = self.plan.noted, self.plan.rows_GS
        order_R, _ = self.engine.group(group_R, self._num_local)
        places = order_R.split(rows_GS[:, self._mine].sum(0).tolist())
        y_RD = torch.empty_like(x_RD)
        if split.cold:
            cold_r = torch.cat([places[slot] for slot in split.cold])
            cold_rD = self._near(x_RD[cold_r], {slot: len(places[slot]) for slot in split.cold})
        fetch_s = self._unit.fetch_s(self._sizes)
        for slot in split.hot:
            fetched = [fetch_expert(one[slot], x_RD, fetch_s / len(self._host)) for one in self._host]
            y_RD[places[slot]] = expert_ffn(x_RD[places[slot]], ACTIVATIONS[self.shape.activation], *fetched)
        if split.cold:
            y_RD.index_copy_(0, cold_r, join_near(cold_rD))
        return y_RD

    def _near(self, x_rD: torch.Tensor, rows: dict[int, int]) -> torch.Tensor:
        """Rows by slot, one slot after another."""
        rows_e = [rows.get(slot, 0) for slot in range(self._num_local)]
        seconds = sum(self._unit.compute_s(one, self._sizes) for one in rows_e)
        return near_ffn(x_rD, rows_e, list(self._host), self.shape.activation, seconds)


def best_split(rows_e: np.ndarray, sizes: ExpertSizes, unit: Unit, flops_per_s: float) -> int:
    """How many of these experts, most rows first, the device takes so that the later of both sides is done first.

    max(sum over hot of fetch + n F / device, sum over cold of transfers + max(weights, n F / unit)).
    """
    device_s = unit.fetch_s(sizes) + rows_e * sizes.row_flops / flops_per_s
    unit_s = np.array([unit.compute_s(rows, sizes) for rows in rows_e.tolist()])
    hot_s = np.concatenate([[0.0], device_s.cumsum()])
    cold_s = np.concatenate([unit_s[::-1].cumsum()[::-1], [0.0]])
    return int(np.maximum(hot_s, cold_s).argmin())
