"""What torch does otherwise on the meta device than on a GPU, before it comes to an operation."""

from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode

from clusters.simulated import values
from clusters.simulated.schemas import META
from clusters.simulated.values import Storages

MAKERS = {torch.tensor, torch.as_tensor, torch.asarray}
READERS = {torch.Tensor.tolist, torch.Tensor.numpy, torch.Tensor.__array__}


class OnDevice(TorchFunctionMode):
    """What torch does otherwise on the meta device than on a GPU before it comes to an operation.

    `torch.tensor(values, device=...)` keeps its values, a number that is assigned stays on the host, attention is one
    operation, and who asks for the values of a tensor that has none is told so.
    """

    def __init__(self, storages: Storages) -> None:
        super().__init__()
        self.storages = storages

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.Tensor.__setitem__ and isinstance(args[2], int | float) and args[0].device == META:
            return func(args[0], args[1], torch.tensor(args[2], dtype=args[0].dtype))
        if func is scaled_dot_product_attention:
            with torch._C._AutoDispatchBelowAutograd():  # where it is one operation still
                return func(*args, **kwargs)
        if func in READERS and args[0].device == META and self.storages.read(args[0]) is None:
            raise values.NoValues
        if func is torch.Tensor.new_tensor and args[0].device == META:
            like, *args = args
            func, kwargs = torch.tensor, {"dtype": like.dtype, "device": META, **kwargs}
        if func in MAKERS and kwargs.get("device") is not None:
            device = torch.device(kwargs.pop("device"))
            return func(*args, **kwargs).to(device)
        return func(*args, **kwargs)
