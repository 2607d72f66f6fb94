"""What planners weigh, from a layer's sizes and the rates of its ranks."""

from systems.base import LayerShape
from systems.planners.base import Costs, Rates


def costs_of(shape: LayerShape, element_size: int, rates: Rates, batches: int = 1) -> Costs:
    """The products of a row; a row and an expert's weights in bytes over the link, and from memory."""
    row_bytes, expert_bytes = shape.d_model * element_size, shape.expert_elements(shape.d_ff) * element_size
    return Costs(
        row_s=shape.row_flops(shape.d_ff) / rates.flops_per_s,
        move_row_s=row_bytes / rates.bytes_per_s,
        move_expert_s=expert_bytes / rates.bytes_per_s,
        read_expert_s=expert_bytes / rates.memory_bytes_per_s,
        touch_row_s=row_bytes / rates.memory_bytes_per_s,
        near_row_s=row_bytes / (rates.near_bytes_per_s or rates.bytes_per_s),
        ranks_per_node=rates.ranks_per_node,
        operation_s=rates.operation_s,
        batches=batches,
    )
