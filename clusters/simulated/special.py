"""Operations whose time or result depends on values, and those that a device has a kernel for: each in its own way.

A boolean mask, `nonzero`, `.item()` or `.tolist()` makes the host wait for the device, as it does on one.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch

from clusters.simulated import values
from clusters.simulated.prices import work_of
from clusters.simulated.schemas import META, known, shapes, tensors_of

if TYPE_CHECKING:
    from clusters.simulated.operations import Simulation

aten = torch.ops.aten
CPU = torch.device("cpu")


def read_item(sim: "Simulation", func: Any, args: Any, kwargs: Any) -> Any:
    """One number for the host, which waits for it."""
    (tensor,) = args
    if tensor.device == META:
        sim.timeline.synchronise()
    else:
        sim.timeline.view()
    return func(sim.storages.peek(tensor))


def copy_to(sim: "Simulation", func: Any, args: Any, kwargs: Any) -> Any:
    """A copy of another type or on another device; to the host it waits, and what has no values stays without."""
    tensor, target = args[0], kwargs.get("device")
    if target == CPU and tensor.device == META:
        sim.timeline.compute("copy_to_host", sim.device.transfer_s(tensor.nbytes))
        sim.timeline.synchronise()
        return func(sim.storages.peek(tensor), **kwargs) if sim.storages.read(tensor) else tensor
    if target == META and tensor.device != META:
        out = torch.empty_like(tensor, device=META, dtype=kwargs.get("dtype") or tensor.dtype)
        (value,) = values.call(torch.clone, (sim.reads_of(tensor.to(out.dtype)),), {}, [out])
        sim.storages.hold(out, value, sim.timeline)
        sim.timeline.compute("copy_to_device", sim.device.transfer_s(out.nbytes))
        return out
    return sim.carry_out(func, known(func), args, kwargs)


def copy_into(sim: "Simulation", func: Any, args: Any, kwargs: Any) -> Any:
    """A copy into a tensor that there is: between host and device it takes a transfer, to the host it waits."""
    target, source = args[0], args[1]
    if target.device == CPU and source.device == META:
        sim.timeline.compute("copy_to_host", sim.device.transfer_s(source.nbytes))
        sim.timeline.synchronise()
        return func(target, sim.storages.peek(source))
    if target.device == META and source.device == CPU and source.dim() > 0:
        func(target, shapes(source))
        sim.write(func, known(func), args, kwargs)
        sim.timeline.compute("copy_to_device", sim.device.transfer_s(source.nbytes))
        return target
    return sim.carry_out(func, known(func), args, kwargs)


def measure(sim: "Simulation", func: Any, args: Any, kwargs: Any) -> Any:
    """Operations whose results are on the host, or have a length that it knows only once the device has counted."""
    inputs = tensors_of(args, kwargs)
    if all(tensor.device != META for tensor in inputs):
        return func(*args, **kwargs)
    sim.move(func.overloadpacket.__name__, *work_of(func, inputs, []))
    sim.timeline.synchronise()
    real_args, real_kwargs = _peeked(sim, (args, kwargs))
    found = func(*real_args, **real_kwargs)
    if isinstance(found, bool):
        return found
    outputs = [torch.empty_like(one, device=META) for one in (found if isinstance(found, tuple) else (found,))]
    read_args, read_kwargs = sim.reads_of((args, kwargs))
    sim.hold(outputs, values.call(func, read_args, read_kwargs, outputs))
    return tuple(outputs) if isinstance(found, tuple) else outputs[0]


def _peeked(sim: "Simulation", args: Any) -> Any:
    if isinstance(args, torch.Tensor):
        return sim.storages.peek(args)
    if type(args) in (tuple, list):
        return type(args)(_peeked(sim, one) for one in args)
    return {name: _peeked(sim, value) for name, value in args.items()} if isinstance(args, dict) else args


def index(sim: "Simulation", func: Any, args: Any, kwargs: Any) -> Any:
    """Masks are turned into the places that they have, which the host waits for; a number needs no places."""
    tensor, indices, *rest = args
    if not any(index is not None and index.dtype in (torch.bool, torch.uint8) for index in indices):
        return sim.carry_out(func, known(func), args, kwargs)
    if func in PUTS and _fills(indices, *rest):
        (mask,), missing = indices, tensor.dim() - indices[0].dim()
        with sim:
            return tensor.masked_fill_(mask.view(*mask.shape, *[1] * missing), rest[0].item())
    places = []
    for index in indices:
        if index is not None and index.dtype in (torch.bool, torch.uint8):
            with sim:
                places += aten.nonzero.default(index).unbind(1)
        else:
            places.append(index)
    return sim.carry_out(func, known(func), (tensor, places, *rest), kwargs)


def repeat(sim: "Simulation", func: Any, args: Any, kwargs: Any) -> Any:
    """`repeat_interleave`: without output_size the host waits for the sum."""
    (repeats,) = args
    if repeats.device == META and kwargs.get("output_size") is None:
        sim.timeline.synchronise()
        kwargs = {"output_size": int(sim.storages.peek(repeats).sum())}
    return sim.carry_out(func, known(func), args, kwargs)


def multiply_groups(sim: "Simulation", func: Any, args: Any, kwargs: Any) -> Any:
    """torch's `grouped_mm` of rows sorted by expert, which the host takes apart where the device has no kernel."""
    (x_NK, w_eKO), ends_e = args[:2], args[2] if len(args) > 2 else kwargs.get("offs")
    if x_NK.device != META:
        return func(*args, **kwargs)
    if x_NK.dim() != 2 or w_eKO.dim() != 3 or ends_e is None:
        raise ValueError("a described device has times for grouped_mm of rows [N, K] with matrices [e, K, O] only")
    precision, launches = sim.precision_of(w_eKO), 1
    rows_e = sim.storages.peek(ends_e).diff(prepend=torch.zeros(1, dtype=ends_e.dtype)).tolist()
    if not sim.device.is_one_kernel("grouped", precision):
        sim.timeline.synchronise()
        launches = max(1, sum(rows > 0 for rows in rows_e))
    out = x_NK.new_empty(len(x_NK), w_eKO.shape[2])
    sim.storages.hold(out, None, sim.timeline)
    seconds = sim.device.grouped_s("grouped", rows_e, w_eKO.shape[2], w_eKO.shape[1], precision)
    sim.timeline.compute("grouped_mm", seconds, launches)
    return out


