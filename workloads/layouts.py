"""How checkpoints of each family name and lay out what an MoE layer is made of."""

from typing import Any, Protocol

import torch

from workloads.model import ModelShape

ALL = slice(None)
# Where a decoder's experts are in a block, and its gate, up and down projections; of the others, those of most.
PROJECTIONS = ("mlp", "gate_proj", "up_proj", "down_proj")
MIXTRALS: dict[str, tuple[str, ...]] = dict.fromkeys(("mixtral", "minimax_m2"), ("block_sparse_moe", "w1", "w3", "w2"))


# What experts of a family compute, and whether they have biases; those of most are the last.
EXPERTS = {"switch": ("relu", False), "gpt_oss": ("clamped_swiglu", True)}
SWIGLU = ("swiglu", False)


class Reader(Protocol):
    """What a checkpoint is here: some places of one of its tensors."""

    def read(self, name: str, *places: Any) -> torch.Tensor: ...


def model_type(family: str) -> str:
    """What transformers calls a family in the config.json of its checkpoints."""
    return "switch_transformers" if family == "switch" else family


def experts_of(family: str) -> tuple[str, bool]:
    """The activation of a family's experts, and whether they have biases."""
    return EXPERTS.get(family, SWIGLU)


def router_name(block: int) -> str:
    """Hugging Face's name of the router matrix [E, D] of a block of a Switch encoder."""
    return f"encoder.block.{block}.layer.1.mlp.router.classifier.weight"


def expert_name(block: int, expert: int, matrix: str) -> str:
    """`matrix` of a Switch expert is wi [F, D] or wo [D, F], as stored."""
    return f"encoder.block.{block}.layer.1.mlp.experts.expert_{expert}.{matrix}.weight"


def stored_name(family: str, name: str) -> str:
    """What a decoder's checkpoint calls a parameter or buffer outside its experts."""
    if family not in MIXTRALS:
        return name
    name = name.replace(".mlp.gate.e_score_correction_bias", ".mlp.e_score_correction_bias")
    return name.replace(".mlp.", ".block_sparse_moe.")


def expert_names(model: ModelShape, block: int, expert: int) -> list[str]:
    """The tensors that an expert's weights are in."""
    if model.family == "switch":
        return [expert_name(block, expert, matrix) for matrix in ("wi", "wo")]
    if model.family == "gpt_oss":
        parts = ("gate_up_proj", "down_proj", "gate_up_proj_bias", "down_proj_bias")
        return [f"model.layers.{block}.mlp.experts.{part}" for part in parts]
    place, *projections = MIXTRALS.get(model.family, PROJECTIONS)
    return [f"model.layers.{block}.{place}.experts.{expert}.{one}.weight" for one in projections]


def expert_sizes(model: ModelShape) -> list[list[int]]:
    """The sizes of these tensors."""
    experts, wide, narrow = model.num_experts, model.d_ff, model.d_model
    if model.family == "switch":
        return [[wide, narrow], [narrow, wide]]
    if model.family == "gpt_oss":
        return [[experts, narrow, 2 * wide], [experts, wide, narrow], [experts, 2 * wide], [experts, narrow]]
    return [[wide, narrow], [wide, narrow], [narrow, wide]]


def read_expert(
    checkpoint: Reader, model: ModelShape, block: int, expert: int, hidden: slice
) -> tuple[torch.Tensor, ...]:
    """(wi_DI, wo_FD[, bi_I, bo_D]) of some hidden units; nothing else is read from the files."""
    names = expert_names(model, block, expert)
    if model.family == "switch":
        return checkpoint.read(names[0], hidden).T, checkpoint.read(names[1], ALL, hidden).T
    if model.family == "gpt_oss":  # all experts in one tensor, and columns of gate and up in turns
        both = slice(2 * hidden.start, 2 * hidden.stop)
        wi_DI, bi_I = checkpoint.read(names[0], expert, ALL, both), checkpoint.read(names[2], expert, both)
        wo_FD, bo_D = checkpoint.read(names[1], expert, hidden), checkpoint.read(names[3], expert)
        return _halves(wi_DI), wo_FD, _halves(bi_I), bo_D
    gate_FD, up_FD, down_DF = (
        checkpoint.read(name, *place) for name, place in zip(names, [(hidden,), (hidden,), (ALL, hidden)], strict=True)
    )
    return torch.cat([gate_FD, up_FD]).T, down_DF.T


def _halves(w_XI: torch.Tensor) -> torch.Tensor:
    return torch.cat([w_XI[..., ::2], w_XI[..., 1::2]], -1)


def sizes(model: ModelShape) -> dict[str, list[int]]:
    """Parameters that a checkpoint of this model has, with their sizes, enough to tell it from another model's."""
    first, last = model.moe_blocks[0], model.moe_blocks[-1]
    experts = dict(zip(expert_names(model, last, model.num_experts - 1), expert_sizes(model), strict=True))
    if model.is_decoder:
        return {"model.embed_tokens.weight": [model.vocab_size, model.d_model]} | experts
    attention = "encoder.block.0.layer.0.SelfAttention"
    wanted = {
        "shared.weight": [model.vocab_size, model.d_model],
        f"{attention}.q.weight": [model.num_heads * model.d_kv, model.d_model],
        f"{attention}.relative_attention_bias.weight": [32, model.num_heads],
        router_name(first): [model.num_experts, model.d_model],
        **experts,
    }
    for block in set(range(model.num_blocks)) - set(model.moe_blocks):
        wanted[f"encoder.block.{block}.layer.1.mlp.wi.weight"] = [model.d_ff, model.d_model]
    return wanted


def surplus(model: ModelShape) -> str:
    """A parameter that only a checkpoint of more blocks has."""
    if model.is_decoder:
        return f"model.layers.{model.num_blocks}.input_layernorm.weight"
    return f"encoder.block.{model.num_blocks}.layer.0.SelfAttention.q.weight"
