"""Sizes of the Switch encoder, as values."""

from dataclasses import dataclass, field

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
        """Raise ValueError, in one sentence, if there is no MoE layer."""
        if not self.moe_blocks:
            raise ValueError(
                f"model.num_blocks ({self.num_blocks}) with model.sparse_step ({self.sparse_step}) has no MoE layer"
            )
