"""ReaLB: ranks that have too many rows compute them in fewer bits, decided layer by layer and batch by batch.

Source: "ReaLB: Real-Time Load Balancing for Multimodal MoE Inference" (arXiv:2604.19503). Tokens go where plain expert
parallelism sends them; weights are rounded while they travel. Not confirmed, and ours: a rank is overloaded where it
has more than `overload` times the mean. The paper's few bits are NVFP4, which no device here has: fp8, or bf16 for a
device without it, as the option says. Tokens of images, which the paper lowers alone, are by a labelled
synthetic split.
"""

from typing import Any

import torch

from routers.base import Routing
from systems.base import LayerShape, Reference
from systems.counted import CountedExpertParallel, Plan
from systems.engines import ACTIVATIONS
from systems.engines.activations import expert_ffn
from systems.low_precision import LOW, low_ffn, lowered

IMAGES = 2  # parts of a batch: text and images


class ReaLB(CountedExpertParallel):
    """precision: `fp8` or `bf16`. overload: times the mean number of rows. least_tokens: of a batch of all ranks, above
    which anything is lowered. images: the part of every rank's tokens, its first ones, that stand for those of
    images; image_share: of a rank's rows, the least part that must be theirs for it to be lowered (0: any).
    """

    exactness = "approximate"
    own_rule = True
    slack = 1.5e-3  # a number of the hidden layer that lies between two roundings may go either way
    parts = IMAGES

    def __init__(
        self,
        *,
        precision: str = "fp8",
        overload: float = 1.0,
        least_tokens: int = 2048,
        images: float = 0.0,
        image_share: float = 0.0,
        **layer: Any,
    ) -> None:
        super().__init__(**layer)
        self.precision, self._overload, self._least_tokens = precision, overload, least_tokens
        self._images, self._image_share = images, image_share
        self._low: Any = None

    @classmethod
    def check(
        cls,
        shape: LayerShape,
        world_size: int,
        *,
        precision: str,
        overload: float,
        images: float,
        image_share: float,
        **_: Any,
    ) -> None:
        super().check(shape, world_size)
        if precision not in LOW:
            raise ValueError(f"system.precision is {precision!r}; it must be one of {', '.join(LOW)}")
        for name, value in (("overload", overload), ("images", images), ("image_share", image_share)):
            if isinstance(value, bool) or not isinstance(value, int | float) or value < 0:
                raise ValueError(f"system.{name} is {value!r}; it must be a number of at least 0")
        if max(images, image_share) > 1:
            raise ValueError(f"system.images is {images!r} and image_share {image_share!r}; both are parts, 1 at most")

    def choose(self, routing: Routing) -> tuple[Routing, torch.Tensor]:
        """Part 1 is images."""
        expert_TK = routing.expert_TK
        token_T = torch.arange(len(expert_TK), device=expert_TK.device)
        image_TK = (token_T < round(self._images * len(expert_TK))).unsqueeze(1).expand_as(expert_TK)
        return routing, image_TK.flatten().long()

    def note(self, rows_GS: torch.Tensor) -> torch.Tensor:
        """bool [G]: which ranks are lowered, the same on all."""
        rows_GP = rows_GS.view(self.world_size, self.world_size, -1, IMAGES).sum((0, 2))
        least_rows = self._least_tokens * self.shape.top_k
        return overloaded(rows_GP, self._overload, least_rows, self._image_share)

    def meanwhile(self) -> None:
        self._low = lowered(self._whole, self.precision) if self.plan.noted[self.rank] else None

    def compute(self, x_RD: torch.Tensor, group_R: torch.Tensor) -> torch.Tensor:
        slot_R = group_R // IMAGES
        if self._low is None:
            return super().compute(x_RD, slot_R)
        order_R, rows_e = self.engine.group(slot_R, self._num_local)
        y_RD = low_ffn(x_RD[order_R], rows_e, self._low, ACTIVATIONS[self.shape.activation])
        self._low = None
        return torch.empty_like(y_RD).index_copy_(0, order_R, y_RD)

    def expected(self, x_TD: torch.Tensor, routing: Routing, dense: Reference) -> torch.Tensor:
        """The dense model, with the experts of lowered ranks in few bits."""
        plan: Plan = self.plan
        activation = ACTIVATIONS[self.shape.activation]

        def ffn(expert: int, copies_R: torch.Tensor, x_RD: torch.Tensor, weights: Any) -> torch.Tensor:
            whole = tuple(weight.unsqueeze(0) for weight in weights)
            rows_e = torch.tensor([len(x_RD)], device=x_RD.device)
            if plan.noted[expert // self._num_local]:
                return low_ffn(x_RD, rows_e, lowered(whole, self.precision), activation)
            return expert_ffn(x_RD, activation, *weights)

        return dense.through(x_TD, routing, ffn)


def overloaded(rows_GP: torch.Tensor, overload: float, least_rows: int, image_share: float) -> torch.Tensor:
    """bool [G]: ranks with more than `overload` times the mean number of rows, of which image_share are of images; none
    in a batch of up to least_rows. rows_GP: each rank's rows of text and of images.
    """
    rows_G = rows_GP.sum(1).double()
    of_images_G = rows_GP[:, 1] >= image_share * rows_G
    return (rows_G > overload * rows_G.mean()) & of_images_G & (rows_G.sum() > least_rows)
