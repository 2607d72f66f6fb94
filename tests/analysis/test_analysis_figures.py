import json
import re

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.image import imread

from analysis.figures.canvas import new_figure, save, shown_range, spread
from analysis.figures.expert_load import Recorded, expert_tokens, load_statistics, load_text, plot_load
from analysis.figures.sections import present, section_times
from analysis.figures.speedup import plot_speedup, tick_label
from analysis.figures.timeline import plot_timeline, timeline
from analysis.findings import find, floor_sentence
from analysis.frames import select
from analysis.labels import VERMILLION, number, system_styles, times, tone, with_interval, within_floor, x_text
from analysis.panels import draw_panel
from analysis.stats import Floor
from analysis.studies.paper.study import learned_loads
from analysis.tables import slug
from tests.analysis.synthetic import write_fig3


def with_panels(folder, *kinds: str):
    """Adds panels of other kinds on the first point of the first panel."""
    plan = json.loads((folder / "plan.json").read_text())
    first = plan["panels"][0]
    for kind in kinds:
        changes = {"name": kind, "kind": kind, "title": kind, "published": [], "points": first["points"][:1]}
        plan["panels"].append(first | changes)
    (folder / "plan.json").write_text(json.dumps(plan))
    return folder


@pytest.fixture(scope="module")
def findings(tmp_path_factory):
    folder = write_fig3(tmp_path_factory.mktemp("figures") / "fig3", experts=(8, 64), batches=())
    return find(with_panels(folder, "load", "layers", "sections", "league"))


def texts(svg: str) -> set[str]:
    return set(re.findall(r"<text[^>]*>([^<]*)</text>", svg))


# Panel -> some of what stands at its axes, bars and curves.
DRAWN = {
    "fig3a": {"8", "64", "number of experts", "One MoE layer", "speed-up over DeepSpeed, log scale", "MoEShard"},
    "load": {"First MoE layer (block 1)", "Last MoE layer (block 3)", "expert", "0 experts without a token"},
    "layers": {"1", "3", "MoE layer (encoder block)", "DeepSpeed", "MoEShard", "ms"},
    "sections": {"route", "metadata", "dispatch", "experts", "combine", "DeepSpeed", "MoEShard"},
    "league": {"30.0", "60.0", "forward pass, ms", "one MoE layer, ms", "DeepSpeed", "MoEShard"},
}


@pytest.mark.parametrize("name", DRAWN)
def test_every_kind_of_panel_gets_a_png_and_an_svg(findings, name):
    (panel,) = [panel for panel in findings.campaign.plan["panels"] if panel["name"] == name]
    (picture,) = draw_panel(findings, panel)
    assert imread(picture.png).shape[1] == 1000
    svg = picture.svg.read_text()
    assert texts(svg) >= DRAWN[name]
    assert "emulated" in svg and "not for claims" in svg and panel["title"] in svg


def test_drawing_again_gives_the_same_bytes(findings):
    panel = findings.campaign.plan["panels"][-1]
    (picture,) = draw_panel(findings, panel)
    before = picture.png.read_bytes(), picture.svg.read_bytes()
    draw_panel(findings, panel)
    assert (picture.png.read_bytes(), picture.svg.read_bytes()) == before


def test_unknown_kind_of_panel_is_named(findings):
    with pytest.raises(ValueError, match=r"panel fig9 has kind \(pie\); allowed are attribution, counterfactual"):
        draw_panel(findings, {"name": "fig9", "kind": "pie"})


def test_points_inside_the_floor_are_grey(findings, tmp_path):
    """MoEShard's TTFT at 8 experts equals DeepSpeed's, its layer is twice as fast."""
    panel = findings.campaign.plan["panels"][0]
    pictures = {}
    for name, floors in (("none", {}), ("some", {"speedup_ttft": Floor(0.05, 2)})):
        arguments = findings.summary, panel, [], tmp_path / name
        pictures[name] = plot_speedup(*arguments, baseline="deepspeed", floors=floors).svg.read_text()
    assert "#b0b0b0" in pictures["some"] and "#b0b0b0" not in pictures["none"]
    assert "#d9d9d9" in pictures["some"] and "#d9d9d9" not in pictures["none"]


