import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from analysis.load import Campaign, load_campaign
from analysis.summary import summarise
from analysis.validity import CHECKS, COLUMNS, judge, verdicts_by_check, worst, write_validity
from tests.analysis.synthetic import document, point, write_fig3

CELL = "moeshard_num_experts_64_1"


def flawless(folder, experts):
    """A campaign of tier full in which nothing is wrong, and its summary."""
    campaign = load_campaign(write_fig3(folder, experts=experts, batches=(), launches=3, iterations=30, tier="full"))
    return campaign, summarise(campaign)


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    """One point, three launches of three cells; never changed in place."""
    return flawless(tmp_path_factory.mktemp("sound") / "fig3", (64,))


@pytest.fixture(scope="module")
def two_points(tmp_path_factory):
    """For what is judged over points; never changed in place."""
    return flawless(tmp_path_factory.mktemp("two_points") / "fig3", (8, 64))


def verdict(findings, check, cell=CELL):
    """The verdict on a cell, or the worst of the campaign's own."""
    found = findings[(findings["check"] == check) & (findings["cell"].eq(cell) if cell else findings["cell"].isna())]
    return worst(found["verdict"])


def with_run(campaign, **changes):
    """The campaign with another run.json of CELL."""
    return replace(campaign, runs=campaign.runs | {CELL: campaign.runs[CELL] | changes})


def with_rows(campaign, frame):
    return replace(campaign, frames=campaign.frames | {CELL: frame})


def rows_of(frame, metric, phase):
    return (frame["metric"] == metric) & (frame["phase"] == phase)


def test_every_check_has_a_verdict_on_a_sound_campaign(two_points):
    findings = judge(*two_points)
    assert list(findings.columns) == COLUMNS
    by_check = verdicts_by_check(findings).set_index("check")["verdict"]
    assert list(by_check.index) == [f"V{number:02d}" for number in range(1, 25)] == [c for c, _, _ in CHECKS]
    # The clock of these rows says nothing of preemption; DeepSpeed drops tokens here; no GPU takes part.
    assert by_check[by_check != "pass"].to_dict() == {"V08": "not applicable", "V15": "warn", "V18": "not applicable"}
    assert findings["detail"].str.match(r"[A-Z0-9+-].*\.$").all() and findings["detail"].str.len().max() < 240


def machine(**changes):
    parts = document("any", {"point": point()})["machine"]
    return {"machine": {name: parts[name] | changes.get(name, {}) for name in parts}}


def inputs(**changes):
    return {"inputs": document("any", {"point": point()})["inputs"] | changes}


def correctness(agreement=None, **changes):
    check = document("any", {"point": point()})["correctness"]
    agreement = None if agreement is None else check["agreement"] | {"iterations": 60} | agreement
    return {"correctness": check | changes | {"agreement": agreement}}


def environment(**changes):
    return {"environment": document("any", {"point": point()})["environment"] | changes}


def gpu(clock_mhz, **changes):
    return {"gpus": [{"clock_mhz": clock_mhz, "power_w": 300, "temperature_c": 60, "throttle": []} | changes]}


def on_cuda(sound, before, after):
    config = sound[0].runs[CELL]["config"] | {"cluster": {"kind": "nccl", "device": "cuda"}}
    return {"config": config} | machine(before=before, after=after)


SCHEDULE = {"iterations": 30, "turn": 5}


