"""Accounts whose parts are known by hand, a ladder written as a campaign, and what is said of it.

The hand-worked layer of two ranks, in ms: rank 0 computes 2, waits 1 for rank 1, moves data for 3, computes 1; rank 1
computes 3, moves data for 3, computes 2.
"""

import json

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from analysis.findings import find
from analysis.frames import select
from analysis.load import load_campaign
from analysis.studies.attribution.account import (
    PARTS,
    RESIDUAL,
    TOTAL,
    exposures,
    intervals,
    parts,
    split,
    useful_share,
)
from analysis.studies.attribution.ladder import LADDER, Rung, absent_rungs, attribute, merged
from analysis.studies.attribution.study import Attribution
from analysis.studies.attribution.words import UNSEPARATED, attribution_table, in_words
from tests.analysis.synthetic import LAYERS, RANK_G, WORLD_SIZE, checksum, point, write_cell, write_plan

LAYER_ILG = np.array([[[7.0, 8.0]]])
# TTFT and layer time of the slowest rank, useful rows of 10 computed.
RUNGS = {
    "deepspeed": (400.0, 150.0, 1.0),
    "deepspeed_lossless": (250.0, 90.0, 2.0),
    "deepspeed_dropless": (180.0, 60.0, 5.0),
    "ep": (100.0, 30.0, 10.0),
    "ep_round_robin": (80.0, 20.0, 10.0),
    "moeshard_published": (120.0, 40.0, 10.0),
    "moeshard_no_megablocks": (90.0, 25.0, 10.0),
    "moeshard": (85.0, 22.0, 10.0),
}


def seen(rank: int, waited: float, started: float, finished: float, section: str = "dispatch") -> dict:
    times = {"waited_ms": waited, "started_ms": started, "finished_ms": finished}
    return {"iteration": 4, "layer": 1, "rank": rank, "section": section} | times


def waits_of(*rows: dict) -> dict[str, np.ndarray]:
    places = pd.DataFrame({"iteration": [4, 4], "layer": [1, 1], "rank": [0, 1]})
    return exposures(pd.DataFrame(rows), places, LAYER_ILG)


def test_a_layer_worked_by_hand():
    waits = waits_of(seen(0, 2, 3, 6), seen(1, 3, 3, 6))
    assert waits["exposed"].tolist() == [[[4, 3]]] and waits["transfer"].tolist() == [[[3, 3]]]
    found = parts(LAYER_ILG, np.array([[[1.0, 2.0]]]), waits, np.array([[0.5, 1.0]]))
    # own: 3 and 5; the slowest rank's 8 are a mean of 4, 3 of transfer and 1 that only the slowest has.
    assert {name: value.item() for name, value in found.items()} == {
        "padding": 0.25,
        "experts": 1.25,
        "host": 2.5,
        "kernels": 0.0,
        "communication": 3.0,
        "imbalance": 1.0,
        "weights": 0.0,
        "waiting": 0.0,
    }


def test_waiting_for_the_host_is_neither_experts_nor_other_kernels():
    """Rank 0's device waits 1 ms for its host, half of that inside experts; rank 1's 2 ms, all outside."""
    waits = waits_of(seen(0, 2, 3, 6), seen(1, 3, 3, 6))
    waits |= {"idle": np.array([[[1.0, 2.0]]]), "idle_in_experts": np.array([[[0.5, 0.0]]])}
    found = parts(LAYER_ILG, np.array([[[1.0, 2.0]]]), waits, np.array([[0.5, 1.0]]))
    assert {name: found[name].item() for name in ("padding", "experts", "host", "kernels")} == {
        "padding": 0.125,
        "experts": 1.125,
        "host": 1.5,
        "kernels": 1.25,
    }


def test_hidden_transfers_are_not_exposed():
    """Waited for while it moves; after it has finished; never; before the layer (its start is what counts)."""
    waits = waits_of(seen(0, 5, 3, 6), seen(0, 7, 1, 6), seen(0, np.nan, 1, 6), seen(1, -2, -1, 2))
    assert waits["exposed"].tolist() == [[[1, 2]]] and waits["transfer"].tolist() == [[[1, 2]]]


