"""Maps: winners, margins, borders, where practice lies, and a campaign with a panel of two axes."""

import json

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.image import imread
from rich.console import Console

from analysis.findings import find
from analysis.labels import place_text
from analysis.load import coverage, load_campaign
from analysis.panels import draw_panel, panel_table
from analysis.report import render
from analysis.stats import Floor
from analysis.studies.maps.borders import ALWAYS, CROSSES, NOT_MEASURED, SEVERAL, UNCLEAR, borders, rivals, zeros
from analysis.studies.maps.figure import plot_map, position
from analysis.studies.maps.practice import (
    LEARNED,
    SPREAD,
    SYNTHETIC,
    known_loads,
    loads_sentence,
    paper_imbalance,
    rank_imbalance,
)
from analysis.studies.maps.winners import ALONE, TIE, WINS, map_frames, winners
from analysis.studies.maps.words import border_sentence, border_text, map_rows
from tests.analysis.synthetic import document, point, write_cell, write_plan

XS, BATCHES = (1.0, 1.5, 2.0, 3.0), (5, 25)
JITTER = np.exp([-0.01, 0.0, 0.01])  # of three launches


def curve(system, times, y=1, jitter=JITTER, xs=XS):
    """A system's frame: at each x a time, times the jitter of each launch."""
    rows = [(x, y, system, launch, ms * j) for x, ms in zip(xs, times, strict=True) for launch, j in enumerate(jitter)]
    return pd.DataFrame(rows, columns=["x", "y", "system", "launch", "value"]).assign(source="emulated")


def frame_of(*curves):
    return pd.concat(curves, ignore_index=True)


def test_the_fastest_wins_by_the_second_s_time_over_its_own():
    frame = frame_of(
        curve("a", (1, 1, 1, 1)), curve("b", (2, 3, 1.2, 0.5), jitter=JITTER[::-1]), curve("c", (9, 9, 9, 9))
    )
    won = winners(frame).set_index("x")
    assert won["winner"].tolist() == ["a", "a", "a", "b"] and won["second"].tolist() == ["b", "b", "b", "a"]
    assert won["margin"].tolist() == pytest.approx([2, 3, 1.2, 2])
    # Log ratios of the launches: log 2 + (0.02, 0, -0.02); t(0.975, 2) = 4.303.
    half = 4.30265 * 0.02 / np.sqrt(3)
    assert won.loc[1.0, ["low", "high"]].tolist() == pytest.approx([2 * np.exp(-half), 2 * np.exp(half)], rel=1e-4)
    assert set(won["verdict"]) == {WINS}


def test_a_margin_that_noise_could_explain_is_a_tie():
    frame = frame_of(curve("a", (1, 1, 1, 1)), curve("b", (1.0, 1.03, 1.2, 2), jitter=JITTER[::-1]))
    assert winners(frame)["verdict"].tolist() == [TIE, TIE, WINS, WINS]  # 1.03: the interval reaches below 1
    assert winners(frame, Floor(0.3, 9))["verdict"].tolist() == [TIE, TIE, TIE, WINS]
    single = frame.loc[frame["launch"] == 0]
    assert set(winners(single)["verdict"]) == {TIE}  # one launch says nothing of another one


def test_a_system_alone_at_a_point_has_no_margin():
    frame = frame_of(curve("a", (1, 1, 1, 1)), curve("b", (2, 2), xs=XS[:2]))
    won = winners(frame).set_index("x")
    assert won.loc[3.0, "verdict"] == ALONE and won.loc[3.0, "without"] == ["b"] and np.isnan(won.loc[3.0, "margin"])
    assert won.loc[1.0, "without"] == []


@given(
    st.lists(st.floats(-3, 3).filter(lambda v: abs(v) > 0.01), min_size=2, max_size=8),
    st.booleans(),
    st.integers(0, 99),
)
def test_zeros_are_where_the_sign_changes(values, in_log, seed):
    logs_X = np.array(values)
    xs = np.cumsum(np.random.default_rng(seed).uniform(0.1, 3, len(values)))
    found = zeros(xs, logs_X, in_log)
    assert len(found) == np.count_nonzero(np.diff(np.sign(logs_X)))
    scale = np.log if in_log else np.asarray
    assert np.interp(scale(np.array(found)), scale(xs), logs_X) == pytest.approx(np.zeros(len(found)), abs=1e-9)


