"""Every rule that a planner can break is said in one sentence, by planners that break one each."""

from typing import Any

import numpy as np
import pytest

from experiments.referee import Referee, Violation
from systems.planners.base import Costs, as_replicas
from systems.planners.placement import Home

TOKENS_GE = np.array([[3, 0, 1, 2], [0, 5, 1, 0]])
OWNER_E = np.array([0, 0, 1, 1])
HOME_EG = as_replicas(OWNER_E, 2)
COSTS = Costs(1.0, 1.0, 1.0)


class Broken(Home):
    """Home, but for what its functions do to the arguments and the answer."""

    def __init__(self, place: Any = None, dispatch: Any = None) -> None:
        self._place, self._dispatch = place, dispatch

    def place(self, loads_GE, current_EG, costs):
        replicas_EG = super().place(loads_GE, current_EG, costs)
        return self._place(loads_GE, replicas_EG.copy()) if self._place else replicas_EG

    def dispatch(self, tokens_GE, replicas_EG, owner_E):
        sent_GEG = super().dispatch(tokens_GE, replicas_EG, owner_E)
        return self._dispatch(tokens_GE, sent_GEG) if self._dispatch else sent_GEG


def changed(array: np.ndarray, place: Any, value: int) -> np.ndarray:
    array[place] = value
    return array


def planned(planner: Home) -> Referee:
    referee = Referee(planner)
    replicas_EG = referee.place(TOKENS_GE, HOME_EG, COSTS)
    referee.dispatch(TOKENS_GE, replicas_EG, OWNER_E)
    return referee


def test_who_breaks_no_rule_is_timed():
    assert {name: len(seconds) for name, seconds in planned(Broken()).seconds.items()} == {"place": 2, "dispatch": 2}


@pytest.mark.parametrize(
    ("planner", "sentence"),
    [
        (Broken(lambda loads, at: changed(at, 2, 0)), "places expert 2 nowhere; every expert needs a replica"),
        (Broken(lambda loads, at: changed(at, (0, 1), -1)), "places -1 replicas of expert 0 on rank 1"),
        (Broken(lambda loads, at: changed(at, 3, 1)), "says that replicates is False and makes several of expert 3"),
        (Broken(lambda loads, at: at / 1), r"\.place returns float64 \(4, 2\); it must be int64 \(4, 2\)"),
        (Broken(lambda loads, at: at.tolist()), r"\.place returns a list; it must be an int64 array"),
        (Broken(lambda loads, at: (loads.sort(), at)[1]), "changes loads_GE, which place is given"),
        (Broken(lambda loads, at: loads[9]), r"fails: IndexError: index 9 is out of bounds"),
        (Broken(None, lambda tokens, sent: sent * 0), "sends 0 of rank 0's 3 tokens for expert 0"),
        (
            Broken(None, lambda tokens, sent: sent[:, :, ::-1]),
            "sends tokens for expert 0 to rank 1, which has no replica",
        ),
        (Broken(None, lambda tokens, sent: changed(sent, (0, 1), [-2, 2])), "sends -2 tokens for expert 1 to rank 0"),
        (
            Broken(None, lambda tokens, sent: sent[0]),
            r"\.dispatch returns int64 \(4, 2\); it must be int64 \(2, 4, 2\)",
        ),
        (Broken(None, lambda tokens, sent: changed(tokens, 0, 1)[0]), "changes tokens_GE, which dispatch is given"),
    ],
)
def test_the_first_rule_that_is_broken_is_said(planner: Broken, sentence: str):
    with pytest.raises(Violation, match=rf"^planner Broken ?{sentence}"):
        planned(planner)


def test_two_answers_to_one_question_are_none():
    answers = iter([HOME_EG, HOME_EG[::-1]])
    with pytest.raises(Violation, match=r"Broken\.place answers the same question in two ways"):
        planned(Broken(lambda loads, at: next(answers)))


def test_a_planner_cannot_be_its_own_referee():
    planner = Broken(None, lambda tokens, sent: sent * 0)
    planner.check_sent = lambda *arguments: None
    with pytest.raises(Violation, match="sends 0 of rank 0's 3 tokens"):
        planned(planner)


def test_placements_by_a_profile_are_held_to_the_same():
    referee, expert_LGM = Referee(Broken(lambda loads, at: at * (loads.sum(0) > 1)[:, None])), np.zeros((2, 2, 3), int)
    with pytest.raises(Violation, match="places expert 1 nowhere"):
        referee.place_layers(expert_LGM, HOME_EG, COSTS)
