"""What an encoder tells an MoE layer that begins early: what the block before has, and when it is through."""

import torch
from torch import nn

from workloads.encoder import build_encoder
from workloads.model import ModelShape

MODEL = ModelShape(4, 16, 32, 4, 4, 4, 2, 32)


class Ahead(nn.Module):
    """Takes the place of an MoE layer and of the system in it; keeps what it is told."""

    looks_ahead = True

    def __init__(self) -> None:
        super().__init__()
        self.told: list = []

    @property
    def system(self) -> "Ahead":
        return self

    def begin_ahead(self, hidden: torch.Tensor) -> None:
        self.told.append(hidden.clone())

    def go_on(self) -> None:
        self.told.append("through")

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        self.told.append("layer")
        return torch.zeros_like(hidden)


def told(change: bool) -> tuple[list, torch.Tensor]:
    """What the first MoE layer is told, and the hidden states that it should be; change: the dense block between."""
    layers: dict[int, Ahead] = {}
    encoder = build_encoder(
        MODEL, lambda block: layers.setdefault(block, Ahead()), seed=0, dtype=torch.float32, device=torch.device("cpu")
    )
    first = min(layers)
    before, block = encoder.encoder.block[first - 1], encoder.encoder.block[first]
    if change:
        for parameter in before.layer[-1].parameters():
            parameter.data.add_(1.0)
    seen = []
    before.layer[0].register_forward_hook(lambda module, given, found: seen.append(found[0].clone()))
    encoder(inputs_embeds=torch.randn(2, 5, 16, generator=torch.Generator().manual_seed(0)))
    return layers[first].told, block.layer[-1].layer_norm(seen[0])


@torch.no_grad()
def test_a_layer_is_told_of_the_block_before_in_order():
    (early_BLD, *rest), expected_BLD = told(change=False)
    assert rest == ["through", "layer"]
    torch.testing.assert_close(early_BLD, expected_BLD)


@torch.no_grad()
def test_the_network_between_changes_nothing_of_what_is_told():
    assert torch.equal(told(change=False)[0][0], told(change=True)[0][0])
