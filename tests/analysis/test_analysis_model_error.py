"""Numbers of a described device: no noise, no intervals, and the model's error instead."""

import json

import pytest
from rich.console import Console

from analysis import model_error
from analysis.frames import select
from analysis.load import load_campaign
from analysis.model_error import model_sentence, tie_bands
from analysis.report import render
from analysis.stats import Floor
from analysis.studies.maps.winners import TIE, WINS, map_frames, winners
from analysis.summary import summarise
from analysis.validity import judge
from tests.analysis.synthetic import DEVICE


def text_of(folder):
    console = Console(record=True, width=120)
    render(folder, console)
    return console.export_text()


def test_a_device_that_was_not_validated_has_no_band(monkeypatch, tmp_path):
    monkeypatch.setattr(model_error, "VALIDATED", tmp_path / "absent.json")
    assert tie_bands("a100_sxm") == {} and "has not been validated" in model_sentence("a100_sxm")


def test_the_error_of_a_ratio_is_the_band_of_a_tie(validated):
    assert tie_bands("a100_sxm") == {"layer_moe_ms": Floor(0.06, 22), "ttft_ms": Floor(0.05, 22)}
    assert tie_bands("h100_sxm") == {}
    assert "validated on 22 runs: of a layer ±4 % (at worst 12 %)" in model_sentence("a100_sxm")


def test_simulated_speed_ups_are_given_and_are_their_own_interval(simulated, validated):
    summary = summarise(load_campaign(simulated()))
    ratio = select(summary, experiment="fig3a", x=64, metric="speedup_layer_paper").iloc[0]
    assert [ratio[name] for name in ("value", "ci_low", "ci_high")] == pytest.approx([6, 6, 6])
    assert ratio["device"] == "a100_sxm" and ratio["claimable"]


def test_without_validation_nothing_may_be_claimed(simulated):
    assert not summarise(load_campaign(simulated()))["claimable"].any()


def test_ratios_within_the_error_are_not_claimed(simulated, validated):
    near = {"values": {"ttft_ms": 390.0, "layer_moe_ms": 57.0, "rows_computed": 30.0, "rows_useful": 10.0}}
    folder = simulated(batches=(), moeshard_num_experts_8_0=near)
    ratios = select(summarise(load_campaign(folder)), metric="speedup_layer_paper").set_index("x")
    assert not ratios.loc[8, "claimable"] and ratios.loc[64, "claimable"]
    text = text_of(folder)
    assert "~1.05×" in text and "6.00×" in text


def test_two_devices_are_not_compared(simulated):
    other = {"device": DEVICE | {"name": "h100_sxm"}}
    with pytest.raises(ValueError, match=r"simulated, h100_sxm\).*source and device must agree"):
        summarise(load_campaign(simulated(batches=(), moeshard_num_experts_8_0=other)))


def test_checks_of_noise_say_that_they_do_not_apply(simulated, validated):
    campaign = load_campaign(simulated(batches=()))
    worst = judge(campaign).groupby("check")["verdict"].agg(set)
    skipped = {check for check, verdicts in worst.items() if verdicts == {"not applicable"}}
    assert skipped == {f"V{n:02}" for n in (2, 3, 6, 7, 8, 9, 10, 11, 12, 14, 18, 19, 20)}
    assert {check for check, verdicts in worst.items() if "fail" in verdicts} == set()
    details = judge(campaign).set_index("check")["detail"]
    assert "conformance" in details["V14"] and details["V14"].startswith("Simulated: ")


def test_same_inputs_are_still_judged(simulated):
    routed = {"inputs": {"tokens": ["a"] * 4, "routing": ["b"] * 4, "dtype": ["float32"] * 4}}
    campaign = load_campaign(simulated(batches=(), moeshard_num_experts_8_0=routed))
    assert "fail" in set(select(judge(campaign), check="V13")["verdict"])


def test_reports_name_the_device_and_say_nothing_of_noise(simulated, validated):
    folder = simulated()
    text = text_of(folder)
    assert "simulated on 4 × A100 (a100_sxm), precision tf32" in text and "validated on 22 runs" in text
    assert "Noise floor" not in text and "not for claims" not in text and "withheld" not in text
    html = (folder / "report.html").read_text()
    assert "a look, not for claims" not in html and "0123456789abcdef" in html


def test_maps_call_what_is_within_the_error_a_tie(simulated, validated):
    near = {"values": {"ttft_ms": 390.0, "layer_moe_ms": 57.0}}
    folder = simulated(batches=(), moeshard_num_experts_8_0=near)
    campaign = load_campaign(folder)
    frame = map_frames(campaign, campaign.plan["panels"][0])["layer_moe_ms"]
    found = winners(frame, tie_bands("a100_sxm")["layer_moe_ms"]).set_index("x")
    assert found.loc[8, "verdict"] == TIE and found.loc[64, "verdict"] == WINS
    assert found.loc[8, "low"] == found.loc[8, "margin"] == pytest.approx(60 / 57)


def test_validated_json_is_read_with_whatever_else_it_says(tmp_path, monkeypatch):
    path = tmp_path / "validated.json"
    error = {"median": 0.1, "worst": 0.2, "ratio": 0.3, "runs": 4}
    path.write_text(json.dumps({"h100_sxm": {"ttft_ms": error | {"held_out": 3}, "note": "x"}}))
    monkeypatch.setattr(model_error, "VALIDATED", path)
    assert tie_bands("h100_sxm") == {"ttft_ms": Floor(0.3, 4)}
