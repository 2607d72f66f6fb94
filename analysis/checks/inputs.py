"""Whether all systems were given the same work, and did it."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import chi2

from analysis.checks.evidence import FAIL, PASS, SKIP, WARN, Cell, Evidence, Finding, expect, holm
from analysis.load import SIMULATED

ALIKE_ON_RANKS = ("weights", "dtype", "matmul_precision")
FALSE_ALARMS = 0.001  # of all cells together
LEAST_EXPECTED = 1.0  # tokens; experts below share a bin, for the chi-square distribution to hold


def same_inputs(evidence: Evidence) -> Iterator[Finding]:
    """V13: tokens, routing, weights, dtype and matmul precision are one for all cells of a point and precision."""
    for cells in evidence.points:
        by_precision = pd.DataFrame({"cell": cells, "precision": [cell.run["precision"] for cell in cells]})
        for _, group in by_precision.groupby("precision"):
            first = group["cell"].iloc[0]
            yield from (compare_inputs(cell, first, evidence) for cell in group["cell"])


def compare_inputs(cell: Cell, first: Cell, evidence: Evidence) -> Finding:
    """Whether a cell had the inputs of another one of its point, and its own ranks had the same."""
    ours, theirs = cell.run.get("inputs") or {}, first.run.get("inputs") or {}
    names = ("tokens", "routing", *ALIKE_ON_RANKS)
    if cell.run["source"] == SIMULATED:
        names = tuple(name for name in names if name != "weights")  # which have shapes only
    wrong = [f"The {name} is not recorded" for name in names if not ours.get(name)]
    wrong += [f"The {name} differs between ranks" for name in ALIKE_ON_RANKS if len(set(ours.get(name) or [])) > 1]
    differ = [name for name in names if ours.get(name) != theirs.get(name)]
    if not wrong and differ == ["routing"] and (ties := rerouted(cell, evidence)):
        text = f"A learned router sent {ties} tokens elsewhere for some system, whose outputs differ by rounding."
        return Finding(cell.id, WARN, text)
    wrong += [f"The {name} is not that of cell {first.id}" for name in differ]
    return expect(cell.id, wrong, f"The {', '.join(names)} are those of every cell of the point.")


def rerouted(cell: Cell, evidence: Evidence) -> int:
    """Tokens that the systems of a launch routed differently; 0 where the router does not look at them."""
    agreement = (cell.run.get("correctness") or {}).get("agreement") or {}
    return agreement.get("tokens_routed_otherwise", 0) if learned(evidence.campaign.routing(cell.id)) else 0


def learned(routing: pd.DataFrame) -> bool:
    """Whether a router chose by the tokens themselves, so that no load was asked for."""
    return bool(routing["intended"].isna().any())


def correct_outputs(evidence: Evidence) -> Iterator[Finding]:
    """V14: outputs equal the dense model's, or what the system's own rule gives, before timing, and the other systems'
    at every timed iteration.
    """
    for cell in evidence.cells:
        check = cell.run.get("correctness")
        if not check:
            yield Finding(cell.id, FAIL, "The output was not compared with the dense model.")
            continue
        agreement = check.get("agreement")
        wrong = [] if check["passed"] else [wrong_output(check, "the dense model")]
        wrong += [wrong_output(agreement, "the other systems")] if agreement and not agreement["passed"] else []
        if check.get("own_rule") and not wrong:
            told = f"Relative error {check['relative_error']:.2g} against what its own rule gives on whole experts."
            yield Finding(cell.id, PASS, told)
            continue
        if wrong or not agreement:
            text = "Only the first iteration's routing was compared with the dense model"
            yield expect(cell.id, wrong or [text], "", FAIL if wrong else WARN)
            continue
        timed = len(cell.slowest("measure")) + len(cell.slowest("instrumented"))
        text = f"Relative error {check['relative_error']:.2g} against the dense model; {agreement['iterations']} timed "
        text += f"iterations agree with {', '.join(agreement['with'])} ({agreement['relative_error']:.2g})."
        few = agreement["iterations"] < min(timed, cell.run["schedule"]["iterations"])
        yield Finding(cell.id, WARN if few else PASS, text)


def wrong_output(check: dict, other: str) -> str:
    """What is said of an output whose relative error is above the tolerance."""
    error = f"{check['relative_error']:.2g}, {check['tolerance']:.2g} allowed"
    return f"The output differs from that of {other} (relative error {error})"


def division(evidence: Evidence) -> Iterator[Finding]:
    """V15: a system that drops tokens or computes something else than the model is in the open division."""
    for cell in evidence.cells:
        dropped, computed, useful = (
            cell.rows("measure", name)["value"].sum() for name in ("dropped", "rows_computed", "rows_useful")
        )
        if cell.rows("measure", "dropped").empty or cell.rows("measure", "rows_computed").empty:
            yield Finding(cell.id, FAIL, "Dropped tokens and computed rows were not counted.")
        elif (cell.run.get("correctness") or {}).get("own_rule"):
            text = f"Open division: it computes something else than the model; {dropped:.0f} token copies were dropped."
            yield Finding(cell.id, WARN, text)
        elif dropped:
            yield Finding(cell.id, WARN, f"Open division: {dropped:.0f} tokens were dropped.")
        else:
            padding = computed / max(useful, 1)
            text = f"Closed division: no token was dropped, {padding:.3g} rows computed per useful one."
            yield Finding(cell.id, PASS, text)


def realised_load(evidence: Evidence) -> Iterator[Finding]:
    """V16: experts got the tokens that the router was asked to give them."""
    # Cells of a point have the same routing, byte for byte, which is looked at once.
    groups = evidence.groups(lambda cell: cell.run["checksums"].get("routing.parquet", cell.id))
    found = [load_p_value(evidence.campaign.routing(cells[0].id)) for cells in groups]
    adjusted = holm([1.0 if p is None else p for p in found])
    for cells, p, over_all in zip(groups, found, adjusted, strict=True):
        if p is None:
            verdict, text = SKIP, "A learned router: the realised load is stored, none was asked for."
        else:
            verdict = FAIL if over_all < FALSE_ALARMS else PASS
            text = f"Tokens per expert against the intended ones: p = {over_all:.2g} over all routings."
        yield from (Finding(cell.id, verdict, text) for cell in cells)


def load_p_value(routing: Any) -> float | None:
    """Pearson's chi-square of tokens per layer and expert, summed over ranks and iterations, against the intended.

    Exact routers give 1; ranks that draw the same routes, or another skew than asked for, give almost 0; a learned
    router, of which nothing was asked, gives None.
    """
    if learned(routing):
        return None
    loads: Any = routing.groupby(["layer", "expert"])[["tokens", "intended"]].sum()
    total, expected = loads.groupby("layer").sum().T.to_numpy()
    if not np.allclose(total, expected):
        return 0.0
    rare = loads["intended"] < LEAST_EXPECTED
    bins = pd.concat([loads[~rare], loads[rare].groupby("layer").sum()])
    if not (bins["intended"].to_numpy() > 0).all():  # a bin that was to stay empty: its tokens decide
        return float(not bins.loc[bins["intended"] <= 0, "tokens"].to_numpy().any())
    statistic = ((bins["tokens"] - bins["intended"]) ** 2 / bins["intended"]).sum()
    return float(chi2.sf(statistic, max(1, len(bins) - len(total))))
