import pytest

from analysis.load import load_campaign
from analysis.studies.paper.claims import COLUMNS, claims_table, load_causes, load_claims
from analysis.studies.paper.judges import (
    DIRECTION,
    FAILED,
    JUDGES,
    NOT_MEASURED,
    NOT_TESTABLE,
    REPRODUCED,
    Ratio,
    apply,
    declines,
    shown,
)
from analysis.studies.paper.points import paper_points
from analysis.studies.paper.reference import load_reference
from analysis.summary import summarise

CLAIMS = {claim["id"]: claim for claim in load_claims()}
FIELDS = {"id", "text", "where", "figure", "kind", "judge", "metrics", "series", "published", "transfer"}
VERDICTS = {REPRODUCED, DIRECTION, FAILED, NOT_MEASURED, NOT_TESTABLE}
LEARNED = {"router": {"name": "learned"}}


def table_of(folder):
    campaign = load_campaign(folder)
    return claims_table(campaign, summarise(campaign)).set_index(["id", "metric"])


@pytest.fixture(scope="module")
def table(full):
    """The claims on the campaign of tier full."""
    return table_of(full)


def points(width=0.1, **values):
    """x=value, intervals of +- width."""
    return {int(x[1:]): Ratio(v, (1 - width) * v, (1 + width) * v) for x, v in values.items()}


def test_claims_file_is_complete():
    assert len(CLAIMS) == len(load_claims()) > 20
    for claim in CLAIMS.values():
        assert claim.keys() >= FIELDS and claim["judge"] in JUDGES
        assert claim["kind"] in {"ratio", "direction", "ordering", "crossover", "slope", "count"}
        assert claim.get("causes", {}).keys() <= VERDICTS | {"recomputed"}
    assert load_causes().keys() <= VERDICTS


@pytest.mark.parametrize(
    ("claim", "found", "verdict"),
    [
        ("fig3a-peak", points(e8=2, e64=6, e256=3), REPRODUCED),
        ("fig3a-peak", points(e8=2, e32=5.5, e64=6, e256=3), DIRECTION),  # intervals overlap
        ("fig3a-peak", points(e8=2, e32=6, e64=5, e256=3), DIRECTION),
        ("fig3a-peak", points(e8=2, e64=6, e256=7), FAILED),
        ("fig3a-peak", points(e8=2, e64=6), NOT_MEASURED),
        ("fig3a-peak-value", points(e64=5.5), REPRODUCED),
        ("fig3a-peak-value", points(e64=18), DIRECTION),
        ("fig3a-peak-value", points(e64=0.5), FAILED),
        ("fig3a-decline", points(e64=6, e256=3), REPRODUCED),
        ("fig3a-decline", points(e64=6, e256=5.9), DIRECTION),
        ("fig3a-decline", points(e64=6, e256=7), FAILED),
        ("fig3a-decline", points(e64=6), NOT_MEASURED),
        ("fig3a-floor", points(e256=3), REPRODUCED),
        ("fig3a-floor", points(e256=2.5), DIRECTION),
        ("fig3a-floor", points(e256=0.9), FAILED),
        ("fig3a-always", points(e8=2, e64=6), REPRODUCED),
        ("fig3a-always", points(e8=1.05, e64=6), DIRECTION),
        ("fig3a-always", points(e8=0.9, e64=6), FAILED),
        ("fig3a-always", {}, NOT_MEASURED),
        ("fig3a-drops", points(e8=0, e64=10, e128=20), REPRODUCED),
        ("fig3a-drops", points(e8=5, e64=0, e128=20), DIRECTION),
        ("fig3a-drops", points(e8=5, e64=0, e128=0), FAILED),
        ("fig3a-drops", points(e8=5), NOT_MEASURED),
        ("abstract-ttft", points(e8=2, e64=5.5), REPRODUCED),
        ("abstract-ttft", points(e8=2, e64=4), DIRECTION),
        ("abstract-ttft", {}, NOT_MEASURED),
        ("fig3b-slower", points(b10=0.5), REPRODUCED),
        ("fig3b-slower", points(b10=0.95), DIRECTION),
        ("fig3b-slower", points(b10=1.5), FAILED),
        ("fig3b-faster", points(b100=2), REPRODUCED),
        ("fig3b-faster", points(b100=1.05), DIRECTION),
        ("fig3b-faster", points(b10=2), NOT_MEASURED),
        ("fig3b-grows", points(b10=1, b250=2, b450=3), REPRODUCED),
        ("fig3b-grows", points(b10=1, b250=2.7, b450=3), DIRECTION),
        ("fig3b-grows", points(b10=1, b250=4, b450=3), DIRECTION),
        ("fig3b-grows", points(b10=4, b450=3), FAILED),
        ("fig3b-grows", points(b450=3), NOT_MEASURED),
        ("fig3b-slope", points(b100=2, b450=6), REPRODUCED),  # log 3 / log 4.5 = 0.73
        ("fig3b-slope", points(b100=2, b450=3), DIRECTION),
        ("fig3b-slope", points(b100=2, b450=1), FAILED),
        ("fig3b-slope", points(b100=2), NOT_MEASURED),
        ("fig4a-crossover", points(e8=0.8, e32=0.85, e64=1.2, e128=1.3), REPRODUCED),
        ("fig4a-crossover", points(e8=0.8, e32=0.95, e64=1.2, e128=1.3), DIRECTION),
        ("fig4a-crossover", points(e8=1.2, e64=1.2), FAILED),
        ("fig4a-crossover", points(e64=1.2), NOT_MEASURED),
        ("layers-ratio", points(l1=4, l3=4.1), REPRODUCED),
        ("layers-consistent", points(l1=4, l3=0.9), FAILED),
        ("fig1-empty", points(l1=0, l11=13), REPRODUCED),
        ("fig1-empty", points(l1=0, l11=5), DIRECTION),
        ("fig1-empty", points(l1=20, l11=0), FAILED),
        ("fig1-empty", {}, NOT_MEASURED),
        ("balance", points(0, e8=1, e64=1), REPRODUCED),
        ("balance", points(0, e8=1, e64=1.2), FAILED),
        ("dropless", points(0, e8=0), REPRODUCED),
    ],
)
def test_judges(claim, found, verdict):
    assert apply(CLAIMS[claim], found)[1] == verdict