def test_a_border_by_hand():
    """log(a / b) goes from -log 2 at 1.5 to log 2 at 2: the border is half way, launches scatter around it."""
    frame = frame_of(curve("a", (1, 1, 2, 4)), curve("b", (2, 2, 1, 1), jitter=JITTER[::-1]))
    row = borders(frame, ("a", "b")).iloc[0]
    assert row["state"] == CROSSES and row["crossing"] == pytest.approx(1.75)
    assert (row["below"], row["above"]) == ("a", "b") and (row["told_below"], row["told_above"]) == (2, 2)
    each = [1.5 + 0.5 * (np.log(2) - shift) / (2 * np.log(2)) for shift in (-0.02, 0, 0.02)]
    half = 4.30265 * np.std(np.log(each), ddof=1) / np.sqrt(3)
    assert [row["low"], row["high"]] == pytest.approx([1.75 * np.exp(-half), 1.75 * np.exp(half)], rel=1e-4)
    assert border_text(row.to_dict()).startswith("b from 1.75 [1.73, 1.77]")


def test_an_axis_of_factors_is_interpolated_in_its_logarithm():
    frame = frame_of(curve("a", (1, 2), xs=(8, 128)), curve("b", (2, 1), jitter=JITTER[::-1], xs=(8, 128)))
    assert borders(frame, ("a", "b")).iloc[0]["crossing"] == pytest.approx(32)
    assert position([8, 128], 32) == pytest.approx(0.5) and position([1.0, 2.0], 1.5) == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("times_b", "state", "text"),
    [
        ((2, 2, 2, 2), ALWAYS, "a everywhere"),
        ((1, 1.001, 0.999, 0.999), UNCLEAR, "not told apart"),
        ((2, 0.5, 2, 2), SEVERAL, "no single border (ratio of 1 at 1.25, 1.75)"),
        ((1.001, 1.001, 0.999, 0.5), CROSSES, "b from"),
    ],
)
def test_states_of_a_border(times_b, state, text):
    frame = frame_of(curve("a", (1, 1, 1, 1)), curve("b", times_b, jitter=JITTER[::-1]))
    row = borders(frame, ("a", "b")).iloc[0]
    assert row["state"] == state and border_text(row.to_dict()).startswith(text)


def test_a_border_with_nothing_told_apart_on_one_side_says_so():
    frame = frame_of(curve("a", (1, 1, 1, 1)), curve("b", (1.001, 1.001, 0.5, 0.5), jitter=JITTER[::-1]))
    assert border_text(borders(frame, ("a", "b")).iloc[0].to_dict()).endswith("(below it not told apart)")


def test_launches_without_a_crossing_leave_the_border_without_an_interval():
    wild = np.exp([-0.8, 0.0, 0.8])
    row = borders(frame_of(curve("a", (1, 1, 1, 9), jitter=wild), curve("b", (1.5, 1.5, 1.5, 1.5))), ("a", "b")).iloc[0]
    assert row["crossing_launches"] == 2 and np.isnan(row["low"]) and not np.isnan(row["crossing"])


def test_borders_need_two_points_numbers_and_a_pair():
    one = frame_of(curve("a", (1,), xs=(1,)), curve("b", (2,), xs=(1,)))
    assert borders(one, ("a", "b"))["state"].tolist() == [NOT_MEASURED]
    assert borders(one.assign(x="nvlink"), ("a", "b")).empty and borders(curve("a", (1, 1, 1, 1))).empty
    assert border_sentence(borders(curve("a", (1, 1, 1, 1))), "imbalance", "batch_size") == ""


def test_rivals_are_ep_and_moeshard_or_the_two_that_win_most():
    three = frame_of(curve("a", (1, 1, 1, 9)), curve("b", (2, 2, 2, 1)), curve("c", (5, 5, 5, 5)))
    assert set(rivals(three) or ()) == {"a", "b"} and rivals(curve("a", (1, 1, 1, 1))) is None
    known = frame_of(three, curve("moeshard", (9, 9, 9, 9)), curve("ep", (9, 9, 9, 9)))
    assert rivals(known) == ("ep", "moeshard")


def test_the_sentence_names_every_row():
    pair = [(curve("ep", (1, 1, 2, 4), y), curve("moeshard", (2, 2, 1, 1), y, JITTER[::-1])) for y in (1, 25)]
    text = border_sentence(borders(frame_of(*(c for both in pair for c in both))), "imbalance", "batch_size")
    assert text.startswith("EP or MoEShard, by ") and text.count("MoEShard from 1.75 [1.73, 1.77] at ") == 2
    assert text.endswith(" at 25.")


@given(st.integers(0, 999), st.sampled_from([1, 2, 4]), st.integers(1, 6))
def test_imbalance_of_ranks_is_between_1_and_their_number(seed, ranks, per_rank):
    tokens_ILE = np.random.default_rng(seed).integers(0, 50, (3, 2, ranks * per_rank)) + (
        np.arange(ranks * per_rank) == 0
    )
    for found_L in rank_imbalance(tokens_ILE, ranks).values():
        assert found_L.shape == (2,) and (found_L >= 1 - 1e-9).all() and (found_L <= ranks + 1e-9).all()


