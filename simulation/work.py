"""What one MoE layer makes each rank of a system do, by closed form: features of its work, transfers, memory.

Shape letters: G ranks, E experts, N features. Counts of tokens may be expectations, so they are floats.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from systems.base import LayerShape, System
from systems.deepspeed_moe import DeepSpeedMoE
from systems.expert_parallel import ExpertParallel
from systems.moeshard import MoEShard, MoEShardNoMegaBlocks
from systems.planners.placement import PLACEMENTS

FEATURES = ("constant", "ranks", "experts", "busy experts", "tokens", "rows", "flops", "weights")
COUNT_BYTES, CHOICE_BYTES = 8, 8  # a choice is an expert and a weight of 4 bytes each


@dataclass(frozen=True)
class Load:
    """One MoE layer's input: tokens_GE[g, e] tokens of rank g for expert e, of `element_size` bytes a number."""

    shape: LayerShape
    tokens_GE: np.ndarray
    element_size: int

    @property
    def ranks(self) -> int:
        return len(self.tokens_GE)

    @property
    def row_bytes(self) -> int:
        """Bytes of one token."""
        return self.shape.d_model * self.element_size

    @property
    def busy_E(self) -> np.ndarray:
        """Chance that an expert gets any token of the batch: 1 - exp(-n) of n expected ones."""
        return 1 - np.exp(-self.tokens_GE.sum(axis=0))


@dataclass(frozen=True)
class Transfer:
    """One collective of all ranks: bytes from rank to rank, the diagonal 0."""

    collective: str
    sent_GG: np.ndarray


@dataclass(frozen=True)
class Work:
    """features_GN: what each rank computes, in the order of FEATURES. memory_G: bytes each rank holds while its experts
    compute, weights of this layer included.
    """

    features_GN: np.ndarray
    transfers: list[Transfer]
    memory_G: np.ndarray


def features(load: Load, *, rows_G: Any, busy_G: Any, width: int) -> np.ndarray:
    """[G, N]: `rows` through experts of `width` hidden units, of which `busy` local experts have any."""
    shape = load.shape
    columns = {
        "constant": 1.0,
        "ranks": load.ranks,
        "experts": shape.num_experts,
        "busy experts": busy_G,
        "tokens": load.tokens_GE.sum(axis=1) * shape.d_model,
        "rows": rows_G * shape.d_model,
        "flops": rows_G * 4 * shape.d_model * width,
        "weights": busy_G * 2 * shape.d_model * width * load.element_size,
    }
    return np.stack([np.broadcast_to(np.asarray(columns[name], float), load.ranks) for name in FEATURES], axis=1)


def equal_parts(ranks: int, part_bytes: float) -> np.ndarray:
    """[G, G]: every rank sends `part_bytes` to every other one."""
    return part_bytes * (1 - np.eye(ranks))


def memory(load: Load, *, experts: float, width: int, numbers_G: Any) -> np.ndarray:
    """Bytes [G]: weights of local experts and `numbers` of activations, held at once."""
    weights = experts * 2 * load.shape.d_model * width
    return (weights + numbers_G * np.ones(load.ranks)) * load.element_size


def expert_parallel(load: Load, *, placement: str = "contiguous") -> Work:
    """Counts, tokens there, tokens back; a rank computes what its experts were sent."""
    shape, ranks, d_model = load.shape, load.ranks, load.shape.d_model
    home_EG = np.eye(ranks)[PLACEMENTS[placement](shape.num_experts, ranks).numpy()]
    rows_GG = load.tokens_GE @ home_EG
    rows_G, tokens_G = rows_GG.sum(axis=0), rows_GG.sum(axis=1)
    sent_GG = rows_GG * load.row_bytes * (1 - np.eye(ranks))
    counts_GG = equal_parts(ranks, COUNT_BYTES * shape.num_experts / ranks)
    # The input; the rows received, sorted, and as the experts leave them; the hidden layer.
    numbers_G = tokens_G * d_model + rows_G * (3 * d_model + shape.d_ff)
    return Work(
        features(load, rows_G=rows_G, busy_G=load.busy_E @ home_EG, width=shape.d_ff),
        [Transfer("all_to_all", sent) for sent in (counts_GG, sent_GG, sent_GG.T)],
        memory(load, experts=shape.num_experts / ranks, width=shape.d_ff, numbers_G=numbers_G),
    )


def expert_sharding(load: Load) -> Work:
    """All tokens and their experts to all ranks, partial outputs back: every rank does the same."""
    shape, ranks, d_model = load.shape, load.ranks, load.shape.d_model
    width, rows = MoEShard.hidden_width(shape, ranks), float(load.tokens_GE.sum())
    token_bytes = shape.max_tokens * load.row_bytes
    # The input; the rows gathered, sorted, and as the shards leave them; the hidden layer.
    numbers = shape.max_tokens * d_model + rows * (3 * d_model + width)
    return Work(
        features(load, rows_G=rows, busy_G=float(load.busy_E.sum()), width=width),
        [
            Transfer("all_gather", equal_parts(ranks, shape.max_tokens * CHOICE_BYTES)),
            Transfer("all_gather", equal_parts(ranks, token_bytes)),
            Transfer("reduce_scatter", equal_parts(ranks, token_bytes)),
        ],
        memory(load, experts=shape.num_experts, width=width, numbers_G=numbers),
    )


def padded_expert_parallel(load: Load, **options: Any) -> Work:
    """DeepSpeed: E x C slots there and back whatever the routing, filled and emptied by index (DeepSpeed 0.19.8)."""
    shape, ranks, d_model = load.shape, load.ranks, load.shape.d_model
    dropless = not options.get("drop_tokens", True)
    if dropless or options.get("capacity_factor") == "lossless":
        capacity = float(load.tokens_GE.max())
    else:
        padding = DeepSpeedMoE.padding(shape, ranks, **options)
        capacity = float(np.ceil(shape.max_tokens * padding / shape.num_experts))
    if not dropless:
        capacity = max(float(DeepSpeedMoE.MIN_CAPACITY), capacity)
    slots = shape.num_experts * capacity
    agree = [Transfer("all_reduce", equal_parts(ranks, 2 * COUNT_BYTES / ranks))] if dropless else []
    slots_GG = equal_parts(ranks, slots / ranks * load.row_bytes)
    # The input; slots sent, received and computed; the hidden layer of one expert at a time.
    numbers = shape.max_tokens * d_model + 3 * slots * d_model + ranks * capacity * shape.d_ff
    return Work(
        features(load, rows_G=slots, busy_G=shape.num_experts / ranks, width=shape.d_ff),
        [*agree, Transfer("all_to_all", slots_GG), Transfer("all_to_all", slots_GG)],
        memory(load, experts=shape.num_experts / ranks, width=shape.d_ff, numbers_G=numbers),
    )


# By the class that a stored cell names: no other is imported or modelled.
MODELLED: dict[str, tuple[type[System], Callable[..., Work]]] = {
    f"{kind.__module__}.{kind.__name__}": (kind, work)
    for kind, work in (
        (ExpertParallel, expert_parallel),
        (MoEShard, expert_sharding),
        (MoEShardNoMegaBlocks, expert_sharding),
        (DeepSpeedMoE, padded_expert_parallel),
    )
}