@pytest.mark.parametrize(
    ("check", "changes", "expected"),
    [
        ("V05", {"schedule": SCHEDULE | {"iterations": 31}}, "fail"),
        ("V07", {"tier": "quick"}, "warn"),
        ("V10", {"schedule": SCHEDULE | {"iterations": 31}}, "fail"),
        ("V13", inputs(routing=["other"] * 4), "fail"),
        ("V13", inputs(weights=["a", "a", "a", "b"]), "fail"),
        ("V13", inputs(matmul_precision=["high"] * 4), "fail"),
        ("V13", {"inputs": None}, "fail"),
        ("V14", {"correctness": None}, "fail"),
        ("V14", correctness(), "warn"),
        ("V14", correctness(passed=False), "fail"),
        ("V14", correctness({"passed": False}), "fail"),
        ("V14", correctness({"iterations": 3}), "warn"),
        ("V14", correctness({}), "pass"),
        ("V17", environment(git_dirty=True), "warn"),
        ("V17", environment(lock_sha256=None), "fail"),
        ("V17", {"started": None}, "fail"),
        ("V19", machine(during={"busy_cpu_s": 11.5, "own_cpu_s": 10.0}), "warn"),
        ("V19", machine(during={"busy_cpu_s": 16.0, "own_cpu_s": 10.0}), "fail"),
        ("V19", machine(during={"steal_s": 1.5}), "warn"),
        ("V19", machine(during={"steal_s": 6.0}), "fail"),
        ("V19", machine(before={"busy_share": 0.3}), "warn"),
        ("V19", {"machine": None}, "fail"),
        ("V20", {"ceilings": None}, "warn"),
        ("V21", {"state": "corrupt", "reason": "samples.parquet is not what was written."}, "fail"),
        ("V23", {"source": "measured"}, "fail"),
        ("V24", {"state": "oom", "reason": "Out of memory on rank 2."}, "warn"),
        ("V24", {"state": "oom", "reason": None}, "fail"),
    ],
)
def test_what_run_json_says(sound, check, changes, expected):
    campaign, summary = sound
    assert verdict(judge(with_run(campaign, **changes), summary), check) == expected


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        (gpu(1410), gpu(1400), "pass"),
        (gpu(1410), gpu(1200), "warn"),
        (gpu(1410), gpu(1410, throttle=["sw_thermal_slowdown"]), "warn"),
        (gpu(1410), gpu(1410, throttle=["gpu_idle"]), "pass"),
        ({"gpus": []}, {"gpus": []}, "fail"),
    ],
)
def test_gpu_clocks(sound, before, after, expected):
    campaign, summary = sound
    assert verdict(judge(with_run(campaign, **on_cuda(sound, before, after)), summary), "V18") == expected


def lose(metric, phase, **where):
    """The frame without some rows."""

    def change(frame):
        lost = rows_of(frame, metric, phase)
        for name, value in where.items():
            lost &= frame[name] == value
        return frame[~lost]

    return change


def scale(metric, phase, factor):
    def change(frame):
        return frame.assign(value=frame["value"].where(~rows_of(frame, metric, phase), factor * frame["value"]))

    return change


def preempted(share):
    """The frame, with others on the ranks' cores for so much of the time beside what the ranks computed."""

    def change(frame):
        own = frame[rows_of(frame, "ttft_ms", "measure")]
        return pd.concat([frame, own.assign(metric="preempted_ms", value=own["value"] * share / (1 - share))])

    return change


def slower_second_half(frame):
    late = rows_of(frame, "ttft_ms", "measure") & (frame["iteration"] >= 15)
    return frame.assign(value=frame["value"].where(~late, 1.2 * frame["value"]))


@pytest.mark.parametrize(
    ("check", "change", "expected"),
    [
        ("V01", lambda frame: frame.assign(metric=frame["metric"].replace("dropped", "drops")), "fail"),
        ("V01", lambda frame: frame.assign(unit="s"), "fail"),
        ("V01", lambda frame: frame.assign(phase=frame["phase"].replace("instrumented", "measure")), "fail"),
        ("V02", scale("ttft_ms", "instrumented", 1.1), "warn"),
        ("V02", lambda frame: frame[frame["phase"] != "instrumented"], "fail"),
        ("V03", lose("entry_skew_ms", "instrumented", rank=2, iteration=3, layer=1), "fail"),
        ("V03", lose("layer_moe_ms", "instrumented", rank=2), "fail"),
        ("V03", scale("layer_moe_ms", "instrumented", 50), "warn"),
        ("V04", lose("ttft_ms", "measure", rank=3), "fail"),
        ("V05", lose("ttft_ms", "measure", rank=3, iteration=29), "fail"),
        ("V06", lose("ttft_ms", "first"), "fail"),
        ("V06", lose("ttft_ms", "warmup"), "fail"),
        ("V06", slower_second_half, "warn"),
        ("V08", preempted(0.05), "pass"),
        ("V08", preempted(0.2), "warn"),
        ("V08", lambda frame: frame, "not applicable"),
        ("V10", lose("ttft_ms", "measure", rank=3, iteration=29), "fail"),
        ("V11", lambda frame: frame.assign(order=frame["order"].astype("Int64").where(frame["rank"] > 9)), "fail"),
        ("V11", lambda frame: frame.assign(time=np.nan), "fail"),
        ("V11", lambda frame: frame.assign(order=1000 + frame["iteration"]), "fail"),
        ("V15", scale("dropped", "measure", 0), "pass"),
        ("V15", lose("dropped", "measure"), "fail"),
        ("V23", lambda frame: frame.assign(source="measured"), "fail"),
    ],
)
def test_what_rows_say(sound, check, change, expected):
    campaign, summary = sound
    assert verdict(judge(with_rows(campaign, change(campaign.frames[CELL])), summary), check) == expected


