import numpy as np
import pandas as pd
import pytest

from analysis.load import coverage, load_campaign
from analysis.reduce import reduce_cell
from analysis.summary import COLUMNS, summarise, write_summary


def value(summary, experiment, x, system, metric):
    rows = summary[
        (summary["experiment"] == experiment)
        & (summary["x"] == x)
        & (summary["system"] == system)
        & (summary["metric"] == metric)
    ]
    return rows["value"].item()


@pytest.mark.parametrize(
    ("experiment", "x", "system", "metric", "expected"),
    [
        ("fig3a", 8, "deepspeed", "ttft_ms", 400),
        ("fig3a", 8, "deepspeed", "layer_moe_ms", 60),
        ("fig3a", 8, "deepspeed", "layer_moe_min_rank_ms", 0.4 * 60),
        ("fig3a", 8, "deepspeed", "layer_moe_spread_ms", 0.6 * 60),
        ("fig3a", 64, "moeshard", "ttft_ms", 400 / 3),
        ("fig3a", 64, "moeshard", "speedup_ttft", 3),
        ("fig3a", 64, "moeshard", "speedup_layer", 6),
        ("fig3a", 64, "moeshard", "speedup_layer_paper", 6),
        ("fig3b", 1, "moeshard", "speedup_layer", 0.5),
        # Ranks compute 30, 60, 90, 120 rows of which a third is useful: the busiest has 120 of a mean of 75.
        ("fig3a", 8, "moeshard", "padding", 3),
        ("fig3a", 8, "moeshard", "imbalance", 1.6),
        # 1 + 2 + 3 + 4 tokens on the ranks of each of two layers.
        ("fig3a", 8, "deepspeed", "dropped", 20),
        ("fig3a", 8, "moeshard", "dropped", 0),
    ],
)
def test_known_values(summary, experiment, x, system, metric, expected):
    assert value(summary, experiment, x, system, metric) == pytest.approx(expected)


def test_columns_counts_and_intervals(summary):
    assert list(summary.columns) == COLUMNS
    n = summary[(summary["experiment"] == "fig3a") & (summary["x"] == 8) & (summary["system"] == "moeshard")].set_index(
        "metric"
    )["n"]
    # 2 launches x 5 iterations, x 2 layers.
    assert (n["ttft_ms"], n["layer_moe_ms"], n["speedup_ttft"]) == (10, 20, 10)
    counted = summary["metric"] == "dropped"
    assert summary.loc[~counted, ["ci_low", "ci_high"]].notna().all(axis=None)
    inside = (summary["ci_low"] <= summary["value"]) & (summary["value"] <= summary["ci_high"])
    assert inside[~counted].all()


def test_baseline_has_no_speedup_over_itself(summary):
    assert not summary[summary["system"] == "deepspeed"]["metric"].str.startswith("speedup").any()


def test_failed_cell_has_no_value_and_no_ratio(fig3):
    oom = {"state": "oom", "reason": "Out of memory.", "correctness": None}
    folder = fig3(deepspeed_num_experts_8_0=oom, deepspeed_num_experts_8_1=oom)
    summary = summarise(load_campaign(folder))
    here = summary[(summary["experiment"] == "fig3a") & (summary["x"] == 8)]
    assert set(here["system"]) == {"moeshard"} and not here["metric"].str.startswith("speedup").any()
    assert value(summary, "fig3a", 64, "moeshard", "speedup_ttft") == pytest.approx(3)


def test_ratio_uses_only_launches_that_both_have(fig3):
    """The first launch of the baseline is missing, the system's is ten times slower: the pair that remains gives 2."""
    slow = {"values": {"ttft_ms": 4000.0, "layer_moe_ms": 300.0}}
    summary = summarise(load_campaign(fig3(deepspeed_num_experts_8_0=None, moeshard_num_experts_8_0=slow)))
    assert value(summary, "fig3a", 8, "moeshard", "speedup_layer") == pytest.approx(2)


