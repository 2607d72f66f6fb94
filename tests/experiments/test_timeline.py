"""Traces of stored cells: what stands in them, and that they are what viewers of Chrome's trace events expect."""

import json
import re
from collections import defaultdict
from itertools import pairwise

import pandas as pd
import pytest

from analysis.files import read_cell_table, read_runs
from clusters.simulated.timeline import Event
from experiments.cells import Cell, check
from experiments.main import run_points
from experiments.recorder import Span
from experiments.simulate import Seen
from experiments.timeline import emulated, main, simulated
from experiments.trace import TRACKS, Slice, document
from tests.clusters.simulated.stub import call
from tests.experiments.tiny import configuration, point

SIMULATED = (
    *("cluster=simulated", "device=a100_sxm", "network=device", "cluster.world_size=2", "precision=tf32"),
    *("tier=once", "tier.rounds=2"),
)


def is_trace(trace: dict, ranks: int) -> None:
    """Required fields of every event, ascending times, and slices that follow one another or nest on every thread."""
    named, last_us, open_us = {}, 0.0, defaultdict(list)
    for event in trace["traceEvents"]:
        assert {"ph", "pid", "tid", "name"} <= event.keys() and event["ph"] in "MX"
        if event["ph"] == "M":
            named[event["name"], event["pid"], event["tid"]] = event["args"].get("name")
            continue
        assert isinstance(event["name"], str) and event["name"]
        assert event["ts"] >= last_us and event["dur"] > 0
        last_us, thread = event["ts"], (event["pid"], event["tid"])
        assert named["thread_name", *thread] == TRACKS[event["tid"]] == event["cat"]
        around = open_us[thread]
        while around and around[-1] <= event["ts"]:
            around.pop()
        assert not around or (event["cat"] == "program" and event["ts"] + event["dur"] <= around[-1]), event
        around.append(event["ts"] + event["dur"])
    assert [named["process_name", rank, 0] for rank in range(ranks)] == [f"rank {rank}" for rank in range(ranks)]
    json.dumps(trace, allow_nan=False)


def slices(trace: dict, rank: int, track: str) -> list[str]:
    found = [event for event in trace["traceEvents"] if event["ph"] == "X"]
    return [event["name"] for event in found if (event["pid"], event["cat"]) == (rank, track)]


def test_a_trace_by_hand():
    trace = document(
        [
            Slice(1, "device", "relu", 3.000004, 3.000005),
            Slice(0, "program", "combine", 3.000002, 3.000002),  # takes no time
            Slice(0, "program", "experts", 3.000001, 3.000002),
            Slice(0, "program", "MoE block 1", 3.0, 3.000003),
        ],
        {"cell": "abc"},
    )
    is_trace(trace, 2)
    assert trace["otherData"] == {"cell": "abc"}
    events = [event for event in trace["traceEvents"] if event["ph"] == "X"]
    assert [(event["pid"], event["name"]) for event in events] == [(0, "MoE block 1"), (0, "experts"), (1, "relu")]
    assert [event["ts"] for event in events] == pytest.approx([0, 1, 4], abs=1e-3)
    assert [event["dur"] for event in events] == pytest.approx([3, 1, 1], abs=1e-3)


def test_slices_that_touch_do_not_overlap_however_they_are_rounded():
    moments = [number / 7e6 + number**2 / 3e7 for number in range(200)]
    is_trace(document([Slice(0, "device", "x", start, end) for start, end in pairwise(moments)], {}), 1)


EVENTS = [
    Event("host", "before", 0.0, 1.0),
    Event("device", "before", 1.0, 3.0),
    Event("host", "inside", 1.0, 1.0),
    Event("device", "inside", 4.0, 2.0),
    Event("host", "view", 2.0, 0.5),
    Event("link", "all_gather", 6.0, 1.0),
    Event("host", "inside too", 2.5, 1.0),
    Event("device", "inside too", 7.0, 1.0),
    Event("host", "after", 3.5, 1.0),
    Event("device", "after", 8.0, 1.0),
]
SPANS = [
    Span("ttft_ms", "warmup", 2, None, None, 0.0, 0.5),
    Span("layer_moe_ms", "measure", 0, 1, None, 4.0, 8.0),
    Span("section_ms", "measure", 0, 1, "experts", 4.0, 7.0),
    Span("ttft_ms", "measure", 0, None, None, 1.0, 9.0),
]


def test_a_layer_is_what_its_device_does_in_it_and_what_the_host_issued_for_it():
    seen = [Seen([], [], [], {}, EVENTS, SPANS)]
    trace = document(simulated(seen, layer=1, iteration=None), {})
    is_trace(trace, 1)
    assert slices(trace, 0, "program") == ["MoE block 1", "experts"]
    assert slices(trace, 0, "host") == ["inside", "view", "inside too"]  # though it issued them earlier
    assert slices(trace, 0, "device") == ["inside", "inside too"]
    assert slices(trace, 0, "link") == ["all_gather"]
    whole = document(simulated(seen, layer=None, iteration=0), {})
    assert slices(whole, 0, "program") == ["forward pass 0", "MoE block 1", "experts"]
    assert len(slices(whole, 0, "device")) == 4


