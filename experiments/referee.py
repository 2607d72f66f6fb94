"""Holds a planner to the rules of `systems.planners.base`: the first one that it breaks is said in one sentence.

Letters: G ranks, E experts, L layers.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from systems.planners.base import Costs, Planner


class Violation(ValueError):
    """A planner broke a rule; one sentence says which."""


@dataclass
class Referee:
    """Asks a planner everything twice; Violation at the first rule that it breaks. seconds: of answers, by method."""

    planner: Planner
    seconds: dict[str, list[float]] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return f"planner {type(self.planner).__name__}"

    def place(self, loads_GE: np.ndarray, current_EG: np.ndarray, costs: Costs) -> np.ndarray:
        """replicas_EG, checked."""
        given = {"loads_GE": loads_GE, "current_EG": current_EG}
        replicas_EG = self._asked("place", self.planner.place, given, current_EG.shape, costs)
        self._check_places(replicas_EG)
        return replicas_EG

    def place_layers(self, profile: np.ndarray, current_EG: np.ndarray, costs: Costs) -> np.ndarray:
        """replicas_LEG by a profile, checked; asked once, because it may take its time."""
        replicas_LEG = self._ruled(self.planner.place_layers, profile, current_EG, costs)
        self._ruled(Planner.check_counts, self.planner, "place_layers", replicas_LEG, (len(profile), *current_EG.shape))
        for replicas_EG in replicas_LEG:
            self._check_places(replicas_EG)
        return replicas_LEG

    def dispatch(self, tokens_GE: np.ndarray, replicas_EG: np.ndarray, owner_E: np.ndarray) -> np.ndarray:
        """sent_GEG, checked."""
        given = {"tokens_GE": tokens_GE, "replicas_EG": replicas_EG, "owner_E": owner_E}
        shape = (len(tokens_GE), *replicas_EG.shape)
        sent_GEG = self._asked("dispatch", self.planner.dispatch, given, shape)
        for rank, expert, to in np.argwhere(sent_GEG < 0):
            raise Violation(f"{self.name} sends {sent_GEG[rank, expert, to]} tokens for expert {expert} to rank {to}")
        self._ruled(Planner.check_sent, self.planner, sent_GEG, tokens_GE, replicas_EG)
        return sent_GEG

    def _check_places(self, replicas_EG: np.ndarray) -> None:
        """Violation for an expert without a replica, or with several that the planner says it does not make."""
        for expert, rank in np.argwhere(replicas_EG < 0):
            raise Violation(
                f"{self.name} places {replicas_EG[expert, rank]} replicas of expert {expert} on rank {rank}"
            )
        for expert in np.flatnonzero(~(replicas_EG > 0).any(1)):
            raise Violation(f"{self.name} places expert {expert} nowhere; every expert needs a replica")
        for expert in np.flatnonzero(replicas_EG.sum(1) > 1) if not self.planner.replicates else ():
            raise Violation(f"{self.name} says that replicates is False and makes several of expert {expert}")

    def _asked(
        self, method: str, ask: Callable[..., Any], given: dict[str, np.ndarray], shape: tuple[int, ...], *rest: Any
    ) -> np.ndarray:
        answers = []
        for _ in range(2):
            copies = [array.copy() for array in given.values()]
            start = time.perf_counter()
            answer = self._ruled(ask, *copies, *rest)
            self.seconds.setdefault(method, []).append(time.perf_counter() - start)
            for (name, array), copy in zip(given.items(), copies, strict=True):
                if not np.array_equal(array, copy):
                    raise Violation(f"{self.name} changes {name}, which {method} is given; it must work on a copy")
            if not isinstance(answer, np.ndarray):
                raise Violation(f"{self.name}.{method} returns a {type(answer).__name__}; it must be an int64 array")
            self._ruled(Planner.check_counts, self.planner, method, answer, shape)
            answers.append(answer.copy())
        if not np.array_equal(*answers):
            raise Violation(f"{self.name}.{method} answers the same question in two ways; all ranks must plan alike")
        return answers[0]

    def _ruled(self, ask: Callable[..., Any], *arguments: Any) -> Any:
        """The answer; whatever it raises is a Violation."""
        try:
            return ask(*arguments)
        except Exception as error:
            kind = "" if type(error) is ValueError else f"{type(error).__name__}: "
            said = f"{kind}{' '.join(str(error).split())}"
            raise Violation(said if said.startswith("planner ") else f"{self.name} fails: {said}") from error