def test_imbalance_of_ranks_by_hand():
    found = rank_imbalance(np.array([[[3, 3, 1, 1]]]), 2)
    assert found[LEARNED] == pytest.approx([1.5]) and found[SPREAD] == pytest.approx([1.0])
    assert paper_imbalance(128, 4) == pytest.approx(3.66, abs=0.005)


# A campaign with one map: EP's layer grows with the imbalance, MoEShard's does not; they are equal at `border`.
BORDER, MAP_XS = {5: 2.5, 25: 1.75}, (1.0, 1.5, 3.0)


def write_map(folder, unsupported=()):
    points = []
    for y in BATCHES:
        for x in MAP_XS:
            cells = []
            for launch in range(3):
                for system, twin in [("ep", False), ("moeshard", False), ("moeshard", True)]:
                    cell = f"{system}_{x:g}_{y}_{launch}" + ("_twin" if twin else "")
                    ms = 10 * np.exp(x - BORDER[y]) if system == "ep" else 10.0
                    ms *= np.exp((launch - 1) * (0.01 if system == "ep" else -0.01)) * (1.01 if twin else 1)
                    spec = {"system": system, "point": point(batch_size=y), "launch": launch, "twin": twin}
                    spec |= {"values": {"ttft_ms": 40.0 + 2 * ms, "layer_moe_ms": ms}, "noise": 0.0, "iterations": 2}
                    config = document(cell, spec)["config"]
                    spec["config"] = config | {"scale": {"name": "laptop", "batch_divisor": 10}}
                    if (system, x, y) in unsupported:
                        spec |= {"state": "unsupported", "reason": "too few experts"}
                    write_cell(folder, cell, spec)
                    cells.append(cell)
            points.append({"x": x, "y": y, "published_x": None, "cells": cells})
    panel = {"name": "map", "title": "A map", "kind": "map", "x_name": "imbalance", "y_name": "batch_size"}
    write_plan(folder, [panel | {"points": points}], baseline="ep")
    return folder


@pytest.fixture(scope="module")
def findings(tmp_path_factory):
    return find(write_map(tmp_path_factory.mktemp("maps") / "crossover", unsupported={("ep", 1.0, 25)}))


def panel_of(findings):
    return findings.campaign.plan["panels"][0]


def test_a_stored_map_gives_back_its_borders(findings):
    """Between 1.5 and 3 log(EP / MoEShard) is linear in x, as written; twins are not a third system."""
    frame = map_frames(findings.campaign, panel_of(findings))["layer_moe_ms"]
    assert set(frame["system"]) == {"ep", "moeshard"} and len(frame) == 2 * 3 * 6 - 3
    found = borders(frame, floor=findings.floor["layer_moe_ms"]).set_index("y")
    assert found.loc[5, "crossing"] == pytest.approx(BORDER[5]) and found.loc[25, "crossing"] == pytest.approx(
        BORDER[25]
    )
    won = winners(frame).set_index(["x", "y"])
    assert won.loc[(1.0, 25), "verdict"] == ALONE and won.loc[(1.0, 5), "margin"] == pytest.approx(np.exp(1.5))


def test_every_point_of_a_map_counts_in_summary_coverage_and_floor(findings):
    mine = findings.summary.query("metric == 'layer_moe_ms' and system == 'moeshard'")
    assert sorted(zip(mine["x"], mine["y"], strict=True)) == sorted((x, y) for x in MAP_XS for y in BATCHES)
    assert set(findings.summary["y_name"]) == {"batch_size"}
    cells = coverage(findings.campaign)
    assert set(cells["y"]) == set(BATCHES) and len(cells) == 6 * 9
    assert findings.floor["layer_moe_ms"].n_pairs == 6


def test_a_plan_of_one_axis_has_no_y(fig3):
    campaign = load_campaign(fig3())
    assert set(coverage(campaign)["y"]) == set(coverage(campaign)["y_name"]) == {None}


def test_the_figures_say_who_wins_and_where_practice_lies(findings):
    pictures = draw_panel(findings, panel_of(findings))
    assert [picture.png.name for picture in pictures] == ["map.png", "map_ttft.png"]
    assert "MoEShard from 2.50 [" in pictures[0].note and "only" not in pictures[0].note
    assert "EP at imbalance 1, batch 25 (unsupported)" in pictures[0].note
    for picture in pictures:
        image = imread(picture.png)
        assert image.shape[1] == 1000 and image[..., :3].std() > 0.05
    svg = pictures[0].svg.read_text()
    assert "EP wins" in svg and "border EP | MoEShard" in svg and "real loads, contiguous" in svg and "no EP" in svg


