"""Sizes of the Switch encoder, as values."""

from dataclasses import dataclass


@dataclass(frozen=True)
class ModelShape:
    """Sizes of the encoder; every `sparse_step`-th block has an MoE layer (blocks 1, 3, 5, ... for 2).

    checkpoint: small_switch (shipped), a directory or a hub name (google/switch-base-8) with safetensors; None for
    seeded weights. attention: fused (torch's kernels), or eager, Hugging Face's own, which the paper ran.
    wait_for_layers: whether the host waits for the device after each MoE layer, as the paper's programs do to time it.
    """

    num_experts: int
    d_model: int
    d_ff: int
    d_kv: int
    num_heads: int
    num_blocks: int
    sparse_step: int
    vocab_size: int
    checkpoint: str | None = None
    attention: str = "fused"
    wait_for_layers: bool = False

    @property
    def moe_blocks(self) -> list[int]:
        """Indices of the encoder blocks that have an MoE layer."""
        return [block for block in range(self.num_blocks) if self.sparse_step == 1 or block % self.sparse_step == 1]

    def check(self) -> None:
        """Raise ValueError, in one sentence, for sizes that are no model."""
        for name in ("num_experts", "d_model", "d_ff", "d_kv", "num_heads", "num_blocks", "sparse_step", "vocab_size"):
            value = getattr(self, name)
            if type(value) is not int or value < 1:
                raise ValueError(f"model.{name} is {value!r}; it must be a whole number of at least 1")
        if self.attention not in ("fused", "eager"):
            raise ValueError(f"model.attention is {self.attention!r}; it must be fused or eager")
        if not isinstance(self.wait_for_layers, bool):
            raise ValueError(f"model.wait_for_layers is {self.wait_for_layers!r}; it must be true or false")
        if not self.moe_blocks:
            raise ValueError(
                f"model.num_blocks ({self.num_blocks}) with model.sparse_step ({self.sparse_step}) has no MoE layer"
            )