def test_collectives_inside_experts_are_no_computation_and_weights_are_apart():
    waits = waits_of(seen(0, 2, 3, 6, "experts"), seen(1, 3, 3, 6, "weights"))
    assert waits["in_experts"].tolist() == [[[4, 0]]] and waits["weights"].tolist() == [[[0, 3]]]
    found = parts(LAYER_ILG, np.array([[[5.0, 1.0]]]), waits, np.ones(1))
    assert found["experts"] == 1.0 and found["weights"] == 1.5 and found["communication"] == 1.5


@given(st.integers(0, 2**32), st.integers(1, 4), st.integers(1, 3), st.integers(1, 5), st.booleans())
def test_parts_always_add_up_to_the_slowest_rank(seed, iterations, layers, ranks, simulated):
    draw = np.random.default_rng(seed)
    layer_ILG = 1 + draw.random((iterations, layers, ranks))
    exposed = layer_ILG * draw.random(layer_ILG.shape) / 2
    waits = {"exposed": exposed, "transfer": exposed * draw.random(layer_ILG.shape)}
    if simulated:
        idle = 0.5 * draw.random(layer_ILG.shape)
        waits |= {"idle": idle, "idle_in_experts": idle * draw.random(layer_ILG.shape)}
    experts_ILG = waits.get("idle_in_experts", 0.0) + layer_ILG * draw.random(layer_ILG.shape) / 2
    found = parts(layer_ILG, experts_ILG, waits, draw.random((layers, ranks)))
    np.testing.assert_allclose(sum(found.values()), layer_ILG.max(axis=2).sum(axis=1))
    assert (found["imbalance"] > -1e-9).all() and (found["padding"] > -1e-9).all()


def test_useful_share_where_nothing_was_computed_or_counted():
    counts = {"rows_computed": np.array([[[4.0, 0.0]]]), "rows_useful": np.array([[[1.0, 0.0]]])}
    assert useful_share(counts).tolist() == [[0.25, 1.0]] and useful_share({}).tolist() == [1.0]


def test_intervals_are_linear_even_where_all_values_are_positive():
    found = intervals(pd.DataFrame({"part": [1.0, 4.0, 16.0]}))
    value, low, high = found.loc["part", ["value", "ci_low", "ci_high"]]
    assert value == 7 and high - value == pytest.approx(value - low) == pytest.approx(4.3027 * 4.5826, rel=1e-3)
    assert np.isnan(intervals(pd.DataFrame({"part": [1.0]})).loc["part", "ci_low"])


def collectives(layer_ms: float) -> pd.DataFrame:
    """In every layer and rank a collective that moves data for 20 % of the slowest rank's layer, after waiting 5 %."""
    rows = [
        seen(rank, 0.1 * layer_ms, 0.15 * layer_ms, 0.35 * layer_ms) | {"iteration": iteration, "layer": layer}
        for iteration in range(5)
        for layer in LAYERS
        for rank in range(WORLD_SIZE)
    ]
    return pd.DataFrame(rows)


def write_rung(folder, cell: str, system: str, launch: int, told: bool, **changes) -> None:
    ttft_ms, layer_ms, useful = RUNGS[system]
    slower = 1 + 0.02 * launch
    values = {"ttft_ms": slower * ttft_ms, "layer_moe_ms": slower * layer_ms}
    values |= {"rows_computed": 10.0, "rows_useful": useful, "dropped": 0.0}
    write_cell(folder, cell, {"system": system, "point": point(), "launch": launch, "values": values} | changes)
    path = folder / "cells" / cell
    if told and (path / "samples.parquet").exists():
        collectives(slower * layer_ms).to_parquet(path / "collectives.parquet")
        run = json.loads((path / "run.json").read_text())
        run["checksums"]["collectives.parquet"] = checksum(path / "collectives.parquet")
        (path / "run.json").write_text(json.dumps(run))


