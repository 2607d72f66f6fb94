"""The measures of outputs' quality, from sums worked by hand, and their tables."""

import math

import pytest

from analysis.quality import COLUMNS, LAYER_COLUMNS, blocks_of, layer_measures, measures, quality_tables

# Four guesses; blocks 1 and 3 with ten tokens of two copies each.
SUMS = {"guesses": 4.0, "nats": 4 * math.log(8), "agreed": 3.0, "kl_nats": 0.8}
SUMS |= {"error.1": 9.0, "scale.1": 100.0, "dropped.1": 2.0, "tokens.1": 10.0}
SUMS |= {"error.3": 0.0, "scale.3": 4.0, "dropped.3": 0.0, "tokens.3": 10.0}
PLACE = {"checkpoint": "small", "world_size": 2, "batch_size": 3, "seq_len": 4, "precision": "fp32", "guesses": 4}
ROW = {"system": "ep", "options": "", "exactness": "exact", "engine": "loop", **PLACE, "dense_perplexity": 4.0}


def test_measures_of_sums():
    found = measures(SUMS, top_k=2)
    expected = {"perplexity": 8.0, "agreement": 0.75, "kl_nats": 0.2, "dropped_share": 2 / 40}
    assert found == pytest.approx(expected)
    assert layer_measures(SUMS, top_k=2) == [
        {"block": 1, "relative_error": pytest.approx(0.3), "dropped_share": pytest.approx(0.1)},
        {"block": 3, "relative_error": 0.0, "dropped_share": 0.0},
    ]
    assert blocks_of(SUMS) == [1, 3]


def test_tables_show_the_cost_and_the_reasons():
    refused = {"system": "deepspeed", "options": "k=1", **PLACE, "guesses": None, "state": "unsupported"}
    rows = [ROW | {"state": "ok"} | measures(SUMS, 2), refused | {"reason": "top-1 only"}]
    quality, layers, lacking = quality_tables(rows, [ROW | layer for layer in layer_measures(SUMS, 2)])
    assert list(quality.raw) == list(COLUMNS) and list(layers.raw) == list(LAYER_COLUMNS)
    (shown,) = quality.shown.to_dict("records")
    assert shown["perplexity"] == "8.00" and shown["beyond dense"] == "+100.00 %"
    assert shown["same likeliest token"] == "75.00 %" and shown["copies dropped"] == "5.00 %"
    assert shown["error by MoE layer"] == "0.3, 0" and "model" not in shown
    assert "model small" in quality.title and "dense perplexity 4.00" in quality.title
    assert lacking.shown.to_dict("records") == [
        {"system": "DeepSpeed", "options": "k=1", "state": "unsupported", "reason": "top-1 only"}
    ]


def test_what_differs_between_rows_is_a_column():
    rows = [ROW | {"state": "ok", "batch_size": size} | measures(SUMS, 2) for size in (3, 5)]
    layers = [row | layer for row in rows for layer in layer_measures(SUMS, 2)]
    quality = quality_tables(rows, layers)[0]
    assert quality.shown["sequences a rank and pass"].to_list() == ["3", "5"]
    assert "sequences" not in quality.title