def attend(sim: "Simulation", func: Any, args: Any, kwargs: Any) -> Any:
    """Fused attention."""
    query, key, value = args[:3]
    if query.device != META:
        return func(*args, **kwargs)
    out = query.new_empty(*query.shape[:-1], value.shape[-1])
    sim.storages.hold(out, None, sim.timeline)
    (batch, heads, length, width), seconds = query.shape, sim.device.attention_s
    sim.timeline.compute("attention", seconds(batch, heads, length, key.shape[-2], width, sim.precision_of(query)))
    return out


def _fills(indices: Sequence[Any], value: torch.Tensor, accumulate: bool = False, *unsafe: bool) -> bool:
    """Whether `index_put_` only fills what one mask marks with a number of the host, as torch finds too."""
    return len(indices) == 1 and value.device == CPU and value.numel() == 1 and not accumulate


SPECIAL: dict[Any, Callable[..., Any]] = {
    aten._local_scalar_dense.default: read_item,
    aten._to_copy.default: copy_to,
    aten.copy_.default: copy_into,
    aten.nonzero.default: measure,
    aten.bincount.default: measure,
    aten.masked_select.default: measure,
    aten._unique2.default: measure,
    aten.unique_dim.default: measure,
    aten.equal.default: measure,
    aten.allclose.default: measure,
    aten.unique_consecutive.default: measure,
    aten.index.Tensor: index,
    aten.index_put_.default: index,
    aten._index_put_impl_.default: index,
    aten.repeat_interleave.Tensor: repeat,
    aten.scaled_dot_product_attention.default: attend,
    aten._grouped_mm.default: multiply_groups,
}
PUTS = {aten.index_put_.default, aten._index_put_impl_.default}
