"""Campaigns in real processes: what is stored, what happens when something fails, and going on afterwards."""

import re

import pandas as pd
import pytest

from analysis.files import read_cell_table, read_runs
from analysis.schema import TABLES
from experiments.identity import code_digest
from experiments.main import SOME_FAILED, run_points
from experiments.records import Config, read
from tests.experiments.tiny import point

HERE = "tests.experiments.tiny"


def stored(out):
    """system -> run.json of a campaign with one launch."""
    return {run["system"]: run for run in read_runs(out).values()}


def table(out, run, name="samples"):
    return read_cell_table(out, run["cell"], name)


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """A campaign of three systems, measured once."""
    out = tmp_path_factory.mktemp("measured")
    assert run_points([point("deepspeed", "moeshard", "ep", out=out)]) == 0
    return out


def test_every_rank_and_iteration_is_stored_raw(measured):
    for system, run in stored(measured).items():
        assert run["state"] == "ok" and run["source"] == "emulated" and run["correctness"]["passed"]
        samples = table(measured, run)
        counts = samples.groupby(["phase", "metric"]).size()  # iterations x ranks, x 1 MoE layer
        assert counts["measure", "ttft_ms"] == counts["measure", "flops"] == 2 * 2
        for metric in ("ttft_ms", "layer_moe_ms", "entry_skew_ms"):
            assert counts["instrumented", metric] == 2 * 2, (system, metric)
        assert counts["first", "ttft_ms"] == counts["warmup", "ttft_ms"] == 2
        assert set(samples["phase"]) == {"first", "warmup", "measure", "instrumented"}
        assert ("measure", "layer_moe_ms") not in counts  # the end-to-end pass has no inner marks
        times = samples[(samples["unit"] == "ms") & (samples["metric"] != "preempted_ms")]
        assert (times["value"] > 0).all()
        sections = set(samples["section"].dropna())
        assert {"route", "dispatch", "experts", "combine"} <= sections, (system, sections)


def test_a_stored_configuration_has_the_code_of_what_was_measured(measured):
    """As `make samples` asks, which would else measure everything again."""
    for run in stored(measured).values():
        assert run["code"] == code_digest(read(Config, run["config"]))


def test_a_layer_takes_less_than_the_forward_pass_it_is_in(measured):
    for run in stored(measured).values():
        samples = table(measured, run).query("phase == 'instrumented'")
        keys = ["iteration", "rank"]
        ttft = samples[samples["metric"] == "ttft_ms"].set_index(keys)["value"]
        layer = samples[samples["metric"] == "layer_moe_ms"].set_index(keys)["value"]
        assert (layer < ttft).all()


def test_systems_see_the_same_routing_and_take_turns(measured):
    runs = stored(measured)
    routing = [table(measured, run, "routing") for run in runs.values()]
    for other in routing[1:]:
        pd.testing.assert_frame_equal(routing[0], other)
    assert routing[0]["tokens"].sum() == 2 * 2 * 24  # iterations x ranks x tokens
    orders = [set(table(measured, run).query("phase == 'measure'")["order"].dropna()) for run in runs.values()]
    assert sorted(order for some in orders for order in some) == list(range(6))


def test_counts_are_those_of_the_accounts(measured):
    runs = stored(measured)
    rows = {}
    for system, run in runs.items():
        samples = table(measured, run)
        counted = samples[samples["metric"] == "rows_computed"]
        rows[system] = counted.groupby("iteration")["value"].sum().tolist()
    tokens, capacity = 2 * 24, 24  # capacity factor min(E, 50) = E = 4 makes C the number of tokens of a rank
    iterations = 4  # two of each pass
    assert rows["moeshard"] == rows["ep"] == [tokens] * iterations
    assert rows["deepspeed"] == [2 * 4 * capacity] * iterations


def test_a_second_run_measures_nothing(measured, capsys):
    packed = [measured / name for name in ("runs.json", *(f"{name}.parquet" for name in TABLES))]
    before = {path: path.stat().st_mtime_ns for path in packed}
    assert run_points([point("deepspeed", "moeshard", "ep", out=measured)]) == 0
    assert {path: path.stat().st_mtime_ns for path in packed} == before and not (measured / "cells").exists()
    assert "3 cells stored already" in capsys.readouterr().out


# A launch that a system ends is started again without it, so those that die share a campaign; so do those that are
# wrong, which end nothing. The one that hangs has its own: only there may a slow machine pass for a hang.
DYING = {
    "RaisesOnRankOne": ("failed", "rank 1: RuntimeError: this system cannot count to two"),
    "ExitsOnRankOne": ("failed", "a rank died without an exception|rank 1 died with exit code 7"),
    "KilledOnRankOne": ("failed", "a rank died without an exception|rank 1 died with exit code -9"),
}
HANGING = {"HangsOnRankOne": ("timeout", "no progress for 0:00:10")}
WRONG = {
    "ForgetsAnExpert": ("invalid", "the output differs from the dense model's by"),
    "NaNInTheSecondLayer": ("invalid", "the output differs from the dense model's by nan"),
    "DropsInSecret": ("invalid", "the number of dropped tokens is not what the system's capacity gives"),
    "WrongLater": ("invalid", "the output differs from the other systems' in the timed iterations by"),
}
BROKEN = DYING | HANGING | WRONG


@pytest.fixture(scope="module")
def failing(tmp_path_factory):
    """broken -> what the campaign of a good system, it and its like has stored; each campaign run once, when needed."""
    known = {}

    def of(broken):
        kind = next(kind for kind in (DYING, HANGING, WRONG) if broken in kind)
        if broken not in known:
            out = tmp_path_factory.mktemp("failing")
            overrides = ("model.num_blocks=4", *(["cluster.timeout_s=10"] if kind is HANGING else []))
            systems = ["moeshard", "ep", *(f"{HERE}.{name}" for name in kind)]
            assert run_points([point(*systems, out=out, overrides=overrides)]) == SOME_FAILED
            known.update(dict.fromkeys(kind, stored(out)))
        return known[broken]

    return of


@pytest.mark.parametrize("broken", BROKEN)
def test_a_system_that_fails_is_a_row_and_the_others_are_measured(failing, broken):
    state, reason = BROKEN[broken]
    runs = failing(broken)
    assert runs["moeshard"]["state"] == runs["ep"]["state"] == "ok"
    run = runs[broken]
    assert run["state"] == state and re.match(reason, run["reason"]), run["reason"]
    assert not run["checksums"]
    if broken in ("RaisesOnRankOne", "HangsOnRankOne"):
        assert broken in run["traceback"] or "tiny.py" in run["traceback"]


def test_who_is_wrong_only_when_timed_was_right_before(failing):
    runs = failing("WrongLater")
    assert runs["WrongLater"]["correctness"]["passed"]
    assert runs["ep"]["correctness"]["agreement"]["iterations"] == 2 + 2