def write_ladder(folder, *, told: bool = True, even: str = "balanced", xs=(128,), **changes: dict):
    """The whole ladder in three launches at two points; `changes` of a system's cells, told: collectives stored."""
    panels = []
    for suffix, systems in (("", list(RUNGS)), ("_balanced", ["ep_round_robin"])):
        points = []
        for x in xs:
            names = [(f"{system}{suffix}_{x}_{launch}", system, launch) for system in systems for launch in range(3)]
            for cell, system, launch in names:
                router = {"config": config(even if suffix else "synthetic")}
                spec = router | (changes.get(system + suffix) or {})
                write_rung(folder, cell, system, launch, told, **spec)
            points.append({"x": x, "published_x": None, "cells": [cell for cell, *_ in names]})
        kind = "counterfactual" if suffix else "attribution"
        panel = {"name": f"steps{suffix}", "title": "Attribution" + suffix.replace("_", ", "), "kind": kind}
        panels.append(panel | {"x_name": "num_experts", "points": points})
    write_plan(folder, panels, twin=None)
    return folder


def config(router: str) -> dict:
    tier = {"name": "quick", "launches": 3, "warmup": 1, "rounds": 1, "turn_s": 0, "longest_turn": 5}
    cluster = {"cluster": {"kind": "emulated", "device": "cpu"}, "network": {"name": "nvlink3"}}
    return cluster | {
        "router": {"name": router, "_target_": "x"},
        "tier": tier,
        "scale": {
            "name": "laptop",
        },
    }


@pytest.fixture(scope="module")
def ladder(tmp_path_factory):
    return load_campaign(write_ladder(tmp_path_factory.mktemp("attribution") / "ladder", xs=(64, 128)))


@pytest.fixture(scope="module")
def rows(ladder):
    return attribute(ladder, "steps")


def test_steps_add_up_to_the_whole_and_parts_to_the_total(rows):
    assert len(select(rows, kind="step", part=TOTAL, x=128)) == len(LADDER) - 1
    for part in [*PARTS, TOTAL, RESIDUAL]:
        steps, whole = (select(rows, kind=kind, part=part, x=128)["value"].to_list() for kind in ("step", "whole"))
        assert [sum(steps)] == pytest.approx(whole, abs=1e-9)
    for _, one in rows.groupby(["x", "kind", "step"]):
        of = dict(zip(one["part"], one["value"], strict=True))
        assert sum(of[part] for part in [*PARTS, RESIDUAL]) == pytest.approx(of[TOTAL], abs=1e-9)


def test_known_difference_of_two_systems(ladder):
    """Launches are slower by 0, 2 and 4 %, so every mean is 1.02 times what RUNGS says; two layers a pass."""
    found = split(ladder, "steps", 128, "deepspeed", "ep")
    assert found.loc[TOTAL, "value"] == pytest.approx(1.02 * 300, rel=0.01)
    assert found.loc["communication", "value"] == pytest.approx(1.02 * 2 * 0.2 * (150 - 30), rel=0.01)
    experts = 1.02 * 2 * 0.5 * RANK_G.mean()
    # Of rank g's rows (g + 1 times as many of either kind) a tenth is useful in DeepSpeed, all of them in EP.
    assert found.loc["padding", "value"] == pytest.approx(0.9 * 150 * experts, rel=0.01)
    assert found.loc["experts", "value"] == pytest.approx((0.1 * 150 - 30) * experts, rel=0.01)
    assert found.loc["waiting", "value"] == 0 and set(found["launches"]) == {3}
    assert np.all(np.diff(found[["ci_low", "value", "ci_high"]]) >= 0)


def test_split_names_what_was_not_measured(ladder):
    with pytest.raises(ValueError, match="dense and ep share no verified launch in panel steps at 128"):
        split(ladder, "steps", 128, "dense", "ep")
    with pytest.raises(ValueError, match="no panel fig9; it has steps, steps_balanced"):
        split(ladder, "fig9", 128, "deepspeed", "ep")


def test_without_stored_collectives_communication_and_imbalance_stay_together(tmp_path):
    campaign = load_campaign(write_ladder(tmp_path / "untold", told=False))
    found = split(campaign, "steps", 128, "deepspeed", "ep")
    assert found.loc[["communication", "imbalance"], "value"].tolist() == [0, 0] and found.loc["waiting", "value"] > 0
    assert found.loc[[*PARTS, RESIDUAL], "value"].sum() == pytest.approx(found.loc[TOTAL, "value"])
    assert UNSEPARATED in in_words(campaign, attribute(campaign, "steps"))


