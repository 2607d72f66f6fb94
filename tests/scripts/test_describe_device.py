import json

import pytest
import torch
import yaml

from devices import device, load, load_device
from scripts import describe_device, measure_overheads
from scripts.description import kernels, measure


@pytest.fixture
def small(monkeypatch, tmp_path):
    """A few sizes, and folders of the test's own."""
    (tmp_path / "tables").mkdir()
    monkeypatch.setattr(device, "TABLES", tmp_path / "tables")
    monkeypatch.setattr(load, "CONF", tmp_path)
    monkeypatch.setattr(describe_device, "TABLES", tmp_path / "tables")
    monkeypatch.setitem(measure.ROWS, "cpu", (1, 64))
    monkeypatch.setitem(measure.WIDTHS, "cpu", (64, 256))
    monkeypatch.setitem(measure.COPIED, "cpu", [1 << 12, 1 << 18])
    monkeypatch.setattr(measure, "LARGE_FLOPS", 1e6)
    monkeypatch.setattr(measure, "KEYS", (16, 64))
    monkeypatch.setattr(kernels, "SHARES", [0.5, 1.0])
    monkeypatch.setattr(measure_overheads, "LAUNCHES", 1)
    threads = torch.get_num_threads()
    yield tmp_path
    torch.set_num_threads(threads)


def test_this_machine_can_be_described_and_loaded(small):
    assert describe_device.main(["here", "--seconds", "1", "--network", "nvlink3", "--conf", str(small)]) == 0
    device = load_device("here")
    assert device.kind == "cpu" and device.host.synchronous and device.peak_tflops["fp32"] > 0
    assert device.matmul_s(1, 64, 256, 64, "fp32") > 0 and device.attention_s(4, 4, 120, 120, 16, "bf16") > 0
    assert device.network(4).name == "nvlink3"
    assert set(device.grouped) - {"cpu"} == {"grouped", "batched"}  # ours need a compiler
    apart_s, whole_s = 2 * device.matmul_s(1, 8, 64, 64, "fp32"), device.matmul_s(1, 16, 64, 64, "fp32")
    assert device.grouped_s("grouped", [8, 8], 64, 64, "fp32") == max(apart_s, whole_s)
    assert json.loads((small / "tables/here.json").read_text())["about"]["kernels"]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--seconds", "0"], "--seconds is 0.0; it must be positive"),
        (["--network", "nowhere"], "--network is nowhere, but there is no"),
        (["--network", "nodes_a100"], "composed of other files"),
    ],
)
def test_what_cannot_be_measured_is_one_sentence(arguments, sentence, capsys):
    assert describe_device.main(arguments) == 2
    assert sentence in capsys.readouterr().out


@pytest.mark.skipif(torch.cuda.is_available(), reason="has a GPU")
def test_without_a_gpu_there_is_none_to_measure(capsys):
    assert describe_device.main(["ours", "--device", "cuda"]) == 2
    assert "no CUDA device" in capsys.readouterr().out


def test_a_stand_alone_network_is_taken_over_whole():
    node = describe_device.network_node("nvlink3", "cpu")
    assert node == yaml.safe_load((describe_device.NETWORKS / "nvlink3.yaml").read_text())
