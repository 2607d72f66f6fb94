"""What the scripts that train the small models share."""

import math
from pathlib import Path

import pytest
import torch

from scripts.training import SEQ_LEN, parse, split, statistics, unigram_loss


def test_held_out_text_is_not_trained_on():
    tokens_N = torch.arange(40 * SEQ_LEN)
    start_S, held_out_PL = split(tokens_N)
    assert held_out_PL[:, 0].tolist() == [7 * SEQ_LEN, 15 * SEQ_LEN, 23 * SEQ_LEN, 31 * SEQ_LEN, 39 * SEQ_LEN]
    read_N = torch.unique(start_S[:, None] + torch.arange(SEQ_LEN))
    assert not torch.isin(held_out_PL, read_N).any()
    assert len(read_N) + held_out_PL.numel() == len(tokens_N)


@pytest.mark.parametrize("at", [0, 100, 7 * SEQ_LEN - 10, 8 * SEQ_LEN, 8 * SEQ_LEN + 20, 15 * SEQ_LEN - 10])
def test_a_held_out_passage_that_repeats_ten_tokens_of_training_text_is_left_out(at):
    """At the first and the last tokens of a stretch of training text too."""
    tokens_N = torch.arange(40 * SEQ_LEN)
    tokens_N[7 * SEQ_LEN : 7 * SEQ_LEN + 9] = tokens_N[at : at + 9]
    assert len(split(tokens_N)[1]) == 5
    tokens_N[7 * SEQ_LEN : 7 * SEQ_LEN + 10] = tokens_N[at : at + 10]
    assert len(split(tokens_N)[1]) == 4


def test_frequencies_are_those_of_the_training_text():
    tokens_N = torch.tensor([0, 0, 1] * 40 + [2])  # one passage of training text, and a token that is in none
    loss = unigram_loss(tokens_N, torch.tensor([0]), torch.tensor([0, 2]), vocab_size=3)
    assert loss == pytest.approx(-(math.log(81 / 123) + math.log(1 / 123)) / 2)


def test_imbalance_of_experts_and_of_ranks():
    found = statistics(torch.tensor([[3, 0, 2, 1], [3, 0, 2, 1]]))
    assert found["busiest expert / mean"] == found["busiest rank / mean"] == pytest.approx(2)
    assert found["empty experts"] == 1 and found["CV"] == pytest.approx(math.sqrt(5) / 3)


def test_the_command_line_says_what_is_wrong(capsys):
    assert parse([], None, Path("out"), steps=7, balance=0.5).steps == 7
    with pytest.raises(SystemExit):
        parse(["--steps", "0"], None, Path("out"), steps=7, balance=0.5)
    assert "--steps is 0; it must be at least 1" in capsys.readouterr().err
