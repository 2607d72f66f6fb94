"""Weight migration: how experts get to the ranks where a plan puts them, within the timed layer.

Weights travel in the engine's own layout. Letters: G ranks, E experts; replicas_EG[e, g] > 0: expert e is on rank g.
moves_GEG[s, e, d]: rank s sends expert e to rank d.
"""

from abc import ABC, abstractmethod
from typing import NamedTuple

import numpy as np
import torch
import torch.distributed as dist

from systems.base import LayerWeights
from systems.collectives import all_to_all
from systems.engines import Engine
from systems.moves import broadcasts, moves


class Held(NamedTuple):
    """Prepared weights on this rank: experts[s] is the expert in slot s of each. Some may have no tokens."""

    weights: tuple[torch.Tensor, ...]
    experts: list[int]

    def first(self, slots: int, experts: list[int]) -> "Held":
        """The first slots, with these experts in them."""
        return Held(tuple(w[:slots] for w in self.weights), experts)

    def copy(self) -> "Held":
        """Weights to write to, because other systems may share the prepared ones."""
        return Held(tuple(w.clone() for w in self.weights), list(self.experts))

    def with_room(self, slots: int) -> "Held":
        """As many more slots, of no expert yet; a copy."""
        return Held(tuple(torch.cat([w, w.new_empty(slots, *w.shape[1:])]) for w in self.weights), self.experts)


class Migration(ABC):
    """Built where experts are before anything is timed; `bring` makes this rank ready for a plan.

    replicas_EG: where the next plan starts from.
    """

    def __init__(
        self, *, replicas_EG: np.ndarray, weights: LayerWeights, engine: Engine, group: dist.ProcessGroup
    ) -> None:
        self.replicas_EG, self.group, self.rank = replicas_EG, group, group.rank()
        experts = np.flatnonzero(replicas_EG[:, self.rank]).tolist()
        self.held = Held(tuple(engine.prepare(*weights.experts(experts))), experts)

    @abstractmethod
    def bring(self, replicas_EG: np.ndarray) -> Held:
        """What this rank computes a plan with; all ranks ask for the same plan."""

    def experts_sent(self, before_EG: np.ndarray, after_EG: np.ndarray) -> float:
        """How many experts' weights this rank sends, counted once for each rank that gets them; parts count as such."""
        return float(moves(before_EG, after_EG)[self.rank].sum())

    @property
    def kept_beside(self) -> float:
        """Experts' worth of weights on this rank's device that are not in `held`."""
        return 0.0


class Static(Migration):
    """Every expert is where it was put before anything was timed."""

    def bring(self, replicas_EG: np.ndarray) -> Held:
        assert replicas_EG is self.replicas_EG, "a static placement does not change"
        return self.held


class Transient(Migration):
    """Own experts and, behind them, room for those that come for one call; it grows to the most that ever came."""

    def __init__(self, **layer) -> None:
        super().__init__(**layer)
        self._room = self.held

    def _with_room(self, more: int) -> Held:
        missing = len(self.held.experts) + more - len(self._room.weights[0])
        if missing > 0:
            self._room = self._room.with_room(missing)
        return self._room


class Broadcast(Transient):
    """Owners send experts to all other ranks for one call (FasterMoE's shadows): each tensor is one broadcast."""

    def bring(self, replicas_EG: np.ndarray) -> Held:
        """Own experts, then in the order of their owners those that others broadcast; without any only its own."""
        sent_GE = broadcasts(self.replicas_EG, replicas_EG)
        if not sent_GE.any():
            return self.held
        experts, here = list(self.held.experts), len(self.held.experts)
        room = self._with_room(int(np.delete(sent_GE, self.rank, 0).sum()))
        for owner in range(len(sent_GE)):
            coming = np.flatnonzero(sent_GE[owner]).tolist()
            if coming and owner == self.rank:
                for w in self.held.weights:
                    dist.broadcast(w[_slots(self.held, coming)], group=self.group, group_src=owner)
            elif coming:
                for w in room.weights:
                    dist.broadcast(w[here : here + len(coming)], group=self.group, group_src=owner)
                experts, here = experts + coming, here + len(coming)
        return room.first(here, experts)

    def experts_sent(self, before_EG: np.ndarray, after_EG: np.ndarray) -> float:
        """A broadcast goes to all other ranks, whoever wants it."""
        return float(broadcasts(before_EG, after_EG)[self.rank].sum()) * (before_EG.shape[1] - 1)


