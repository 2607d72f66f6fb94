"""The offline analysis of affinity: what it says of traces whose answer is known."""

import numpy as np
import pytest

from routers.token_trace import TokenTrace
from scripts.expert_affinity import judged, main


def trace(expert_LT: np.ndarray, num_experts: int) -> TokenTrace:
    expert_LTK = expert_LT[:, :, None].astype(np.int16)
    start_S, block_L = np.array([0]), np.arange(1, 2 * len(expert_LT), 2)
    return TokenTrace(expert_LTK, expert_LTK.astype(np.float16), start_S, block_L, np.array(num_experts), np.array(""))


def test_topics_that_stay_together_are_found_and_save_nothing_on_round_trips():
    """Even and odd experts never meet, so contiguous owners cross half the time and ExFlow's never."""
    draw = np.random.default_rng(0)
    topic_T, pick_LT = draw.integers(2, size=4000), draw.integers(4, size=(3, 4000))
    found = judged(trace(2 * pick_LT + topic_T, 8), ranks=2, held_out=0.25).set_index("placement")
    assert found.loc["contiguous", "crossings"] == pytest.approx(0.5, abs=0.03)
    assert found.loc[["exflow", "round_robin"], "crossings"].tolist() == [0, 0]
    assert found.loc["exflow", "if independent"] == pytest.approx(0.5, abs=0.01)
    assert found["round trip, rows a token"].tolist() == pytest.approx([3] * 4, abs=0.1)
    assert found.loc["exflow", "single, rows a token"] == pytest.approx(0.5, abs=0.03), "to the first expert only"
    assert set(found["one context, rows a token"]) == {1}


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--ranks", "3"], "error: --ranks is 3; it must divide the 8 experts of the trace\n"),
        (["--held-out", "1"], "error: --held-out 1.0 of 40 tokens on 4 ranks leaves nothing on one side\n"),
        (["--ranks", "0"], "error: --ranks is 0; it must be at least 1\n"),
    ],
)
def test_bad_input_is_one_sentence(options, sentence, tmp_path, capsys):
    trace(np.zeros((2, 40)), 8).write(tmp_path / "trace.npz")
    assert main([str(tmp_path / "trace.npz"), *options]) == 2
    assert capsys.readouterr().err == sentence


def test_one_layer_has_no_affinity(tmp_path, capsys):
    trace(np.zeros((1, 40)), 8).write(tmp_path / "trace.npz")
    assert main([str(tmp_path / "trace.npz")]) == 2
    assert "affinity is between two" in capsys.readouterr().err
