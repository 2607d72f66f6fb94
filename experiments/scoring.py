"""What a planner's plans are worth on recorded loads, without running anything: balance, traffic, modelled time.

Letters: G ranks, E experts, L layers. docs/score.md states the model.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd

from devices import Device
from experiments.ceilings import modelled_rate
from experiments.referee import Referee, Violation
from experiments.score_loads import BATCHES, Source
from systems.costs import costs_of
from systems.engines.activations import ACTIVATIONS
from systems.moves import moves
from systems.planners.base import Costs, Planner, Rates, as_replicas, imbalance, owner_of, rows_per_rank
from systems.planners.bound import least_rows
from systems.planners.placement import PLACEMENTS, Home

PRECISION, BYTES = "bf16", 2  # of rows and weights
KERNEL = "triton"  # the grouped product that every described device has
LARGE = 8192  # side of the matrix product that planners take a device's rate from
# Migrations after which experts are where they were.
FOR_ONE_CALL = ("static", "broadcast", "point_to_point", "swap_in", "sharded")


@dataclass(frozen=True)
class View:
    """How a planner sees loads and how its weights travel: the options of `systems.planned.PlannedExpertParallel`."""

    loads: str = "none"
    migration: str = "static"
    placement: str = "contiguous"
    every: int = 1
    window: int = 1

    @property
    def stays(self) -> bool:
        """Whether experts stay where the last plan put them."""
        return self.migration not in FOR_ONE_CALL

    @property
    def warmup(self) -> int:
        """Batches before any that is scored: those that the first loads are of, and one that experts are placed for."""
        follows = self.loads in ("oracle", "lagged")
        return self.window * (self.loads == "lagged") + (self.stays and follows)


@dataclass(frozen=True)
class Setting:
    """One source on so many ranks of a device, and what things take there."""

    source: Source
    ranks: int
    device: Device

    @cached_property
    def rates(self) -> Rates:
        """By which a planner weighs costs, as in a simulated run."""
        shape, device, network = self.source.shape, self.device, self.device.network(self.ranks)
        flops_per_s = 2 * LARGE**3 / device.matmul_s(1, LARGE, LARGE, LARGE, PRECISION)
        return Rates(flops_per_s, modelled_rate(network, self.ranks, shape.max_tokens * shape.d_model * BYTES))

    def experts_s(self, rows_EG: np.ndarray) -> float:
        """The busiest rank's two grouped products, which read the weights of the experts that have rows."""
        shape = self.source.shape
        hidden = ACTIVATIONS[shape.activation].in_width(shape.d_ff)
        sizes = ((hidden, shape.d_model), (shape.d_model, shape.d_ff))
        return max(
            sum(self.device.grouped_s(KERNEL, rows_E, n, k, PRECISION) for n, k in sizes) for rows_E in rows_EG.T
        )

    def rows_s(self, sent_GEG: np.ndarray) -> float:
        """Rows to where they are computed, and back."""
        sent_GG = sent_GEG.sum(1) * (self.source.shape.d_model * BYTES)
        return sum(self._collective_s("all_to_all", bytes_GG) for bytes_GG in (sent_GG, sent_GG.T))

    def weights_s(self, before_EG: np.ndarray, after_EG: np.ndarray, migration: str) -> float:
        """Experts from the ranks that have each to those that lack it; `broadcast`: from one rank after another to
        all others; `swap_in`: from each rank's own host; `sharded`: put together from all ranks' parts.
        """
        moves_GEG = moves(before_EG, after_EG)
        expert_bytes = self.source.shape.expert_elements(self.source.shape.d_ff) * BYTES
        if migration == "sharded":  # a part of every expert from every rank, wherever it was
            held_G = np.count_nonzero(after_EG, axis=0)
            return self._collective_s("all_to_all", np.ones((self.ranks, 1)) * held_G * expert_bytes / self.ranks)
        if not moves_GEG.any():
            return 0.0
        if migration == "swap_in":
            return self.device.transfer_s(moves_GEG.sum((0, 1)).max() * expert_bytes)
        if migration == "broadcast":
            sent_G = moves_GEG.any(2).sum(1) * expert_bytes
            owners = (np.arange(self.ranks)[:, None] == owner for owner in np.flatnonzero(sent_G))
            return sum(self._collective_s("broadcast", sent_G[:, None] * is_owner_G1) for is_owner_G1 in owners)
        return self._collective_s("all_to_all", moves_GEG.sum(1) * expert_bytes)

    def _collective_s(self, collective: str, bytes_GG: np.ndarray) -> float:
        network = self.device.network(self.ranks)
        volumes = network.volumes(collective, bytes_GG * ~np.eye(self.ranks, dtype=bool), range(self.ranks))
        return network.seconds(collective, volumes, self.ranks)


