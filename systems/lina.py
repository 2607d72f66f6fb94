"""Lina's inference half: experts are placed by where tokens will go, predicted from where they have been.

Source: Li et al., "Accelerating Distributed MoE Training and Inference with Lina" (ATC'23); the prediction and the
packing are in `systems.planners.lina`. Here both phases are within the timed layer, where Lina estimates and swaps
while the layers before compute: what is measured is the mechanism without that overlap.
"""

from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import torch

from routers.base import Routing
from systems.base import Account, LayerShape
from systems.collectives import all_gather
from systems.planned import Plan, PlannedExpertParallel
from systems.planners.base import Profile
from systems.planners.lina import Lina, PathProfile, same_top


class LinaExpertParallel(PlannedExpertParallel):
    """Loads predicted from the last `length` layers' experts; the true ones where the 2 `top` busiest differ from them.

    Every rank foresees its own tokens' loads and all are gathered, because paths of tokens stay on their rank. Rank 0
    decides nothing: all ranks have the same numbers. In the first MoE layer the marginal is all there is.
    """

    fixed: ClassVar = {"loads": "oracle", "migration": "swap_in"}

    def __init__(self, *, planner: Lina, profile: Profile, length: int = 3, top: int = 1, **layer: Any) -> None:
        super().__init__(planner=planner, **self.fixed, **layer)
        self._layer, self._top = profile.layer, top
        self._paths = PathProfile.fit(profile.expert_LGM, self.shape.num_experts, length)

    @classmethod
    def check(cls, shape: LayerShape, world_size: int, *, length: int, top: int, **options: Any) -> None:
        super().check(shape, world_size, **options)
        for name, value in (("length", length), ("top", top)):
            if value < 1:
                raise ValueError(f"system.{name} is {value!r}; it must be a whole number of at least 1")

    @classmethod
    def needs(cls, **options: Any) -> frozenset[str]:
        return frozenset({"rates", "profile"})

    def _expected(self, tokens_GE: np.ndarray, routing: Routing) -> np.ndarray:
        foreseen_E = self._paths.predict(self._path(routing), self._layer)
        gathered_GE = all_gather(torch.from_numpy(foreseen_E).to(routing.expert_TK.device).unsqueeze(0), self.group)
        foreseen_GE = gathered_GE.cpu().numpy()
        self._predicted = same_top(tokens_GE.sum(0), foreseen_GE.sum(0), 2 * self._top)
        return foreseen_GE if self._predicted else tokens_GE

    def _plan(self, tokens_GE: np.ndarray, routing: Routing) -> Plan:
        return super()._plan(tokens_GE, routing)._replace(predicted=self._predicted)

    def _path(self, routing: Routing) -> np.ndarray:
        """path_TL of the layers before, those that the profile has."""
        num_tokens = len(routing.expert_TK)
        earlier = [expert_TK[:, :1] for expert_TK in routing.earlier]
        return torch.cat([routing.expert_TK[:, :0], *earlier], 1).cpu().numpy().reshape(num_tokens, len(earlier))

    def account(self, tokens_GE: torch.Tensor, element_size: int) -> Account:
        account = super().account(tokens_GE, element_size)
        gathered = 8 * self.shape.num_experts * (self.world_size - 1)
        predicted = float(self.plan.predicted) if self.plan else None
        return replace(account, bytes_sent=account.bytes_sent + gathered, predicted=predicted)
