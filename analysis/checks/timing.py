"""How time was taken: passes, alignment, ranks, iterations, warm-up, order."""

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import mannwhitneyu

from analysis.checks.evidence import FAIL, PASS, SKIP, WARN, Cell, Evidence, Finding, expect, graded, holm, percent

OBSERVER_LIMIT, DRIFT_LIMIT, FALSE_ALARMS, PREEMPTION_LIMIT = 1.05, 0.02, 0.05, 0.1
# Metric: its unit and the passes it may come from.
TIMED, OBSERVED, COUNTED = {"first", "warmup", "measure", "instrumented"}, {"instrumented"}, {"measure", "instrumented"}
METRICS = {
    "ttft_ms": ("ms", TIMED),
    **dict.fromkeys(["layer_moe_ms", "section_ms", "entry_skew_ms"], ("ms", OBSERVED)),
    **dict.fromkeys([f"idle_{what}_ms" for what in ("ttft", "layer_moe", "section")], ("ms", OBSERVED)),
    **dict.fromkeys(["rows_computed", "rows_useful", "least_rows"], ("rows", COUNTED)),
    "preempted_ms": ("ms", TIMED),
    "dropped": ("tokens", COUNTED),
    **dict.fromkeys(["bytes_sent", "memory_bytes", "weight_bytes"], ("bytes", COUNTED)),
    "flops": ("flop", COUNTED),
    "predicted": ("share", COUNTED),
    "peak_memory_bytes": ("bytes", COUNTED),
}


def metric_names(evidence: Evidence) -> Iterator[Finding]:
    """V01: only defined metrics, in their unit, from the pass that may record them."""
    for cell in evidence.cells:
        seen = cell.frame[["metric", "unit", "phase"]].drop_duplicates().itertuples(index=False, name=None)
        wrong = [
            f"{metric} in {unit} from pass {phase} is not a defined metric"
            for metric, unit, phase in seen
            if metric not in METRICS or METRICS[metric][0] != unit or phase not in METRICS[metric][1]
        ]
        clock = f"{cell.frame['metric'].nunique()} metrics, clock {cell.run['source']}, reduced by the slowest rank."
        yield expect(cell.id, wrong, clock)


def observer_cost(evidence: Evidence) -> Iterator[Finding]:
    """V02: what marking layers and sections costs: the instrumented pass against the end-to-end one."""
    for cell in evidence.cells:
        plain, observed = cell.slowest("measure").median(), cell.slowest("instrumented").median()
        if np.isnan(observed):
            yield Finding(cell.id, FAIL, "There is no instrumented pass.")
            continue
        cost = observed / plain
        yield graded(cell.id, cost, f"An instrumented pass takes {cost:.3f} times as long.", warn=OBSERVER_LIMIT)


def aligned_layers(evidence: Evidence) -> Iterator[Finding]:
    """V03: every rank's entry skew of every layer is there, and layers are no longer than the pass around them."""
    for cell in evidence.cells:
        skew, layers = cell.rows("instrumented", "entry_skew_ms"), cell.rows("instrumented", "layer_moe_ms")
        iterations, found = cell.slowest("instrumented"), set(layers["layer"])
        expected = len(iterations) * len(found) * cell.world_size
        if not expected or not len(skew) == len(layers) == expected:
            counts = f"{len(layers)} layer times and {len(skew)} entry skews for {expected} layer entries"
            yield Finding(cell.id, FAIL, f"Ranks were not aligned before every layer: {counts}.")
            continue
        inside = layers.groupby(["iteration", "layer"])["value"].max().groupby("iteration").sum()
        longer = int((inside > iterations).sum())
        text = f"{longer} of {len(iterations)} iterations have layers that add up to more than the pass; "
        text += f"the median entry skew is {skew['value'].median():.3g} ms."
        yield Finding(cell.id, WARN if longer else PASS, text)


def all_ranks(evidence: Evidence) -> Iterator[Finding]:
    """V04: every rank's time is stored."""
    for cell in evidence.cells:
        counts = cell.rows("measure", "ttft_ms")["rank"].value_counts()
        lost = sorted(set(range(cell.world_size)) - set(counts.index))
        wrong = [f"Ranks {', '.join(map(str, lost))} of {cell.world_size} have no time"] if lost else []
        yield expect(cell.id, wrong, f"All {cell.world_size} ranks are stored; the headline is their maximum.")


def agreed_iterations(evidence: Evidence) -> Iterator[Finding]:
    """V05: all ranks ran the iterations that were agreed."""
    for cell in evidence.cells:
        agreed = cell.run["schedule"]["iterations"]
        of_rank = cell.rows("measure", "ttft_ms").groupby("rank")["iteration"].agg(frozenset)
        wrong = [
            f"Rank {rank} has {len(found)} iterations of the {agreed} agreed"
            for rank, found in of_rank.items()
            if found != frozenset(range(agreed))
        ]
        yield expect(cell.id, wrong, f"All ranks have the same {agreed} iterations.")


