"""Train the small decoder that lies in workloads/trained/small_decoder: experts whose outputs mean something.

    python -m scripts.train_small_decoder [--steps 1200] [--seed 0] [--balance 0.01] [--out FOLDER]

Hugging Face's own class, its loss of the next token and its load-balancing loss, on the embedded corpus. Prints losses
and loads, and leaves a checkpoint with the held-out passages beside it. What it is good for: docs/small_decoder.md.
"""

import json
from functools import partial
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from experiments.composition import configuration
from scripts.training import (
    CONSOLE,
    MAX_FILE,
    STORED,
    compute_alike,
    optimise,
    parse,
    provenance,
    read_corpus,
    save_held_out,
    save_tokenizer,
    show_loads,
    split,
    unigram_loss,
)
from workloads.checkpoint import SHIPPED
from workloads.decoder import hugging_face_config
from workloads.guesses import NUM_SPECIAL
from workloads.model import ModelShape

Losses = tuple[torch.Tensor, torch.Tensor]
BATCH_SIZE, LEARNING_RATE = 8, 4e-3
REPLACED = 0.15  # tokens that are read as others, so that a small text is not learned by heart


def build(model: ModelShape) -> Any:
    """Hugging Face's decoder of these sizes, drawn from torch's generator."""
    return AutoModelForCausalLM.from_config(hugging_face_config(model), experts_implementation="grouped_mm")


def losses(decoder: Any, balance: float, ids_BL: torch.Tensor, draw: torch.Generator) -> Losses:
    """Mean cross-entropy of the next token, in nats, and the weighted load-balancing loss."""
    other_BL = torch.randint(NUM_SPECIAL, decoder.config.vocab_size, ids_BL.shape, generator=draw)
    read_BL = other_BL.where(torch.rand(ids_BL.shape, generator=draw) < REPLACED, ids_BL)
    found = decoder(input_ids=read_BL, use_cache=False, output_router_logits=True)
    loss = decoder.loss_function(found.logits, ids_BL, decoder.config.vocab_size)
    return loss, balance * found.aux_loss


@torch.inference_mode()
def loads(decoder: Any, ids_GBL: list[torch.Tensor]) -> dict[int, torch.Tensor]:
    """Token copies per expert [G, E] of each block."""
    config, rows = decoder.config, {block: [] for block in range(decoder.config.num_hidden_layers)}
    for ids_BL in ids_GBL:
        for block, logits_TE in enumerate(decoder(input_ids=ids_BL, output_router_logits=True).router_logits):
            chosen_TK = logits_TE.topk(config.num_experts_per_tok).indices
            rows[block].append(torch.bincount(chosen_TK.flatten(), minlength=config.num_experts))
    return {block: torch.stack(rows_GE) for block, rows_GE in rows.items()}


@torch.inference_mode()
def evaluate(decoder: Any, passages_PL: torch.Tensor) -> float:
    """Hugging Face's loss of the next token, in nats."""
    return float(decoder(input_ids=passages_PL, labels=passages_PL).loss)


def main(arguments: list[str] | None = None) -> None:
    """Train, and write the checkpoint."""
    args = parse(arguments, __doc__, SHIPPED["small_decoder"], steps=1200, balance=0.01)
    compute_alike(args.seed)
    model = configuration(["model=small_decoder"]).model
    tokenizer, tokens_N, first_GBL = read_corpus(model.vocab_size)
    start_S, held_out_PL = split(tokens_N)
    texts = {"benchmark": first_GBL, "held out": [held_out_PL]}
    decoder = build(model)
    found = {f"random, {name}": loads(decoder.eval(), text) for name, text in texts.items()}
    groups = [{"params": list(decoder.parameters()), "lr": LEARNING_RATE}]
    sizes = {"steps": args.steps, "batch_size": BATCH_SIZE, "seed": args.seed}
    optimise(decoder, groups, partial(losses, decoder, args.balance), (tokens_N, start_S), **sizes)
    decoder.to(STORED).save_pretrained(args.out, max_shard_size=MAX_FILE)
    save_tokenizer(tokenizer, args.out)
    save_held_out(held_out_PL, args.out)
    stored: Any = AutoModelForCausalLM.from_pretrained(args.out, dtype=torch.float32).eval()  # rounded
    found |= {f"trained, {name}": loads(stored, text) for name, text in texts.items()}
    show_loads(found)
    nats = {name: evaluate(stored, torch.cat(text)) for name, text in texts.items()}
    nats["held out, by frequency alone"] = unigram_loss(tokens_N, start_S, held_out_PL[:, 1:], model.vocab_size)
    CONSOLE.print("loss of the next token in nats:", nats)
    chosen = {"seed": args.seed, "steps": args.steps, "balance": args.balance, "loss_nats": nats}
    config = json.loads((args.out / "config.json").read_text())
    config["training"] = provenance(args.out, chosen)
    (args.out / "config.json").write_text(json.dumps(config, indent=1) + "\n")


if __name__ == "__main__":
    main()
