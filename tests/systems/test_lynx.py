"""Lynx: which experts a batch keeps to, and what becomes of the other choices."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from routers.base import Routing
from routers.scores import scores_of
from systems.lynx import ENOUGH, Lynx, kept_to, votes
from systems.planners.base import Rates
from tests.systems.naive import draw, layer

E = 12


def drawn(num_tokens: int, top_k: int, seed: int) -> Routing:
    generator = np.random.default_rng(seed)
    expert_TK = np.stack([generator.permutation(E)[:top_k] for _ in range(num_tokens)])
    score_TE = torch.from_numpy(scores_of(expert_TK, E, generator))
    expert_TK = torch.from_numpy(expert_TK)
    return Routing(expert_TK, score_TE.gather(1, expert_TK).softmax(1), score_TE)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 30), st.integers(1, 6), st.integers(0, 99), st.floats(0.05, 3))
def test_first_choices_stay_and_others_go_to_active_experts(num_tokens, top_k, seed, width):
    routing = drawn(num_tokens, top_k, seed)
    active_E = votes(routing, width, 6, num_tokens) >= ENOUGH
    found = kept_to(routing, active_E)
    assert active_E[routing.expert_TK[:, 0]].all()
    assert torch.equal(found.expert_TK[:, 0], routing.expert_TK[:, 0])
    assert all(len(set(row)) == top_k for row in found.expert_TK.tolist())
    if int(active_E.sum()) >= top_k:
        assert active_E[found.expert_TK].all()
    same_T = active_E[routing.expert_TK].all(1)
    assert torch.equal(found.expert_TK[same_T], routing.expert_TK[same_T])
    assert torch.equal(found.weight_TK[same_T], routing.weight_TK[same_T])
    torch.testing.assert_close(found.weight_TK.sum(1), routing.weight_TK.sum(1))
    assert found.expert_TK.unique().numel() <= routing.expert_TK.unique().numel()


def test_replaced_choices_take_the_best_scores_that_are_left():
    logits_TE = torch.tensor([[5.0, 4.0, 3.0, 2.0, 1.0]])
    routing = Routing(torch.tensor([[0, 1]]), torch.tensor([[0.7, 0.3]]), logits_TE)
    found = kept_to(routing, torch.tensor([True, False, False, True, True]))
    assert found.expert_TK.tolist() == [[0, 3]]
    torch.testing.assert_close(found.weight_TK, torch.tensor([[5.0, 2.0]]).softmax(1))


def test_votes_of_a_later_bin_are_worth_one_of_the_bin_before_only_all_together():
    """Three tokens whose second choice lies 1.5 below the first: a third of a vote each in the second bin."""
    logits_TE = torch.tensor([[2.5, 1.0, 0.0]]).repeat(3, 1)
    routing = Routing(torch.tensor([[0, 1]] * 3), torch.full((3, 2), 0.5), logits_TE)
    torch.testing.assert_close(votes(routing, 2.0, 6, 3), torch.tensor([3.0, 1.0, 0.0]).double())
    torch.testing.assert_close(votes(routing, 1.0, 6, 3), torch.tensor([3.0, 3 / 9, 0.0]).double())
    torch.testing.assert_close(votes(routing, 1.0, 2, 3), torch.tensor([3.0, 1.0, 0.0]).double())


def test_near_seconds_are_no_first_choices():
    """However little a second choice lies below, one alone does not keep its expert."""
    logits_TE = torch.tensor([[1.0, 0.999, 0.0]] * 4)
    routing = Routing(torch.tensor([[0, 1]] * 3 + [[0, 2]]), torch.full((4, 2), 0.5), logits_TE)
    assert (votes(routing, 1.0, 6, 4) >= ENOUGH).tolist() == [True, False, False]


def test_top_1_is_expert_parallelism(one_rank):
    x_TD, routing = draw(40, 8, 1, 0)
    system = Lynx(when="always", rates=Rates(1.0, 1.0), **layer(8, 40, 1, one_rank))
    system.forward(x_TD, routing)
    assert torch.equal(system.plan.routing.expert_TK, routing.expert_TK)


def test_batches_that_compute_longer_than_they_read_are_left_alone(one_rank):
    def active(memory_bytes_per_s: float) -> bool:
        rates = Rates(1e9, 1.0, memory_bytes_per_s=memory_bytes_per_s)
        return Lynx(rates=rates, **layer(8, 40, 2, one_rank)).active

    # 10 rows of 2 * 2 * 16 * 32 FLOPs against 2 * 16 * 32 weights of 4 bytes: 20.5 us and 4,096 B
    assert active(1e8) and not active(1e9)


@pytest.mark.parametrize(("option", "value"), [("width", 0), ("bins", 0), ("when", "never")])
def test_bad_options_are_refused(option, value):
    options = {"width": 1.0, "bins": 6, "when": "always", option: value}
    with pytest.raises(ValueError, match=f"system.{option} is {value!r}"):
        Lynx.check(layer(8, 4, 2, None)["shape"], 1, **options)