def test_published_points_only_where_the_panel_names_figures(findings):
    panel = findings.campaign.plan["panels"][0]
    with_them = draw_panel(findings, panel)[0].svg.read_text()
    without = draw_panel(findings, panel | {"published": []})[0].svg.read_text()
    assert "published, 4×A100" in with_them and "4×A100" not in without


def test_a_name_is_text_in_a_figure_and_safe_in_a_path(tmp_path):
    picture = save(new_figure(2.0), "<script>alert(1)</script> costs $5 and $6", "", tmp_path / "a")
    svg = picture.svg.read_text()
    assert "<script" not in svg and "&lt;script&gt;" in svg and "$5 and $6" in svg
    assert slug("../a b/<c>") == "-a-b-c-" and slug("fig3a_0.6") == "fig3a_0.6" and slug("..") == "panel"


def test_expert_tokens_are_summed_over_ranks_and_missing_experts_have_none():
    rows = [(1, 0, 0, 0, 5), (1, 0, 1, 0, 7), (1, 0, 1, 2, 4), (1, 1, 0, 2, 3), (3, 0, 0, 1, 9)]
    routing = pd.DataFrame(rows, columns=["layer", "iteration", "rank", "expert", "tokens"])
    tokens = expert_tokens(routing, 4)
    assert tokens[1].tolist() == [[12, 0, 4, 0], [0, 0, 3, 0]] and tokens[3].tolist() == [[0, 9, 0, 0]]


def test_load_statistics_by_hand():
    of = load_statistics(np.array([[12.0, 0, 4, 0], [4, 4, 4, 4]]))
    assert of["busiest"].tolist() == [12, 4] and of["busiest_to_mean"].tolist() == [3, 1]
    assert of["empty"].tolist() == [2, 0]
    # Sorted 0 0 4 12: weights -3 -1 1 3 give 40 of 4 * 16.
    assert of["gini"] == pytest.approx([40 / 64, 0])
    text = load_text(np.array([[12.0, 0, 4, 0], [4, 4, 4, 4]]))
    assert text.splitlines()[1] == "1 [0, 2] experts without a token"


@given(st.lists(st.lists(st.integers(0, 50), min_size=3, max_size=3), min_size=1, max_size=5))
def test_load_statistics_stay_in_their_ranges(tokens):
    tokens_IE = np.array(tokens, dtype=float) + np.eye(3)[0]  # no iteration without a token
    of = load_statistics(tokens_IE)
    assert (of["gini"] >= -1e-12).all() and (of["gini"] <= 2 / 3 + 1e-12).all()
    assert (of["busiest_to_mean"] >= 1 - 1e-12).all() and (of["busiest_to_mean"] <= 3 + 1e-12).all()


def test_loads_of_the_papers_router_are_those_that_were_recorded():
    found = learned_loads(128)
    assert found is not None and {loads_IE.shape[1] for loads_IE in found.loads.values()} == {128}
    assert learned_loads(7) is None


def test_load_of_one_layer_and_of_many_experts_can_be_drawn(tmp_path):
    tokens = {1: np.ones((2, 256))}
    picture = plot_load(tokens, tmp_path / "one", title="t", recorded=Recorded("real", "", {1: np.ones((1, 256))}))
    drawn = texts(picture.svg.read_text())
    assert drawn >= {"First MoE layer (block 1)", "busiest 1 tokens (1.0× the mean)", "Gini 0.00", "250"}
    assert not [text for text in drawn if text.startswith("Last MoE layer")]


def test_section_times_are_medians_by_rank(findings):
    """The fixture's MoEShard at 8 experts: 30 ms a layer on rank 3, 0.4 of it on rank 0, half of it in experts."""
    cells = findings.campaign.plan["panels"][0]["points"][0]["cells"]
    mine = select(section_times(findings.campaign, cells), system="moeshard").set_index(["rank", "section"])["value"]
    assert mine[3, "total"] == pytest.approx(30, rel=0.01) and mine[0, "experts"] == pytest.approx(6, rel=0.01)
    assert mine[0, "entry_skew"] == pytest.approx(0.6) and mine[3, "entry_skew"] == pytest.approx(0)
    assert len(mine) == 4 * 7


