"""What every router that draws promises, whichever distribution or counts it has."""

import importlib
import inspect
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hydra.utils import get_class
from omegaconf import OmegaConf
from scipy.stats import chisquare

from routers.drawn import CountedRouter, DrawnRouter, MultinomialRouter
from routers.learned import LearnedRouter

ROOT = Path(__file__).parents[2]
FILES = {path.stem: OmegaConf.load(path) for path in (ROOT / "conf/router").glob("*.yaml")}
CONFIGS: Any = OmegaConf.to_container(OmegaConf.create({**FILES, "cluster": {"world_size": 4}}), resolve=True)
del CONFIGS["cluster"]
DRAWN = sorted(CONFIGS.keys() - {"learned"})
COUNTED = ["balanced", "matched", "trace"]
REPLAYED = ["token_trace"]  # recorded tokens, whose number of experts is theirs
NUM_TOKENS = 1000
FITTED = ["like"]  # to models, whose number of experts it has
CHOSEN = {"like": {"of": "switch_base_128.wikitext"}}
NUM_EXPERTS = dict.fromkeys(DRAWN, 16) | dict.fromkeys(REPLAYED + FITTED, 128)
BALANCED = [14, 8, 0, 13, 2, 3, 10, 12, 15, 9, 1, 11]
TOKENS = [77, 104, 87, 64, 104, 121, 64, 120, 28, 126, 116, 90]
TRACE = [14, 6, 1, 13, 4, 5, 8, 11, 15, 7, 3, 10]


def options(name: str) -> dict[str, Any]:
    return {key: value for key, value in CONFIGS[name].items() if key not in ("_target_", "name")}


def build(name: str, *, rank: int = 0, seed: int = 0, **changed: Any) -> DrawnRouter:
    """The router of a configuration file on a model with MoE in blocks 1 and 3, mostly of 16 experts."""
    given = {"num_experts": NUM_EXPERTS[name], "rank": rank, "seed": seed, "moe_blocks": [1, 3], "classifier": None}
    return get_class(CONFIGS[name]["_target_"])(**options(name) | CHOSEN.get(name, {}), **given, **changed)


def test_there_is_a_configuration_of_every_router():
    assert set(CONFIGS) == {
        "balanced",
        "drift",
        "learned",
        "like",
        "lognormal",
        "matched",
        "synthetic",
        "token_trace",
        "trace",
        "zipf",
    }


@pytest.mark.parametrize("name", CONFIGS)
def test_the_configuration_shows_every_option_with_its_default(name):
    kinds = [kind for kind in get_class(CONFIGS[name]["_target_"]).__mro__ if "__init__" in vars(kind)]
    defaults: dict[str, Any] = {}
    for kind in reversed(kinds):
        named = inspect.signature(kind.__init__).parameters.values()
        defaults |= {p.name: p.default for p in named if p.default is not p.empty}
    for given in ("moe_blocks", "classifier", "top_k", "sequences", "regime"):
        defaults.pop(given, None)
    of_the_cluster = {"ranks": 4} if name == "matched" else {}
    assert CONFIGS[name]["name"] == name and options(name) == defaults | of_the_cluster


def test_learned_takes_what_every_router_is_given():
    given = {"num_experts": 4, "rank": 0, "seed": 0, "moe_blocks": [1]}
    assert LearnedRouter(classifier=lambda block: torch.eye(4), **given)


@pytest.mark.parametrize("name", DRAWN)
def test_same_key_same_bytes_in_any_order_of_calls(name):
    keys = [(layer, iteration) for layer in (1, 3) for iteration in range(7)]
    forwards, backwards = build(name), build(name)
    seen = {(b, i): forwards.draw(NUM_TOKENS, layer=b, iteration=i)[:, 0] for b, i in keys}
    for b, i in reversed(keys):
        again_T = backwards.draw(NUM_TOKENS, layer=b, iteration=i)[:, 0]
        assert again_T.dtype == np.int64 and again_T.tobytes() == seen[b, i].tobytes()
        assert again_T.min() >= 0 and again_T.max() < NUM_EXPERTS[name]


@pytest.mark.parametrize("name", DRAWN)
@pytest.mark.parametrize("other", [{"rank": 1}, {"seed": 1}, {"layer": 3}, {"iteration": 1}], ids=str)
def test_other_key_other_draws(name, other):
    key = {"rank": 0, "seed": 0, "layer": 1, "iteration": 0}

    def draw(rank: int, seed: int, layer: int, iteration: int) -> np.ndarray:
        return build(name, rank=rank, seed=seed).draw(NUM_TOKENS, layer=layer, iteration=iteration)[:, 0]

    # Independent draws agree where both are hot: at most on half of the tokens with the loads of conf/.
    assert np.mean(draw(**key) == draw(**key | other)) < 0.5


@pytest.mark.parametrize("name", sorted(set(DRAWN) - set(FITTED)))
@pytest.mark.parametrize("num_tokens", [0, 1, 15, 16, NUM_TOKENS])
def test_intended_sums_to_the_tokens(name, num_tokens):
    router = build(name, rank=2)
    for layer, iteration in [(1, 0), (3, 11)]:
        intended_E = router.intended(num_tokens, layer=layer, iteration=iteration)
        assert intended_E is not None
        assert intended_E.dtype == np.float64 and intended_E.shape == (NUM_EXPERTS[name],) and intended_E.min() >= 0
        assert intended_E.sum() == pytest.approx(num_tokens)


