from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from analysis.load import coverage, load_campaign
from analysis.stats import Floor
from analysis.summary import COLUMNS, noise_floor, summarise, write_summary


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
        ("fig3a", 8, "deepspeed", "ttft_min_rank_ms", 160),
        ("fig3a", 8, "deepspeed", "ttft_spread_ms", 240),
        ("fig3a", 8, "deepspeed", "observer_cost", 1.02),
        ("fig3a", 8, "deepspeed", "entry_skew_ms", 0.6),
        ("fig3a", 8, "moeshard", "aa_ratio_ttft", 1.01),
        ("fig3a", 8, "moeshard", "aa_ratio_layer", 1.01),
        ("fig3a", 8, "deepspeed", "bytes_sent", 2 * 2.8 * 1e6),
        ("fig3a", 8, "deepspeed", "flops", 2 * 2.8 * 0.5 * 0.03 * 1e11),
        ("fig3a", 8, "deepspeed", "empty_experts", 0),
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
    # 2 launches x 5 iterations; layers of an iteration are one observation.
    assert (n["ttft_ms"], n["layer_moe_ms"], n["speedup_ttft"]) == (10, 10, 10)
    counted = summary["metric"] == "dropped"
    assert summary.loc[~counted, ["ci_low", "ci_high"]].notna().all(axis=None)
    inside = (summary["ci_low"] <= summary["value"]) & (summary["value"] <= summary["ci_high"])
    assert inside[~counted].all()


def test_baseline_has_no_speedup_over_itself(summary):
    assert not summary[summary["system"] == "deepspeed"]["metric"].str.startswith("speedup").any()


def test_failed_cell_has_no_value_and_no_ratio(fig3):
    oom = {"state": "oom", "reason": "Out of memory.", "correctness": None}
    changes = {"deepspeed_num_experts_8_0": oom, "deepspeed_num_experts_8_1": oom}
    folder = fig3(experts=(8, 64), batches=(), **changes)
    summary = summarise(load_campaign(folder))
    here = summary[(summary["experiment"] == "fig3a") & (summary["x"] == 8)]
    assert set(here["system"]) == {"moeshard"} and not here["metric"].str.startswith("speedup").any()
    assert value(summary, "fig3a", 64, "moeshard", "speedup_ttft") == pytest.approx(3)


def test_ratio_uses_only_launches_that_both_have(one_point):
    """The first launch of the baseline is missing, the system's is ten times slower: the pair that remains gives 2."""
    slow = {"values": {"ttft_ms": 4000.0, "layer_moe_ms": 300.0, "rows_computed": 1.0, "rows_useful": 1.0}}
    summary = summarise(load_campaign(one_point(deepspeed_num_experts_8_0=None, moeshard_num_experts_8_0=slow)))
    # Launches differ by 1 % for DeepSpeed and by 1.5 % for MoEShard.
    assert value(summary, "fig3a", 8, "moeshard", "speedup_layer") == pytest.approx(2 * np.exp(0.005 - 0.0075))


@pytest.mark.parametrize("check", [None, {"relative_error": 0.3, "tolerance": 1e-4, "passed": False}])
@pytest.mark.parametrize("system", ["deepspeed", "moeshard"])
def test_speedup_is_withheld_unless_outputs_were_right(one_point, system, check):
    campaign = load_campaign(one_point(**{f"{system}_num_experts_8_1": {"correctness": check}}))
    summary = summarise(campaign)
    here = summary[(summary["experiment"] == "fig3a") & (summary["x"] == 8)]
    assert not here["metric"].str.startswith("speedup").any() and "ttft_ms" in set(here["metric"])
    shown = coverage(campaign).set_index("cell").loc[f"{system}_num_experts_8_1", "correctness"]
    assert shown == ("failed (relative error 0.3, 0.0001 allowed)" if check else "not checked")


@pytest.mark.parametrize("change", [{"source": "measured"}, {"precision": "bf16"}])
def test_mixed_comparison_is_refused(one_point, change):
    folder = one_point(launches=1, deepspeed_num_experts_8_0=change)
    with pytest.raises(ValueError, match="precision, source and device must agree"):
        summarise(load_campaign(folder))


def test_systems_are_paired_with_the_baseline_of_their_precision(tmp_path, store):
    write_cell, write_plan, point = store
    cells = []
    for precision, base, system_ms in (("fp32", 80.0, 40.0), ("bf16", 30.0, 10.0)):
        for system, ms in (("deepspeed", base), ("moeshard", system_ms)):
            cells.append(f"{system}_{precision}")
            spec = {"system": system, "precision": precision, "point": point(), "values": {"ttft_ms": ms}}
            write_cell(tmp_path, cells[-1], spec)
    panel = {"name": "single", "title": "One point", "x_name": "num_experts"}
    write_plan(tmp_path, [panel | {"points": [{"x": 128, "published_x": None, "cells": cells}]}])
    summary = summarise(load_campaign(tmp_path))
    ratios = summary[summary["metric"] == "speedup_ttft"].set_index("precision")["value"]
    assert ratios.to_dict() == pytest.approx({"fp32": 2, "bf16": 3})


