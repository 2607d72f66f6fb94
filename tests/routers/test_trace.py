import gzip
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from routers.drawn import PROFILE_FROM
from routers.trace import DEFAULT_PATH, TraceRouter, apportion, read_trace

HEADER = "num_experts,layer,iteration,tokens_per_expert\n"
# Two experts, three layers, two iterations; not in order, and another number of experts between them.
ROWS = "2,1,4,30 10\n2,1,3,10 30\n4,1,3,1 1 1 1\n2,5,3,20 20\n2,5,4,40 0\n2,9,3,7 1\n2,9,4,1 7\n"


@pytest.fixture
def small(tmp_path: Path) -> str:
    path = tmp_path / "small.csv.gz"
    path.write_bytes(gzip.compress((HEADER + ROWS).encode()))
    return str(path)


def router(path: str | None, num_experts: int = 2, rank: int = 0, **options: Any) -> TraceRouter:
    given = {"moe_blocks": [1, 3, 5], "seed": 0, "held_out": 0} | options
    return TraceRouter(num_experts=num_experts, rank=rank, path=path, **given)


def counts(path: str, num_tokens: int = 8, layer: int = 1, iteration: int = 0, **options: Any) -> list[int]:
    return router(path, **options).counts(num_tokens, layer=layer, iteration=iteration).tolist()


def test_apportion_by_hand():
    # quotas 3.33, 3.33, 3.33: the first gets the one left; 0.6, 5.4: the larger remainder gets it
    assert apportion(np.array([1, 1, 1]), 10).tolist() == [4, 3, 3]
    assert apportion(np.array([1, 9]), 6).tolist() == [1, 5]
    assert apportion(np.array([2, 0, 6]), 4).tolist() == [1, 0, 3]
    assert apportion(np.array([5, 3]), 0).tolist() == [0, 0]


@given(st.lists(st.integers(0, 40_000), min_size=1, max_size=256).filter(any), st.integers(0, 60_000))
def test_apportion_is_exact_and_within_one_of_the_quota(weights, total):
    counts_E = apportion(np.array(weights), total)
    assert counts_E.sum() == total
    assert np.abs(counts_E - np.array(weights) * (total / sum(weights))).max() < 1 + 1e-6
    assert all(count == 0 for count, weight in zip(counts_E, weights, strict=True) if weight == 0)


def test_rows_are_put_in_order_and_those_of_other_models_left_out(small):
    trace = read_trace(Path(small), 2)
    assert {layer: tokens_IE.tolist() for layer, tokens_IE in trace.items()} == {
        1: [[10, 30], [30, 10]],
        5: [[20, 20], [40, 0]],
        9: [[7, 1], [1, 7]],
    }


def test_iterations_wrap_around_and_ranks_are_apart(small):
    assert [counts(small, iteration=i) for i in range(4)] == [[2, 6], [6, 2], [2, 6], [6, 2]]
    assert [counts(small, rank=1, iteration=i) for i in range(2)] == [[6, 2], [2, 6]]


def test_blocks_get_layers_in_order(small):
    assert [counts(small, layer=block) for block in (1, 3, 5)] == [[2, 6], [4, 4], [7, 1]]
    assert [counts(small, layer=block, moe_blocks=[1, 3]) for block in (1, 3)] == [[2, 6], [7, 1]]
    assert [counts(small, layer=block, layers=[9, 9, 1]) for block in (1, 3, 5)] == [[7, 1], [7, 1], [2, 6]]


def test_which_tokens_is_drawn_anew_when_the_trace_wraps(small):
    draws = [router(small).draw(200, layer=1, iteration=i)[:, 0] for i in (0, 2)]
    assert sorted(draws[0]) == sorted(draws[1]) and draws[0].tolist() != draws[1].tolist()


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"num_experts": 3}, r"which has no trace of num_experts=3; it has those of 2, 4$"),
        ({"layers": [1, 5]}, r"router\.layers is \[1, 5\]; .* model's 3 MoE blocks, .* recorded layers 1, 5, 9$"),
        ({"layers": [1, 5, 7]}, r"router\.layers is \[1, 5, 7\]; it must name"),
    ],
)
def test_bad_option_is_named(small, options, sentence):
    with pytest.raises(ValueError, match=sentence):
        router(small, **options)


@pytest.mark.parametrize(
    "content",
    ["", "num_experts,layer\n2,1\n", HEADER + "two,1,3,1 1\n", "\0\0"],
    ids=["empty", "columns", "number", "binary"],
)
def test_what_is_no_trace_is_refused_in_one_sentence(tmp_path, content):
    path = tmp_path / "trace.csv"
    path.write_text(content)
    with pytest.raises(ValueError, match=r"^router\.path is .*trace\.csv; it must be a csv \(\.gz\) with[^\n]*$"):
        router(str(path))


@pytest.mark.parametrize("tokens", ["1 1 1", "1", "1 -1", "0 0", "1 x", "1.5 2", ""])
def test_counts_that_are_none_are_refused(tmp_path, tokens):
    path = tmp_path / "trace.csv"
    path.write_text(f"{HEADER}2,1,3,1 1\n2,1,4,{tokens}\n")
    with pytest.raises(ValueError, match=r"tokens_per_expert must be 2 numbers of tokens, not all 0, in every row"):
        router(str(path))


def test_missing_file_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"router\.path is .*none\.csv; it must be a csv"):
        router(str(tmp_path / "none.csv"))


@pytest.mark.parametrize("num_experts", [8, 16, 32, 64, 128, 256])
def test_the_trace_of_this_repository_is_whole(num_experts):
    trace = read_trace(DEFAULT_PATH, num_experts)
    assert list(trace) == [1, 3, 5, 7, 9, 11]
    for tokens_IE in trace.values():
        assert tokens_IE.shape == (12, num_experts)
        assert (tokens_IE.sum(axis=1) > 29_000).all() and (tokens_IE.sum(axis=1) <= 30_000).all()


def test_the_trace_of_this_repository_starts_as_the_authors_file_does():
    # outputs/mgblcks/encoder_mgblcks_8_experts_1_gpus_normalrun_get_tokens_per_exp/0/moe_l1.csv, iterations 3 and 4
    assert read_trace(DEFAULT_PATH, 8)[1][:2].tolist() == [
        [2594, 3514, 4771, 2884, 2954, 4207, 5178, 3898],
        [2443, 3750, 4766, 2947, 2856, 4216, 5170, 3852],
    ]


def test_a_full_batch_replays_the_record_itself():
    recorded_E = read_trace(DEFAULT_PATH, 16)[3][5]
    replay = router(None, num_experts=16, rank=1, layers=[3, 3, 3])
    assert replay.counts(int(recorded_E.sum()), layer=1, iteration=4).tolist() == recorded_E.tolist()


def test_a_profile_sees_what_is_held_out_and_nothing_that_is_measured():
    def loads(held_out: float, iterations: range) -> set[tuple[int, ...]]:
        router = TraceRouter(num_experts=128, moe_blocks=[1, 3], rank=0, seed=0, held_out=held_out)
        return {tuple(router.counts(3000, layer=1, iteration=iteration)) for iteration in iterations}

    measured, profile = range(24), range(PROFILE_FROM, PROFILE_FROM + 24)
    assert len(loads(0.25, measured)) == 9 and len(loads(0.25, profile)) == 3
    assert not loads(0.25, measured) & loads(0.25, profile)
    assert loads(0, measured) == loads(0, profile)
