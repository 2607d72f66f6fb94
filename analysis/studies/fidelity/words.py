"""What a comparison of real and emulated times comes to, in Markdown."""

import numpy as np
import pandas as pd

from analysis.labels import system_name
from analysis.reduce import SECTION
from analysis.stats import Floor
from analysis.studies.fidelity.compare import KEYS, METRICS


def by_system(errors: pd.DataFrame) -> pd.DataFrame:
    """One row a system and one for all: number of cells, median and worst absolute error of each metric in percent."""
    groups = [*((name, rows) for name, rows in errors.groupby("system")), ("all", errors)]
    return pd.DataFrame([{"system": name, "cells": num_cells(rows)} | summed(rows) for name, rows in groups])


def num_cells(errors: pd.DataFrame) -> int:
    """Cells are panel, point and system."""
    return len(errors.drop_duplicates(["panel", "x", "system"]))


def summed(errors: pd.DataFrame) -> dict[str, float]:
    """Median and worst absolute error of each metric, and of the sections that matter, in percent."""
    found = {}
    metrics = {**{metric: errors["metric"] == metric for metric in METRICS}, "sections": section_rows(errors)}
    for name, chosen in metrics.items():
        absolute = 100 * errors.loc[chosen, "error"].abs()
        found |= {f"{name} median": absolute.median(), f"{name} worst": absolute.max()}
    return found


def section_rows(errors: pd.DataFrame) -> pd.Series:
    """Sections that take at least a tenth of their layer: the error of a few microseconds is no one's concern."""
    layers = errors.loc[errors["metric"] == "layer_moe_ms"].set_index(KEYS[:3])["real"]
    layer_ms = pd.Series([layers.get(tuple(key), np.nan) for key in errors[KEYS[:3]].to_numpy()], index=errors.index)
    return errors["metric"].str.startswith(SECTION) & (errors["real"] >= 0.1 * layer_ms)


def markdown(errors: pd.DataFrame, order: pd.DataFrame, floors: dict[str, Floor]) -> str:
    """A table by system, with a sentence on the order of systems and one on the noise of the real runs."""
    lines = [
        "| median, worst error of | cells | TTFT | MoE layer | sections over 10 % of it |",
        "|---|---|---|---|---|",
    ]
    for row in by_system(errors).to_dict("records"):
        cells = [f"{row[f'{name} median']:.1f} %, {row[f'{name} worst']:.1f} %" for name in (*METRICS, "sections")]
        lines.append(f"| {system_name(row['system'])} | {row['cells']} | {' | '.join(cells)} |")
    return "\n".join([*lines, "", order_sentence(order), floor_words(floors)])


def order_sentence(order: pd.DataFrame) -> str:
    """How many comparisons that real runs decide the emulator decides alike, and how far its ratios are off."""
    if order.empty or not any(order["beyond_floor"]):
        return "Order of systems: no two are known to differ in the real runs by more than their noise."
    known = order.loc[order["beyond_floor"]]
    wrong = known.loc[~known["agree"]]
    text = f"Order of systems: emulated and real agree in {known['agree'].sum()} of the {len(known)} comparisons"
    text += f" (of {len(order)}) whose real difference is beyond the noise."
    named = [
        f"{system_name(r['one'])} / {system_name(r['other'])} at {r['x']} ({METRICS[r['metric']]}: real "
        f"{r['real']:.2f}, emulated {r['emulated']:.2f})"
        for r in wrong.to_dict("records")
    ]
    off = 100 * np.abs(known["emulated"] / known["real"] - 1)
    text += f" Their speed-ups differ by {off.median():.1f} % in the median, {off.max():.1f} % at worst."
    return text + (f" Not: {'; '.join(named)}." if named else "")


def floor_words(floors: dict[str, Floor]) -> str:
    """The sentence about the noise of real runs."""
    words = [f"{METRICS[name]} {100 * floor.value:.1f} % ({floor.n_pairs} pairs)" for name, floor in floors.items()]
    told = ", ".join(words) or "not measured"
    return f"Two real runs of one system in one launch differ, in 95 % of the pairs, by at most: {told}."
