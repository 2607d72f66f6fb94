"""Whether the numbers carry a claim: repetitions, intervals, the noise floor, one source."""

from collections.abc import Iterator

import pandas as pd

from analysis.checks.evidence import FAIL, PASS, WARN, Cell, Evidence, Finding, expect, percent
from analysis.frames import select
from analysis.labels import system_name
from analysis.stats import outside
from analysis.summary import FLOOR_OF, ITERATIONS, LAUNCHES, MEANS, noise_floor

FLOOR_LIMIT = 0.05
WITHOUT_INTERVAL = list(MEANS)  # counted, not estimated
PLOTTED = ["ttft_ms", "layer_moe_ms", "speedup_ttft", "speedup_layer", "speedup_layer_paper"]
CONSTRUCTION = (
    "Medians of one launch: order statistics; several launches: Student's t on the logarithms of one value a launch; "
    "ratios of one launch: the same on blocks of iterations."
)


def repetitions(evidence: Evidence) -> Iterator[Finding]:
    """V07: claims rest on tier full: at least 3 launches, and 30 iterations in all."""
    for cells in evidence.points:
        for cell in cells:
            series = [other for other in cells if series_of(other) == series_of(cell)]
            launches = len({other.run["launch"] for other in series})
            counts = [sum(len(other.slowest(name)) for other in series) for name in ("measure", "instrumented")]
            enough = launches >= LAUNCHES and min(counts) >= ITERATIONS and cell.run["tier"] == "full"
            text = f"Tier {cell.run['tier']}: {counts[0]} iterations in {launches} launches "
            text += f"({counts[1]} instrumented)" + ("." if enough else "; quick, not for claims.")
            yield Finding(cell.id, PASS if enough else WARN, text)


def series_of(cell: Cell) -> tuple:
    """What the launches of one series have in common."""
    return tuple(cell.run[name] for name in ("system", "engine", "precision", "twin"))


def intervals(evidence: Evidence) -> Iterator[Finding]:
    """V09: every estimate that can have an interval has one."""
    able = evidence.summary.loc[(evidence.summary["n"] > 1) & ~evidence.summary["metric"].isin(WITHOUT_INTERVAL)]
    bare = able.loc[able[["ci_low", "ci_high"]].isna().any(axis=1)]
    names = ", ".join(dict.fromkeys(bare["metric"]))
    wrong = [f"{len(bare)} of {len(able)} statistics have no interval: {names}"] if len(bare) else []
    yield expect(None, wrong, CONSTRUCTION)


def floor(evidence: Evidence) -> Iterator[Finding]:
    """V12: pairs of the same system give the noise floor; effects inside it are not claimed."""
    floors = noise_floor(evidence.campaign, evidence.summary)
    if not floors:
        yield Finding(None, WARN, "The campaign has no A/A pair, so no effect can be told from noise.")
        return
    ratios = evidence.summary.loc[evidence.summary["metric"].isin(list(FLOOR_OF))]
    inside = sum(
        not outside(row["ci_low"], row["ci_high"], floors.get(FLOOR_OF[row["metric"]]))
        for row in ratios.to_dict("records")
    )
    values = ", ".join(f"{name} {percent(one.value)} ({one.n_pairs} pairs)" for name, one in floors.items())
    text = f"Noise floor: {values}; {inside} of {len(ratios)} speed-ups lie inside it and are not claimed."
    yield Finding(None, WARN if max(one.value for one in floors.values()) > FLOOR_LIMIT else PASS, text)


def places(rows: pd.DataFrame) -> set[tuple]:
    """The points of these rows; `nan` where a panel has no second axis, so that equal ones are equal."""
    return {(row["experiment"], row["x"], str(row["y"])) for row in rows.to_dict("records")}


def drawn_points(evidence: Evidence) -> Iterator[Finding]:
    """V22: what is drawn has an interval, and a speed-up its baseline's absolute time."""
    drawn = evidence.summary.loc[evidence.summary["metric"].isin(PLOTTED)]
    bare = int(drawn[["ci_low", "ci_high"]].isna().any(axis=1).sum())
    wrong = [f"{bare} of {len(drawn)} drawn points have no interval"] if bare else []
    baseline = evidence.campaign.plan.get("baseline")
    timed = places(select(drawn, system=baseline, metric="ttft_ms"))
    alone = places(drawn.loc[drawn["metric"].str.startswith("speedup")]) - timed
    name = system_name(baseline or "the baseline")
    wrong += [f"{len(alone)} points show a speed-up without the time of {name}"] if alone else []
    yield expect(None, wrong, f"All {len(drawn)} drawn points have an interval, and speed-ups the baseline's time.")


def one_source(evidence: Evidence) -> Iterator[Finding]:
    """V23: measured, emulated and simulated numbers, or those of two devices, are never in one statistic."""
    for cell in evidence.cells:
        sources = sorted(set(cell.frame["source"]))
        wrong = [f"Rows of {', '.join(sources)} in a cell that is {cell.run['source']}"]
        yield expect(cell.id, wrong if sources != [cell.run["source"]] else [], f"All rows are {cell.run['source']}.")
    for panel, rows in evidence.summary.groupby("experiment"):
        origins = sorted({f"{source} {device}".strip() for source, device in rows[["source", "device"]].to_numpy()})
        verdict = FAIL if len(origins) > 1 else PASS
        yield Finding(None, verdict, f"Panel {panel} shows {' and '.join(origins)} numbers.")
