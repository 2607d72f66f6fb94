"""The paper's claims on the described device, beside what ran here."""

import json

import pytest
from rich.console import Console

from analysis.findings import find
from analysis.load import load_campaign
from analysis.panels import draw_panel
from analysis.report import render
from analysis.studies.paper.__main__ import claims_shown
from analysis.studies.paper.claims import claims_table
from analysis.studies.paper.hardware import hardware_sentence, nearness
from analysis.studies.paper.judges import HOLDS, HOLDS_NOT, NOT_VALIDATED, NOTHING, WITHIN_ERROR, Ratio, apply_within
from analysis.studies.paper.reference import layer_ms, load_reference
from analysis.summary import summarise
from tests.analysis.synthetic import SIMULATED, write_fig3


def exact(**values):
    return {int(x[1:]): Ratio(value, value, value) for x, value in values.items()}


@pytest.mark.parametrize(
    ("at_10", "verdict"), [(0.9, HOLDS), (0.96, WITHIN_ERROR), (1.04, WITHIN_ERROR), (1.2, HOLDS_NOT)]
)
def test_a_claim_holds_if_it_does_for_all_values_within_the_error(at_10, verdict):
    slower = {"judge": "slower_at", "with": {"x": 10}}
    assert apply_within(slower, exact(_10=at_10), 0.06) == (f"{at_10:.2f}×", verdict)


def test_the_form_nearest_to_the_authors_is_judged_whatever_is_said_of_its_engine():
    order = ["MoEShard, its authors' program, megablocks", "MoEShard as published", "MoEShard / loop", "MoEShard"]
    assert [nearness(name) for name in order] == [0, 1, 2, 2]
    assert nearness("MoEShard as published / loop") < nearness("MoEShard, triton") == nearness("MoEShard")


def test_points_err_apart_from_one_another():
    peak = {"judge": "peak_at", "with": {"x": 64}}
    assert apply_within(peak, exact(_8=2, _64=6, _256=5), 0.06)[1] == HOLDS
    assert apply_within(peak, exact(_8=2, _64=6, _256=5.5), 0.06)[1] == WITHIN_ERROR
    assert apply_within(peak, exact(_8=2, _64=5, _256=6), 0.06)[1] == HOLDS_NOT


@pytest.fixture
def mixed(tmp_path):
    """Figure 3 emulated and, in panels of their own, simulated at the paper's batches; folder."""
    folder = write_fig3(tmp_path / "fig3")
    plan = json.loads((folder / "plan.json").read_text())
    once = {"launches": 1, "iterations": 1, "twins": False, "everywhere": SIMULATED}
    beside = write_fig3(tmp_path / "beside", **once)
    panels = json.loads((beside / "plan.json").read_text())["panels"]
    for path in (beside / "cells").iterdir():
        renamed = folder / "cells" / f"sim_{path.name}"
        path.rename(renamed)
        run = json.loads((renamed / "run.json").read_text())
        (renamed / "run.json").write_text(json.dumps(run | {"cell": renamed.name}))
    for panel in panels:
        panel |= {"name": f"{panel['name']}_simulated", "title": f"{panel['title']} on A100s"}
        for point in panel["points"]:
            point["cells"] = [f"sim_{cell}" for cell in point["cells"]]
    (folder / "plan.json").write_text(json.dumps(plan | {"panels": panels + plan["panels"]}))
    return folder


def test_simulated_panels_have_a_column_of_their_own(mixed, validated):
    campaign = load_campaign(mixed)
    claims = claims_table(campaign, summarise(campaign)).set_index(["id", "metric"])
    row = claims.loc[("fig3a-always", "speedup_layer_paper")]
    assert row["ours"].startswith("2.00× [") and row["simulated"] == "2.00× to 6.00×"
    assert row["on simulated"] == HOLDS and row["device"] == "a100_sxm" and row["simulated series"] == "MoEShard"
    assert claims.loc[("fig3a-peak", "speedup_layer_paper"), "on simulated"] == HOLDS
    assert claims.loc[("fig3a-peak-value", "speedup_ttft"), "on simulated"] == HOLDS_NOT
    assert claims.loc[("fig3a-always", "speedup_ttft"), "on simulated"] == WITHIN_ERROR  # 1.00x at 8 experts
    assert claims.loc[("fig4a-crossover", "speedup_ttft"), "on simulated"] == NOTHING
    assert claims.loc[("dropless", "dropped"), "on simulated"] == HOLDS


def test_what_holds_on_the_paper_s_hardware_is_said_from_the_numbers(mixed, validated):
    campaign = load_campaign(mixed)
    claims = claims_table(campaign, summarise(campaign))
    held = claims.loc[claims["on simulated"] == HOLDS].drop_duplicates(["id", "metric"])
    said = hardware_sentence(claims)
    assert "faster than DeepSpeed at batch 10 (" not in said and "6.4x; " in said
    assert f"{len(held)} of " in said and "Does not hold: " in said and "validated on 22 runs" in said
    console = Console(record=True, width=250)
    console.print(claims_shown(claims))
    text = console.export_text()
    assert "simulated" in text and HOLDS_NOT in text


def test_without_validation_there_are_values_and_no_verdict_on_times(mixed):
    campaign = load_campaign(mixed)
    claims = claims_table(campaign, summarise(campaign)).set_index(["id", "metric"])
    row = claims.loc[("fig3a-always", "speedup_ttft")]
    assert row["simulated"] == "1.00× to 3.00×" and row["on simulated"] == NOT_VALIDATED
    assert claims.loc[("dropless", "dropped"), "on simulated"] == HOLDS  # counted, not timed


def test_a_campaign_without_simulated_panels_has_nothing_on_hardware(fig3):
    campaign = load_campaign(fig3(experts=(8,), batches=()))
    claims = claims_table(campaign, summarise(campaign))
    assert hardware_sentence(claims) == "" and set(claims["on simulated"]) == {NOTHING}


def test_three_curves_a_panel_and_the_first_of_the_report(mixed, validated):
    findings = find(mixed)
    first = findings.campaign.plan["panels"][0]
    (picture,) = draw_panel(findings, first)
    svg = picture.svg.read_text()
    titles = ("published, 4×A100", "simulated, a100_sxm", "emulated here")
    assert all(title in svg for title in titles) and "its authors' program" in svg
    console = Console(record=True, width=120)
    render(mixed, console)
    text, html = console.export_text(), (mixed / "report.html").read_text()
    assert text.index("Figure 3a on A100s (simulated)") < text.index("Figure 3a (emulated)")
    assert html.index("simulated, a100_sxm") < html.index("Figure 3a (emulated)") and "of the paper hold" in html
    assert "Noise floor of" in text and "not for claims" in text  # of what was emulated


def test_published_layers_are_those_of_the_authors_runs():
    runs = load_reference().runs
    assert layer_ms(runs, "deepspeed", "deepspeed", "num_experts", 64) == pytest.approx(174.63, abs=0.01)
    assert layer_ms(runs, "deepspeed", "deepspeed", "num_experts", 7) != layer_ms(runs, "ep", "", "num_experts", 8)
