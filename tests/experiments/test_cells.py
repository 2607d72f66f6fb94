"""A cell's identity, and what is refused before anything is launched."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from experiments.cells import Cell, Unsupported, check
from experiments.configuration import build_router, find_class, instantiate, layer_shape, options, set_precision
from experiments.records import Config, document, read
from routers.synthetic import SyntheticRouter
from systems.base import LayerShape
from systems.engines.base import DTYPES
from systems.moeshard import MoEShard
from tests.experiments import tiny
from tests.experiments.tiny import CONF, configuration
from tests.workloads.test_checkpoint import random_tensors, save

TINY = configuration()


def changed(key: str, value: Any) -> Config:
    return tiny.changed(TINY, {key: value})


def test_id_is_a_function_of_the_configuration():
    stored = document(TINY)
    shuffled = dict(reversed(list(stored.items())))
    assert read(Config, stored) == read(Config, json.loads(json.dumps(stored))) == TINY
    assert Cell(TINY, 0).id == Cell(read(Config, shuffled), 0).id
    assert len(Cell(TINY, 0).id) == 12 and int(Cell(TINY, 0).id, 16) >= 0


DEFINING = [
    ("system.name", "other"),
    ("system._target_", "systems.dense.Dense"),
    ("engine", "loop"),
    ("model.num_experts", 8),
    ("model.d_ff", 64),
    ("model.checkpoint", "small_switch"),
    ("router.alpha", 0.5),
    ("router.permute_hot", True),
    ("corpus._target_", "workloads.corpus.FilesCorpus"),
    ("cluster.kind", "gloo"),
    ("cluster.world_size", 4),
    ("network.hop_us", 1.0),
    ("tier.rounds", 99),
    ("batch_size", 3),
    ("seq_len", 13),
    ("batch_shares", [1.0, 0.5]),
    ("precision", "bf16"),
    ("seed", 1),
]


@pytest.mark.parametrize(("key", "value"), DEFINING)
def test_every_defining_key_is_in_the_id(key, value):
    other = Cell(changed(key, value), 0)
    assert other.id != Cell(TINY, 0).id
    # Systems and their engines share a launch; everything else is another one.
    assert (other.launch_id == Cell(TINY, 0).launch_id) == key.startswith(("system", "engine"))


def test_ids_of_all_changes_differ():
    assert len({Cell(changed(key, value), 0).id for key, value in DEFINING}) == len(DEFINING)


def test_launch_is_in_both_ids():
    assert Cell(TINY, 0).id != Cell(TINY, 1).id
    assert Cell(TINY, 0).launch_id != Cell(TINY, 1).launch_id


@pytest.mark.parametrize(
    ("key", "value"),
    [("out", "elsewhere"), ("cluster.timeout_s", 1), ("logger.name", "wandb"), ("scale.name", "other")],
)
def test_what_changes_no_number_is_not_in_the_id(key, value):
    assert Cell(changed(key, value), 0).id == Cell(TINY, 0).id
    assert Cell(changed(key, value), 0).launch_id == Cell(TINY, 0).launch_id


def test_engine_asked_for_wins_unless_the_system_brings_its_own(has_compiler):
    assert (TINY.system["engine"], Cell(TINY, 0).engine) == ("auto", "cpu")
    assert Cell(changed("engine", "loop"), 0).engine == "loop"
    assert Cell(changed("engine", "cpu"), 0).id == Cell(TINY, 0).id
    assert Cell(configuration("system=deepspeed"), 0).engine == "deepspeed"


def test_engines_are_timed_for_ranks_that_compute_here_on_as_many_threads(monkeypatch):
    asked = []
    monkeypatch.setattr("experiments.cells.choose", lambda *sizes: asked.append(sizes) or "loop")
    assert Cell(changed("cluster.threads", 3), 0).engine == "loop"
    assert asked == [("cpu", "fp32", 4, 48, (16, 16), 3, "relu")]
    monkeypatch.setattr("experiments.cells.preferred", lambda device, precision, widths: f"{device} {widths}")
    for kind in ("simulated", "torchrun"):
        assert Cell(changed("cluster.kind", kind), 0).engine == "cpu (16, 16)"
    with pytest.raises(ValueError, match=r"cluster\.threads is 'all'; it must be a whole number of at least 1"):
        assert Cell(changed("cluster.threads", "all"), 0).engine
    assert len(asked) == 1


def test_point_and_layer_shape():
    cell = Cell(TINY, 0)
    assert cell.point == {"num_experts": 4, "batch_size": 2, "seq_len": 12, "world_size": 2}
    assert layer_shape(TINY) == LayerShape(num_experts=4, d_model=16, d_ff=32, max_tokens=24, top_k=1)
    assert cell.system == "moeshard" and cell.cluster.world_size == 2


def test_instantiate_and_find_class():
    assert find_class({"_target_": "systems.moeshard.MoEShard"}) is MoEShard
    router = build_router(TINY, rank=0, classifier=None)
    assert isinstance(router, SyntheticRouter) and router.probabilities_E[0] > router.probabilities_E[1]
    ep = {"_target_": "systems.expert_parallel.ExpertParallel", "name": "ep", "engine": "loop", "placement": "z"}
    assert options(ep) == {"placement": "z"}
    assert instantiate(TINY.network).name == "nvlink3"


@pytest.mark.parametrize(
    "target", ["systems.moeshard.MoESard", "systems.nothing.MoEShard", "MoEShard", "", None, ".MoEShard"]
)
def test_target_that_cannot_be_imported_is_named(target):
    with pytest.raises(ValueError, match=r"_target_ .* cannot be imported") as caught:
        find_class({"_target_": target})
    assert repr(target) in str(caught.value)


def test_precision_sets_float32_products():
    for precision, expected in (("tf32", "high"), ("fp32", "highest"), ("bf16", "highest")):
        set_precision(precision)
        assert torch.get_float32_matmul_precision() == expected


def test_groups_of_experts_are_the_models_and_nodes_the_networks():
    hierarchical = ["system=eplb_hierarchical_profiled", "regime=prefill"]
    deepseek = configuration(
        *hierarchical, "model=deepseek_v3_laptop", "network=nodes_h200", "network.ranks_per_node=2"
    )
    qwen = configuration(*hierarchical, "model=qwen3_moe_laptop")
    found = [[config.system["planner"][key] for key in ("groups", "ranks_per_node")] for config in (deepseek, qwen)]
    assert found == [[8, 2], [1, 8]]


def refusal(config: Config) -> str | None:
    """Why a configuration is refused, if it is."""
    try:
        check(Cell(config, 0))
    except (ValueError, Unsupported) as error:
        return str(error)
    return None


@pytest.mark.parametrize("system", sorted(path.stem for path in Path(CONF, "system").glob("*.yaml")))
def test_every_system_passes_in_every_precision_of_a_cpu(system):
    config = configuration(f"system={system}")
    refused = {precision: refusal(replace(config, precision=precision)) for precision in DTYPES}
    assert "tf32 exists on CUDA GPUs only" in str(refused.pop("tf32"))
    assert refused == {"fp32": None, "bf16": None, "fp16": None}


@pytest.mark.parametrize(
    "override",
    ["router=learned", "router.num_skewed=4", "cluster=gloo", "cluster.world_size=1", "network=none", "engine=loop"],
)
def test_good_configurations_pass(override):
    assert refusal(configuration(override)) is None


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["system=ep", "model.num_experts=3"], "model.num_experts (3) must be divisible by cluster.world_size (2)"),
        (
            ["system=deepspeed", "model.num_experts=3"],
            "model.num_experts (3) must be divisible by cluster.world_size (2)",
        ),
        (["system=moeshard", "model.d_ff=33"], "model.d_ff (33) must be divisible by cluster.world_size (2)"),
        (
            ["system=moeshard", "model.d_ff=36", "engine=grouped"],
            "engine=grouped needs matrix widths that are multiples of 4",
        ),
        (
            ["system=ep", "model.d_model=18", "engine=grouped"],
            "engine=grouped needs matrix widths that are multiples of 4",
        ),
        (
            ["precision=bf16", "model.d_ff=24", "engine=grouped"],
            "engine=grouped needs matrix widths that are multiples of 8",
        ),
        (["system=moeshard_chunked", "system.chunks=0"], "system.chunks is 0; it must be a whole number of at least 1"),
        (["system=moeshard_published", "+system.chunks=2"], "moeshard_published sends its tokens at once"),
        (["precision=fp16", "engine=cpu"], "engine=cpu multiplies float32 and bfloat16, got torch.float16"),
        (["router.num_skewed=5"], "router.num_skewed is 5; it must be between 0 and num_experts (4)"),
        (["router.alpha=-1"], "router.alpha is -1; it must not be negative"),
        (["router.skewed_share=10"], "router.skewed_share is 10; it must be between 0 and 1"),
        (["engine=cutlass"], "engine is 'cutlass'; it must be auto or one of loop, grouped"),
        (
            ["system=deepspeed", "engine=loop"],
            "system deepspeed brings its own engine; engine=loop does not apply to it",
        ),
        (["system=deepspeed", "system.capacity_factor=0"], "system.capacity_factor is 0; it must be a positive number"),
        (["system=ep", "system.placement=random"], "system.placement is 'random'; it must be one of contiguous, round"),
        (["model.attention=flash"], "model.attention is 'flash'; it must be one of fused, eager"),
        (["model.wait_for_layers=maybe"], "model.wait_for_layers is 'maybe'; it must be true or false"),
        (["system=moeshard_authors", "system.hidden=0"], "system.hidden is 0; it must be a multiple of cluster.world"),
        (["device=a100_sxm"], "device=a100_sxm is for cluster=simulated, and cluster is"),
        (["cluster=simulated", "network=device"], "cluster=simulated needs a described device: device=a100_sxm, or"),
        (
            ["cluster=simulated", "device=l40s", "network=device", "cluster.world_size=3"],
            "device l40s has collectives of 2, 4, 8 ranks and multiples of 8, not of 3",
        ),
        (["precision=fp8"], "precision is 'fp8'; it must be one of fp32, tf32, bf16, fp16"),
        (["precision=tf32"], "precision=tf32 exists on CUDA GPUs only"),
        (["batch_size=0"], "batch_size is 0; it must be a whole number of at least 1"),
        (["batch_size=2.5"], "batch_size is 2.5; it must be a whole number of at least 1"),
        (["batch_size=many"], "batch_size is 'many'; it must be a whole number of at least 1"),
        (["seq_len=-1"], "seq_len is -1; it must be a whole number of at least 1"),
        (["model.num_blocks=1"], "model.sparse_step (2) and model.dense_blocks (0) has no MoE layer"),
        (["batch_shares=[1]"], "batch_shares has 1 numbers; it must have one for each of 2 ranks"),
        (
            ["batch_shares=[1,0]"],
            "batch_shares is [1.0, 0.0]; it must be numbers above 0 and up to 1, of which one is 1",
        ),
        (["batch_shares=[0.5,0.9]"], "batch_shares is [0.5, 0.9]; it must be numbers above 0 and up to 1"),
        (["model.d_ff=0"], "model.d_ff is 0; it must be a whole number of at least 1"),
        (["model.checkpoint=/no/such/folder"], "model.checkpoint '/no/such/folder' is no directory and could not be"),
        (["corpus=files"], "corpus.path must be given for corpus=files"),
        (["corpus=files", "corpus.path=/no/such.txt"], "corpus.path /no/such.txt holds no text"),
        (["network.bandwidth_gbs=0"], "network nvlink3: bandwidth_gbs must be positive, got 0"),
        (["cluster.kind=mpi"], "cluster.kind is 'mpi'; it must be one of emulated, simulated, gloo, nccl, torchrun"),
        (["cluster.world_size=0"], "cluster.world_size is 0; it must be a whole number of at least 1"),
        (["cluster.world_size=two"], "cluster.world_size is 'two'; it must be a whole number of at least 1"),
        (["cluster.timeout_s=-1"], "cluster.timeout_s is -1.0; it must be a number above 0"),
        (["seed=-1"], "seed is -1; it must be a whole number of at least 0"),
        (["tier.launches=0"], "tier.launches is 0; it must be a whole number of at least 1"),
        (["tier.rounds=0"], "tier.rounds is 0; it must be a whole number of at least 1"),
        (["tier.turn_s=-1"], "tier.turn_s is -1.0; it must be a number of at least 0"),
        (["tier.warmup=-1"], "tier.warmup is -1; it must be a whole number of at least 0"),
        (["model.num_experts=true"], "model.num_experts is True; it must be a whole number of at least 1"),
        (["tier.rounds=two"], "tier.rounds is 'two'; it must be a whole number of at least 1"),
        (["tier.rounds=null"], "tier.rounds is null; it must be a whole number of at least 1"),
        (["+tier.runds=2"], "there is no key 'tier.runds'; did you mean 'rounds'?"),
        (["+sed=2"], "there is no key 'sed'; did you mean 'seed'?"),
        (["router.alpha=abc"], "router.alpha is 'abc'; it must be a number"),
        (["router.num_skewed=2.5"], "router.num_skewed is 2.5; it must be a whole number, or null"),
        (["system=eplb_profiled", "system.planner.extra_replicas=x"], "system.planner.extra_replicas is 'x'; it must"),
        (
            ["system=eplb_hierarchical_profiled", "system.planner.groups=3"],
            "planner.groups is 3; it must divide the 4 experts",
        ),
        (
            [
                "system=eplb_hierarchical_profiled",
                "system.planner.groups=2",
                "system.planner.ranks_per_node=4",
                "cluster.world_size=6",
                "model.num_experts=12",
            ],
            "planner.ranks_per_node is 4; 6 ranks do not fill nodes of so many",
        ),
        (["system=smartmoe_lagged", "system.window=1.5"], "system.window is 1.5; it must be a whole number"),
        (["system=tutel", "system.capacity_factor=paper"], "system.capacity_factor is 'paper'; it must be a number"),
        (["system=tutel", "system.capacity_factor=true"], "system.capacity_factor is True; it must be a number"),
        (["system=deepspeed", "system.capacity_factor=null"], "system.capacity_factor is None; it must be a number or"),
        (["system=lina_predicted", "+system.loads=oracle"], "lina_predicted has no option 'loads'; "),
        (["+system.foo=3"], "moeshard has no option 'foo'; its options are chunks"),
        (["+router.alhpa=3"], "synthetic has no option 'alhpa'; did you mean 'alpha'?"),
        (["system=deepspeed", "system.drop_tokens=maybe"], "system.drop_tokens is 'maybe'; it must be true or false"),
        (["system=deepspeed", "batch_size=1", "seq_len=3"], "DeepSpeed's top-1 gate needs at least 4"),
        (["cluster=gloo", "cluster.device=cuda"], "cluster=gloo runs on cluster.device=cpu only"),
        (["cluster=nccl", "cluster.device=cpu"], "cluster=nccl runs on cluster.device=cuda only"),
        (["cluster=torchrun"], "cluster=torchrun runs inside a launch"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_input_is_one_sentence(overrides, sentence, monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises((ValueError, FileNotFoundError)) as caught:
        check(Cell(configuration(*overrides), 0))
    assert sentence in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("cluster=nccl", "cluster=nccl with cluster.device=cuda needs 2 GPU(s); found 1"),
        ("cluster.device=cuda", "cluster=emulated with cluster.device=cuda needs 1 GPU(s); found 0"),
    ],
)
def test_too_few_gpus(override, sentence, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: int(sentence[-1]))
    with pytest.raises(ValueError) as caught:
        check(Cell(configuration(override), 0))
    assert str(caught.value) == sentence


def test_checkpoint_of_another_size_is_refused(tmp_path):
    save(tmp_path, random_tensors())
    fitting = ["model.d_model=8", "model.d_ff=12", "model.d_kv=3", "model.num_blocks=4", "model.vocab_size=20"]
    config = configuration(f"model.checkpoint={tmp_path}", "engine=loop", *fitting)
    assert refusal(config) is None
    other = tiny.changed(config, {"model.vocab_size": 21})
    with pytest.raises(ValueError, match=r"shared\.weight is \[20, 8\]; the model's sizes want \[21, 8\]$"):
        check(Cell(other, 0))


def test_lossless_capacity_wants_a_router_that_draws():
    assert refusal(configuration("system=deepspeed_lossless", "router=trace", "model.num_experts=8")) is None
    with pytest.raises(Unsupported, match="deepspeed_lossless must know every draw beforehand; router=learned cannot"):
        check(Cell(configuration("system=deepspeed_lossless", "router=learned"), 0))


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("precision=fp8", "precision is 'fp8'; it must be one of fp32, tf32, bf16, fp16"),
        ("cluster.world_size=two", "cluster.world_size is 'two'; it must be a whole number of at least 1"),
        ("cluster.world_size=0", "cluster.world_size is 0; it must be a whole number of at least 1"),
        ("model.num_experts=0", "model.num_experts is 0; it must be a whole number of at least 1"),
    ],
)
def test_an_id_asked_for_before_anything_is_checked_is_one_sentence_too(override, sentence):
    with pytest.raises(ValueError, match=re.escape(sentence)):
        _ = Cell(configuration(override), 0).id