def test_what_was_obtained_is_said_with_its_interval():
    assert declines(points(e64=6, e256=3), 64, 256)[0] == "6.00× [5.40, 6.60] to 3.00× [2.70, 3.30]"
    assert shown(Ratio(2.0, 2.0, 2.0)) == "2.00×"


def test_every_claim_has_a_row_for_each_metric_and_series(fig3):
    table = table_of(fig3())
    assert set(table.reset_index().columns) == set(COLUMNS)
    assert list(table.index) == [(name, metric) for name, claim in CLAIMS.items() for metric in claim["metrics"]]
    assert set(table["verdict"]) <= VERDICTS and not table["claimable"].any()


def test_claims_on_known_medians(table):
    """Layer 2, 6, 3 at E = 8, 64, 256 and 0.5, 2 at batch 10, 100; TTFT 1, 3, 1.5 and 0.5, 1."""
    layer, ttft = (table["verdict"].xs(f"speedup_{name}", level="metric") for name in ("layer_paper", "ttft"))
    assert layer["fig3a-peak"] == layer["fig3a-peak-value"] == layer["fig3a-decline"] == REPRODUCED
    assert layer["fig3b-slower"] == ttft["fig3b-slower"] == layer["fig3b-faster"] == REPRODUCED
    assert ttft["abstract-ttft"] == ttft["fig3a-floor"] == DIRECTION
    assert layer["fig3b-grows"] == layer["fig3b-slope"] == NOT_MEASURED
    assert table["verdict"]["dropless", "dropped"] == REPRODUCED
    assert table["ours"]["fig3a-peak", "speedup_layer_paper"].startswith("peak at 64, 6.00×")
    assert set(table.loc["fig3a-peak", "series"]) == {"MoEShard"}


def test_only_what_is_no_noise_may_be_claimed(table):
    """At 8 experts and at batch 100 the TTFT of both is the same; the order of points does not care."""
    claimable = table["claimable"]
    assert claimable["fig3a-peak", "speedup_ttft"] and claimable["fig3b-faster", "speedup_layer_paper"]
    assert not claimable["fig3a-always", "speedup_ttft"] and not claimable["fig3b-faster", "speedup_ttft"]
    assert not claimable["fig3b-grows", "speedup_ttft"]


def test_recomputed_is_what_the_authors_own_data_says(table):
    recomputed = table["recomputed"]
    assert recomputed["abstract-ttft", "speedup_ttft"] == "4.96×"
    assert recomputed["fig3a-peak", "speedup_layer_paper"] == "peak at 64, 6.78×"
    assert recomputed["fig4a-crossover", "speedup_layer_paper"] == "0.81× to 1.23×"
    assert recomputed["fig1-empty", "empty_experts"].startswith("6")
    assert recomputed["balance", "imbalance"] == "–"


