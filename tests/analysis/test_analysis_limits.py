import dataclasses

import numpy as np
import pandas as pd
import pytest

from analysis.limits import NO_CEILINGS, UNKNOWN_LINK, limits, limits_table, section_percents
from analysis.load import load_campaign
from analysis.reduce import compute_bound_ms
from tests.analysis.synthetic import CEILINGS, LAYERS, WORLD_SIZE

CELL = "moeshard_num_experts_8_0"
TRANSFER_MS = {"dispatch": 2.0, "combine": 1.0, None: 0.5}
ITERATIONS = 5


def collectives() -> pd.DataFrame:
    """Two in dispatch, of 2 ms, one in combine and one outside any section, seen by all ranks."""
    sections = ["dispatch", "dispatch", "combine", None]
    rows = [
        {"iteration": 10 + i, "layer": layer, "section": section, "sequence": k, "rank": rank, "started_ms": 3.0 * k}
        | {"finished_ms": 3.0 * k + TRANSFER_MS[section]}
        for i in range(ITERATIONS)
        for layer in LAYERS
        for k, section in enumerate(sections)
        for rank in range(WORLD_SIZE)
    ]
    return pd.DataFrame(rows)


@pytest.fixture
def folder(fig3):
    folder = fig3(experts=(8,), batches=(), launches=2)
    for launch in (0, 1):
        collectives().to_parquet(folder / "cells" / f"moeshard_num_experts_8_{launch}" / "collectives.parquet")
    return folder


def row_of(folder, **changes):
    campaign = load_campaign(folder)
    runs = campaign.runs | {CELL: campaign.runs[CELL] | changes}
    campaign = dataclasses.replace(campaign, runs=runs)
    return limits(campaign, campaign.plan["panels"][0]).set_index("cell").loc[CELL]


def test_bounds_by_hand(folder):
    """30 ms a layer, experts half of it and twice their bound: 7.5 ms; 5.5 ms on the link, 4 of 6 in dispatch."""
    row = row_of(folder)
    assert row[["layer_ms", "compute_ms", "transfer_ms"]].tolist() == pytest.approx([30, 7.5, 5.5], rel=0.02)
    assert row[["serial_ms", "overlapped_ms"]].tolist() == pytest.approx([13, 7.5], rel=0.02)
    percents = {name.removeprefix("percent/"): row[name] for name in row.index if name.startswith("percent/")}
    useful = percents.pop("useful")
    assert useful == pytest.approx(100 * row["useful_ms"] / 30, rel=0.02) and 0 < row["useful_ms"] <= 7.5
    expected = {"serial": 43.3, "overlapped": 25, "experts": 50, "dispatch": 66.7, "combine": 16.7}
    assert percents == pytest.approx(expected, rel=0.03) and row["reason"] == ""
    assert row["flops"] == pytest.approx(7.5e-3 * 1e11, rel=0.02) and row["bytes_sent"] == pytest.approx(1e6)


def test_launch_that_was_disturbed_is_held_against_the_best_ceiling(folder):
    """Its own matmul was a tenth as fast; the other launch's is what the machine can do."""
    assert row_of(folder, ceilings=CEILINGS | {"matmul_flops_per_s": 1e10})["compute_ms"] == pytest.approx(
        7.5, rel=0.02
    )


def test_transfers_of_a_real_cluster_are_not_known(folder):
    row = row_of(folder, source="measured")
    assert row["reason"] == UNKNOWN_LINK and np.isnan(row["transfer_ms"]) and np.isnan(row["percent/serial"])
    assert row["percent/experts"] == pytest.approx(50, rel=0.03)


def test_without_ceilings_there_is_no_bound(folder):
    row = row_of(folder, ceilings=None)
    assert row["reason"] == NO_CEILINGS and np.isnan(row["layer_ms"]) and row["bytes_sent"] == pytest.approx(1e6)


def test_table_has_a_row_for_each_system(folder):
    """DeepSpeed has no recorded collectives here, so its transfers are a dash; MoEShard's are those of two launches."""
    campaign = load_campaign(folder)
    shown = limits_table(campaign, campaign.plan["panels"][0]).shown.set_index("system")
    assert set(shown.index) == {"DeepSpeed", "MoEShard"}
    assert shown.loc["DeepSpeed", "bound transfer, ms"] == "–" and shown.loc["MoEShard", "bound transfer, ms"] == "5.50"
    assert shown.loc["MoEShard", "dispatch, % of its bound"].startswith(("66", "67"))


def test_longer_of_flops_and_bytes_of_the_busiest_rank_decides():
    """Two layers of two ranks: 2 and 4 ms of flops, 3 and 1 ms of memory; then 1 and 1 ms, 5 and 1."""
    measured = {
        "flops": 1e8 * np.array([[[2.0, 4.0], [1.0, 1.0]]]),
        "memory_bytes": 1e7 * np.array([[[3.0, 1.0], [5.0, 1.0]]]),
    }
    ceilings = {"matmul_flops_per_s": 1e11, "copy_bytes_per_s": 1e10}
    assert compute_bound_ms(measured, ceilings) == pytest.approx([4, 5])
    assert compute_bound_ms({"flops": measured["flops"]}, ceilings) == pytest.approx([4, 1])
    assert compute_bound_ms(measured, None) is None and compute_bound_ms({}, ceilings) is None


def test_a_section_that_only_some_layers_have_has_no_share():
    """A system that decides layer by layer counts in one and not in the other."""
    observed = {"section_ms/dispatch": np.full((1, 2, 3), 4.0), "section_ms/metadata": np.full((1, 1, 3), 4.0)}
    transfers = {"dispatch": np.array([[1.0, 2.0]]), "metadata": np.array([[1.0, 0.0]])}
    shares = section_percents(observed, np.ones(2), transfers)
    assert shares.keys() == {"dispatch"} and shares["dispatch"].tolist() == [[0.25, 0.5]]