def test_rungs_that_failed_or_are_not_balanced_or_unverified_are_left_out(tmp_path):
    wrong = {"correctness": {"relative_error": 1.0, "tolerance": 1e-4, "passed": False}}
    failed = {"state": "failed", "reason": "no memory", "values": {}}
    changes = {"deepspeed_lossless": failed, "moeshard_no_megablocks": wrong}
    campaign = load_campaign(write_ladder(tmp_path / "holes", even="synthetic", **changes))
    missing = [rung.name for rung in absent_rungs(campaign, "steps", 128)]
    assert missing == ["deepspeed_lossless", "ep_round_robin_balanced", "moeshard_no_megablocks"]
    steps = select(attribute(campaign, "steps"), kind="step", part=TOTAL).set_index("below")
    assert steps.loc["deepspeed_dropless", "change"] == "smallest lossless capacity; the busiest expert's capacity"
    assert steps.loc["moeshard_published", "cause"] == "imbalance and sharding"


def test_merged_steps_keep_one_cause_where_it_is_one():
    changes = [rung.change for rung in LADDER]
    assert merged([LADDER[0], LADDER[2]])[1] == Rung("deepspeed_dropless", "padding", "; ".join(changes[1:3]))
    assert merged([LADDER[0], LADDER[3]])[1] == Rung("ep", "padding and padded layout", "; ".join(changes[1:4]))


def test_only_shared_launches_are_compared(tmp_path):
    folder = write_ladder(tmp_path / "partial")
    plan = json.loads((folder / "plan.json").read_text())
    (plan["panels"][0]["points"][0]["cells"]).remove("ep_128_2")
    (folder / "plan.json").write_text(json.dumps(plan))
    assert set(attribute(load_campaign(folder), "steps")["launches"]) == {2}


def test_sentences_say_what_the_table_says(ladder, rows):
    whole, pair = in_words(ladder, rows)
    assert "At E = 128, batch 25, MoEShard's forward pass is 4.71× faster than DeepSpeed's; of the 321 ms" in whole
    assert "padding 70 %, padded layout 25 %, imbalance 6 %, sharding -13 %, implementation 10 %, engine 2 %" in whole
    assert "unexplained" in whole
    assert (
        pair.startswith("Against plain expert parallelism (EP) MoEShard saves 15.3 [") and "communication +3.3" in pair
    )
    assert Attribution(find(ladder.folder)).notes() == [whole, pair]


def test_table_shows_every_step_of_one_point_and_the_sum_of_the_others(ladder, rows):
    table = attribution_table(rows, ladder.plan["panels"][0])
    here = select(table.shown, experts="128")
    last = ["sum of the parts", "share of the difference", "measured difference", "residual"]
    assert here["change"].to_list()[-4:] == last
    assert len(here) == len(LADDER) - 1 + 4 and len(select(table.shown, experts="64")) == 1
    assert {"ci_low", "ci_high", "launches"} <= set(table.raw) and np.isfinite(
        table.raw["ci_low"].to_numpy(dtype=float)
    ).all()


def test_panel_is_drawn_and_its_counterfactual_is_not(ladder):
    findings = find(ladder.folder)
    waterfall, shares = Attribution(findings).figures(ladder.plan["panels"][0])
    svg = waterfall.svg.read_text()
    assert "MoEShard" in svg and "even load" in svg and "not for claims" in svg
    assert "unexplained" in shares.svg.read_text()


def test_a_campaign_that_has_not_run_has_no_attribution(tmp_path):
    panel = {"name": "steps", "title": "t", "kind": "attribution", "x_name": "num_experts"}
    write_plan(tmp_path, [panel | {"points": [{"x": 8, "published_x": None, "cells": ["gone"]}]}])
    campaign = load_campaign(tmp_path)
    rows = attribute(campaign, "steps")
    assert rows.empty and in_words(campaign, rows) == [] and attribution_table(rows, panel).shown.empty
