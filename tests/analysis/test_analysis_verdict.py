import pandas as pd
import pytest

from analysis.claims import CLAIMS, DIRECTION, FAILED, NOT_MEASURED, REPRODUCED, Ratio, claims_table
from analysis.load import load_campaign
from analysis.reference import load_reference, published_points
from analysis.summary import summarise
from analysis.verdict import point_verdict, verdict_table


def verdicts_of(folder):
    campaign = load_campaign(folder)
    return verdict_table(summarise(campaign), published_points(campaign.plan, load_reference()))


@pytest.mark.parametrize(
    ("published", "value", "low", "high", "verdict"),
    [
        (4.0, 3.0, 2.5, 4.1, REPRODUCED),  # inside the interval
        (4.0, 3.1, 3.0, 3.2, REPRODUCED),  # within 25 %
        (4.0, 2.9, 2.8, 3.0, DIRECTION),
        (4.0, 0.9, 0.8, 1.0, FAILED),
        (0.3, 0.9, 0.8, 1.0, DIRECTION),
        (0.3, 1.1, 1.0, 1.2, FAILED),
        (4.0, float("nan"), float("nan"), float("nan"), NOT_MEASURED),
    ],
)
def test_point_verdict(published, value, low, high, verdict):
    assert point_verdict(published, value, low, high) == verdict


def test_reference_facts():
    reference = load_reference()
    assert len(reference.figures) == 20 and len(reference.runs) == 27
    plan = {"baseline": "deepspeed", "panels": [panel("num_experts", [128]), panel("batch_size", [10])]}
    points = published_points(plan, reference).set_index(["experiment", "figure"])
    assert points.loc[("num_experts", "3a"), "published"] == 4.06
    assert points.loc[("num_experts", "3a"), "recomputed_ttft"] == pytest.approx(1131.99 / 320.9)
    assert points.loc[("batch_size", "4b"), "recomputed_ttft"] == pytest.approx(63.57 / 237.99)


def panel(x_name, xs):
    return {"name": x_name, "x_name": x_name, "points": [{"x": x, "published_x": x} for x in xs]}


def test_no_published_points_without_published_x_or_over_another_baseline():
    points = {"baseline": "deepspeed", "panels": [panel("num_experts", [None])]}
    assert published_points(points, load_reference()).empty
    other = {"baseline": "ep", "panels": [panel("num_experts", [128])]}
    assert published_points(other, load_reference()).empty


def test_verdict_table_of_known_medians(fig3):
    """Ours: layer 2, 6, 3 at E = 8, 64, 256 (published 2.35, 6.45, 2.39) and 0.5, 2 at batch 10, 100 (0.27, 2.01)."""
    table = verdicts_of(fig3()).set_index(["experiment", "published_x"])
    assert table["layer"].tolist() == pytest.approx([2, 6, 3, 0.5, 2])
    assert table["ttft"].tolist() == pytest.approx([1, 3, 1.5, 0.5, 1])
    assert table["verdict"].tolist() == [REPRODUCED, REPRODUCED, DIRECTION, DIRECTION, REPRODUCED]
    assert table.loc[("fig3b", 10), "x"] == 1


def test_point_without_cells_is_not_measured(fig3):
    cells = dict.fromkeys([f"moeshard_num_experts_8_{launch}" for launch in (0, 1)])
    table = verdicts_of(fig3(**cells)).set_index(["experiment", "published_x"])
    assert table.loc[("fig3a", 8), "verdict"] == NOT_MEASURED
    assert table.loc[("fig3a", 64), "verdict"] == REPRODUCED


def test_nothing_measured_lists_every_published_point(fig3):
    cells = [f"{s}_num_experts_{e}_0" for s in ("deepspeed", "moeshard") for e in (8, 64)]
    table = verdicts_of(fig3(experts=(8, 64), batches=(), launches=1, **dict.fromkeys(cells)))
    assert table["verdict"].tolist() == [NOT_MEASURED] * 2 and table["series"].tolist() == ["MoEShard"] * 2


@pytest.mark.parametrize("system", ["moeshard", "moeshard_no_megablocks"])
def test_loop_engine_stands_beside_figure_4(fig3, system):
    loop = {"engine": "loop", "system": system}
    table = verdicts_of(fig3(experts=(8,), batches=(), moeshard_num_experts_8_1=loop))
    names = {"3a": "MoEShard, grouped", "4a": "MoEShard, loop"}
    if system == "moeshard_no_megablocks":
        names = {"3a": "MoEShard", "4a": "MoEShard loop"}
    assert table.set_index("figure")["series"].to_dict() == names
    assert table.set_index("figure").loc["4a", "published"] == 2.83


JUDGES = {claim: judge for claim, _, judge in CLAIMS}


def ratios(**values):
    return {int(x[1:]): Ratio(v, 0.9 * v, 1.1 * v) for x, v in values.items()}


@pytest.mark.parametrize(
    ("claim", "points", "verdict"),
    [
        ("peak at 64 experts", ratios(e8=2, e64=6, e256=3), REPRODUCED),
        ("peak at 64 experts", ratios(e8=2, e32=6, e64=5, e256=3), DIRECTION),
        ("peak at 64 experts", ratios(e8=2, e64=6, e256=7), FAILED),
        ("peak at 64 experts", ratios(e8=2, e64=6), NOT_MEASURED),
        ("declines from 64 to 256 experts", ratios(e64=6, e256=3), REPRODUCED),
        ("declines from 64 to 256 experts", ratios(e64=6, e256=5.9), DIRECTION),
        ("declines from 64 to 256 experts", ratios(e64=6, e256=7), FAILED),
        ("declines from 64 to 256 experts", ratios(e64=6), NOT_MEASURED),
        ("slower than the baseline at batch 10", ratios(b10=0.5), REPRODUCED),
        ("slower than the baseline at batch 10", ratios(b10=0.95), DIRECTION),
        ("slower than the baseline at batch 10", ratios(b10=1.5), FAILED),
        ("faster at batch 100", ratios(b100=2), REPRODUCED),
        ("faster at batch 100", ratios(b100=1.05), DIRECTION),
        ("faster at batch 100", ratios(b10=2), NOT_MEASURED),
        ("grows up to batch 450", ratios(b10=1, b250=2, b450=3), REPRODUCED),
        ("grows up to batch 450", ratios(b10=1, b250=4, b450=3), DIRECTION),
        ("grows up to batch 450", ratios(b10=4, b450=3), FAILED),
        ("grows up to batch 450", ratios(b450=3), NOT_MEASURED),
    ],
)
def test_claims(claim, points, verdict):
    assert JUDGES[claim](points)[1] == verdict


def test_claims_table_judges_layer_and_ttft(fig3):
    claims = claims_table(verdicts_of(fig3())).set_index("claim")
    assert claims["layer_verdict"].tolist() == [REPRODUCED] * 4 + [NOT_MEASURED]
    assert claims.loc["peak at 64 experts", "layer"] == "peak at 64, 6.00×"
    assert claims.loc["slower than the baseline at batch 10", "ttft"] == "0.50×"
    assert claims_table(pd.DataFrame()).empty
