"""Every exact system equals the dense model in every decoder, in prefill and decode, on real ranks."""

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from clusters.launch import launch
from clusters.session import ClusterSpec
from experiments.campaign import cache_dir
from experiments.cells import Cell, Unsupported, check
from experiments.composition import configuration
from experiments.configuration import TOLERANCES, find_class
from experiments.records import Config, Node, document
from tests.experiments.families import run_families
from workloads.families import FAMILIES
from workloads.model import DECODE, PREFILL

CONF = Path(__file__).parents[2] / "conf/system"
EVERY: Any = {
    path.stem: OmegaConf.to_container(OmegaConf.load(path), resolve=True) for path in sorted(CONF.glob("*.yaml"))
}
EXACT = {name: node for name, node in EVERY.items() if find_class(node).exactness == "exact"}
# The family's own top-k; two MoE layers of few experts, and more tokens than gpt-oss's window.
SMALL = ("tier=smoke", "network=nvlink3", "batch_size=2", "seq_len=7", "model.vocab_size=500", "model.num_blocks=2")
SIZES = dict.fromkeys(FAMILIES, ("model.num_experts=16",)) | {
    "mixtral": ("model.num_experts=8",),
    "qwen2_moe": ("model.num_experts=12",),
    "deepseek_v3": ("model.num_experts=16", "model.num_blocks=3"),
    "glm4_moe": ("model.num_experts=16", "model.num_blocks=3"),
    "gpt_oss": ("model.num_experts=16", "model.settings.sliding_window=4"),
}
# Prompts follow the family's own gate; one more token, a skewed draw.
ROUTED = {PREFILL: "learned", DECODE: "synthetic"}
REFUSED = {PREFILL: {"moeshard_published", "deepspeed_lossless"}, DECODE: {"moeshard_published"}}


UNEQUAL = [f"deepseek_v3 {PREFILL}", f"mixtral {DECODE}"]  # also with two sequences on rank 0 and one elsewhere
MOE_LAYERS = 2
FEW = ("ep", "moeshard", "tutel", "lina_predicted", "deepspeed_dropless", "moeshard_published")
WRONG = {"_target_": "tests.experiments.tiny.ForgetsAnExpert", "name": "wrong", "engine": "loop"}


@cache
def routers() -> dict[str, Node]:
    """By regime; a configuration takes half a second."""
    return {regime: configuration([f"router={router}"]).router for regime, router in ROUTED.items()}


@cache
def decoder(family: str) -> Config:
    return configuration([*SMALL, f"model={family}_laptop", *SIZES[family]])


def small(family: str, regime: str) -> Config:
    """A decoder with two MoE layers."""
    return replace(decoder(family), regime=regime, router=routers()[regime])


@pytest.fixture(scope="module")
def compared(tmp_path_factory) -> Callable[..., dict[str, Any]]:
    """By "family regime" and system what ranks found; all that is asked for is one launch."""

    def of(world_size: int, families: Sequence[str], systems: dict[str, Any]) -> dict[str, Any]:
        folder, cluster = tmp_path_factory.mktemp("families"), ClusterSpec("gloo", world_size, threads=1)
        workloads = {
            f"{family} {regime}": replace(small(family, regime).workload, cluster=cluster)
            for family in families
            for regime in ROUTED
        }
        shares = [1.0, *[0.5] * (world_size - 1)]
        workloads |= {f"{name} unequal": replace(workloads[name], batch_shares=shares) for name in UNEQUAL}
        stored = {name: document(workload) for name, workload in workloads.items()}
        told = {"cluster": vars(cluster), "workloads": stored, "systems": systems, "cache_dir": str(cache_dir())}
        (folder / "told.json").write_text(json.dumps(told))
        launch(cluster, run_families, str(folder / "told.json"))
        return json.loads((folder / "found.json").read_text())

    return of


def assert_all_are_the_dense_model(compared: dict[str, Any], systems: dict[str, Any]) -> None:
    for name, found in compared.items():
        refused = {system for system, verdict in found.items() if "refused" in verdict}
        assert refused == REFUSED[name.split()[1]] & systems.keys(), (name, refused)
        for system in systems.keys() - refused:
            verdict = found[system]
            assert verdict["layers"]["passed"], (name, system, verdict)
            assert verdict["whole"] <= MOE_LAYERS * TOLERANCES["fp32"], (name, system, verdict)


@pytest.mark.slow
@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_every_exact_system_is_the_dense_model_in_every_decoder(compared, world_size):
    assert len(EXACT) > 20
    assert_all_are_the_dense_model(compared(world_size, FAMILIES, EXACT), EXACT)


def test_a_few_systems_are_the_dense_model_in_every_decoder(compared):
    """And one that is not is found out."""
    few = {name: EXACT[name] for name in FEW} | {"wrong": WRONG}
    found = compared(2, FAMILIES, few)
    for verdicts in found.values():
        wrong = verdicts.pop("wrong")
        assert not wrong["layers"]["passed"] and wrong["whole"] > MOE_LAYERS * TOLERANCES["fp32"]
    assert_all_are_the_dense_model(found, {name: EXACT[name] for name in FEW})


@pytest.mark.parametrize("name", ["moeshard_published", "moeshard_authors", "gshard"])
def test_what_has_one_or_two_experts_a_token_says_so(name):
    with pytest.raises(Unsupported, match=rf"^system {name} has top-1 .*, got top_k = 8$"):
        check(Cell(replace(small("olmoe", DECODE), system=Node(EVERY[name])), 0))
