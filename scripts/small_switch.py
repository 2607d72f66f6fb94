"""The small Switch encoder as it is trained: its model, what it has to guess, and what is measured of it.

Shapes: B sequences or P passages of L tokens each, T tokens of a batch, D model width, F hidden units, E experts,
G ranks.
"""

from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from routers.learned import LearnedRouter
from scripts.training import STORED
from systems.permute import group_by_expert, inverse
from workloads.checkpoint import open_checkpoint
from workloads.encoder import build_encoder
from workloads.guesses import logits, task_of
from workloads.layouts import expert_name, router_name
from workloads.model import ModelShape
from workloads.weights import CheckpointLayer, SeededLayer

# conf/model/small_switch.yaml says the same. 3800 tokens: the embedding is the largest tensor, and no file of the
# repository may be larger than 500 kB.
MODEL = ModelShape(
    num_experts=128, d_model=64, d_ff=32, d_kv=16, num_heads=4, num_blocks=4, sparse_step=2, vocab_size=3800
)
JITTER, NUM_MASKS = 0.01, 8
FUSED = ("router_ED", "wi_EDF", "wo_EFD")
CPU = torch.device("cpu")


class SwitchFFN(nn.Module):
    """Top-1 MoE layer with all experts in two tensors, routed by the class that the harness measures with.

    Maps hidden states [B, L, D] to [B, L, D]; keeps the tokens per expert and the balance loss of the last call.
    Source: Switch Transformers, equations 1 and 2; 4 to 6 for the loss (alpha is applied by the caller).
    """

    router_ED: nn.Parameter
    wi_EDF: nn.Parameter
    wo_EFD: nn.Parameter
    rows_E: torch.Tensor
    balance_loss: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self._router = LearnedRouter(classifier=lambda block: self.router_ED)

    def take(self, layer: SeededLayer | CheckpointLayer) -> None:
        """Take the weights of the harness's layer; after the encoder is built, which would want to initialise them."""
        self.router_ED = nn.Parameter(layer.router())
        wi_EDF, wo_EFD = layer.experts(list(range(MODEL.num_experts)))
        self.wi_EDF, self.wo_EFD = nn.Parameter(wi_EDF), nn.Parameter(wo_EFD)

    def forward(self, hidden_BLD: torch.Tensor) -> torch.Tensor:
        x_TD = hidden_BLD.flatten(0, 1)
        noise_TD = torch.empty_like(x_TD).uniform_(1 - JITTER, 1 + JITTER) if self.training else 1.0
        routing = self._router.route(x_TD * noise_TD, layer=0, iteration=0)
        expert_T = routing.expert_TK.flatten()
        order_T, self.rows_E = group_by_expert(expert_T, len(self.wi_EDF))
        place_T = inverse(order_T) - (self.rows_E.cumsum(0) - self.rows_E)[expert_T]
        assert routing.logits_TE is not None
        share_E, probability_E = self.rows_E / len(x_TD), routing.logits_TE.softmax(-1).mean(0)
        self.balance_loss = len(share_E) * (share_E * probability_E).sum()
        y_TD = self._ffn(x_TD, expert_T, place_T) * routing.weight_TK
        return y_TD.view_as(hidden_BLD)

    def _ffn(self, x_TD: torch.Tensor, expert_T: torch.Tensor, place_T: torch.Tensor) -> torch.Tensor:
        """Experts padded to the busiest: two products instead of hundreds, which is what the time of a step went to."""
        padded_ECD = x_TD.new_zeros(len(self.wi_EDF), int(self.rows_E.max()), x_TD.shape[1])
        padded_ECD = padded_ECD.index_put((expert_T, place_T), x_TD)
        return ((padded_ECD @ self.wi_EDF).relu() @ self.wo_EFD)[expert_T, place_T]

    def stored(self, block: int) -> dict[str, torch.Tensor]:
        """The parameters with Hugging Face's names; matrices stand as [out, in]."""
        tensors: dict[str, torch.Tensor] = {router_name(block): self.router_ED}
        for expert, (wi_DF, wo_FD) in enumerate(zip(self.wi_EDF, self.wo_EFD, strict=True)):
            tensors |= {expert_name(block, expert, "wi"): wi_DF.T, expert_name(block, expert, "wo"): wo_FD.T}
        return tensors


class Encoder:
    """The harness's encoder with SwitchFFN layers: seeded as `model.checkpoint=null` is, or read from a folder."""

    def __init__(self, seed: int = 0, folder: Path | None = None) -> None:
        checkpoint = open_checkpoint(str(folder)) if folder else None
        self.moe = {block: SwitchFFN() for block in MODEL.moe_blocks}
        self.module = build_encoder(
            MODEL, self.moe.__getitem__, seed=seed, dtype=torch.float32, device=CPU, checkpoint=checkpoint
        )
        for block, layer in self.moe.items():
            given = (MODEL, block, checkpoint) if checkpoint else (MODEL, block, seed)
            kind: Any = CheckpointLayer if checkpoint else SeededLayer
            layer.take(kind(*given, torch.float32, CPU))

    def hidden(self, ids_BL: torch.Tensor) -> torch.Tensor:
        """The encoder's output: float32 [B, L, D]."""
        return self.module(input_ids=ids_BL).last_hidden_state

    def loss(self, ids_BL: torch.Tensor, draw: torch.Generator) -> torch.Tensor:
        """Mean cross-entropy, in nats, of the masked tokens; the embedding is the output layer."""
        task = task_of(MODEL, ids_BL, draw)
        return cross_entropy(logits(self.module, self.hidden(task.read_BL)[task.asked_BL]), task.answer_N)

    def stored(self) -> dict[str, torch.Tensor]:
        """Every parameter of the encoder under Hugging Face's name."""
        tensors: dict[str, torch.Tensor] = {
            name: value for name, value in self.module.named_parameters() if name.rpartition(".")[2] not in FUSED
        }
        for block, layer in self.moe.items():
            tensors |= layer.stored(block)
        return {name: value.detach().to(STORED).contiguous() for name, value in tensors.items()}


@torch.inference_mode()
def evaluate(encoder: Encoder, passages_PL: torch.Tensor) -> float:
    """Masked-token loss in nats, over the same masks every time."""
    draw = torch.Generator().manual_seed(0)
    return float(torch.stack([encoder.loss(passages_PL, draw) for _ in range(NUM_MASKS)]).mean())


@torch.inference_mode()
def loads(encoder: Encoder, ids_GBL: list[torch.Tensor]) -> dict[int, torch.Tensor]:
    """Tokens per expert [G, E] of each MoE layer."""
    rows = {block: [] for block in encoder.moe}
    for ids_BL in ids_GBL:
        encoder.hidden(ids_BL)
        for block, layer in encoder.moe.items():
            rows[block].append(layer.rows_E)
    return {block: torch.stack(rows_GE) for block, rows_GE in rows.items()}