@pytest.mark.parametrize("name", COUNTED + REPLAYED)
def test_routers_that_know_numbers_do_exactly_what_is_intended(name):
    for rank, iteration in [(0, 0), (1, 0), (3, 40)]:
        router = build(name, rank=rank)
        assert isinstance(router, CountedRouter) == (name in COUNTED)
        drawn_T = router.draw(NUM_TOKENS, layer=3, iteration=iteration)[:, 0]
        realised_E = np.bincount(drawn_T, minlength=NUM_EXPERTS[name])
        assert realised_E.tolist() == router.intended(NUM_TOKENS, layer=3, iteration=iteration).tolist()


@pytest.mark.parametrize("name", sorted(set(DRAWN) - set(COUNTED + REPLAYED + FITTED)))
def test_multinomial_routers_do_on_average_what_is_intended(name):
    router = build(name)
    assert isinstance(router, MultinomialRouter)
    keys = [(layer, iteration) for layer in (1, 3) for iteration in range(20)]
    realised_E = sum(np.bincount(router.draw(NUM_TOKENS, layer=b, iteration=i)[:, 0], minlength=16) for b, i in keys)
    intended_E = sum(router.intended(NUM_TOKENS, layer=b, iteration=i) for b, i in keys)
    assert chisquare(realised_E, intended_E).pvalue > 0.01


@pytest.mark.parametrize("name", DRAWN)
@pytest.mark.parametrize("prefetch", [True, False])
def test_route_gives_the_draws_with_weight_one(name, prefetch):
    x_TD = torch.empty(NUM_TOKENS, 2, dtype=torch.bfloat16)
    router = build(name)
    if prefetch:
        router.prefetch(NUM_TOKENS, layer=3, iteration=2, like=x_TD)
    routing = router.route(x_TD, layer=3, iteration=2)
    assert routing.expert_TK[:, 0].tolist() == build(name).draw(NUM_TOKENS, layer=3, iteration=2)[:, 0].tolist()
    assert torch.equal(routing.weight_TK, torch.ones(NUM_TOKENS, 1, dtype=torch.bfloat16))
    assert routing.logits_TE is None


@pytest.mark.parametrize("name", COUNTED)
def test_counted_tokens_are_mixed_not_in_runs(name):
    expert_T = build(name).draw(NUM_TOKENS, layer=1, iteration=0)[:, 0]
    assert np.mean(expert_T[1:] == expert_T[:-1]) < 0.2  # sorted by expert it would be 0.98


@pytest.mark.parametrize(("name", "drawn"), [("balanced", BALANCED), ("token_trace", TOKENS), ("trace", TRACE)])
def test_draws_that_stored_campaigns_rest_on(name, drawn):
    """The same on every machine; a change here makes old results and new ones incomparable."""
    assert build(name, rank=2, seed=5).draw(12, layer=1, iteration=3)[:, 0].tolist() == drawn


def test_the_router_of_the_documentation_is_one(tmp_path, monkeypatch):
    source = re.search(r"```python\n(.*?)```", (ROOT / "docs/routers.md").read_text(), re.DOTALL)
    assert source is not None
    (tmp_path / "one_hot_router.py").write_text(source.group(1))
    monkeypatch.syspath_prepend(str(tmp_path))
    kind = importlib.import_module("one_hot_router").OneHotRouter
    router = kind(num_experts=4, rank=0, seed=0, moe_blocks=[1, 3], classifier=None)
    assert router.intended(8, layer=3, iteration=0).tolist() == [1, 1, 1, 5]
    assert np.bincount(router.draw(8, layer=1, iteration=0)[:, 0]).tolist() == [1, 5, 1, 1]
    with pytest.raises(ValueError, match=r"router\.share is 2; it must be between 0 and 1"):
        kind(num_experts=4, rank=0, seed=0, share=2)


@pytest.mark.parametrize("top_k", [2, 4])
@pytest.mark.parametrize("name", sorted(set(DRAWN) - set(REPLAYED + FITTED)))
def test_a_token_has_different_experts_of_equal_weight(name, top_k):
    router = build(name, top_k=top_k)
    routing = router.route(torch.zeros(NUM_TOKENS, 4), layer=1, iteration=0)
    assert routing.expert_TK.shape == routing.weight_TK.shape == (NUM_TOKENS, top_k)
    assert all(len(set(experts)) == top_k for experts in routing.expert_TK.tolist())
    assert (routing.weight_TK == 1 / top_k).all()
    intended_E = router.intended(NUM_TOKENS, layer=1, iteration=0)
    realised_E = routing.tokens_per_expert(16).numpy()
    assert intended_E.sum() == pytest.approx(NUM_TOKENS * top_k)
    if name in COUNTED:
        assert realised_E.tolist() == intended_E.tolist()
    else:  # six standard deviations of a binomial draw, which one without replacement is below
        assert (abs(realised_E - intended_E) <= 6 * np.sqrt(intended_E) + 1).all()


def test_more_experts_than_a_trace_has_are_refused():
    with pytest.raises(ValueError, match=r"model\.top_k is 9 and the trace has"):
        build("token_trace", top_k=9)


def test_a_router_of_fewer_experts_than_a_token_wants_is_refused():
    with pytest.raises(ValueError, match=r"model\.top_k is 2 and the router gives tokens to 1 of the experts"):
        MultinomialRouter(np.array([1.0, 0.0]), num_experts=2, rank=0, seed=0, top_k=2, permute_hot=False)
