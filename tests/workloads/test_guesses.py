"""What a model has to guess of a text."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from workloads.guesses import logits, mask, next_tokens, task_of
from workloads.model import ModelShape

VOCAB, L = 3800, 120


def test_a_decoder_guesses_every_token_but_the_first_from_those_before():
    ids_BL = torch.tensor([[5, 6, 7], [8, 9, 10]])
    task = next_tokens(ids_BL)
    assert torch.equal(task.read_BL, ids_BL)
    assert task.asked_BL.tolist() == [[True, True, False]] * 2 and task.answer_N.tolist() == [6, 7, 9, 10]


def test_an_encoder_guesses_what_is_hidden():
    ids_BL = torch.arange(10, 10 + 2 * L).view(2, L)
    encoder = ModelShape(4, 8, 8, 4, 2, 2, 2, VOCAB)
    task = task_of(encoder, ids_BL, torch.Generator().manual_seed(0))
    assert torch.equal(task.answer_N, ids_BL[task.asked_BL]) and len(task.answer_N) > 10
    assert torch.equal(task.read_BL[~task.asked_BL], ids_BL[~task.asked_BL])
    again = task_of(encoder, ids_BL, torch.Generator().manual_seed(0))
    assert torch.equal(task.read_BL, again.read_BL)


def test_masks_hide_what_is_to_be_guessed():
    ids_BL = torch.full((100, L), 7)
    shown_BL, masked_BL = mask(ids_BL, VOCAB, torch.Generator().manual_seed(0))
    assert torch.equal(shown_BL[~masked_BL], ids_BL[~masked_BL])
    assert masked_BL.float().mean().item() == pytest.approx(0.15, abs=0.01)
    hidden = shown_BL[masked_BL] == 2
    kept = shown_BL[masked_BL] == 7
    assert hidden.float().mean().item() == pytest.approx(0.8, abs=0.03)
    assert kept.float().mean().item() == pytest.approx(0.1, abs=0.03)


def test_scores_are_a_decoders_head_or_an_encoders_embedding():
    x_ND, embedding = torch.randn(3, 4), nn.Embedding(5, 4).requires_grad_(False)
    head = nn.Linear(4, 5).requires_grad_(False)
    assert torch.equal(logits(SimpleNamespace(lm_head=head), x_ND), head(x_ND))
    encoder = SimpleNamespace(get_input_embeddings=lambda: embedding)
    assert logits(encoder, x_ND)[1, 2].item() == pytest.approx(float(x_ND[1] @ embedding.weight[2]), rel=1e-5)
