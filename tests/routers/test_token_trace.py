from pathlib import Path
from typing import Any

import numpy as np
import pytest

from routers.drawn import PROFILE_FROM
from routers.token_trace import DEFAULT_PATH, TokenTrace, TokenTraceRouter


def trace(**changed: Any) -> TokenTrace:
    """Three layers, five tokens, two of four experts each: token t in layer l goes to (t + l) mod 4 or the next one."""
    best_LT = (np.arange(5) + np.arange(3)[:, None]) % 4
    given = {
        "expert_LTK": np.stack([best_LT, (best_LT + 1) % 4], axis=2).astype(np.int16),
        "logits_LTK": np.tile(np.array([2, 1], np.float16), (3, 5, 1)),
        "start_S": np.array([0, 3]),
        "block_L": np.array([1, 5, 9]),
        "num_experts": np.array(4),
        "source": np.array("by hand"),
    }
    return TokenTrace(**given | changed)


@pytest.fixture
def small(tmp_path: Path) -> str:
    trace().write(tmp_path / "small.npz")
    return str(tmp_path / "small.npz")


def router(path: str | None, **changed: Any) -> TokenTraceRouter:
    given = {"num_experts": 4, "rank": 0, "seed": 0, "moe_blocks": [1, 3, 5], "held_out": 0} | changed
    return TokenTraceRouter(path=path, **given)


def test_what_is_written_is_read_again_and_the_same_bytes(small, tmp_path):
    read = TokenTrace.read(Path(small))
    for name, value in vars(trace()).items():
        assert getattr(read, name).dtype == value.dtype and (getattr(read, name) == value).all()
    read.write(tmp_path / "again.npz")
    assert (tmp_path / "again.npz").read_bytes() == Path(small).read_bytes()


def test_tokens_follow_one_another_and_wrap_around(small):
    found = {tuple(router(small, rank=rank).draw(7, layer=1, iteration=0)[:, 0].tolist()) for rank in range(40)}
    text = [0, 1, 2, 3, 0]
    assert found == {tuple((text * 3)[first : first + 7]) for first in range(5)}


def test_a_token_keeps_its_experts_in_all_layers(small):
    for key in ({"rank": 0}, {"rank": 3}, {"seed": 4}):
        draws = [router(small, **key).draw(9, layer=block, iteration=2)[:, 0] for block in (1, 3, 5)]
        assert ((draws[1] - draws[0]) % 4 == 1).all() and ((draws[2] - draws[1]) % 4 == 1).all()


def test_blocks_get_layers_as_in_counts_only_traces(small):
    def layer_of(block: int, **changed: Any) -> int:
        """The recorded layer, by how far it is from the first one."""
        first_T = router(small, moe_blocks=[7], layers=[1]).draw(3, layer=7, iteration=0)[:, 0]
        return int(router(small, **changed).draw(3, layer=block, iteration=0)[0, 0] - first_T[0]) % 4

    assert [layer_of(block) for block in (1, 3, 5)] == [0, 1, 2]
    assert [layer_of(block, moe_blocks=[1, 3]) for block in (1, 3)] == [0, 2]
    assert [layer_of(block, layers=[9, 9, 1]) for block in (1, 3, 5)] == [2, 2, 0]


def test_intended_is_what_is_drawn(small):
    drawn_T = router(small).draw(11, layer=3, iteration=5)[:, 0]
    assert router(small).intended(11, layer=3, iteration=5).tolist() == np.bincount(drawn_T, minlength=4).tolist()
    assert router(small).draw(0, layer=3, iteration=5)[:, 0].tolist() == []


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"num_experts": 8}, r"^router\.path is .*small\.npz, a trace of num_experts=4, not 8$"),
        ({"layers": [1, 5]}, r"^router\.layers is \[1, 5\]; .* model's 3 MoE blocks, .* recorded layers 1, 5, 9$"),
        ({"layers": [1, 5, 7]}, r"^router\.layers is \[1, 5, 7\]; it must name"),
    ],
)
def test_bad_option_is_named(small, options, sentence):
    with pytest.raises(ValueError, match=sentence):
        router(small, **options)


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"expert_LTK": np.zeros((3, 0, 2), np.int16)}, "it must have tokens, and a block for each layer"),
        ({"expert_LTK": np.zeros((3, 5), np.int16)}, "it must have tokens, and a block for each layer"),
        ({"block_L": np.array([1, 5])}, "it must have tokens, and a block for each layer"),
        ({"num_experts": np.array(3)}, "its experts must be 0 to 2"),
        ({"expert_LTK": np.full((3, 5, 2), -1, np.int16)}, "its experts must be 0 to 3"),
    ],
)
def test_a_trace_that_cannot_be_is_refused(tmp_path, changed, sentence):
    trace(**changed).write(tmp_path / "bad.npz")
    with pytest.raises(ValueError, match=rf"^router\.path is .*bad\.npz; {sentence}$"):
        router(str(tmp_path / "bad.npz"))


def test_what_is_no_trace_is_refused_in_one_sentence(tmp_path):
    np.savez(tmp_path / "other.npz", x=np.zeros(3))
    np.savez(tmp_path / "pickled.npz", **vars(trace()) | {"source": np.array([None])})
    np.save(tmp_path / "array.npy", np.zeros(3))
    (tmp_path / "text.npz").write_text("num_experts,layer\n")
    (tmp_path / "empty.npz").write_bytes(b"")
    (tmp_path / "cut.npz").write_bytes(DEFAULT_PATH.read_bytes()[:5000])
    for name in ("other.npz", "pickled.npz", "array.npy", "text.npz", "empty.npz", "cut.npz", "none.npz"):
        with pytest.raises(ValueError, match=rf"^router\.path is .*{name}, which scripts\.record_token_trace did not"):
            router(str(tmp_path / name))


def test_the_trace_of_this_repository_is_whole():
    found = TokenTrace.read(DEFAULT_PATH)
    assert found.expert_LTK.shape == found.logits_LTK.shape == (2, 8040, 4)
    assert found.expert_LTK.dtype == np.int16 and found.logits_LTK.dtype == np.float16
    assert found.block_L.tolist() == [1, 3] and found.num_experts == 128
    assert found.start_S.tolist() == list(range(0, 8040, 120))
    assert (np.diff(found.logits_LTK.astype(np.float32), axis=2) <= 0).all()  # best first
    assert all(len(set(experts)) == 4 for experts in found.expert_LTK.reshape(-1, 4).tolist())
    assert DEFAULT_PATH.stat().st_size < 200_000


def test_a_profile_sees_what_is_held_out_and_nothing_that_is_measured():
    """Tokens that are told apart by their experts in two layers."""
    whole = TokenTrace.read(DEFAULT_PATH).expert_LTK[:, :, 0].T.tolist()

    def pairs(iteration: int) -> list[list[int]]:
        held = TokenTraceRouter(num_experts=128, moe_blocks=[1, 3], rank=0, seed=0, held_out=0.25)
        draws = [held.draw(8040, layer=layer, iteration=iteration)[:, 0] for layer in (1, 3)]
        return np.stack(draws, 1).tolist()

    first = int(0.75 * 8040)
    assert sorted(pairs(0)[:first]) == sorted(whole[:first])
    assert sorted(pairs(PROFILE_FROM)[: 8040 - first]) == sorted(whole[first:])
