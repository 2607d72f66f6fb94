"""DualSparse: which copies are dropped or halved, and that important neurons lose least."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from routers.base import Routing
from systems.dense import Dense
from systems.dualsparse import BAND, DROPPED, FULL, MAJOR, DualSparse, eased, half_of, parts_of, scores
from systems.engines import ACTIVATIONS
from systems.engines.activations import expert_ffn
from tests.systems.naive import draw, layer

UNIT = st.floats(0, 1, width=32)


@given(st.lists(UNIT, min_size=1, max_size=20), UNIT, st.sampled_from([1, 2]))
def test_parts_are_those_of_the_rule(given_scores, threshold, thresholds):
    score_TK = torch.tensor([given_scores])
    threshold_TK = torch.full_like(score_TK, threshold)
    band = BAND if thresholds == 2 else 0.0
    for score, part in zip(score_TK[0], parts_of(score_TK, threshold_TK, thresholds)[0].tolist(), strict=True):
        low, high = (threshold_TK[0, 0] + sign * band for sign in (-1, 1))
        assert part == (DROPPED if score < low else MAJOR if score < high else FULL)
    if thresholds == 1:
        assert MAJOR not in parts_of(score_TK, threshold_TK, 1)


@given(st.lists(UNIT, min_size=1, max_size=20), UNIT, UNIT)
def test_a_higher_threshold_computes_no_more(given_scores, one, other):
    score_TK = torch.tensor([given_scores])
    work = [
        torch.tensor([0.5, 1.0, 0.0])[parts_of(score_TK, torch.full_like(score_TK, at), 2)].sum()
        for at in sorted((one, other))
    ]
    assert work[1] <= work[0]


@pytest.mark.parametrize("gated", [False, True])
def test_two_halves_make_a_whole(gated):
    activation = ACTIVATIONS["swiglu" if gated else "relu"]
    generator = torch.Generator().manual_seed(0)
    wi = torch.randn(3, 5, activation.in_width(8), generator=generator)
    whole = (
        wi,
        torch.randn(3, 8, 5, generator=generator),
        *(torch.randn(3, n, generator=generator) for n in (wi.shape[2], 5)),
    )
    order_eF = torch.stack([torch.randperm(8, generator=generator) for _ in range(3)])
    x_RD = torch.randn(7, 5, generator=generator)
    halves = [
        half_of(whole, order_eF[:, part], gated, first=not place) for place, part in enumerate((slice(4), slice(4, 8)))
    ]
    for expert in range(3):
        parts = [expert_ffn(x_RD, activation, *(one[expert] for one in half)) for half in halves]
        torch.testing.assert_close(sum(parts), expert_ffn(x_RD, activation, *(one[expert] for one in whole)))


def built(one_rank, **options) -> tuple[DualSparse, torch.Tensor, Routing]:
    """After a first batch, with the tokens of a second."""
    system = DualSparse(**options, **layer(4, 200, 2, one_rank))
    for seed in (0, 1):
        x_TD, routing = draw(200, 4, 2, seed)
        different_TK = torch.stack([routing.expert_TK[:, 0], (routing.expert_TK[:, 0] + 1) % 4], 1)
        logits_TE = torch.randn(200, 4, generator=torch.Generator().manual_seed(seed))
        routing = Routing(different_TK, routing.weight_TK, logits_TE)
        if seed == 0:
            system.forward(x_TD, routing)
    return system, x_TD, routing


def error(system: DualSparse, x_TD: torch.Tensor, routing: Routing, one_rank) -> float:
    exact_TD = Dense(**layer(4, 200, 2, one_rank)).forward(x_TD, routing)
    return float((system.forward(x_TD, routing) - exact_TD).norm() / exact_TD.norm())


def test_nothing_below_the_threshold_is_the_dense_model(one_rank):
    assert error(*built(one_rank, drop=0.0), one_rank) < 1e-6


def test_the_wanted_part_lies_below_the_threshold(one_rank):
    system, _, routing = built(one_rank, drop=0.3)
    assert float((scores(routing) < system.threshold).float().mean()) == pytest.approx(0.3, abs=0.06)


def test_important_neurons_lose_less_than_random_ones_at_the_same_work(one_rank):
    """Scores are widened into the band, so that all that is dropped is minor halves."""
    errors = {}
    for split in ("importance", "random", "none"):
        system, x_TD, routing = built(one_rank, drop=0.5, split=split)
        routing = Routing(routing.expert_TK, routing.weight_TK, torch.zeros(200, 4))
        system.threshold = 0.5
        errors[split] = error(system, x_TD, routing, one_rank)
        assert (system.plan.part_N == MAJOR).all()
    assert errors["importance"] < 0.95 * min(errors["random"], errors["none"])


def test_ranks_below_the_mean_drop_less():
    torch.testing.assert_close(eased(0.2, torch.tensor([30, 10, 20])), torch.tensor([0.2, 0.1, 0.2]))
    assert eased(0.2, torch.tensor([0, 0])).tolist() == pytest.approx([0.2, 0.2])  # loads were not asked for


@pytest.mark.parametrize(("option", "value"), [("drop", 1.0), ("thresholds", 3), ("split", "best")])
def test_bad_options_are_refused(option, value):
    options = {"drop": 0.25, "thresholds": 2, "split": "none", option: value}
    with pytest.raises(ValueError, match=f"system.{option} is {value!r}"):
        DualSparse.check(layer(8, 4, 2, None)["shape"], 1, **options)