def test_practice_is_marked_where_the_scale_puts_it(findings):
    loads = known_loads(findings.campaign, panel_of(findings))
    assert set(loads["group"]) == {LEARNED, SPREAD, SYNTHETIC} and set(loads["y"]) == {25.0}
    learned = loads.loc[loads["group"] == LEARNED]
    assert len(learned) == 6 and 1 < learned["x"].min() < 1.2 < 1.5 < learned["x"].max() < 1.65
    assert loads_sentence(loads).endswith("3.66.") and loads_sentence(loads.iloc[:0]) == ""
    assert known_loads(findings.campaign, panel_of(findings) | {"x_name": "num_experts"}).empty


def test_the_table_has_a_row_a_y_and_metric_and_its_border(findings):
    table = panel_table(findings, panel_of(findings))
    assert list(table.shown) == ["time of", "batch", "1", "1.5", "3", "border, imbalance"]
    assert len(table.shown) == 2 * len(BATCHES) and table.shown["border, imbalance"].iloc[0].startswith(
        "MoEShard from 2.50"
    )
    assert table.shown.loc[1, "1"] == "only MoEShard" and table.shown.loc[0, "1"].startswith("EP 4.48× [")
    assert len(table.raw) == 2 * 6 and {"winner", "margin", "low", "high", "verdict", "metric"} <= set(table.raw)


def test_a_report_with_a_map_renders(findings, capsys):
    render(findings.campaign.folder, Console(width=120))
    assert "MoEShard from 2.50" in capsys.readouterr().out
    assert (findings.campaign.folder / "tables" / "map.csv").exists()


def test_a_map_before_anything_is_measured(tmp_path):
    folder = write_map(tmp_path / "crossover")
    plan = json.loads((folder / "plan.json").read_text())
    for path in folder.glob("cells/*"):
        path.rename(tmp_path / path.name)
    empty = find(folder)
    assert draw_panel(empty, plan["panels"][0]) == [] and panel_table(empty, plan["panels"][0]).shown.empty


def test_a_map_of_names_is_drawn_without_a_border(tmp_path):
    frame = frame_of(curve("ep", (1, 2, 3, 4)), curve("moeshard", (4, 3, 2, 1)))
    names = dict(zip(XS, ("none", "nvlink3", "pcie4", "ib_hdr"), strict=True))
    frame["x"] = [names[x] for x in frame["x"]]
    picture = plot_map(frame, tmp_path / "names", title="t", x_name="network", y_name="world_size")
    svg = picture.svg.read_text()
    assert "pcie4" in svg and "border" not in svg
    assert svg.index(">none<") < svg.index(">nvlink3<") < svg.index(">ib_hdr<")


def test_points_without_y_stand_above_and_all_have_names(tmp_path):
    frame = frame_of(curve("ep", (1, 2, 3, 4)), curve("moeshard", (4, 3, 2, 1)))
    rows = [(1.2, np.nan, "machines", "one"), (2.5, np.nan, "machines", "two"), (9.0, np.nan, "machines", "outside")]
    marks = pd.DataFrame(rows, columns=["x", "y", "group", "label"])
    plain = plot_map(frame, tmp_path / "a", title="t", x_name="flop_per_byte", y_name="world_size")
    marked = plot_map(frame, tmp_path / "b", title="t", x_name="flop_per_byte", y_name="world_size", points=marks)
    svg = marked.svg.read_text()
    assert ">one<" in svg and ">two<" in svg and "outside" not in svg
    assert imread(marked.png).shape[0] > imread(plain.png).shape[0]


def test_mixed_sources_are_refused(tmp_path):
    frame = frame_of(curve("ep", (1, 2, 3, 4)), curve("moeshard", (4, 3, 2, 1)).assign(source="simulated"))
    with pytest.raises(ValueError, match="cannot mix source emulated, simulated"):
        plot_map(frame, tmp_path / "mixed", title="t", x_name="imbalance", y_name="batch_size")


def test_a_place_in_words():
    assert place_text({"x_name": "num_experts", "x": 64, "y_name": None, "y": None}) == "experts 64"
    row = {"x_name": "num_experts", "x": 64.0, "y_name": "batch_size", "y": 25.0}
    assert place_text(row) == "experts 64, batch 25"


def test_rows_of_a_map_are_in_order():
    frame = frame_of(*(curve(s, (1, 1, 1, 1), y) for y in (25, 5) for s in ("a", "b")))
    assert map_rows(frame, None)["y"].tolist() == [5, 25]
