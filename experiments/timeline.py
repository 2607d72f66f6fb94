"""`python -m experiments.timeline results/all --cell ID`: what a stored cell's ranks do when, as a trace for Perfetto.

A simulated cell is simulated again, with every operation and collective kept. Of an emulated cell its stored rows are
drawn: what lies between collectives, waits, transfers and sections of its observed MoE layers, one after the other.
"""

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from analysis.files import read_cell_table, read_runs
from analysis.frames import select
from clusters.launch import prepare
from clusters.simulated.timeline import Event
from experiments.campaign import cache_dir
from experiments.recorder import Span
from experiments.records import Config, Launch, Member, read
from experiments.simulate import Seen, simulate_cell
from experiments.trace import Slice, document

GAP_S = 1e-4  # between layers of an emulated cell, what lies between which is not recorded
SHOWN = 5  # cells that a message names
SAME = 1e-9  # relative difference of two simulations of the same program


def main(arguments: list[str] | None = None) -> int:
    """Write the trace and say where; 2 with one sentence where there is none to write."""
    parser = argparse.ArgumentParser(prog="python -m experiments.timeline", description=__doc__)
    parser.add_argument("folder", type=Path, help="a campaign's folder")
    parser.add_argument("--cell", help="the cell of a campaign that has several; the first digits suffice")
    part = parser.add_mutually_exclusive_group()
    part.add_argument("--layer", type=int, help="only this MoE block")
    part.add_argument("--iteration", type=int, help="only this forward pass")
    parser.add_argument("--out", type=Path, help="the file to write; timelines/CELL.json in the campaign's folder")
    given = parser.parse_args(arguments)
    try:
        run = find_cell(given.folder, given.cell)
        slices = slices_of(given.folder, run, given.layer, given.iteration)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    out = given.out or given.folder / "timelines" / f"{run['cell']}.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    about = {key: run[key] for key in ("cell", "campaign", "system", "engine", "precision", "source", "point")}
    out.write_text(json.dumps(document(slices, about)))
    print(f"{out}: {len(slices)} slices of {run['point']['world_size']} ranks; open it at https://ui.perfetto.dev")
    return 0


def find_cell(folder: Path, named: str | None) -> dict[str, Any]:
    """The run.json of one cell in state ok; ValueError where that is not one."""
    runs = [run for run in read_runs(folder).values() if run["state"] == "ok"]
    cells = [run["cell"] for run in runs if run["cell"].startswith(named or "")]
    if len(cells) != 1:
        known = [f"{run['cell']} ({run['system']}, {_place(run)})" for run in runs if run["cell"] in cells or not cells]
        shown = "; ".join(known[:SHOWN]) + ("; ..." if len(known) > SHOWN else "")
        asked = f"begin with {named}" if named else "may be meant; name one by --cell"
        raise ValueError(f"{folder} has {len(cells)} measured cells that {asked}: {shown or 'none'}")
    return next(run for run in runs if run["cell"] == cells[0])


def slices_of(folder: Path, run: dict[str, Any], layer: int | None, iteration: int | None) -> list[Slice]:
    """What is asked for of a cell; ValueError where there is no such layer or iteration, or ranks were real."""
    if run["source"] == "simulated":
        return simulated(simulated_again(folder, run), layer, iteration)
    if run["source"] == "emulated":
        return emulated(
            read_cell_table(folder, run["cell"], "samples"),
            read_cell_table(folder, run["cell"], "collectives"),
            layer,
            iteration,
        )
    raise ValueError(f"cell {run['cell']} was measured on real ranks, which do not say when a collective began")


def simulated_again(folder: Path, run: dict[str, Any]) -> list[Seen]:
    """A stored cell simulated with its events; says so where the code is no longer what the cell was simulated by."""
    try:
        config = read(Config, run["config"])
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"cell {run['cell']} was simulated by earlier code, whose keys were others: {error}"
        ) from error
    prepare(config.cluster, [])
    member = Member(config.system, run["engine"], run["twin"])
    told = Launch(workload=config.workload, cells={run["cell"]: member}, cache_dir=str(cache_dir()))
    seen = simulate_cell(told, run["cell"], keep_events=True)
    stored = select(read_cell_table(folder, run["cell"], "samples"), metric="ttft_ms", phase="measure", rank=0)
    now = [row["value"] for row in seen[0].samples if (row["metric"], row["phase"]) == ("ttft_ms", "measure")]
    if not np.allclose(sorted(stored["value"]), sorted(now), rtol=SAME):
        print(
            f"note: simulated with another version of this project than the stored cell: "
            f"{np.median(now):.3f} ms a forward pass on rank 0, stored {stored['value'].median():.3f} ms",
            file=sys.stderr,
        )
    return seen


