import numpy as np
import pandas as pd
import pytest

from analysis.checks.evidence import holm
from analysis.checks.inputs import load_p_value
from analysis.load import load_campaign
from analysis.summary import summarise
from analysis.validity import judge, verdicts_by_check
from tests.analysis.synthetic import write_fig3

CELL = "moeshard_num_experts_64_1"
OPTIONS = {"experts": (8, 64), "batches": (), "launches": 2}


def by_check(findings):
    return verdicts_by_check(findings).set_index("check")["verdict"]


def routing_table(tokens_NE, intended_E):
    """One layer, N draws."""
    n, e = np.indices(tokens_NE.shape).reshape(2, -1)
    table = {"layer": 1, "iteration": n, "rank": 0, "expert": e, "tokens": tokens_NE.ravel()}
    return pd.DataFrame(table | {"intended": np.asarray(intended_E, float)[e]})


def test_load_p_values_are_uniform_under_the_asked_for_shares():
    """Without the test's own size right, one campaign in a few would fail by chance."""
    rng = np.random.default_rng(0)
    share_E = np.r_[0.3, np.full(63, 0.7 / 63)]
    p = [load_p_value(routing_table(rng.multinomial(2000, share_E, size=2), 2000 * share_E)) for _ in range(400)]
    assert 0.02 < np.mean(np.array(p) < 0.05) < 0.08 and np.mean(np.array(p) < 0.5) == pytest.approx(0.5, abs=0.08)


def test_load_p_value_of_exact_and_impossible_loads():
    assert load_p_value(routing_table(np.full((3, 8), 5), np.full(8, 5.0))) == 1
    assert load_p_value(routing_table(np.array([[4, 4, 2]]), [5.0, 5.0, 0.0])) < 1e-6
    assert load_p_value(routing_table(np.array([[5, 5, 0]]), [5.0, 5.0, 0.0])) == 1
    assert load_p_value(routing_table(np.array([[5, 5]]), [5.0, 6.0])) == 0
    assert load_p_value(routing_table(np.array([[5, 5]]), [np.nan, np.nan])) is None


def test_ranks_that_draw_the_same_routes_are_found():
    """Four copies of one draw scatter twice as much as four draws."""
    share_E, rng = np.full(64, 1 / 64), np.random.default_rng(3)
    once = rng.multinomial(3000, share_E, size=5)
    assert load_p_value(routing_table(np.repeat(once, 4, axis=0), 3000 * share_E)) < 1e-6


def test_holm():
    """0.01 x 3, 0.02 x 2, 0.9 x 1; a later one is never below an earlier one."""
    assert holm([0.9, 0.01, 0.02]) == pytest.approx([0.9, 0.03, 0.04])
    assert holm([0.5, 0.4]) == pytest.approx([0.8, 0.8]) and len(holm([])) == 0


def test_routing_that_is_not_what_was_asked_for(tmp_path):
    """All tokens of one expert go to its neighbour in a layer of one rank."""
    folder = write_fig3(tmp_path / "fig3", **OPTIONS)
    path = folder / "cells" / CELL / "routing.parquet"
    routing = pd.read_parquet(path)
    here = (routing["layer"] == 1) & (routing["rank"] == 2)
    moved = routing["tokens"].where(~(here & (routing["expert"] == 5)), 0)
    moved += (here & (routing["expert"] == 6)) * routing["tokens"].shift(1, fill_value=0)
    campaign = load_campaign(folder)
    summary = summarise(campaign)
    routing.assign(tokens=moved).to_parquet(path)
    # As if it had been written so.
    campaign.runs[CELL]["checksums"]["routing.parquet"] = "another"
    findings = judge(campaign, summary)
    assert set(findings[(findings["check"] == "V16") & (findings["verdict"] == "fail")]["cell"]) == {CELL}


def test_no_pairs_no_floor(tmp_path):
    findings = judge(load_campaign(write_fig3(tmp_path / "fig3", twins=False, **OPTIONS)))
    assert by_check(findings)["V12"] == "warn"


def test_a_wide_floor_is_said(tmp_path):
    slow = {f"moeshard_num_experts_64_{i}_twin": {"values": {"ttft_ms": 200.0, "layer_moe_ms": 15.0}} for i in (0, 1)}
    findings = judge(load_campaign(write_fig3(tmp_path / "fig3", **OPTIONS, **slow)))
    assert by_check(findings)["V12"] == "warn"


def test_campaign_in_which_nothing_ran(tmp_path):
    cells = {f"{s}_num_experts_8_0": None for s in ("deepspeed", "moeshard")}
    options = {"experts": (8,), "batches": (), "launches": 1, "twins": False}
    findings = judge(load_campaign(write_fig3(tmp_path / "fig3", **options, **cells)))
    assert by_check(findings)["V24"] == "fail"
    assert set(by_check(findings).drop("V24")) == {"not applicable"}
