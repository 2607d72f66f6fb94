"""Errors of emulation: pairing, statistics, order of systems."""

import dataclasses

import numpy as np
import pandas as pd
import pytest

from analysis.load import Campaign, load_campaign
from analysis.studies.fidelity import compare as fidelity
from analysis.studies.fidelity import words
from analysis.studies.fidelity.figure import plot_fidelity


def times(source: str, **systems: list[float]) -> pd.DataFrame:
    """One panel, one point, both metrics alike; `moeshard_twin` repeats moeshard."""
    rows = [
        {"panel": "p", "x": 8, "system": name.removesuffix("_twin"), "twin": name.endswith("_twin"), "source": source}
        | {"metric": metric, "launch": launch, "value": value}
        for name, values in systems.items()
        for metric in fidelity.METRICS
        for launch, value in enumerate(values)
    ]
    return pd.DataFrame(rows)


REAL = times("measured", ep=[10.0, 10.5, 9.5], moeshard=[20.0, 20.0, 20.0], moeshard_twin=[20.4, 20.2, 20.0])


def test_the_error_is_of_geometric_means_with_welchs_interval():
    emulated = times("emulated", ep=[11.0, 11.55, 10.45], moeshard=[19.0, 19.0, 19.0])
    errors = fidelity.compare(REAL, emulated).set_index(["system", "metric"])
    assert errors.loc[("ep", "ttft_ms"), "error"] == pytest.approx(0.1)
    assert errors.loc[("moeshard", "layer_moe_ms"), "error"] == pytest.approx(-0.05)
    low, high = errors.loc[("ep", "ttft_ms"), ["low", "high"]]
    assert low < 0.1 < high and high - low > 0.1
    assert len(errors) == 4  # the twin is not a system of its own


def test_one_launch_gives_no_interval():
    errors = fidelity.compare(times("measured", ep=[10.0]), times("emulated", ep=[9.0]))
    assert errors["error"].to_list() == pytest.approx([-0.1, -0.1]) and errors[["low", "high"]].isna().all(axis=None)


def test_sources_are_what_they_must_be():
    with pytest.raises(ValueError, match="times that should be emulated are measured"):
        fidelity.compare(REAL, REAL)


def test_panels_are_paired_by_name():
    both = pd.concat([REAL, times("emulated", ep=[1.0]).assign(panel="p_emulated"), REAL.assign(panel="alone")])
    real, emulated = fidelity.paired(both)
    assert set(real["panel"]) == set(emulated["panel"]) == {"p"}
    with pytest.raises(ValueError, match="a panel P needs P_emulated; there are p"):
        fidelity.paired(REAL)


@pytest.mark.parametrize(("moeshard", "agree"), [([19.0] * 3, True), ([8.0] * 3, False)])
def test_order_is_compared_where_the_real_difference_is_beyond_the_floor(moeshard, agree):
    order = fidelity.orderings(REAL, times("emulated", ep=[10.0] * 3, moeshard=moeshard))
    assert order["beyond_floor"].all() and (order["agree"] == agree).all() and len(order) == 2
    said = words.order_sentence(order)
    assert ("agree in 2 of the 2" in said) == agree and ("Not: EP / MoEShard at 8" in said) == (not agree)


def test_a_difference_inside_the_floor_is_not_held_against_the_emulator():
    real = times("measured", ep=[19.9, 20.1, 20.0], moeshard=[20.0] * 3, moeshard_twin=[22.0] * 3)
    order = fidelity.orderings(real, times("emulated", ep=[30.0] * 3, moeshard=[20.0] * 3))
    assert not order["beyond_floor"].any() and "no two are known to differ" in words.order_sentence(order)


def test_the_table_has_medians_and_worst_cells_and_ignores_small_sections():
    def with_sections(frame, experts, route):
        layer = frame.loc[frame["metric"] == "layer_moe_ms"]
        scaled = [layer.assign(metric="section_ms/experts", value=layer["value"] * experts)]
        return pd.concat([frame, *scaled, layer.assign(metric="section_ms/route", value=layer["value"] * route)])

    real, emulated = with_sections(REAL, 0.5, 0.01), with_sections(REAL.assign(source="emulated"), 0.6, 0.05)
    table = words.by_system(fidelity.compare(real, emulated)).set_index("system")
    assert table.loc["all", "sections median"] == pytest.approx(20) == table.loc["ep", "sections worst"]
    assert table.loc["all", "cells"] == 2 and table.loc["ep", "ttft_ms worst"] == pytest.approx(0, abs=1e-9)
    text = words.markdown(fidelity.compare(real, emulated), fidelity.orderings(real, emulated), {})
    assert "| EP | 1 | 0.0 %, 0.0 % | 0.0 %, 0.0 % | 20.0 %, 20.0 % |" in text


def test_the_figure_is_written(tmp_path):
    errors = fidelity.compare(REAL, times("emulated", ep=[11.0, 11.2, 11.1], moeshard=[19.0] * 3))
    picture = plot_fidelity(errors, tmp_path / "f", note="")
    assert picture.png.stat().st_size > 10_000 and "median 8.0 %" in picture.svg.read_text()
    assert np.isfinite(errors["error"]).all()


def test_campaigns_of_other_workloads_are_not_held_against_each_other(fig3):
    found = load_campaign(fig3(experts=(8,), batches=(), launches=1))

    def seeded(seed: int) -> Campaign:
        config = dict.fromkeys(fidelity.SHARED, 1) | {"tier": {"block": 1}, "seed": seed}
        runs = {cell: run | {"config": run["config"] | config} for cell, run in found.runs.items()}
        return dataclasses.replace(found, runs=runs)

    assert fidelity.differences(seeded(1), seeded(1)) == set()
    with pytest.raises(ValueError, match="differ in seed: not the same cells"):
        fidelity.held_against(seeded(1), seeded(7))
