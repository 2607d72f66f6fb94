import numpy as np
import pytest
from rich.console import Console

from analysis.load import load_campaign
from analysis.studies.paper.__main__ import claims_shown
from analysis.studies.paper.claims import claims_table
from analysis.studies.paper.judges import DIRECTION, FAILED, NOT_MEASURED, REPRODUCED, point_verdict
from analysis.studies.paper.reference import load_reference, published_points, recomputed_layers, recorded_loads
from analysis.studies.paper.verdict import verdict_table
from analysis.summary import summarise


def verdicts_of(folder):
    campaign = load_campaign(folder)
    return verdict_table(summarise(campaign), published_points(campaign.plan, load_reference()))


@pytest.mark.parametrize(
    ("published", "value", "low", "high", "verdict"),
    [
        (4.0, 3.0, 2.5, 4.1, REPRODUCED),  # inside the interval
        (4.0, 3.1, 3.0, 3.2, REPRODUCED),  # within 25 %
        (4.0, 2.9, 2.8, 3.0, DIRECTION),
        (4.0, 2.0, 0.9, 9.0, DIRECTION),  # a wide interval holds anything
        (4.0, 0.9, 0.8, 1.0, FAILED),
        (0.3, 0.9, 0.8, 1.0, DIRECTION),
        (0.3, 1.1, 1.0, 1.2, FAILED),
        (4.0, float("nan"), float("nan"), float("nan"), NOT_MEASURED),
    ],
)
def test_point_verdict(published, value, low, high, verdict):
    assert point_verdict(published, value, low, high) == verdict


def panel(x_name, xs, published):
    points = [{"x": x, "published_x": x} for x in xs]
    return {"name": x_name, "x_name": x_name, "points": points, "published": published}


def test_reference_facts():
    reference = load_reference()
    assert len(reference.figures) == 20 and len(reference.runs) == 27
    panels = [panel("num_experts", [128], ["3a"]), panel("batch_size", [10], ["3b", "4b"])]
    points = published_points({"baseline": "deepspeed", "panels": panels}, reference).set_index(
        ["experiment", "figure"]
    )
    assert list(points.index) == [("num_experts", "3a"), ("batch_size", "3b"), ("batch_size", "4b")]
    assert points.loc[("num_experts", "3a"), "published"] == 4.06
    assert points.loc[("num_experts", "3a"), "recomputed_ttft"] == pytest.approx(1131.99 / 320.9)
    assert points.loc[("batch_size", "4b"), "recomputed_ttft"] == pytest.approx(63.57 / 237.99)


def test_recomputed_layers_are_ratios_of_medians():
    reference = load_reference()
    row = reference.figures.iloc[4].to_dict()
    layers = recomputed_layers(reference.runs, row)
    assert list(layers) == [1, 3, 5, 7, 9, 11] and layers[11] == pytest.approx(177.27 / 40.91)


def test_recorded_loads_are_those_of_a_learned_router():
    tokens_ILE, layers = recorded_loads(load_reference().traces, 128)
    assert layers == [1, 3, 5, 7, 9, 11] and tokens_ILE.shape[1:] == (6, 128)
    assert 29000 < np.median(tokens_ILE.sum(axis=-1)) <= 30000
    assert recorded_loads(load_reference().traces, 100)[1] == []


def test_no_published_points_without_published_x_or_over_another_baseline_or_in_another_panel():
    for baseline, x, published in (("deepspeed", None, ["3a"]), ("ep", 128, ["3a"]), ("deepspeed", 128, [])):
        plan = {"baseline": baseline, "panels": [panel("num_experts", [x], published)]}
        assert published_points(plan, load_reference()).empty


def test_verdict_table_of_known_medians(fig3):
    """Ours: layer 2, 6, 3 at E = 8, 64, 256 (published 2.35, 6.45, 2.39) and 0.5, 2 at batch 10, 100 (0.27, 2.01)."""
    table = verdicts_of(fig3()).set_index(["experiment", "published_x"])
    assert table["layer"].tolist() == pytest.approx([2, 6, 3, 0.5, 2])
    assert table["ttft"].tolist() == pytest.approx([1, 3, 1.5, 0.5, 1])
    assert table["verdict"].tolist() == [REPRODUCED, REPRODUCED, DIRECTION, DIRECTION, REPRODUCED]
    assert table.loc[("fig3b", 10), "x"] == 1 and not table["claimable"].any()


def test_points_of_a_full_campaign_may_be_claimed(full):
    assert verdicts_of(full)["claimable"].all()


def test_point_without_cells_is_not_measured(fig3):
    cells = dict.fromkeys([f"moeshard_num_experts_8_{launch}" for launch in (0, 1)])
    table = verdicts_of(fig3(twins=False, **cells)).set_index(["experiment", "published_x"])
    assert table.loc[("fig3a", 8), "verdict"] == NOT_MEASURED
    assert table.loc[("fig3a", 64), "verdict"] == REPRODUCED


def test_nothing_measured_lists_every_published_point(fig3):
    cells = [f"{s}_num_experts_{e}_0" for s in ("deepspeed", "moeshard") for e in (8, 64)]
    options = {"experts": (8, 64), "batches": (), "launches": 1, "twins": False}
    table = verdicts_of(fig3(**options, **dict.fromkeys(cells)))
    assert table["verdict"].tolist() == [NOT_MEASURED] * 2 and table["series"].tolist() == ["MoEShard"] * 2


@pytest.mark.parametrize("system", ["moeshard", "moeshard_no_megablocks"])
def test_loop_engine_stands_beside_figure_4(fig3, system):
    loop = {"engine": "loop", "system": system}
    table = verdicts_of(fig3(experts=(8,), batches=(), twins=False, moeshard_num_experts_8_1=loop))
    names = {"3a": "MoEShard, grouped", "4a": "MoEShard, loop"}
    if system == "moeshard_no_megablocks":
        names = {"3a": "MoEShard", "4a": "MoEShard loop"}
    assert table.set_index("figure")["series"].to_dict() == names
    assert table.set_index("figure").loc["4a", "published"] == 2.83


def test_printed(fig3):
    campaign = load_campaign(fig3())
    summary, console = summarise(campaign), Console(record=True, width=200)
    console.print(claims_shown(claims_table(campaign, summary)))
    text = console.export_text()
    assert "6.45×" in text and "likely cause" in text and "not testable here" in text and "not for claims" in text
