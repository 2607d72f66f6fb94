"""Decoder families: what their configurations in transformers call our sizes, and which sizes they can have."""

from dataclasses import dataclass, fields

from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig, PretrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from workloads.model import ModelShape


@dataclass(frozen=True)
class Family:
    """What a family's configuration calls the sizes that every family has; the others are called alike.

    head_dim: None where heads divide the width of a token among them, or have widths of several kinds.
    """

    num_experts: str
    d_ff: str = "moe_intermediate_size"
    dense_blocks: str | None = None
    head_dim: str | None = "head_dim"


FAMILIES = {
    "mixtral": Family("num_local_experts", d_ff="intermediate_size"),
    "olmoe": Family("num_experts", d_ff="intermediate_size", head_dim=None),
    "qwen2_moe": Family("num_experts", head_dim=None),
    "qwen3_moe": Family("num_experts"),
    "deepseek_v3": Family("n_routed_experts", dense_blocks="first_k_dense_replace", head_dim=None),
    "glm4_moe": Family("n_routed_experts", dense_blocks="first_k_dense_replace"),
    "gpt_oss": Family("num_local_experts", d_ff="intermediate_size"),
    "minimax_m2": Family("num_local_experts", d_ff="intermediate_size"),
}


def hugging_face_config(model: ModelShape) -> PretrainedConfig:
    """The configuration of a model; ValueError, in one sentence, for sizes that the family cannot have."""
    _check_blocks(model)
    names = _names(model)
    _check_settings(model, names)
    sizes = {name: getattr(model, ours) for name, ours in names.items()}
    unused = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"))  # of another vocabulary
    try:
        config = AutoConfig.for_model(model.family, **{**model.settings, **sizes, **unused})
    except (TypeError, ValueError, StrictDataclassError) as error:
        said = " ".join(str(error.__cause__ or error).split())
        raise ValueError(f"transformers has no {model.family} with these sizes and model.settings: {said}") from error
    _check_heads(model, config)
    if hasattr(config, "n_group"):
        _check_groups(model, config)
    return config


def _names(model: ModelShape) -> dict[str, str]:
    """What the family calls our sizes, which are decided by them."""
    family = FAMILIES[model.family]
    names = {
        "vocab_size": "vocab_size",
        "hidden_size": "d_model",
        "num_hidden_layers": "num_blocks",
        "num_attention_heads": "num_heads",
        "num_experts_per_tok": "top_k",
        family.num_experts: "num_experts",
        family.d_ff: "d_ff",
    }
    names |= {family.head_dim: "d_kv"} if family.head_dim else {}
    return names | ({family.dense_blocks: "dense_blocks"} if family.dense_blocks else {})


def _check_blocks(model: ModelShape) -> None:
    dense_ones = FAMILIES[model.family].dense_blocks
    if model.sparse_step != 1 or (model.dense_blocks and not dense_ones):
        asked = f"model.sparse_step {model.sparse_step} and model.dense_blocks {model.dense_blocks}"
        least = "" if dense_ones else " and no dense ones"
        raise ValueError(f"{model.family} has {asked}; it must have a sparse_step of 1{least}")


def _check_settings(model: ModelShape, names: dict[str, str]) -> None:
    """Refuse what would be overridden, or kept by a configuration that does not know it."""
    known = {one.name for one in fields(CONFIG_MAPPING[model.family])}
    for name, value in model.settings.items():
        if name in names:
            raise ValueError(
                f"model.settings.{name} is {value!r}; it must be left out, because model.{names[name]} is it"
            )
        if name not in known:
            raise ValueError(f"there is no model.settings.{name}: a {model.family} of transformers has no such setting")
    if model.settings.get("sliding_window") is not None and model.settings["sliding_window"] < 1:
        raise ValueError(f"model.settings.sliding_window is {model.settings['sliding_window']}; it must be at least 1")


def _check_heads(model: ModelShape, config: PretrainedConfig) -> None:
    """Attention of DeepSeek-V3 has keys and values for every head; others' heads share them in equal groups."""
    heads, keys = model.num_heads, config.num_key_value_heads
    latent = hasattr(config, "kv_lora_rank")
    if keys < 1 or heads % keys or (latent and keys != heads):
        allowed = "equal" if latent else "divide"
        raise ValueError(
            f"model.settings.num_key_value_heads is {keys}; of {model.family} it must {allowed} model.num_heads "
            f"({heads})"
        )
    if latent and model.d_kv != config.v_head_dim:
        raise ValueError(f"model.d_kv is {model.d_kv}; it must be model.settings.v_head_dim ({config.v_head_dim})")
    if not latent and FAMILIES[model.family].head_dim is None and model.d_kv * heads != model.d_model:
        raise ValueError(
            f"model.d_kv is {model.d_kv}; of {model.family} model.num_heads ({heads}) heads of it must make up "
            f"model.d_model ({model.d_model})"
        )


def _check_groups(model: ModelShape, config: PretrainedConfig) -> None:
    """Group-limited choice: the groups with the best two experts are kept, and a token's experts are of those."""
    experts, groups, kept = model.num_experts, config.n_group, config.topk_group
    if groups < 1 or experts % groups or experts // groups < 2:
        raise ValueError(
            f"model.num_experts is {experts}; {model.family} must have equal groups of two or more of them, and "
            f"model.settings.n_group is {groups}"
        )
    if not 1 <= kept <= groups:
        raise ValueError(f"model.settings.topk_group is {kept}; it must be from 1 to model.settings.n_group ({groups})")
    if model.top_k > (can := kept * experts // groups):
        raise ValueError(
            f"model.top_k is {model.top_k}; it must be at most {can}, the experts of the model.settings.topk_group "
            f"({kept}) groups that a token's are chosen from"
        )
