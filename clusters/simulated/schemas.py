"""What is to be known of an operation and of its arguments before it is carried out."""

from typing import Any, NamedTuple

import torch

aten = torch.ops.aten
META = torch.device("meta")
_operations: dict[Any, "Operation"] = {}
_layouts: dict[Any, tuple[type | None, list[tuple[Any, Any, torch.dtype]]]] = {}  # by operation and arguments


class Operation(NamedTuple):
    """What is to be known of an operation, whatever it is called with."""

    composite: bool
    view: bool
    writes: tuple[int | str, ...]  # its arguments that it changes: places, or names of those given by name
    random: bool


def known(func: Any) -> Operation:
    """What its schema says of an operation."""
    if func not in _operations:
        schema = func._schema.arguments
        writes = tuple(
            argument.name if argument.kwarg_only else place
            for place, argument in enumerate(schema)
            if argument.alias_info is not None and argument.alias_info.is_write
        )
        composite = torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), "CompositeImplicitAutograd")
        # Some change the shape of their argument only.
        view = func is aten._unsafe_view.default or (func.is_view and not writes) or torch.Tag.inplace_view in func.tags
        random = torch.Tag.nondeterministic_seeded in func.tags
        _operations[func] = Operation(composite, view, writes, random)
    return _operations[func]


def tensors_of(args: Any, kwargs: Any) -> list[torch.Tensor]:
    """The tensors among the arguments, and in the lists among them."""
    found = []
    for each in (*args, *kwargs.values()) if kwargs else args:
        if isinstance(each, torch.Tensor):
            found.append(each)
        elif isinstance(each, tuple | list):
            found += [one for one in each if isinstance(one, torch.Tensor)]
    return found


def shaped(func: Any, args: Any, kwargs: Any) -> Any:
    """New tensors like an operation's results; torch's own rules for shapes are slow, so each is asked once."""
    key = (func, _signature(args), _signature(kwargs) if kwargs else None)
    if (layouts := _layouts.get(key)) is None:
        out = func(*shapes(args), **shapes(kwargs))
        tensors = [out] if isinstance(out, torch.Tensor) else list(out or ())
        kind = None if isinstance(out, torch.Tensor) else type(out)
        _layouts[key] = kind, [(tuple(one.shape), one.stride(), one.dtype) for one in tensors]
        return out
    kind, sizes = layouts
    made = [torch.empty_strided(size, stride, dtype=dtype, device=META) for size, stride, dtype in sizes]
    return made[0] if kind is None else kind(made) if made else None


def _signature(args: Any) -> Any:
    if isinstance(args, torch.Tensor):
        return tuple(args.shape), args.stride(), args.dtype
    if type(args) in (tuple, list):
        return tuple(map(_signature, args))
    if isinstance(args, dict):
        return tuple((name, _signature(value)) for name, value in args.items())
    return type(args), args


def shapes(args: Any) -> Any:
    """The arguments with shapes only, where host tensors stand beside device tensors."""
    if isinstance(args, torch.Tensor):
        return args if args.device == META or args.dim() == 0 else torch.empty_like(args, device=META)
    if type(args) in (tuple, list):
        return type(args)(map(shapes, args))
    if isinstance(args, dict):
        return {name: shapes(value) for name, value in args.items()}
    return args
