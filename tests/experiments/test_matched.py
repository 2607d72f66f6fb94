"""The network of a device beside this machine's core: ratios are kept, rates are measured once, refusals are said."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from hypothesis import given
from hypothesis import strategies as st

from clusters.network import COLLECTIVES, Network
from experiments.configuration import instantiate
from experiments.estimate import networks
from experiments.main import known_rates
from experiments.matched import match_networks
from experiments.panels import experiment_points
from experiments.plan import Plan, Point, make_plan
from experiments.records import Config
from experiments.store import Store
from systems.engines.base import DTYPES
from tests.experiments import tiny
from tests.experiments.tiny import CONF, configuration

CONFIG = configuration("network=matched", "engine=loop")
# The paper's layer on an A100, as in conf/network/matched.yaml, by hand.
P, B, F, D, BATCH, NUMBER_BYTES = 130e12, 235e9, 3072, 768, 250, 4
SECONDS_OF_EXPERTS = 4 * BATCH * D * F / P
LINK: Network = instantiate(CONFIG.network["devices"]["a100_sxm"]["link"])


def changed(values: dict[str, Any]) -> Config:
    """The configuration with some dotted keys set to values."""
    return tiny.changed(CONFIG, values)


def point(config: Config) -> Point:
    return Point("tiny", "tiny", "speedup", (), "num_experts", 4, None, [config])


def matched(rates: dict[str, float] | None = None, **values: Any) -> dict[str, Any]:
    """The network of a cell whose configuration has these values; `model__d_ff` stands for model.d_ff."""
    config = changed({key.replace("__", "."): value for key, value in values.items()})
    (found,) = match_networks([point(config)], {} if rates is None else rates)
    return found.configs[0].network


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """A machine whose core does 98.76 GFLOP/s, with an empty cache folder; `calls` are the measurements."""
    monkeypatch.setattr("experiments.matched.cache_dir", lambda: tmp_path / "cache")
    calls, speed = [], {"flops_per_s": 98.76e9}

    def measure(dtype, threads, seconds):
        calls.append((dtype, threads))
        return speed["flops_per_s"]

    monkeypatch.setattr("experiments.matched.core_flops_per_s", measure)
    return calls, speed


@pytest.fixture
def unmeasurable(monkeypatch):
    def measure(*arguments):
        raise AssertionError("nothing is to be measured")

    monkeypatch.setattr("experiments.matched.core_flops_per_s", measure)


def test_the_laptop_s_network_by_hand(machine):
    """98.76 is kept as 99 GFLOP/s; 235 GB/s x 12 x 99e9 / 130e12 = 2.1475."""
    network = matched(model__d_model=64, model__d_ff=256)
    assert network["bandwidth_gbs"] == pytest.approx(2.1475, rel=1e-3)
    time = (25 / 250) * (64 / 768) * (256 / 3072) * (130e12 / 99e9)
    assert network["base_us"] == pytest.approx(6.6 * time, rel=1e-3)
    assert network["hop_us"] == pytest.approx(0.6 * time, rel=1e-3)
    assert 4 * 256 * network["bandwidth_gbs"] * 1e9 / (4 * 99e9) == pytest.approx(5.55, rel=2e-3)


@given(
    d_model=st.integers(1, 8192),
    d_ff=st.integers(1, 32768),
    batch=st.integers(1, 1000),
    precision=st.sampled_from(["fp32", "bf16", "fp16"]),
    flops=st.floats(1e8, 1e15),
    collective=st.sampled_from(COLLECTIVES),
    volume=st.floats(0, 1e10),
    ranks=st.integers(2, 64),
)
def test_ratios_of_the_device_are_kept(d_model, d_ff, batch, precision, flops, collective, volume, ranks):
    network = matched(
        model__d_model=d_model,
        model__d_ff=d_ff,
        scale__batch_size=batch,
        precision=precision,
        network__flops_per_s=flops,
    )
    number_bytes = DTYPES[precision].itemsize
    ratio = 4 * d_ff * network["bandwidth_gbs"] * 1e9 / (number_bytes * flops)
    assert ratio == pytest.approx(4 * F * B / (NUMBER_BYTES * P), rel=1e-3)
    # A collective of the same share of the rows takes the same share of the layer, latency included.
    here, seconds_of_experts = instantiate(network), 4 * batch * d_model * d_ff / flops
    volume_here = volume * batch * d_model * number_bytes / (BATCH * D * NUMBER_BYTES)
    share = LINK.seconds(collective, [volume], ranks) / SECONDS_OF_EXPERTS
    assert here.seconds(collective, [volume_here], ranks) / seconds_of_experts == pytest.approx(share, rel=2e-3)


def test_cells_hold_plain_numbers_and_where_they_come_from(machine):
    network = matched(model__d_model=64, model__d_ff=256)
    assert json.loads(json.dumps(network)) == network
    assert network.keys() == {"_target_", "name", "base_us", "hop_us", "points", "bandwidth_gbs", "source"}
    assert network["source"] == (
        "this machine's core (99 GFLOP/s, fp32) : 2.1 GB/s as an A100 (130 TFLOP/s, tf32) : 235 GB/s (R = 5.6)"
    )


def test_a_core_is_measured_once(machine):
    calls, speed = machine
    first = matched()
    speed["flops_per_s"] = 50e9
    assert matched() == matched(model__num_experts=8) == matched(batch_size=9) == first and len(calls) == 1
    assert matched(precision="bf16") != first and matched(cluster__threads=2) != first and len(calls) == 3
    assert [threads for _, threads in calls] == [1, 1, 2]


def planned(rates: dict[str, float]) -> Plan:
    return make_plan(match_networks([point(changed({}))], rates), ["network=matched"], rates)


def test_a_campaign_goes_on_with_the_core_that_it_was_planned_with(machine, tmp_path, monkeypatch):
    """Also after the cache folder has gone and on a day when the machine is twice as slow."""
    calls, speed = machine
    points = [point(changed({"out": str(tmp_path / "out")}))]
    assert known_rates(points) == {}
    first = planned({})
    Store(tmp_path / "out").write_plan(first.document)
    shutil.rmtree(tmp_path / "cache")
    speed["flops_per_s"] = 50e9
    assert planned(known_rates(points)).cells.keys() == first.cells.keys() and len(calls) == 1
    assert planned({}).cells.keys() != first.cells.keys() and len(calls) == 2


@pytest.mark.parametrize(
    "values",
    [
        {"cluster__kind": "gloo"},
        {"cluster__kind": "nccl", "cluster__device": "cuda"},
        {"cluster__kind": "torchrun", "cluster__device": "cuda"},
    ],
)
def test_real_ranks_have_no_modelled_network(unmeasurable, values):
    network = matched(**values)
    assert (network["name"], instantiate(network).seconds("all_to_all", [1e9], 4)) == ("none", 0)


@pytest.mark.parametrize("overrides", [["network=nodes_a100"], ["scale=paper"]])
def test_other_networks_stay_as_they_are(unmeasurable, overrides):
    with initialize_config_dir(CONF, version_base="1.3"):
        points = experiment_points(compose("config", overrides), overrides)
    assert match_networks(points, {}) == points


def names(*overrides: str) -> set[str]:
    with initialize_config_dir(CONF, version_base="1.3"):
        points = experiment_points(compose("config", list(overrides)), list(overrides))
    return {config.network.name for one in points for config in one.configs}


def test_a_scale_has_its_network_unless_a_panel_or_the_command_line_names_one():
    own = "experiment.panels.single.overrides=['network=pcie4']"
    assert names() == {"matched"}
    assert names("scale=paper") == {"nvlink3"}
    assert names("scale=paper", "network=matched") == {"matched"}
    assert names("network=nvlink4", own) == {"nvlink4"}
    assert names(own) == {"pcie4"}


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"network__device": "abacus"}, "network.device is 'abacus'; it must be one of a100_sxm"),
        ({"network__flops_per_s": 0}, "network.flops_per_s is 0; it must be a number above 0, or null"),
        ({"network__flops_per_s": "fast"}, "network.flops_per_s is 'fast'; it must be a number above 0, or null"),
        ({"network__flops_per_s": True}, "network.flops_per_s is True; it must be a number above 0, or null"),
        ({"network__devices__a100_sxm__flops_per_s": 0}, "a100_sxm.flops_per_s is 0; it must be a number above 0"),
        ({"network__devices__a100_sxm__flops_per_s": "x"}, "a100_sxm.flops_per_s is 'x'; it must be a number above 0"),
        ({"network__devices__a100_sxm__d_ff": 0}, "network.devices.a100_sxm.d_ff is 0; it must be a whole number"),
        ({"network__devices__a100_sxm__precision": "fp7"}, "precision is 'fp7'; it must be one of"),
        ({"cluster__device": "cuda"}, "network=matched matches CPU cores only.* choose another network="),
        ({"precision": "tf32"}, "precision=tf32 exists on CUDA GPUs only"),
        ({"precision": "fp8"}, "precision is 'fp8'; it must be one of"),
        ({"model__d_ff": "wide"}, "model.d_ff is 'wide'; it must be a whole number of at least 1"),
        ({"scale__batch_size": 0}, "scale.batch_size is 0; it must be a whole number of at least 1"),
        ({"cluster__threads": 0}, "cluster.threads is 0"),
        ({"network__devices": {"a100_sxm": {"title": "x"}}}, "network.devices.a100_sxm is not complete: .*batch_size"),
        (
            {"network__devices__a100_sxm__link": {"_target_": "clusters.network.Network", "name": "x", "tables": {}}},
            "network.devices.a100_sxm.link has 'tables'; only a link without tables can be matched",
        ),
        (
            {"network__devices__a100_sxm__link__bandwidth_gbs": 0},
            "network nvlink3: bandwidth_gbs must be positive, got 0",
        ),
    ],
)
def test_what_cannot_be_matched_is_refused_before_anything_is_measured(unmeasurable, monkeypatch, values, sentence):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    with pytest.raises(ValueError, match=sentence):
        matched(**values)


def test_each_network_is_shown_in_a_line(machine):
    configs = [changed({"precision": precision}) for precision in ("fp32", "fp32", "bf16")]
    plan = make_plan(match_networks(map(point, configs), {}))
    shown = networks(plan)
    assert len(shown) == 2 and shown[0].startswith("network matched: this machine's core (99 GFLOP/s, fp32) : ")
    assert shown[0].endswith(" as an A100 (130 TFLOP/s, tf32) : 235 GB/s (R = 5.6)")
    assert networks(make_plan([point(configuration("network=none", "engine=loop"))])) == []
    assert networks(make_plan([point(configuration("cluster=gloo", "engine=loop"))])) == []


def test_the_rate_is_this_machine_s(monkeypatch, tmp_path: Path):
    """Measured for real: of the order of a core, with two digits."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    rates: dict[str, float] = {}
    matched(rates)
    (rate,) = rates.values()
    assert 1e8 < rate < 1e14 and float(f"{rate:.1e}") == rate
    assert json.loads((tmp_path / "moe-inference-harness" / "cores.json").read_text()) == rates
