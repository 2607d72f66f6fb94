"""Sizes of a model, as values."""

from dataclasses import dataclass, field
from typing import Any

from systems.engines.activations import ACTIVATIONS

SIZE = {"least": 1}
DECODERS = ("mixtral", "olmoe", "qwen2_moe", "qwen3_moe", "deepseek_v3", "glm4_moe", "gpt_oss", "minimax_m2")
ENCODE, PREFILL, DECODE = REGIMES = ("encode", "prefill", "decode")  # what is timed (workloads.regimes)


@dataclass(frozen=True)
class ModelShape:
    """Sizes of a Switch encoder or an MoE decoder: names and meanings that all families share."""

    num_experts: int = field(metadata=SIZE)
    """Experts of each MoE layer, E."""
    d_model: int = field(metadata=SIZE)
    """Width of a token."""
    d_ff: int = field(metadata=SIZE)
    """Width of an expert's hidden layer."""
    d_kv: int = field(metadata=SIZE)
    """Width of an attention head."""
    num_heads: int = field(metadata=SIZE)
    """Attention heads."""
    num_blocks: int = field(metadata=SIZE)
    """Blocks of the model."""
    sparse_step: int = field(metadata=SIZE)
    """Every so many-th block has an MoE layer: blocks 1, 3, 5, ... for 2, and all for 1."""
    vocab_size: int = field(metadata=SIZE)
    """Different tokens."""
    top_k: int = field(default=1, metadata=SIZE)
    """Experts of each token, K."""
    activation: str = field(default="relu", metadata={"one_of": tuple(ACTIVATIONS)})
    """What stands between an expert's two products: `relu`, or a gated one: `swiglu`, `geglu` or gpt-oss's
    `clamped_swiglu`."""
    biased: bool = False
    """Whether experts have biases."""
    family: str = field(default="switch", metadata={"one_of": ("switch", *DECODERS)})
    """`switch` (an encoder), or a decoder's model type in Hugging Face's transformers."""
    dense_blocks: int = field(default=0, metadata={"least": 0})
    """First blocks that have no MoE layer."""
    settings: dict[str, Any] = field(default_factory=dict)
    """What else a decoder's configuration in transformers has, by its names there."""
    checkpoint: str | None = None
    """`small_switch` or `small_decoder` (which come along), a directory or a name of the hub with safetensors; null:
    seeded weights."""
    attention: str = field(default="fused", metadata={"one_of": ("fused", "eager")})
    """`fused` (torch's kernels), or `eager`: Hugging Face's own, as the paper ran."""
    wait_for_layers: bool = False
    """Whether the host waits for the device after each MoE layer, as the paper's programs do to time it."""

    @property
    def moe_blocks(self) -> list[int]:
        """Indices of the blocks that have an MoE layer."""
        later = range(self.dense_blocks, self.num_blocks)
        return [block for block in later if self.sparse_step == 1 or block % self.sparse_step == 1]

    @property
    def is_decoder(self) -> bool:
        return self.family != "switch"

    def regime(self, name: str | None) -> str:
        """The regime of this name, by default what the model does first; ValueError for one that it lacks."""
        can = [PREFILL, DECODE] if self.is_decoder else [ENCODE]
        if name not in (None, *can):
            raise ValueError(f"regime is {name!r}; model.family {self.family!r} can {' or '.join(can)}")
        return name or can[0]

    def check(self) -> None:
        """Raise ValueError, in one sentence, if there is no MoE layer, fewer experts than a token wants, or what only
        decoders have.
        """
        if self.top_k > self.num_experts:
            raise ValueError(
                f"model.top_k is {self.top_k}; it must be at most model.num_experts ({self.num_experts}), because a "
                "token's experts are different ones"
            )
        if not self.moe_blocks:
            rest = f"model.sparse_step ({self.sparse_step}) and model.dense_blocks ({self.dense_blocks})"
            raise ValueError(f"model.num_blocks ({self.num_blocks}) with {rest} has no MoE layer")
        if self.settings and not self.is_decoder:
            raise ValueError(f"model.settings has {', '.join(self.settings)}; model.family 'switch' has no settings")
