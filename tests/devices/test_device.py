import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clusters.network import HierarchicalNetwork, Network
from devices import Device, Host, load_device
from devices import device as module

SHIPPED = ("a100_sxm", "h100_sxm", "h200_sxm", "b200_sxm", "l40s")
TABLES = {name: json.loads((Path(module.TABLES) / f"{name}.json").read_text()) for name in SHIPPED}
DEVICES = {name: load_device(name) for name in SHIPPED}
A100 = DEVICES["a100_sxm"]
# The reduced tables' median error on all measured products, and on those of 1,024 rows and more and middling widths.
MEDIAN_ERROR, MEDIAN_ERROR_LARGE, BIAS = 0.06, 0.06, 0.01

devices = st.sampled_from(list(DEVICES.values()))
sizes = st.integers(1, 100_000)
precisions = st.sampled_from(["fp32", "tf32", "bf16", "fp16"])
kernels = st.sampled_from(["triton", "block_sparse", "grouped"])
fused = st.sampled_from(["triton", "block_sparse"])


@pytest.mark.parametrize("name", SHIPPED)
def test_hydra_and_the_loader_build_the_same_device(name, device_of):
    assert device_of(name).identity == DEVICES[name].identity


@given(devices, st.integers(1, 64), sizes, sizes, sizes, precisions, st.sampled_from(["m", "n", "k", "batch"]))
def test_a_larger_product_takes_no_less(device, batch, m, n, k, precision, grows):
    small = {"batch": batch, "m": m, "n": n, "k": k}
    large = small | {grows: small[grows] + small[grows] // 3 + 1}
    assert 0 < device.matmul_s(**small, precision=precision) <= device.matmul_s(**large, precision=precision) * 1.000001


@given(devices, sizes, sizes, sizes)
def test_tf32_takes_longer_than_bf16_and_fp16_as_long(device, m, n, k):
    bf16_s = device.matmul_s(1, m, n, k, "bf16")
    assert device.matmul_s(1, m, n, k, "fp16") == bf16_s <= device.matmul_s(1, m, n, k, "tf32")


@given(devices, st.floats(0, 1e10), st.floats(0, 1e10))
def test_more_bytes_take_no_less(device, one, other):
    for seconds in (device.memory_s, device.transfer_s):
        assert 0 < seconds(min(one, other)) <= seconds(max(one, other))


@given(devices, st.integers(1, 500), st.integers(1, 16), st.integers(1, 2000), st.integers(1, 2000), precisions)
def test_attention_over_more_keys_takes_no_less(device, batch, heads, query, key, precision):
    def seconds(keys):
        return device.attention_s(batch, heads, query, keys, 64, precision)

    assert 0 < seconds(key) <= seconds(key + 1)


@given(devices, fused, st.integers(1, 1 << 15), st.sampled_from([768, 1536, 3072]), st.sampled_from([768, 3072]))
def test_one_expert_costs_about_a_dense_product(device, kernel, rows, n, k):
    """Between its share of the dense rate at whole tiles and that of the least tile, filled."""
    dense_s, filled_s = (device.matmul_s(1, size, n, k, "bf16") for size in (rows, -(-rows // 128) * 128))
    moved_s = device.memory_s(2 * (n * k + rows * (n + k)))
    seconds = device.grouped_s(kernel, [rows], n, k, "bf16")
    assert dense_s <= seconds * 1.000001
    assert seconds <= max(filled_s / device.grouped[kernel].share, moved_s) * 1.000001


@given(devices, fused, st.lists(st.integers(0, 3000), min_size=2, max_size=40), st.data())
@settings(max_examples=200)
def test_the_same_rows_over_more_experts_never_take_less(device, kernel, rows_e, data):
    at = data.draw(st.integers(1, len(rows_e) - 1))
    merged_e = [rows_e[0] + rows_e[at], *(rows for index, rows in enumerate(rows_e) if index not in (0, at))]
    apart_s, merged_s = (device.grouped_s(kernel, rows, 3072, 768, "bf16") for rows in (rows_e, merged_e))
    assert merged_s <= apart_s * 1.000001


@given(devices, kernels, st.lists(st.integers(0, 3000), min_size=1, max_size=20), precisions)
def test_experts_without_rows_cost_nothing(device, kernel, rows_e, precision):
    times = [device.grouped_s(kernel, rows, 256, 256, precision) for rows in (rows_e, np.array([*rows_e, 0, 0]))]
    assert times[0] == times[1] > 0


def test_a_kernel_is_one_product_an_expert_where_it_is_not_fused():
    rows_e = [100, 300]
    apart_s = sum(A100.matmul_s(1, rows, 3072, 768, "bf16") for rows in rows_e)
    assert A100.grouped_s("grouped", rows_e, 3072, 768, "bf16") == apart_s
    assert DEVICES["h200_sxm"].grouped_s("grouped", rows_e, 3072, 768, "bf16") < 2 * apart_s


def test_the_a100_multiplies_as_fast_as_a100s_do():
    """TFLOP/s of large products: bf16 230 to 270, tf32 somewhat below half of it, fp32 at most 19.5."""
    rates = {p: 2e-12 * 30_000 * 768 * 3072 / A100.matmul_s(1, 30_000, 768, 3072, p) for p in ("bf16", "tf32", "fp32")}
    assert 220 < rates["bf16"] < 270 and 100 < rates["tf32"] < 135 and 15 < rates["fp32"] < 19.5


@pytest.mark.parametrize("name", SHIPPED)
def test_tables_say_where_they_are_from_and_how_well_they_are_reduced(name):
    about = DEVICES[name].about
    assert "aiconfigurator-core 0.12.0" in about["source"] and about["extracted"]
    assert all(any(mark.isdigit() for mark in path) for path in about["files"].values())
    for error in about["error_of_reduction"].values():
        assert error["rows"] > 9_000 and abs(error["bias"]) < BIAS
        assert error["median"] < MEDIAN_ERROR and error["median_large"] < MEDIAN_ERROR_LARGE


@pytest.mark.parametrize("name", SHIPPED)
@pytest.mark.parametrize("ranks", [2, 4, 8])
def test_a_network_is_its_table_at_the_measured_points(name, ranks):
    network = DEVICES[name].network(ranks)
    for collective, by_ranks in TABLES[name]["network"].items():
        for num_bytes, us in by_ranks[str(ranks)]:
            assert network.seconds(collective, (num_bytes,), ranks) == pytest.approx(us * 1e-6)


@pytest.mark.parametrize("collective", ["all_gather", "reduce_scatter", "all_to_all", "all_reduce"])
def test_volumes_of_a_table_are_what_ranks_send(collective):
    """A whole of 512 bytes, the least that was measured: each of 4 ranks sends 3/4 of it, twice in an all-reduce."""
    part = 512 / 4 * (2 if collective == "all_reduce" else 1)
    sent_GG = part * (1 - np.eye(4))
    volumes = A100.network(4).volumes(collective, sent_GG, range(4))
    assert volumes[0] == TABLES["a100_sxm"]["network"][collective]["4"][0][0]


def test_more_than_a_node_is_a_network_of_nodes():
    network = A100.network(16)
    assert isinstance(network, HierarchicalNetwork) and network.ranks_per_node == 8 and network.inter.name == "ib_hdr"
    assert A100.network(1).seconds("all_reduce", (1e6,), 1) == 0


@pytest.mark.parametrize("ranks", [3, 6, 12])
def test_ranks_without_collectives_are_refused(ranks):
    with pytest.raises(
        ValueError, match=f"a100_sxm has collectives of 2, 4, 8 ranks and multiples of 8, not of {ranks}"
    ):
        A100.check("bf16", ranks)


def test_a_precision_that_is_lacking_is_refused():
    for refused in (lambda: A100.check("fp8", 4), lambda: A100.matmul_s(1, 8, 8, 8, "fp8")):
        with pytest.raises(ValueError, match="a100_sxm multiplies in fp32, tf32, bf16, fp16, not in fp8"):
            refused()
    DEVICES["h100_sxm"].check("fp8", 8)


def test_a_kernel_that_is_lacking_is_refused():
    with pytest.raises(ValueError, match="grouped kernels triton, block_sparse, grouped, not cpu"):
        A100.grouped_s("cpu", [1], 8, 8, "bf16")


def test_a_device_that_is_not_there_says_how_to_describe_it():
    with pytest.raises(ValueError, match=r"no device nowhere.*a100_sxm.*python -m scripts.describe_device nowhere"):
        load_device("nowhere")


def test_identity_is_all_that_decides_a_number(tmp_path, monkeypatch):
    options = {"title": "t", "kind": "cuda", "memory_bytes": 1, "tables": "tiny", "source": "", "precisions": ["bf16"]}
    tables = {"about": {}, "memory": [[0, 1], [1, 2]], "transfer": [[0, 1], [1, 2]], "attention": {}, "matmul": {}}
    monkeypatch.setattr(module, "TABLES", tmp_path)

    def identity(operation_us=6.0, title="t", **changed):
        (tmp_path / "tiny.json").write_text(json.dumps(tables | changed))
        host = Host(operation_us, 1, 1, 1, 1, False)
        assert asdict(host)
        return Device("tiny", **options | {"title": title}, host=host, peak_tflops={}, grouped={}).identity

    assert identity() == identity(title="other", about={"source": "other"})
    assert len({identity(), identity(5.0), identity(memory=[[0, 1], [1, 3]])}) == 3


def test_a_network_of_its_own_replaces_the_tables(tmp_path, monkeypatch):
    tables = {"about": {}, "memory": [[0, 1], [1, 2]], "transfer": [[0, 1], [1, 2]], "attention": {}, "matmul": {}}
    (tmp_path / "tiny.json").write_text(json.dumps(tables))
    monkeypatch.setattr(module, "TABLES", tmp_path)
    node = {"title": "", "kind": "cpu", "memory_bytes": 1, "tables": "tiny", "source": "", "precisions": ["fp32"]}
    node |= {"host": Host(1, 1, 1, 1, 1, True), "peak_tflops": {}, "grouped": {}}
    flat = Network("flat", bandwidth_gbs=1)
    assert Device("tiny", **node, within_node=flat).network(5) is flat
    with pytest.raises(ValueError, match="device tiny has no collectives: choose a network="):
        Device("tiny", **node).check("fp32", 2)


def test_a_small_tf32_product_takes_the_time_of_a_tile_at_the_share_that_is_given():
    share, (m, n, k) = 0.25, (128, 512, 768)
    a100 = load_device("a100_sxm")
    rate = 2 * 8192**3 / a100.matmul_s(1, 8192, 8192, 8192, "tf32") / a100.multiprocessors
    assert a100.matmul_s(1, m, n, k, "tf32") == pytest.approx(2 * 128 * 128 * k / (rate * share), rel=0.15)
    assert a100.matmul_s(1, m, n, k, "bf16") < a100.matmul_s(1, m, n, k, "tf32") / 3