def play(referee: Referee, view: View, setting: Setting, extra_slots: int | None = None) -> Iterator[dict[str, Any]]:
    """What came of each layer and batch. extra_slots: how many experts beyond E/G a rank may hold; None: any number."""
    source, ranks = setting.source, setting.ranks
    owner_E = PLACEMENTS[view.placement](source.model.num_experts, ranks).numpy()
    start_LEG = np.stack([as_replicas(owner_E, ranks)] * source.num_layers)
    costs = costs_of(source.shape, BYTES, setting.rates, view.every)
    if view.loads == "profiled":
        start_LEG = referee.place_layers(source.profile(ranks), start_LEG[0], costs)
    for layer, start_EG in enumerate(start_LEG):
        tokens_IGE = [source.tokens(layer, batch, ranks) for batch in range(view.warmup + BATCHES)]
        planned = _batches(referee, view, costs, tokens_IGE, start_EG, owner_E)
        for batch, (before_EG, after_EG, sent_GEG) in enumerate(planned):
            held_G = np.count_nonzero((after_EG > 0) | ((before_EG > 0) & (not view.stays)), axis=0)
            slots = source.model.num_experts // ranks + (extra_slots or 0)
            if extra_slots is not None and held_G.max() > slots:
                raise Violation(
                    f"{referee.name} places {held_G.max()} experts on rank {held_G.argmax()} of {slots} slots"
                )
            yield {"layer": layer, "batch": batch, "held": held_G.max() * ranks / len(owner_E)} | _graded(
                view, setting, before_EG, after_EG, sent_GEG
            )


def _batches(
    referee: Referee,
    view: View,
    costs: Costs,
    tokens_IGE: Sequence[np.ndarray],
    start_EG: np.ndarray,
    owner_E: np.ndarray,
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """before_EG, after_EG, sent_GEG of each batch that is scored, as `PlannedExpertParallel` plans them."""
    past: deque[np.ndarray] = deque(maxlen=view.window)
    here_EG = after_EG = start_EG
    for batch, tokens_GE in enumerate(tokens_IGE):
        if view.loads == "oracle" or (view.loads == "lagged" and len(past) == view.window):
            loads_GE = tokens_GE if view.loads == "oracle" else np.mean(past, axis=0)
            after_EG = referee.place(loads_GE, here_EG, costs)
        if batch >= view.warmup:
            still_E = after_EG[np.arange(len(after_EG)), owner_E] > 0
            lives_E = np.where(still_E, owner_E, owner_of(after_EG))
            yield here_EG, after_EG, referee.dispatch(tokens_GE, after_EG, lives_E)
        past.append(tokens_GE)
        here_EG = after_EG if view.stays else start_EG


def _graded(
    view: View, setting: Setting, before_EG: np.ndarray, after_EG: np.ndarray, sent_GEG: np.ndarray
) -> dict[str, float]:
    rows_EG, tokens_E = sent_GEG.sum(0), sent_GEG.sum((0, 2))
    rows_G = rows_per_rank(sent_GEG)
    moved = int(moves(before_EG, after_EG).sum())
    times = {
        "experts_ms": 1e3 * setting.experts_s(rows_EG),
        "rows_ms": 1e3 * setting.rows_s(sent_GEG),
        "weights_ms": 1e3 * setting.weights_s(before_EG, after_EG, view.migration) / view.every,
    }
    return {
        "max_over_mean": imbalance(sent_GEG),
        "over_least": float(rows_G.max() / max(least_rows(tokens_E, after_EG)[0], 1)),
        "experts_moved": moved / view.every,
        "remote_rows": int(rows_G.sum() - np.einsum("geg->", sent_GEG)),
        "remote_share": float(1 - np.einsum("geg->", sent_GEG) / max(rows_G.sum(), 1)),
        "activated": int(np.count_nonzero(rows_EG, axis=0).max()),
        **times,
        "layer_ms": sum(times.values()),
    }


class Scorer:
    """Scores planners on one device; what EP takes is found once for each setting."""

    def __init__(self, device: Device, extra_slots: int | None = None) -> None:
        device.check(PRECISION)
        self.device, self.extra_slots = device, extra_slots
        self._ep_ms: dict[tuple[Source, int], float] = {}

    def score(self, planner: Planner, view: View, source: Source, ranks: int) -> dict[str, Any]:
        """Means over layers and batches, the worst imbalance, and all of them; Violation where a rule is broken."""
        setting, referee = Setting(source, ranks, self.device), Referee(planner)
        batches = list(play(referee, view, setting, self.extra_slots))
        mean = pd.DataFrame(batches).drop(columns=["layer", "batch"]).mean().to_dict()
        plan_ms = {how.__name__: 1e3 * sum(map(how, referee.seconds.values())) for how in (np.min, np.median)}
        return {
            "load": source.name,
            "group": source.group,
            "ranks": ranks,
            **mean,
            "held": max(one["held"] for one in batches),
            "worst": max(one["max_over_mean"] for one in batches),
            "plan_ms_min": plan_ms["min"],
            "plan_ms_median": plan_ms["median"],
            "over_ep": self._ep(setting) / mean["layer_ms"],
            "batches": batches,
        }

    def _ep(self, setting: Setting) -> float:
        key = setting.source, setting.ranks
        if key not in self._ep_ms:
            played = play(Referee(Home()), View(), setting)
            self._ep_ms[key] = float(np.mean([one["layer_ms"] for one in played]))
        return self._ep_ms[key]


def overall(scored: Sequence[dict[str, Any]]) -> float:
    """Geometric mean of EP's modelled time over the planner's: of each model and phase, then of these."""
    logs = {one["group"]: [] for one in scored}
    for one in scored:
        logs[one["group"]].append(np.log(one["over_ep"]))
    return float(np.exp(np.mean([np.mean(mine) for mine in logs.values()])))
