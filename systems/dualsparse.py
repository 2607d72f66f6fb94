"""DualSparse-MoE: copies whose score is low are dropped, those of a middling one computed by half of the neurons.

Source: "DualSparse-MoE: Coordinating Tensor/Neuron-Level Sparsity with Expert Partition and Reconstruction"
(arXiv:2508.18376). Each expert is parted into a major and a minor half of its neurons by their importance in a first
batch, which is computed in whole; later a copy goes through both halves, the major one alone, or none, by two
thresholds around one that drops the wanted part. Ranks with fewer rows than the mean drop less. Ours: importance and
the threshold come from a first batch of the run, not from MMLU; a score is the softmax of a gate's scores over a
token's experts, and over all experts where it has one. Not confirmed, and ours: how the thresholds of lighter ranks
follow their loads. Left out: partition into more experts (S-ETP), and its fused kernel.
"""

from dataclasses import replace
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch.nn.functional import pad

from routers.base import Routing
from systems.base import Account, LayerShape, Reference, divisible
from systems.collectives import all_gather
from systems.counted import CountedExpertParallel, gate_scores
from systems.engines import ACTIVATIONS, Copies
from systems.engines.activations import expert_ffn

MAJOR, FULL, DROPPED = 0, 1, 2
SPLITS = ("importance", "random", "none")
BAND = 0.01  # between the threshold and those of either half, as in the paper


