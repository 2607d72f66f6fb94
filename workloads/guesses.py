"""What a model has to guess of a text: the next token, or those that are hidden from it.

Letters in names: B sequences of L tokens, N guesses, D d_model, V vocabulary.
"""

from typing import Any, NamedTuple

import torch

from workloads.model import ModelShape

MASK_ID = 2  # <unk>: our tokenizers have no token of its own for it, and their corpus has no unknown ones
NUM_SPECIAL = 3
MASKED, REPLACED = 0.15, 0.1


class Task(NamedTuple):
    """What is read [B, L], where something is asked (bool [B, L]), and the answers [N] in that order."""

    read_BL: torch.Tensor
    asked_BL: torch.Tensor
    answer_N: torch.Tensor


def task_of(model: ModelShape, ids_BL: torch.Tensor, draw: torch.Generator) -> Task:
    """What models of this family are trained to guess of a text."""
    if model.is_decoder:
        return next_tokens(ids_BL)
    read_BL, asked_BL = mask(ids_BL, model.vocab_size, draw)
    return Task(read_BL, asked_BL, ids_BL[asked_BL])


def next_tokens(ids_BL: torch.Tensor) -> Task:
    """Every token but the first of each sequence, guessed from those before it."""
    asked_BL = torch.ones_like(ids_BL, dtype=torch.bool)
    asked_BL[:, -1] = False
    return Task(ids_BL, asked_BL, ids_BL[:, 1:].flatten())


def mask(ids_BL: torch.Tensor, vocab_size: int, draw: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """What an encoder is shown, and which tokens it has to guess; of those a tenth is shown as another token, a tenth
    as it is (BERT's recipe), so that the router also learns from tokens that look like those of the benchmark."""
    masked_BL = torch.rand(ids_BL.shape, generator=draw) < MASKED
    lot_BL = torch.rand(ids_BL.shape, generator=draw)
    other_BL = torch.randint(NUM_SPECIAL, vocab_size, ids_BL.shape, generator=draw)
    shown_BL = ids_BL.where(~masked_BL | (lot_BL < REPLACED), torch.tensor(MASK_ID))
    return shown_BL.where(~masked_BL | (lot_BL < 1 - REPLACED), other_BL), masked_BL


def logits(module: Any, hidden_ND: torch.Tensor) -> torch.Tensor:
    """Scores [N, V] by a decoder's head; of an encoder by its embedding, as it is trained."""
    head = getattr(module, "lm_head", None)
    return head(hidden_ND) if head is not None else hidden_ND @ module.get_input_embeddings().weight.T