@pytest.mark.parametrize("check", [None, {"relative_error": 0.3, "tolerance": 1e-4, "passed": False}])
@pytest.mark.parametrize("system", ["deepspeed", "moeshard"])
def test_speedup_is_withheld_unless_outputs_were_right(fig3, system, check):
    campaign = load_campaign(fig3(**{f"{system}_num_experts_8_1": {"correctness": check}}))
    summary = summarise(campaign)
    here = summary[(summary["experiment"] == "fig3a") & (summary["x"] == 8)]
    assert not here["metric"].str.startswith("speedup").any() and "ttft_ms" in set(here["metric"])
    shown = coverage(campaign).set_index("cell").loc[f"{system}_num_experts_8_1", "correctness"]
    assert shown == ("failed (relative error 0.3, 0.0001 allowed)" if check else "not checked")


@pytest.mark.parametrize("change", [{"source": "measured"}, {"precision": "bf16"}])
def test_mixed_comparison_is_refused(fig3, change):
    folder = fig3(launches=1, deepspeed_num_experts_8_0=change)
    with pytest.raises(ValueError, match="precision and source must agree"):
        summarise(load_campaign(folder))


def test_systems_are_paired_with_the_baseline_of_their_precision(tmp_path, store):
    write_cell, write_plan, point = store
    cells = []
    for precision, base, system_ms in (("ieee", 80.0, 40.0), ("bf16", 30.0, 10.0)):
        for system, ms in (("deepspeed", base), ("moeshard", system_ms)):
            cells.append(f"{system}_{precision}")
            spec = {"system": system, "precision": precision, "point": point(), "values": {"ttft_ms": ms}}
            write_cell(tmp_path, cells[-1], spec)
    panel = {"name": "single", "title": "One point", "x_name": "num_experts"}
    write_plan(tmp_path, [panel | {"points": [{"x": 128, "published_x": None, "cells": cells}]}])
    summary = summarise(load_campaign(tmp_path))
    ratios = summary[summary["metric"] == "speedup_ttft"].set_index("precision")["value"]
    assert ratios.to_dict() == pytest.approx({"ieee": 2, "bf16": 3})


def test_rows_of_two_sources_in_one_cell_are_refused(fig3):
    campaign = load_campaign(fig3())
    frame = campaign.frames["moeshard_num_experts_8_0"].copy()
    frame.loc[frame.index[:3], "source"] = "measured"
    with pytest.raises(ValueError, match="cannot mix source emulated, measured"):
        reduce_cell(frame, 4)


def test_iteration_without_the_row_of_a_rank_is_refused(fig3):
    frame = load_campaign(fig3()).frames["moeshard_num_experts_8_0"]
    lost = (
        (frame["metric"] == "ttft_ms")
        & (frame["phase"] == "measure")
        & (frame["iteration"] == 2)
        & (frame["rank"] == 3)
    )
    with pytest.raises(
        ValueError, match="moeshard_num_experts_8_0 has 19 rows of ttft_ms; 5 iterations x 1 layers x 4 ranks"
    ):
        reduce_cell(frame[~lost], 4)


def test_paper_statistic_pools_ranks_by_their_mean(fig3):
    """Rank times 0.4, 0.6, 0.8, 1.0 of the slowest: the mean over ranks is 0.7 of it, in both systems."""
    reduced = reduce_cell(load_campaign(fig3()).frames["deepspeed_num_experts_8_0"], 4)
    assert np.median(reduced["layer_moe_mean_rank_ms"]) == pytest.approx(0.7 * 60)


def test_write_summary_is_atomic(fig3, monkeypatch):
    campaign = load_campaign(fig3())
    path = write_summary(campaign)
    before = path.read_bytes()
    assert list(pd.read_csv(path).columns) == COLUMNS

    def half_written(self, target, **_):
        target.write_text("experiment,sys")
        raise OSError("disk full")

    monkeypatch.setattr(pd.DataFrame, "to_csv", half_written)
    with pytest.raises(OSError, match="disk full"):
        write_summary(campaign)
    assert path.read_bytes() == before
    assert sorted(p.name for p in campaign.folder.iterdir()) == ["cells", "plan.json", "summary.csv"]
