"""Experts whose weights are cut into equal parts, one on every rank, and put together where a plan wants them."""

import numpy as np
import torch
from torch.nn.functional import pad

from systems.base import LayerWeights
from systems.collectives import all_to_all
from systems.engines import Engine
from systems.migration import Held, Migration


class Sharded(Migration):
    """A rank keeps a part of every expert and gets the others of those that it is to compute, for one call (LAER-MoE).

    Whatever the plan, a rank with C experts receives (G-1)/G x C experts' weights.
    """

    def __init__(self, *, replicas_EG: np.ndarray, weights: LayerWeights, engine: Engine, **layer) -> None:
        super().__init__(replicas_EG=replicas_EG, weights=weights, engine=engine, **layer)
        num_experts, self._ranks = replicas_EG.shape
        some = np.array_split(np.arange(num_experts), self._ranks)  # no rank ever has all of them whole
        parts = [[self._part(w) for w in engine.prepare(*weights.experts(experts.tolist()))] for experts in some]
        self._parts_En = [torch.cat(of_tensor) for of_tensor in zip(*parts, strict=True)]

    def _part(self, w: torch.Tensor) -> torch.Tensor:
        """[e, n] of experts' tensor [e, ...]: this rank's of G equal parts, the last ones filled up."""
        width = -(-w[0].numel() // self._ranks)
        filled = pad(w.flatten(1), (0, width * self._ranks - w[0].numel()))
        return filled[:, self.rank * width : (self.rank + 1) * width].clone()

    def bring(self, replicas_EG: np.ndarray) -> Held:
        wanted = [np.flatnonzero(wanted_E).tolist() for wanted_E in replicas_EG.T]
        mine, sent_G = wanted[self.rank], [len(experts) for experts in wanted]
        whole = []
        for parts_En, w in zip(self._parts_En, self.held.weights, strict=True):
            arrived = all_to_all(parts_En[np.concatenate(wanted)], self.group, [len(mine)] * self._ranks, sent_G)
            joined = arrived.view(self._ranks, len(mine), -1).transpose(0, 1).flatten(1)
            whole.append(joined[:, : w[0].numel()].reshape(len(mine), *w.shape[1:]))
        self.held, self.replicas_EG = Held(tuple(whole), mine), replicas_EG
        return self.held

    def experts_sent(self, before_EG: np.ndarray, after_EG: np.ndarray) -> float:
        """By closed form where parts are equal."""
        return float((np.delete(after_EG, self.rank, 1) > 0).sum()) / self._ranks

    @property
    def kept_beside(self) -> float:
        return len(self.replicas_EG) / self._ranks