def test_the_authors_data_reproduces_their_crossover():
    claim = CLAIMS["fig4a-crossover"]
    assert apply(claim, paper_points(claim, "speedup_layer_paper", load_reference()))[1] == REPRODUCED


def test_a_fused_engine_cannot_be_judged_on_a_cpu(table):
    row = table.loc["fig4a-crossover", "speedup_layer_paper"]
    assert (row["verdict"], row["ours"]) == (NOT_TESTABLE, "needs cuda, here cpu")
    assert "loop over experts" in row["cause"]


def test_crossover_of_two_engines(fig3, store):
    """MegaBlocks at 2 and 6 (E = 8, 64), the loop at 4 and 3: 0.5 and 2 of one another."""
    write_cell, write_plan, point = store
    folder = fig3(experts=(8, 64), batches=(), launches=1, twins=False)
    for cell in folder.glob("cells/deepspeed*"):
        (cell / "run.json").write_text((cell / "run.json").read_text().replace('"device": "cpu"', '"device": "cuda"'))
    campaign = load_campaign(folder)
    for x, layer_ms in ((8, 15.0), (64, 20.0)):
        values = {"ttft_ms": 100.0, "layer_moe_ms": layer_ms}
        spec = {"system": "moeshard_no_megablocks", "engine": "loop", "point": point(num_experts=x), "values": values}
        write_cell(folder, f"loop_{x}", spec)
        next(p for p in campaign.plan["panels"][0]["points"] if p["x"] == x)["cells"].append(f"loop_{x}")
    write_plan(folder, campaign.plan["panels"])
    row = table_of(folder).loc["fig4a-crossover", "speedup_layer_paper"]
    assert (row["verdict"], row["series"]) == (REPRODUCED, "MoEShard / loop") and row["ours"].startswith("0.50×")


def layers_campaign(folder, store, config):
    """A panel of section 4.2 and one of Figure 1 over the same two cells."""
    write_cell, write_plan, point = store
    base = {"cluster": {"kind": "emulated", "device": "cpu"}, "tier": {"block": 5}}
    for system, ms in (("deepspeed", 60.0), ("moeshard", 15.0)):
        values = {"ttft_ms": 10 * ms, "layer_moe_ms": ms}
        write_cell(folder, system, {"system": system, "point": point(), "values": values, "config": base | config})
    points = [{"x": 128, "published_x": None, "cells": ["deepspeed", "moeshard"]}]
    panel = {"title": "Layers", "x_name": "num_experts", "points": points}
    write_plan(folder, [panel | {"name": "layers", "kind": "layers"}, panel | {"name": "load", "kind": "load"}])
    return table_of(folder)


def test_layers_and_loads_of_a_learned_router(tmp_path, store):
    table = layers_campaign(tmp_path, store, LEARNED).droplevel("metric")
    assert table["verdict"]["layers-ratio"] == table["verdict"]["layers-consistent"] == REPRODUCED
    assert table["ours"]["layers-ratio"].startswith("4.00×")
    # Expert 0 gets 2 of 129 shares of 30,000 tokens: 465.
    assert 430 < float(table["ours"]["fig1-busiest"]) < 500 and table["verdict"]["fig1-busiest"] == DIRECTION
    assert table["verdict"]["fig1-empty"] == FAILED and table["series"]["fig1-empty"] == "router learned"
    assert table["verdict"]["fig3a-peak"].tolist() == [NOT_MEASURED] * 2


def test_layers_of_a_synthetic_router_say_why_they_cannot_be_judged(tmp_path, store):
    table = layers_campaign(tmp_path, store, {"router": {"name": "synthetic"}})
    row = table.droplevel("metric").loc["fig1-empty"]
    assert row["verdict"] == NOT_TESTABLE
    assert row["ours"] == "needs a learned or trace router, here synthetic"


def test_a_campaign_that_shows_nothing_of_the_paper_has_no_claims(tmp_path, store):
    write_cell, write_plan, point = store
    write_cell(tmp_path, "a", {"system": "deepspeed", "point": point(), "values": {"ttft_ms": 1.0}})
    points = [{"x": 8, "published_x": None, "cells": ["a"]}]
    write_plan(tmp_path, [{"name": "sweep", "title": "A sweep", "x_name": "num_experts", "points": points}])
    campaign = load_campaign(tmp_path)
    assert claims_table(campaign, summarise(campaign)).empty