def simulated(seen: list[Seen], layer: int | None, iteration: int | None) -> list[Slice]:
    """Every operation, collective and span of the measured passes, or of one pass or block."""
    slices = []
    for rank, one in enumerate(seen):
        windows = _windows(one.spans, layer, iteration)
        for start_s, end_s in windows:
            inside = [span for span in one.spans if start_s <= span.start_s and span.end_s <= end_s]
            slices += [Slice(rank, "program", _title(span), span.start_s, span.end_s) for span in inside]
        slices += [
            Slice(rank, event.track, event.name, event.start_s, event.start_s + event.seconds)
            for event in _inside(one.events, windows)
        ]
    return slices


def _windows(spans: list[Span], layer: int | None, iteration: int | None) -> list[tuple[float, float]]:
    """When, on one rank, what is asked for takes place; ValueError for what there is not."""
    measured = [span for span in spans if span.phase != "warmup"]
    passes = [span for span in measured if span.metric == "ttft_ms"]
    wanted = [span for span in passes if iteration in (None, span.iteration)]
    if layer is not None:
        blocks = [span for span in measured if span.metric == "layer_moe_ms"]
        wanted = [span for span in blocks if span.layer == layer]
        _check("MoE block", layer, {span.layer for span in blocks}, bool(wanted))
    _check("iteration", iteration, {span.iteration for span in passes}, bool(wanted))
    return [(span.start_s, span.end_s) for span in wanted]


def _inside(events: list[Event], windows: list[tuple[float, float]]) -> Iterator[Event]:
    """The events of some windows of the device's time, and the host's between the first and the last of each.

    The host runs ahead: it issues before a window what the device does in it.
    """
    for start_s, end_s in windows:
        at = [
            place for place, event in enumerate(events) if event.track == "device" and start_s <= event.start_s < end_s
        ]
        for place, event in enumerate(events):
            issued, begun = bool(at) and at[0] - 1 <= place <= at[-1], start_s <= event.start_s < end_s
            if issued if event.track == "host" else begun:
                yield event


def _title(span: Span) -> str:
    if span.metric == "ttft_ms":
        return f"forward pass {span.iteration}"
    if span.metric == "layer_moe_ms":
        return f"MoE block {span.layer}"
    return span.section or span.metric.removesuffix("_ms").replace("_", " ")


def emulated(samples: pd.DataFrame, collectives: pd.DataFrame, layer: int | None, iteration: int | None) -> list[Slice]:
    """The observed MoE layers of a cell, one after the other; what lies between them is not recorded."""
    layers = select(samples, phase="instrumented", metric="layer_moe_ms")
    sections = select(samples, phase="instrumented", metric="section_ms")
    if collectives.empty or layers.empty:
        raise ValueError("the cell has no recorded collectives; measure it again")
    _check("MoE block", layer, set(layers["layer"]), layer in (None, *layers["layer"]))
    _check("iteration", iteration, set(layers["iteration"]), iteration in (None, *layers["iteration"]))
    slices, begin_s = [], 0.0
    for at, block in sorted(set(zip(layers["iteration"], layers["layer"], strict=True))):
        if layer not in (None, block) or iteration not in (None, at):
            continue
        ranks = select(layers, iteration=at, layer=block)
        for rank, end_ms in zip(ranks["rank"], ranks["value"], strict=True):
            place = {"iteration": at, "layer": block, "rank": rank}
            program = _program(select(sections, **place), f"MoE block {block}, iteration {at}", end_ms)
            drawn = [*program, *_between(select(collectives, **place), end_ms)]
            slices += [
                Slice(int(rank), track, name, begin_s + start / 1e3, begin_s + end / 1e3)
                for track, name, start, end in drawn
            ]
        begin_s = max(one.end_s for one in slices) + GAP_S
    return slices


def _program(sections: pd.DataFrame, title: str, end_ms: float) -> Iterator[tuple[str, str, float, float]]:
    """The layer, and its sections as they were recorded, without the moments between them."""
    yield "program", title, 0.0, end_ms
    ends = np.minimum(sections["value"].cumsum(), end_ms)
    for name, start, end in zip(sections["section"], [0.0, *ends], ends, strict=False):
        yield "program", name, start, end


def _between(rows: pd.DataFrame, end_ms: float) -> Iterator[tuple[str, str, float, float]]:
    """What the device computes between collectives and waits for, and what the link carries."""
    now = 0.0
    for row in rows.sort_values("sequence").to_dict("records"):
        waited, started, finished = (float(row[f"{moment}_ms"]) for moment in ("waited", "started", "finished"))
        yield "link", row["collective"], started, finished
        if waited > now:
            yield "device", "compute", now, waited
        now = max(now, waited)
        if finished > now:
            yield "device", f"wait for {row['collective']}", now, finished
        now = max(now, finished)
    if end_ms > now:
        yield "device", "compute", now, end_ms


def _check(what: str, asked: int | None, there: set[Any], found: bool) -> None:
    if not found:
        raise ValueError(f"{what} {asked} is not among those of the cell: {', '.join(map(str, sorted(there)))}")


def _place(run: dict[str, Any]) -> str:
    return " ".join(f"{name}={value}" for name, value in run["point"].items())


if __name__ == "__main__":
    sys.exit(main())