class PointToPoint(Transient):
    """Experts go from ranks that have them to those that lack them, for one call: an all-to-all a tensor."""

    def bring(self, replicas_EG: np.ndarray) -> Held:
        moves_GEG = moves(self.replicas_EG, replicas_EG)
        if not moves_GEG.any():
            return self.held
        arrived = self._exchange(moves_GEG)
        own, room = len(self.held.experts), self._with_room(len(arrived.experts))
        used = own + len(arrived.experts)
        for here, come in zip(room.weights, arrived.weights, strict=True):
            here[own:used] = come
        return room.first(used, self.held.experts + arrived.experts)

    def _exchange(self, moves_GEG: np.ndarray) -> Held:
        """What arrives on this rank."""
        sent_GE, received_GE = moves_GEG[self.rank].T, moves_GEG[:, :, self.rank]
        splits = received_GE.sum(1).tolist(), sent_GE.sum(1).tolist()
        slots = _slots(self.held, np.nonzero(sent_GE)[1].tolist())
        arrived = tuple(all_to_all(w[slots], self.group, *splits) for w in self.held.weights)
        return Held(arrived, np.nonzero(received_GE)[1].tolist())


class Persistent(PointToPoint):
    """As `PointToPoint`, but experts stay: those that remain keep their slots, and those that come take the slots of
    those that go. A rank that is to have more experts than before grows, one that is to have fewer closes the gaps.
    """

    def __init__(self, **layer) -> None:
        super().__init__(**layer)
        self._room = self.held = self.held.copy()

    def bring(self, replicas_EG: np.ndarray) -> Held:
        moves_GEG = moves(self.replicas_EG, replicas_EG)
        free = [slot for slot, expert in enumerate(self.held.experts) if not replicas_EG[expert, self.rank]]
        if moves_GEG.any():
            self._settle(self._exchange(moves_GEG), free)
        elif free:
            self._settle(self.held.first(0, []), free)
        self.replicas_EG = replicas_EG
        return self.held

    def _settle(self, arrived: Held, free: list[int]) -> None:
        """Put what arrived into free slots, and into new ones where they are too few; the last experts fill gaps."""
        experts, more = self.held.experts, max(len(arrived.experts) - len(free), 0)
        weights = self._with_room(more).weights
        free, gaps = [*free, *range(len(experts), len(experts) + more)], free[len(arrived.experts) :]
        experts += [-1] * more
        taken = free[: len(arrived.experts)]
        for slot, expert in zip(taken, arrived.experts, strict=True):
            experts[slot] = expert
        if taken:
            for here, come in zip(weights, arrived.weights, strict=True):
                here[taken] = come
        for slot in reversed(gaps):
            last = len(experts) - 1
            for here in weights if slot < last else ():
                here[slot] = here[last]
            experts[slot] = experts[last]
            experts.pop()
        self.held = self._room.first(len(experts), experts)


class SwapIn(Migration):
    """Every rank has all experts in host memory and copies those that it lacks to its device (Lina, HarMoEny).

    An expert stays until its slot is wanted. Nothing travels between ranks, and every plan starts from where experts
    were at first, because all are everywhere.
    """

    def __init__(self, *, weights: LayerWeights, engine: Engine, replicas_EG: np.ndarray, **layer) -> None:
        super().__init__(weights=weights, engine=engine, replicas_EG=replicas_EG, **layer)
        every = engine.prepare(*weights.experts(list(range(len(replicas_EG)))))
        self._host = [w.cpu().pin_memory() if w.is_cuda else w for w in every]
        self.held = self.held.copy()

    def bring(self, replicas_EG: np.ndarray) -> Held:
        """Missing experts take the slots of those that are not wanted, and new slots where there are too few."""
        wanted = np.flatnonzero(replicas_EG[:, self.rank]).tolist()
        missing = sorted(set(wanted) - set(self.held.experts))
        free = [slot for slot, expert in enumerate(self.held.experts) if expert not in set(wanted)]
        if len(missing) > len(free):
            self._grow(len(missing) - len(free))
            free += range(len(self.held.experts) - (len(missing) - len(free)), len(self.held.experts))
        for slot, expert in zip(free, missing, strict=False):
            for here, host in zip(self.held.weights, self._host, strict=True):
                here[slot].copy_(host[expert], non_blocking=True)
            self.held.experts[slot] = expert
        return self.held

    def _grow(self, slots: int) -> None:
        self.held = Held(self.held.with_room(slots).weights, [*self.held.experts, *[-1] * slots])

    def experts_sent(self, before_EG: np.ndarray, after_EG: np.ndarray) -> float:
        return 0.0


def _slots(held: Held, experts: list[int]) -> list[int]:
    slot_of = {expert: slot for slot, expert in enumerate(held.experts)}
    return [slot_of[expert] for expert in experts]
