"""Sizes of the Switch encoder, as values."""

from dataclasses import dataclass, field

from systems.engines.activations import ACTIVATIONS

SIZE = {"least": 1}


@dataclass(frozen=True)
class ModelShape:
    """Sizes of the encoder; every `sparse_step`-th block has an MoE layer (blocks 1, 3, 5, ... for 2)."""

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
    """Blocks of the encoder."""
    sparse_step: int = field(metadata=SIZE)
    """Every so many-th block has an MoE layer."""
    vocab_size: int = field(metadata=SIZE)
    """Different tokens."""
    top_k: int = field(default=1, metadata=SIZE)
    """Experts of each token, K."""
    activation: str = field(default="relu", metadata={"one_of": tuple(ACTIVATIONS)})
    """What stands between an expert's two products: `relu`, or a gated one: `swiglu`, `geglu` or gpt-oss's
    `clamped_swiglu`."""
    biased: bool = False
    """Whether experts have biases."""
    checkpoint: str | None = None
    """`small_switch` (comes along), a directory or a name of the hub with safetensors; null: seeded weights."""
    attention: str = field(default="fused", metadata={"one_of": ("fused", "eager")})
    """`fused` (torch's kernels), or `eager`: Hugging Face's own, as the paper ran."""
    wait_for_layers: bool = False
    """Whether the host waits for the device after each MoE layer, as the paper's programs do to time it."""

    @property
    def moe_blocks(self) -> list[int]:
        """Indices of the encoder blocks that have an MoE layer."""
        return [block for block in range(self.num_blocks) if self.sparse_step == 1 or block % self.sparse_step == 1]

    def check(self) -> None:
        """Raise ValueError, in one sentence, if there is no MoE layer, or fewer experts than a token wants."""
        if self.top_k > self.num_experts:
            raise ValueError(
                f"model.top_k is {self.top_k}; it must be at most model.num_experts ({self.num_experts}), because a "
                "token's experts are different ones"
            )
        if not self.moe_blocks:
            raise ValueError(
                f"model.num_blocks ({self.num_blocks}) with model.sparse_step ({self.sparse_step}) has no MoE layer"
            )