class DualSparse(CountedExpertParallel):
    """drop: the part of copies whose scores lie below the threshold. thresholds: 2 (none, major half, both), or 1 (none
    or both). load_aware: ranks below the mean load drop less. split: how neurons are parted: by `importance`, at
    `random`, or as they stand (`none`).
    """

    exactness = "approximate"
    own_rule = True
    parts = 2
    stateful = True

    def __init__(
        self,
        *,
        drop: float = 0.25,
        thresholds: int = 2,
        load_aware: bool = True,
        split: str = "importance",
        **layer: Any,
    ) -> None:
        super().__init__(**layer)
        self._drop, self._thresholds, self._load_aware, self._split = drop, thresholds, load_aware, split
        self._activation = ACTIVATIONS[self.shape.activation]
        self._halves: tuple[tuple[torch.Tensor, ...], ...] | None = None  # major and minor, in the engine's layout
        self._order_EF: torch.Tensor | None = None
        self.threshold = 0.0

    @classmethod
    def check(cls, shape: LayerShape, world_size: int, *, drop: float, thresholds: int, split: str, **_: Any) -> None:
        super().check(shape, world_size)
        divisible("model.d_ff", shape.d_ff, 2, "system dualsparse parts the neurons of an expert into two halves")
        if isinstance(drop, bool) or not isinstance(drop, int | float) or not 0 <= drop < 1:
            raise ValueError(f"system.drop is {drop!r}; it must be at least 0 and below 1")
        if thresholds not in (1, 2):
            raise ValueError(f"system.thresholds is {thresholds!r}; it must be 1 or 2")
        if split not in SPLITS:
            raise ValueError(f"system.split is {split!r}; it must be one of {', '.join(SPLITS)}")

    @classmethod
    def hidden_width(cls, shape: LayerShape, world_size: int) -> int:
        return shape.d_ff // 2

    @classmethod
    def needs(cls, **_: Any) -> frozenset[str]:
        return frozenset({"scores"})

    def choose(self, routing: Routing) -> tuple[Routing, torch.Tensor]:
        score_TK = scores(routing)
        if self._halves is None:
            self.threshold = self._agreed_threshold(score_TK)
            return routing, torch.full_like(routing.expert_TK, FULL).flatten()
        threshold_E = self._threshold_of_experts(routing)
        return routing, parts_of(score_TK, threshold_E[routing.expert_TK], self._thresholds).flatten()

    def compute(self, x_RD: torch.Tensor, group_R: torch.Tensor) -> torch.Tensor:
        if self._halves is None:
            y_RD = super().compute(x_RD, group_R // self.parts)
            self._part_neurons(x_RD, group_R // self.parts)
            return y_RD
        major, minor = self._halves
        y_RD = self.engine(x_RD, Copies(*self.engine.group(group_R // self.parts, self._num_local)), *major)
        full_R = (group_R % self.parts == FULL).nonzero().squeeze(1)
        copies = Copies(*self.engine.group(group_R[full_R] // self.parts, self._num_local))
        return y_RD.index_add_(0, full_R, self.engine(x_RD[full_R], copies, *minor))

    def _agreed_threshold(self, score_TK: torch.Tensor) -> float:
        """The score below which the wanted part of all ranks' copies lies."""
        short = self.shape.max_tokens - len(score_TK)
        score_MK = all_gather(pad(score_TK, (0, 0, 0, short), value=torch.inf), self.group)
        sorted_N = score_MK.flatten().sort().values
        wanted = int(self._drop * int(sorted_N.isfinite().sum()))
        return float(sorted_N[wanted]) if wanted else -BAND

    def _threshold_of_experts(self, routing: Routing) -> torch.Tensor:
        """float32 [E]: that of the rank with each expert."""
        rank_N = routing.expert_TK.flatten() // self._num_local
        load_G = torch.zeros(self.world_size, dtype=torch.int64, device=rank_N.device)
        if self._load_aware:
            load_G.scatter_add_(0, rank_N, torch.ones_like(rank_N))
            dist.all_reduce(load_G, group=self.group)
        return eased(self.threshold, load_G).repeat_interleave(self._num_local)

    def _part_neurons(self, x_RD: torch.Tensor, slot_R: torch.Tensor) -> None:
        """Major and minor half of each expert here, by what these rows make of its neurons; all ranks learn of all."""
        order_eF = self._orders(x_RD, slot_R)
        self._order_EF = all_gather(order_eF, self.group)
        num_major = self.shape.d_ff // 2
        halves = (order_eF[:, :num_major], order_eF[:, num_major:])
        self._halves = tuple(
            self.engine.prepare(*half_of(self._whole, half_eF, self._activation.gated, first=place == 0))
            for place, half_eF in enumerate(halves)
        )
        self._whole = self._weights = self._whole[:0]

    def _orders(self, x_RD: torch.Tensor, slot_R: torch.Tensor) -> torch.Tensor:
        """int64 [e, F]: neurons, the most important first: those with the largest sum of |activation| over the rows."""
        device, width = x_RD.device, self.shape.d_ff
        if self._split == "none":
            return torch.arange(width, device=device).repeat(self._num_local, 1)
        if self._split == "random":
            draws = [np.random.default_rng(expert).permutation(width) for expert in self._mine]
            return torch.from_numpy(np.stack(draws)).to(device)
        wi_eDI, _, *biases = self._whole
        order_R, rows_e = self.engine.group(slot_R, self._num_local)
        importance_eF = torch.zeros(self._num_local, width, device=device)
        for slot, rows_r in enumerate(order_R.split(rows_e.tolist())):
            h_rI = x_RD[rows_r] @ wi_eDI[slot] + (biases[0][slot] if biases else 0)
            importance_eF[slot] = self._activation.function(h_rI).abs().float().sum(0)
        return importance_eF.argsort(dim=1, descending=True, stable=True)

    def expected(self, x_TD: torch.Tensor, routing: Routing, dense: Reference) -> torch.Tensor:
        """The dense model with zeros for dropped copies and without the minor neurons of others."""
        part_N, order_EF, activation = self.plan.part_N, self._order_EF, self._activation
        assert order_EF is not None
        num_major = self.shape.d_ff // 2

        def ffn(expert: int, copies_R: torch.Tensor, x_RD: torch.Tensor, weights: Any) -> torch.Tensor:
            part_R1 = part_N[copies_R].unsqueeze(1)
            kept_1F = order_EF[expert : expert + 1, :num_major]
            halved = half_of(tuple(one.unsqueeze(0) for one in weights), kept_1F, activation.gated, first=True)
            major = (one.squeeze(0) for one in halved)
            y_RD = torch.where(part_R1 == FULL, expert_ffn(x_RD, activation, *weights), 0.0)
            return torch.where(part_R1 == MAJOR, expert_ffn(x_RD, activation, *major), y_RD)

        return dense.through(x_TD, routing, ffn)

    def account(self, tokens_GE: torch.Tensor, element_size: int) -> Account:
        """Rows of the major half count one half; of a first call there are none."""
        account = super().account(tokens_GE, element_size)
        rows_GeP = self.plan.rows_GS.view(self.world_size, -1, self.parts)[:, self._mine]
        half, rows_eP = self.shape.d_ff // 2, rows_GeP.sum(0)
        rows = account.rows_computed - float(rows_eP[:, MAJOR].sum()) / 2
        parts = ((rows_eP.sum(1), half), (rows_eP[:, FULL], half))  # the major half of all, the minor one of some
        moved = [self.ffn_bytes(float(n.sum()), int(n.count_nonzero()), element_size, width=w) for n, w in parts]
        loads = 16 * (self.world_size - 1) if self._load_aware else 0
        bytes_sent = account.bytes_sent + loads
        return replace(account, rows_computed=rows, rows_useful=rows, bytes_sent=bytes_sent, memory_bytes=sum(moved))


def scores(routing: Routing) -> torch.Tensor:
    """float32 [T, K]: the softmax of a token's scores over its experts, or over all where it has one."""
    logits_TE = gate_scores(routing)
    if routing.expert_TK.shape[1] == 1:
        return logits_TE.softmax(1).gather(1, routing.expert_TK)
    return logits_TE.gather(1, routing.expert_TK).softmax(1)


def parts_of(score_TK: torch.Tensor, threshold_TK: torch.Tensor, thresholds: int) -> torch.Tensor:
    """int64 [T, K]: MAJOR, FULL or DROPPED: below threshold - BAND, below threshold + BAND, or above; with one
    threshold, below it or above.
    """
    band = BAND if thresholds == 2 else 0.0
    part_TK = torch.where(score_TK < threshold_TK + band, MAJOR, FULL)
    return part_TK.masked_fill(score_TK < threshold_TK - band, DROPPED)


def eased(threshold: float, load_G: torch.Tensor) -> torch.Tensor:
    """float32 [G]: the threshold of each rank: below the mean load in proportion to its load, else the same."""
    mean = load_G.double().mean().clamp(min=1e-9)
    share_G = torch.where(load_G.sum() > 0, (load_G / mean).clamp(max=1), 1.0)
    return (threshold * share_G).float()


def half_of(
    whole: tuple[torch.Tensor, ...], neurons_eF: torch.Tensor, gated: bool, *, first: bool
) -> tuple[torch.Tensor, ...]:
    """These neurons of each expert: columns of W_i (of a gated one, of both halves) and rows of W_o; the output's bias
    is with the first half.
    """
    wi_eDI, wo_eFD, *biases = whole
    columns_eI = torch.cat([neurons_eF, neurons_eF + wo_eFD.shape[1]], 1) if gated else neurons_eF
    half_eDI = wi_eDI.gather(2, columns_eI.unsqueeze(1).expand(-1, wi_eDI.shape[1], -1))
    half_eFD = wo_eFD.gather(1, neurons_eF.unsqueeze(2).expand(-1, -1, wo_eFD.shape[2]))
    if not biases:
        return half_eDI, half_eFD
    bias_eD = biases[1] if first else torch.zeros_like(biases[1])
    return half_eDI, half_eFD, biases[0].gather(1, columns_eI), bias_eD