def test_sections_layers_and_bound(summary):
    here = summary[(summary["experiment"] == "fig3a") & (summary["x"] == 64) & (summary["system"] == "moeshard")]
    sections = here[here["metric"] == "section_ms"].set_index("section")["value"]
    assert sections.to_dict() == pytest.approx(
        {"route": 0.5, "metadata": 0.5, "dispatch": 2, "experts": 5, "combine": 2}, rel=1e-3
    )
    bound = here[here["metric"] == "percent_of_bound"]
    assert bound["section"].item() == "experts" and bound["value"].item() == pytest.approx(50, rel=1e-3)
    layers = here[here["metric"] == "speedup_by_layer"].set_index("layer")["value"]
    assert layers.to_dict() == pytest.approx({1: 6, 3: 6})
    assert here[here["metric"] == "ttft_ms"][["section", "layer"]].isna().all(axis=None)


def test_twins_never_enter_a_series(one_point):
    slow = {"values": {"ttft_ms": 9e5, "layer_moe_ms": 9e4}}
    summary = summarise(load_campaign(one_point(moeshard_num_experts_8_0_twin=slow)))
    assert value(summary, "fig3a", 8, "moeshard", "ttft_ms") == pytest.approx(400)
    assert value(summary, "fig3a", 8, "moeshard", "aa_ratio_ttft") > 10


def test_paper_statistic_pools_ranks_by_their_mean(fig3):
    """MoEShard's ranks are alike, DeepSpeed's have a mean of 0.7 of the slowest: the paper's ratio is 0.7 of ours."""
    folder = fig3(experts=(8,), batches=(), launches=1, twins=False)
    path = folder / "cells" / "moeshard_num_experts_8_0" / "samples.parquet"
    campaign = load_campaign(folder)
    frame = campaign.frames[path.parent.name]
    layers = frame["metric"] == "layer_moe_ms"
    frame.loc[layers, "value"] = frame.loc[layers].groupby(["iteration", "layer"])["value"].transform("max")
    summary = summarise(campaign)
    ratio, paper = (value(summary, "fig3a", 8, "moeshard", name) for name in ("speedup_layer", "speedup_layer_paper"))
    assert (ratio, paper) == pytest.approx((2, 1.4), rel=0.01)


def test_the_second_cell_of_a_system_in_a_launch_is_refused(one_point):
    with pytest.raises(ValueError, match="is the second of moeshard in launch 0 of one point"):
        summarise(load_campaign(one_point(moeshard_num_experts_8_1={"launch": 0})))


def test_noise_floor_of_the_campaign(fig3):
    """The twin is 1 % slower at each of the five points."""
    floors = noise_floor(load_campaign(fig3()))
    assert floors == {metric: Floor(pytest.approx(0.01), 5) for metric in ("ttft_ms", "layer_moe_ms")}


def test_no_floor_without_twins(one_point):
    campaign = load_campaign(one_point(twins=False))
    assert noise_floor(campaign) == {} and not summarise(campaign)["claimable"].any()


def test_claims_rest_on_a_full_campaign_and_effects_outside_the_floor(full):
    summary = summarise(load_campaign(full)).set_index(["experiment", "x", "system", "metric"])["claimable"]
    assert summary["fig3a", 64, "moeshard", "ttft_ms"].all() and summary["fig3a", 64, "moeshard", "speedup_ttft"].all()
    # At 8 experts both take 400 ms.
    assert not summary["fig3a", 8, "moeshard", "speedup_ttft"].any()
    assert summary["fig3a", 8, "moeshard", "speedup_layer"].all()


@pytest.mark.parametrize("change", [{"tier": "quick"}, {"launches": 2}, {"iterations": 9}])
def test_a_smaller_campaign_claims_nothing(fig3, change):
    options = {"experts": (64,), "batches": (), "launches": 3, "iterations": 30, "tier": "full"}
    assert not summarise(load_campaign(fig3(**(options | change))))["claimable"].any()


def test_write_summary_is_atomic(one_point, monkeypatch):
    campaign = load_campaign(one_point())
    path = write_summary(campaign)
    before = path.read_bytes()
    assert list(pd.read_csv(path).columns) == COLUMNS

    def half_written(self, text):
        self.write_bytes(text[:10].encode())
        raise OSError("disk full")

    monkeypatch.setattr(Path, "write_text", half_written)
    with pytest.raises(OSError, match="disk full"):
        write_summary(campaign)
    assert path.read_bytes() == before
    assert sorted(p.name for p in campaign.folder.iterdir()) == ["cells", "plan.json", "summary.csv"]