@pytest.mark.parametrize(("layer", "iteration"), [(7, None), (None, 7)])
def test_what_there_is_not_is_named(layer, iteration):
    with pytest.raises(ValueError, match=r"(MoE block|iteration) 7 is not among those of the cell: [01]"):
        simulated([Seen([], [], [], {}, EVENTS, SPANS)], layer, iteration)


def test_stored_rows_of_an_emulated_layer():
    """Compute to 2 ms, wait to 5, compute to 6 with a transfer until 8 under way, wait for it, compute to 9."""
    labels = {"phase": "instrumented", "iteration": 3, "layer": 1, "rank": 0}
    samples = pd.DataFrame(
        [
            {**labels, "metric": "section_ms", "section": "dispatch", "value": 5.0},
            {**labels, "metric": "section_ms", "section": "experts", "value": 3.5},
            {**labels, "metric": "layer_moe_ms", "section": None, "value": 9.0},
        ]
    )
    moved = {"iteration": 3, "layer": 1, "rank": 0}
    collectives = pd.DataFrame(
        [
            {**moved, "sequence": 0, "collective": "all_gather", "waited_ms": 2, "started_ms": 4, "finished_ms": 5},
            {**moved, "sequence": 1, "collective": "all_to_all", "waited_ms": 6, "started_ms": 5.5, "finished_ms": 8},
        ]
    )
    trace = document(emulated(samples, collectives, None, None), {})
    is_trace(trace, 1)
    assert slices(trace, 0, "program") == ["MoE block 1, iteration 3", "dispatch", "experts"]
    assert slices(trace, 0, "device") == ["compute", "wait for all_gather", "compute", "wait for all_to_all", "compute"]
    device = [event for event in trace["traceEvents"] if event.get("cat") == "device"]
    assert [event["dur"] for event in device] == pytest.approx([2000, 3000, 1000, 2000, 1000], abs=1e-2)
    assert slices(trace, 0, "link") == ["all_gather", "all_to_all"]


def write_trace(*arguments: str) -> int:
    return main(list(arguments))


@pytest.fixture(scope="module")
def campaigns(tmp_path_factory):
    """Folders of a simulated campaign and of an emulated one."""
    folders = tmp_path_factory.mktemp("simulated"), tmp_path_factory.mktemp("emulated")
    assert run_points([point("moeshard_chunked", "ep", out=folders[0], overrides=SIMULATED)]) == 0
    assert run_points([point("moeshard", out=folders[1])]) == 0
    return folders


def cell_of(folder, system: str) -> str:
    return next(cell for cell, run in read_runs(folder).items() if run["system"] == system)


@pytest.mark.parametrize("system", ["moeshard_chunked", "ep"])
def test_a_simulated_cell_is_simulated_again_and_is_what_was_stored(campaigns, system, capfd):
    folder = campaigns[0]
    cell = cell_of(folder, system)
    assert call(write_trace, str(folder), "--cell", cell[:6], ranks=2) == 0
    assert "another version" not in capfd.readouterr().err
    trace = json.loads((folder / "timelines" / f"{cell}.json").read_text())
    is_trace(trace, 2)
    assert trace["otherData"]["system"] == system
    samples = read_cell_table(folder, cell, "samples")
    passes = [event for event in trace["traceEvents"] if event["name"].startswith("forward pass")]
    stored = samples[(samples["metric"] == "ttft_ms") & (samples["phase"] == "measure")]
    assert sorted(one["dur"] for one in passes) == pytest.approx(sorted(1e3 * stored["value"]), abs=1e-2)
    collective = "reduce_scatter" if system == "moeshard_chunked" else "all_to_all"
    for rank in range(2):
        assert {"forward pass 0", "forward pass 1", "MoE block 1", "experts"} <= set(slices(trace, rank, "program"))
        assert collective in slices(trace, rank, "link") and collective in slices(trace, rank, "host")
        assert len(slices(trace, rank, "device")) > 50


def test_an_emulated_cell_is_drawn_from_what_is_stored(campaigns, tmp_path):
    folder, out = campaigns[1], tmp_path / "trace.json"
    assert main([str(folder), "--layer", "1", "--out", str(out)]) == 0
    trace = json.loads(out.read_text())
    is_trace(trace, 2)
    assert slices(trace, 1, "link")
    assert any("wait for reduce_scatter" in slices(trace, rank, "device") for rank in range(2))


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], r"has 2 measured cells that may be meant; name one by --cell: \w{12} \("),
        (["--cell", "none"], "has 0 measured cells that begin with none"),
    ],
)
def test_bad_input_is_one_sentence(campaigns, capsys, arguments, sentence):
    assert main([str(campaigns[0]), *arguments]) == 2
    assert re.search(sentence, capsys.readouterr().err)


def test_a_learned_router_is_refused_before_anything_runs():
    config = configuration(*SIMULATED, "router=learned")
    with pytest.raises(ValueError, match="router=learned looks at activations, which simulated ranks do not compute"):
        check(Cell(config, 0))