def test_sections_stand_in_the_order_in_which_they_run():
    rows = pd.DataFrame({"section": ["combine", "mine", "entry_skew", "route", "experts", "total"]})
    assert present(rows) == ["route", "experts", "combine", "mine"]


def test_timeline_of_one_iteration(findings):
    cell = "moeshard_num_experts_8_0"
    segments = select(timeline(findings.campaign.frames[cell], 2), layer=1, rank=3).set_index("section")
    share = (segments["value"] / segments.loc["experts", "value"]).drop("entry_skew")
    assert share.to_dict() == pytest.approx(
        {"route": 0.1, "metadata": 0.1, "dispatch": 0.4, "experts": 1, "combine": 0.4}
    )
    assert segments.loc["experts", "start"] == pytest.approx(0.6 * segments.loc["experts", "value"])
    waits = select(timeline(findings.campaign.frames[cell], 2), layer=1, rank=0, section="entry_skew")
    assert waits["start"].item() == pytest.approx(-0.6)
    assert len(plot_timeline(findings.campaign, cell, 2).axes) == 2
    with pytest.raises(ValueError, match=r"iteration \(99\) is not among the instrumented ones: \[0, 1, 2, 3, 4\]"):
        timeline(findings.campaign.frames[cell], 99)


def test_axis_shows_all_values_and_a_bit_of_their_intervals():
    rows = pd.DataFrame({"value": [2.0, 8.0], "ci_low": [1.9, 0.01], "ci_high": [2.1, 900.0]})
    assert shown_range(rows) == pytest.approx((2 / 1.5, 8 * 1.5))
    assert shown_range(rows.assign(ci_low=np.nan, ci_high=np.nan)) == (2, 8)
    assert shown_range(rows.iloc[:1]) == (1.9, 2.1) and shown_range(rows.iloc[:0]) == (1, 1)


def test_labels_are_moved_apart_about_their_mean():
    assert spread([10, 0, 1], gap=4) == pytest.approx([9, -1, 3])
    assert spread([0.0, 100.0], gap=4) == [0, 100]
    assert spread([5, 5], gap=2) == [4, 6]
    assert spread([], gap=4) == []


def test_each_system_keeps_its_look():
    alone, together = system_styles(["moeshard"]), system_styles(["deepspeed", "moeshard", "a", "b", "c", "d", "e"])
    assert alone["moeshard"] == together["moeshard"] == (VERMILLION, "o")
    assert len(set(together.values())) == 7


def test_number_formats():
    assert [times(0.271), times(12.34), number(1130.9), number(56.84)] == ["0.27×", "12.3×", "1131", "56.8"]
    assert [number(9.051), number(0), number(float("nan"))] == ["9.05", "0", "–"]
    assert with_interval(2.0, 1.9, 2.1, times) == "2.00× [1.90, 2.10]"
    assert with_interval(2.0, float("nan"), float("nan")) == "2.00"
    assert [x_text("skewed_share", 0.1), x_text("alpha", 0.6), x_text("num_experts", 128)] == ["10 %", "0.6", "128"]
    assert tick_label("batch_size", {"x": 25, "published_x": 250}) == "25\n(paper: 250)"


def test_what_the_floor_can_explain():
    floor = Floor(0.05, 4)
    assert within_floor(0.98, 1.2, floor) and within_floor(0.96, 1.2, floor) and not within_floor(1.06, 1.2, floor)
    assert within_floor(0.7, 0.96, floor) and not within_floor(0.7, 0.94, floor)
    assert not within_floor(0.98, 1.2, None)
    assert floor_sentence({"ttft_ms": floor}).startswith("Noise floor of 4 A/A pairs: TTFT ±5.0 %")
    assert "unknown" in floor_sentence({})


def test_tone_is_the_worst_word():
    assert [tone("2 ok"), tone("1 ok, 1 oom"), tone("2 ok, output not verified")] == ["good", "bad", "warn"]
    assert [tone("reproduced"), tone("reproduced, not for claims"), tone("not reproduced, not for claims")] == [
        *["good", "dim", "bad"]
    ]
    assert [tone("~1.00×"), tone("MoEShard"), tone("")] == ["dim", "", ""]
