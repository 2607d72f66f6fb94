"""Calibration of a network: volumes, durations, tables, refusals, and two real ranks from launch to file."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from clusters.network import Network
from scripts import calibrate_network as calibrate
from scripts.calibrate_network import Case

RANKS = st.integers(2, 9)


def row(volume_bytes: int, median_us: float, use: str = "table", collective: str = "all_gather") -> dict[str, Any]:
    return {
        "collective": collective,
        "ranks": 2,
        "use": use,
        "volume_bytes": volume_bytes,
        "median_us": median_us,
    }


@pytest.mark.parametrize(
    ("collective", "volume"),
    [("all_gather", 120), ("reduce_scatter", 120), ("all_to_all", 120), ("all_reduce", 60), ("broadcast", 40)],
)
def test_volume_of_ten_floats_on_four_ranks(collective: str, volume: int):
    assert Case(collective, 4, 10).volume_bytes == volume


@given(ranks=RANKS, max_bytes=st.integers(1024, 1 << 22))
def test_tables_double_up_to_the_largest_size_and_checks_lie_between(ranks: int, max_bytes: int):
    cases = calibrate.cases_for(ranks, max_bytes)
    for collective in calibrate.COLLECTIVES:
        sizes = {
            use: [c.volume_bytes for c in cases if (c.collective, c.use) == (collective, use)]
            for use in ("table", "between")
        }
        assert sizes["table"] == sorted(set(sizes["table"])) and sizes["table"][0] <= 4 * (ranks - 1)
        assert max_bytes / 2 - 4 * ranks < sizes["table"][-1] <= max_bytes + 4 * ranks
        assert not set(sizes["between"]) & set(sizes["table"])
        assert all(sizes["table"][0] < size < sizes["table"][-1] for size in sizes["between"])


@given(ranks=RANKS, elements=st.integers(4, 1000))
def test_uneven_exchange_fits_together_and_its_busiest_rank_moves_v(ranks: int, elements: int):
    splits = [calibrate.uneven_splits(elements, ranks, rank) for rank in range(ranks)]
    sent_GG = np.array([sent_G for _, sent_G in splits])
    received_GG = np.array([received_G for received_G, _ in splits])
    assert (received_GG == sent_GG.T).all()
    off_rank_GG = sent_GG * (1 - np.eye(ranks, dtype=int))
    busiest = max(off_rank_GG.sum(0).max(), off_rank_GG.sum(1).max())
    assert busiest * calibrate.ITEMSIZE == Case("all_to_all", ranks, elements, "uneven").volume_bytes


@given(st.lists(st.integers(1, 40), min_size=1, max_size=8))
def test_turns_spread_each_case_evenly_over_the_rounds(repetitions: list[int]):
    order, rounds = np.array(list(calibrate.turns(repetitions))), max(repetitions)
    assert np.bincount(order, minlength=len(repetitions)).tolist() == repetitions
    every_round = order == repetitions.index(rounds)
    for case, count in enumerate(repetitions):
        due_rounds = [-(-number * rounds // count) for number in range(1, count + 1)]
        begun = every_round.cumsum()[order == case]  # rounds at that call; the current one may not be counted yet
        assert all(seen in (due - 1, due) for seen, due in zip(begun, due_rounds, strict=True))


def test_duration_is_that_of_the_rank_that_came_last():
    times_NR2 = np.array([[[0.0, 15.0], [3.0, 13.0]]])  # rank 0 waits 3 s for rank 1
    assert calibrate.durations(times_NR2, "all_gather", common_clock=True) == [12.0]
    assert calibrate.durations(times_NR2, "all_gather", common_clock=False) == [10.0]


def test_source_of_a_broadcast_does_not_wait():
    times_NR2 = np.array([[[0.0, 1.0], [0.0, 12.0], [0.0, 11.0]]])
    assert calibrate.durations(times_NR2, "broadcast", common_clock=False) == [11.0]


def test_table_ascends_where_measurements_do_not():
    rows = [row(4096, 30.04), row(4, 10.0), row(1024, 22.0), row(2048, 20.0), row(3000, 99.0, "between")]
    assert calibrate.tables_of(rows) == {"all_gather": {2: [[4, 10.0], [1024, 21.0], [2048, 21.0], [4096, 30.0]]}}


def test_error_is_of_what_the_table_has_not_seen():
    rows = [row(0, 10.0), row(1000, 20.0), row(500, 15.0, "between"), row(800, 9.0, "between")]
    (_, line) = calibrate.errors_of(rows, Network("x", tables=calibrate.tables_of(rows)))
    assert line.split() == ["all_gather", "2", "between", "50.0%", "+100.0%", "800"]


@pytest.mark.parametrize("duplex", [0.0, 0.3, 1.0])
def test_uneven_exchanges_decide_the_duplex(duplex: float):
    """Two ranks; what rank 0 receives and what it sends are 4 : 1, so V is 1 to 5/8 of the larger."""
    table = [row(size, 10 + size / 100, collective="all_to_all") for size in (4, 1 << 12, 1 << 20)]
    uneven = [
        row(size, 10 + (duplex + (1 - duplex) * 5 / 8) * size / 100, "uneven", collective="all_to_all")
        | {"elements": size // 4}
        for size in (1 << 12, 1 << 16, 1 << 20)
    ]
    network = calibrate.fitted("n", [*table, *uneven])
    assert network.duplex == pytest.approx(duplex) and "0.0%" in calibrate.errors_of([*table, *uneven], network)[1]


def test_large_uneven_exchanges_outvote_small_ones():
    table = [row(size, 10 + size / 100, collective="all_to_all") for size in (4, 1 << 12, 1 << 20)]
    uneven = [
        row(size, 10 + share * size / 100, "uneven", collective="all_to_all") | {"elements": size // 4}
        for size, share in ((1 << 8, 1), (1 << 9, 1), (1 << 10, 1), (1 << 20, 5 / 8))
    ]
    assert calibrate.fitted("n", [*table, *uneven]).duplex == 0


def test_file_is_a_network_that_says_what_was_measured():
    rows = [row(size, us, collective=name) for name in calibrate.COLLECTIVES for size, us in ((4, 10.0), (1004, 20.0))]
    node = yaml.safe_load(calibrate.document("ours", rows, "measured here"))
    assert node.pop("_target_") == "clusters.network.Network"
    network = Network(**node)
    assert (network.name, network.source) == ("ours", "measured here")
    for collective in (*calibrate.COLLECTIVES, "barrier"):
        assert network.seconds(collective, (504,), 2) == pytest.approx(15e-6)


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
    assert set(node["tables"]) == set(calibrate.COLLECTIVES)
    for by_ranks in node["tables"].values():
        sizes, times_us = zip(*by_ranks[2], strict=True)
        assert sizes[0] == 4 and sizes[-1] == 65536
        assert times_us[0] > 0 and list(times_us) == sorted(times_us)
    assert "all_to_all         2  uneven" in capsys.readouterr().out