def steady_state(evidence: Evidence) -> Iterator[Finding]:
    """V06: first call and warm-up are kept apart, and the second half of the iterations is like the first."""
    shifts = [half_against_half(cell.slowest("measure").to_numpy()) for cell in evidence.cells]
    adjusted = holm([p for _, p in shifts])
    for cell, (shift, _), p in zip(evidence.cells, shifts, adjusted, strict=True):
        passes = ["first", *(["warmup"] if cell.run["config"]["tier"]["warmup"] else [])]
        absent = [name for name in passes if cell.rows(name, "ttft_ms").empty]
        text = f"The second half of the iterations is {100 * shift:+.1f} % slower (p = {p:.2g} over all cells)."
        if absent:
            yield Finding(cell.id, FAIL, f"There are no rows of the pass {' and '.join(absent)}.")
        else:
            yield Finding(cell.id, WARN if p < FALSE_ALARMS and abs(shift) > DRIFT_LIMIT else PASS, text)


def half_against_half(values_I: np.ndarray) -> tuple[float, float]:
    """Shift of the median and Mann-Whitney p; (0, 1) where there is nothing to compare."""
    first, second = np.array_split(values_I, 2)
    if not len(second):
        return 0.0, 1.0
    return float(np.median(second) / np.median(first) - 1), float(mannwhitneyu(first, second).pvalue)


def preemption(evidence: Evidence) -> Iterator[Finding]:
    """V08: how long emulated ranks did not run, because others had their cores, which their times leave out."""
    for cell in evidence.cells:
        taken, own = (cell.rows("measure", name)["value"].sum() for name in ("preempted_ms", "ttft_ms"))
        if cell.rows("measure", "preempted_ms").empty:
            yield Finding(cell.id, SKIP, "The clock of these ranks counts all time, preempted or not.")
            continue
        share = taken / own
        text = f"The ranks' threads did not run for {percent(share)} of TTFT more, which is left out."
        yield Finding(cell.id, WARN if share > PREEMPTION_LIMIT else PASS, text)


def outliers(evidence: Evidence) -> Iterator[Finding]:
    """V10: outliers are counted and none is missing."""
    for cell in evidence.cells:
        values, stored = cell.slowest("measure"), len(cell.rows("measure", "ttft_ms"))
        expected = cell.run["schedule"]["iterations"] * cell.world_size
        lower, upper = values.quantile([0.25, 0.75])
        reach = 1.5 * (upper - lower)
        count = int(((values < lower - reach) | (values > upper + reach)).sum())
        wrong = [f"{stored} times are stored, {expected} were taken"] if stored != expected else []
        share = percent(count / max(1, len(values)))
        yield expect(cell.id, wrong, f"{count} of {len(values)} iterations are outliers ({share}), all of them kept.")


def interleaved_order(evidence: Evidence) -> Iterator[Finding]:
    """V11: the systems of a launch took turns, A B C C B A, and every row has its place and wall time."""
    for cells in evidence.groups(lambda cell: cell.run["launch_id"]):
        problem = order_problem(cells)
        if problem or len(cells) > 1:
            shortest, longest = (choose(cell.turn for cell in cells) for choose in (min, max))
            lengths = f"{shortest} to {longest}" if shortest < longest else f"{longest}"
            text = f"{len(cells)} systems took turns, {lengths} forward passes each in a round, each lap reversed."
            yield from (expect(cell.id, [problem] if problem else [], text) for cell in cells)
        else:
            yield Finding(cells[0].id, SKIP, "One system alone in its launch.")


def order_problem(cells: list[Cell]) -> str:
    """What is wrong with the order of one launch, or nothing."""
    frames = [cell.rows("measure", "ttft_ms").assign(cell=cell.id) for cell in cells]
    visits: Any = pd.concat(frames).drop_duplicates(["cell", "iteration"]).sort_values("order", ignore_index=True)
    if visits["order"].isna().any() or visits["time"].isna().any() or visits["order"].duplicated().any():
        return "Rows lack a place in the order or a wall time of their own"
    turn = visits["cell"].map({cell.id: cell.turn for cell in cells})
    visits["round"], visits["lap"] = visits["iteration"] // turn, visits["iteration"] % turn
    laps = list(zip(visits["round"], visits["lap"], strict=True))
    if laps != sorted(laps):
        return "A lap of the systems was interrupted, or a system was ahead of another"
    orders = visits.groupby(["round", "lap"])["cell"].agg(list).tolist()
    for earlier, later in pairwise(orders):
        if [cell for cell in later if cell in earlier] != [cell for cell in earlier[::-1] if cell in later]:
            return "A lap of the systems is not the reverse of the one before"
    return ""
