"""Calibration of a network: what is said of it, refusals, and two real ranks from launch to file."""

import os
from pathlib import Path

import pytest
import yaml

from clusters.network import Network
from experiments.configuration import instantiate
from scripts import calibrate_network as calibrate
from scripts.calibration.cases import COLLECTIVES, Timing
from scripts.calibration.fit import fitted


def test_file_is_a_network_that_says_what_was_measured():
    points = ((1, 10.0), (251, 20.0))
    timings = [
        Timing(name, 2, elements, late=late, median_us=us * (1 + late))
        for late in (False, True)
        for name in COLLECTIVES
        for elements, us in points
    ]
    text = calibrate.document(fitted(timings, "ours", "measured here"), ["a line", "another"])
    assert text.startswith("# a line\n# another\n_target_: clusters.network.Network\n")
    node = yaml.safe_load(text)
    network = instantiate(node)
    assert isinstance(network, Network) and (network.name, network.source) == ("ours", "measured here")
    for collective in (*COLLECTIVES, "barrier"):
        assert network.seconds(collective, (504,), 2) == pytest.approx(15e-6)
        assert network.when(collective, [0, 1], 9e-6) is network
        assert network.when(collective, [0, 1], 11e-6).seconds(collective, (504,), 2) == pytest.approx(30e-6)


def test_header_has_the_median_and_the_worst_error():
    line = calibrate.header_of({("all_gather", 2, "between", True): [(0.0, 500), (-1.0, 800), (0.5, 900)]})[-1]
    assert line.split() == ["all_gather", "2", "between,", "late", "50.0%", "-100.0%", "800"]


@pytest.mark.parametrize(("text", "size"), [("1024", 1024), ("4k", 4096), ("64M", 64 << 20), ("1G", 1 << 30)])
def test_sizes_are_read(text: str, size: int):
    assert calibrate.parse_bytes(text) == size


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--ranks", "1"], "--ranks has 1; a collective needs at least 2"),
        (["--ranks", "4096"], "4096 ranks on "),
        (["--ranks", "2", "--oversubscribe", "--seconds", "0"], "--seconds is 0.0; it must be positive"),
        (["--ranks", "2", "--oversubscribe", "--out", "/nowhere/x.yaml"], "there is no folder /nowhere"),
        (["--ranks", "4096", "--backend", "nccl"], "needs 4096 GPU(s)"),
    ],
)
def test_what_cannot_be_done_is_one_sentence(arguments: list[str], sentence: str, capsys: pytest.CaptureFixture[str]):
    assert calibrate.main(arguments) == 2
    printed = capsys.readouterr().out
    assert sentence in printed and printed.count("\n") == 1


def test_more_ranks_than_the_launch_has(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    for name, value in {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "1"}.items():
        monkeypatch.setenv(name, value)
    assert calibrate.main(["--ranks", "3"]) == 2
    assert "--ranks has 3, but the launch has 2 ranks" in capsys.readouterr().out


@pytest.mark.slow
def test_two_real_ranks_from_launch_to_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    out = tmp_path / "tiny.yaml"
    crowded = ["--oversubscribe"] if len(os.sched_getaffinity(0)) < 2 else []
    arguments = ["--ranks", "2", "--max-bytes", "64K", "--seconds", "0.002", "--out", str(out), *crowded]
    assert calibrate.main(arguments) == 0
    node = yaml.safe_load(out.read_text())
    assert node["name"] == "tiny" and node["source"].startswith("measured ") and "gloo" in node["source"]
    assert set(node["tables"]) == set(node["late"]["tables"]) == set(COLLECTIVES)
    for by_ranks in (*node["tables"].values(), *node["late"]["tables"].values()):
        sizes, times_us = zip(*by_ranks[2], strict=True)
        assert sizes[0] == 4 and sizes[-1] == 65536
        assert times_us[0] > 0 and list(times_us) == sorted(times_us)
    printed = capsys.readouterr().out
    assert "all_to_all         2  uneven  " in printed and "all_to_all         2  uneven, late" in printed