def test_rounds_must_be_reversed(two_points):
    """A B C A B C instead of A B C C B A."""
    campaign, summary = two_points
    cells = ["deepspeed_num_experts_64_1", "moeshard_num_experts_64_1", "moeshard_num_experts_64_1_twin"]
    frames = {
        cell: (frame := campaign.frames[cell]).assign(order=3 * frame["iteration"] + place)
        for place, cell in enumerate(cells)
    }
    findings = judge(replace(campaign, frames=campaign.frames | frames), summary)
    assert verdict(findings, "V11") == "fail" and verdict(findings, "V11", "moeshard_num_experts_8_1") == "pass"


def test_statistics_without_an_interval(sound):
    campaign, summary = sound
    bare = summary.assign(ci_low=summary["ci_low"].where(summary["metric"] != "speedup_ttft"))
    findings = judge(campaign, bare)
    assert (verdict(findings, "V09", None), verdict(findings, "V22", None)) == ("fail", "fail")


def test_speedup_without_the_time_of_its_baseline(sound):
    campaign, summary = sound
    findings = judge(campaign, summary[(summary["system"] != "deepspeed") | (summary["metric"] != "ttft_ms")])
    assert verdict(findings, "V22", None) == "fail"


def test_sources_mixed_in_a_panel(two_points):
    campaign, summary = two_points
    mixed = summary.assign(source=summary["source"].where(summary["x"] == 8, "measured"))
    assert verdict(judge(campaign, mixed), "V23", None) == "fail"


def test_ceilings_that_disagree_or_are_broken(two_points):
    campaign, summary = two_points
    faster = campaign.runs[CELL]["ceilings"] | {"matmul_flops_per_s": 1.3e11}
    assert verdict(judge(with_run(campaign, ceilings=faster, launch_id="another"), summary), "V20", None) == "warn"
    bound = summary["metric"] == "percent_of_bound"
    above = summary.assign(value=summary["value"].where(~bound, 120))
    assert verdict(judge(campaign, above), "V20", None) == "fail"


def test_written_whole(sound, tmp_path):
    campaign = replace(sound[0], folder=tmp_path)
    path = write_validity(campaign, judge(*sound))
    written = json.loads(path.read_text())
    assert written["schema"] == 2 and len(written["checks"]) == 24
    order = next(check for check in written["checks"] if check["id"] == "V11")
    assert order["verdict"] == "pass" and order["cells"][CELL] == {
        "verdict": "pass",
        "detail": "3 systems took turns, 5 forward passes each in a round, each lap reversed.",
    }
    assert [p.name for p in tmp_path.iterdir()] == ["validity.json"]


@pytest.mark.parametrize(("intended", "expected"), [(np.nan, "warn"), (1.0, "fail")])
def test_only_a_router_of_which_no_load_was_asked_may_break_ties_otherwise(sound, monkeypatch, intended, expected):
    """Outputs that differ by rounding may turn a tie; a drawn routing has none to turn."""
    campaign, stored = sound[0], Campaign.routing
    monkeypatch.setattr(Campaign, "routing", lambda self, cell: stored(self, cell).assign(intended=intended))
    changes = correctness(agreement={"tokens_routed_otherwise": 3}) | inputs(routing=["other"] * 4)
    assert verdict(judge(with_run(campaign, **changes), sound[1]), "V13") == expected
