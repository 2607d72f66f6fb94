import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from analysis.load import load_campaign
from analysis.reduce import expert_load, gini, load_cube, reduce_cell, reduce_counts
from tests.analysis.synthetic import CEILINGS, SECTIONS

CELL = "moeshard_num_experts_8_0"


@pytest.fixture
def frame(fig3):
    return load_campaign(fig3(experts=(8,), batches=(), launches=1)).frames[CELL]


def test_passes_are_kept_apart(frame):
    """TTFT from the measured pass (400 ms), layers and sections from the instrumented one (30 ms a layer)."""
    reduced = reduce_cell(frame, 4, CEILINGS)
    assert np.median(reduced["ttft_ms"]) == pytest.approx(400)
    assert np.median(reduced["ttft_instrumented_ms"]) == pytest.approx(408)
    assert np.median(reduced["ttft_min_rank_ms"]) == pytest.approx(160)
    assert np.median(reduced["layer_moe_ms"]) == pytest.approx(30)
    assert np.median(reduced["section_ms/experts"]) == pytest.approx(15)
    assert reduced["layer_moe_ms"].shape == (5, 2) and reduced["ttft_ms"].shape == (5, 1)
    assert [name.removeprefix("section_ms/") for name in reduced if name.startswith("section_ms/")] == list(SECTIONS)


def test_counts_per_forward(frame):
    reduced = reduce_cell(frame, 4)
    assert np.median(reduced["bytes_sent"]) == pytest.approx(2 * 2.8 * 1e6)
    assert reduced["dropped"].shape == (5, 1) and "percent_of_bound/experts" not in reduced


def test_the_busiest_rank_is_held_against_what_rank_0_tells():
    measured = {
        "rows_computed": np.array([[[6.0, 2.0], [4.0, 4.0]]]),
        "least_rows": np.array([[[5.0, 0.0], [4.0, 0.0]]]),
    }
    assert reduce_counts(measured)["over_least"].tolist() == [[1.2, 1.0]]


def test_percent_of_bound(frame):
    assert np.median(reduce_cell(frame, 4, CEILINGS)["percent_of_bound/experts"]) == pytest.approx(50, rel=0.01)


def test_entry_skew_is_the_longest_wait(frame):
    assert reduce_cell(frame, 4)["entry_skew_ms"] == pytest.approx(np.full((5, 2), 0.6))


@pytest.mark.parametrize(("metric", "phase"), [("ttft_ms", "measure"), ("layer_moe_ms", "instrumented")])
def test_iteration_without_the_row_of_a_rank_is_refused(frame, metric, phase):
    here = (frame["metric"] == metric) & (frame["phase"] == phase)
    lost = here & (frame["iteration"] == 2) & (frame["rank"] == 3) & (frame["layer"].fillna(1) == 1)
    with pytest.raises(ValueError, match=f"{CELL} has .* rows of {metric}; 5 iterations x . layers x 4 ranks make"):
        reduce_cell(frame[~lost], 4)


def test_a_rank_that_is_absent_throughout_is_refused(frame):
    with pytest.raises(ValueError, match="x 4 ranks make"):
        reduce_cell(frame[frame["rank"] < 3], 4)


def test_rows_of_two_sources_in_one_cell_are_refused(frame):
    frame.loc[frame.index[:3], "source"] = "measured"
    with pytest.raises(ValueError, match="cannot mix source emulated, measured"):
        reduce_cell(frame, 4)


def test_load_cube_fills_what_has_no_row():
    rows = [(1, 0, 0, 2, 5), (1, 0, 1, 2, 1), (3, 0, 0, 0, 4), (1, 7, 0, 1, 3)]
    routing = pd.DataFrame(rows, columns=["layer", "iteration", "rank", "expert", "tokens"])
    assert load_cube(routing, 4).tolist() == [[[0, 0, 6, 0], [4, 0, 0, 0]], [[0, 3, 0, 0], [0, 0, 0, 0]]]


def test_expert_load_of_a_hand_worked_case():
    """Loads 0, 0, 2, 6: mean 2, CV sqrt(6)/2, Gini (2*(1*0+2*0+3*2+4*6)/(4*8)) - 5/4 = 0.625, max/mean 3."""
    load = {name: value.item() for name, value in expert_load(np.array([[[0, 6, 2, 0]]])).items()}
    assert load == pytest.approx(
        {"expert_cv": np.sqrt(6) / 2, "expert_gini": 0.625, "empty_experts": 2, "expert_imbalance": 3}
    )


@given(st.lists(st.integers(0, 1000), min_size=1, max_size=40).filter(any))
def test_gini_is_the_mean_difference_over_twice_the_mean(loads):
    tokens_E = np.array(loads, float)
    differences = np.abs(tokens_E[:, None] - tokens_E).mean()
    assert gini(tokens_E) == pytest.approx(differences / (2 * tokens_E.mean()))


@pytest.mark.parametrize("rank", [-1.0, 1.5, 4.0])
def test_a_rank_that_there_cannot_be_is_refused(frame, rank):
    frame["rank"] = frame["rank"].astype(float)
    frame.loc[frame["rank"] == 3, "rank"] = rank
    with pytest.raises(ValueError, match="x 4 ranks make"):
        reduce_cell(frame, 4)


def test_a_row_that_is_there_twice_is_refused(frame):
    layers = frame[frame["metric"] == "layer_moe_ms"]
    with pytest.raises(ValueError, match="layer_moe_ms; 5 iterations"):
        reduce_cell(pd.concat([frame, layers.iloc[:1]]), 4)


@pytest.mark.parametrize("key", ["metric", "iteration", "rank"])
def test_a_row_without_a_key_is_refused(frame, key):
    frame[key] = frame[key].astype(object)
    frame.loc[frame.index[-1], key] = None
    with pytest.raises(ValueError, match="rows without a metric, an iteration or a rank"):
        reduce_cell(frame, 4)
