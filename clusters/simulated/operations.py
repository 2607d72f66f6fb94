"""What a simulated rank does with every operation: the shape of its result, its value if it has one, and its time.

Composite operations are taken apart first, so that what is priced is what a device would launch. Operations whose
result depends on values (a boolean mask, `nonzero`, `.item()`, `.tolist()`) make the host wait for the device, as they
do on one.
"""

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import CodeType
from typing import Any, NamedTuple

import torch
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from clusters.simulated import values
from clusters.simulated.prices import FREE, GroupedProduct, Prices, product_of, scanned_rows, work_of
from clusters.simulated.timeline import Timeline
from clusters.simulated.values import Read, Storages, covers_storage

aten = torch.ops.aten
META, CPU = torch.device("meta"), torch.device("cpu")
OVERWRITES = {aten.copy_.default, aten.fill_.Scalar, aten.fill_.Tensor, aten.zero_.default}
MAKERS = {torch.tensor, torch.as_tensor, torch.asarray}
READERS = {torch.Tensor.tolist, torch.Tensor.numpy, torch.Tensor.__array__}
BLANKS = {
    *(aten.empty.memory_format, aten.empty_strided.default, aten.empty_like.default),
    *(aten.new_empty.default, aten.new_empty_strided.default),
}
HALVES = {torch.bfloat16: "bf16", torch.float16: "fp16"}
Declared = Mapping[str, Callable[..., Sequence[GroupedProduct]]]


class Operation(NamedTuple):
    """What is to be known of an operation, whatever it is called with."""

    composite: bool
    view: bool
    writes: tuple[int | str, ...]  # its arguments that it changes: places, or names of those given by name
    random: bool


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


class Simulation(TorchDispatchMode):
    """One rank's operations on its timeline. precision: of products of float32 matrices (ieee or tf32).

    declared: by name of an operation of ours, the grouped products that it consists of, given its arguments.
    """

    def __init__(
        self, timeline: Timeline, device: Prices, storages: Storages, precision: str, declared: Declared
    ) -> None:
        super().__init__()
        self.timeline, self.device, self.storages = timeline, device, storages
        self._declared, self._draws = declared, 0
        self._precisions = {torch.float32: precision if precision in ("ieee", "tf32") else "ieee", **HALVES}

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # nothing is compiled here, and the guard against it costs as much as an operation

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self.timeline.host.unrepeated != 1.0:
            self.timeline.execute(_place())
        special = SPECIAL.get(func)
        if special is not None:
            return special(self, func, args, kwargs)
        known = _known(func)
        if known.composite:
            with self:
                return func.decompose(*args, **kwargs)
        return self._carry_out(func, known, args, kwargs)

    def _carry_out(self, func: Any, known: Operation, args: Any, kwargs: Any) -> Any:
        inputs = _tensors(args, kwargs)
        if not any(tensor.device == META for tensor in inputs) and kwargs.get("device") != META:
            self.timeline.view()  # on the host
            return func(*args, **kwargs)
        if known.view:
            self.timeline.view()
            return func(*args, **kwargs)
        if known.writes:
            out = args[0] if known.writes == (0,) else func(*_shapes(args), **_shapes(kwargs))
            self._write(func, known, args, kwargs)
            self._charge(func, args, inputs, [])
            return out
        out = _shaped(func, args, kwargs)
        outputs: list[torch.Tensor] = [out] if isinstance(out, torch.Tensor) else list(out or ())
        self._hold(outputs, self._values(func, inputs, args, kwargs, outputs))
        self._charge(func, args, inputs, outputs)
        return out

    # What results contain.

    def _values(
        self, func: Any, inputs: list[torch.Tensor], args: Any, kwargs: Any, outputs: list[torch.Tensor]
    ) -> list[values.Value] | list[None]:
        unknown: list[None] = [None] * len(outputs)
        reads = self._reads((args, kwargs))
        if func in BLANKS and (not outputs[0].is_floating_point() or (inputs and reads is not None)):
            # The same one for all ranks, so that what they fill it with is the same too.
            return values.call(torch.zeros, (tuple(outputs[0].shape),), {"dtype": outputs[0].dtype}, outputs)
        if func in BLANKS or reads is None:
            return unknown  # numbers that were never written have no value
        read_args, read_kwargs = reads
        if "device" in read_kwargs:
            read_kwargs = {**read_kwargs, "device": CPU}
        return values.call(self._drawn(func, _known(func)), read_args, read_kwargs, outputs)

    def _drawn(self, func: Any, known: Operation) -> Any:
        """A random operation with its seed, which is another one each time; all ranks draw alike."""
        if not known.random:
            return func
        self._draws += 1
        return Drawn(func, self._draws)

    def _hold(self, outputs: Sequence[torch.Tensor], contents: Sequence[values.Value | None]) -> None:
        for output, content in zip(outputs, contents, strict=True):
            self.storages.hold(output, content, self.timeline)

    def _reads(self, args: Any) -> Any:
        """The arguments with Reads for tensors; None where one of them has no value."""
        if isinstance(args, torch.Tensor):
            return self.storages.read(args)
        if type(args) in (tuple, list):
            made = []
            for each in args:
                read = self._reads(each)
                if read is None and each is not None:
                    return None
                made.append(read)
            return type(args)(made)
        if isinstance(args, dict):
            made = {name: self._reads(value) for name, value in args.items()}
            return None if any(made[name] is None and args[name] is not None for name in made) else made
        return args

    def _write(self, func: Any, known: Operation, args: Any, kwargs: Any) -> None:
        """Give the storages that an operation changes in place what they contain afterwards."""
        for place in known.writes:
            by_name = isinstance(place, str)
            target = kwargs.get(place) if by_name else args[place] if place < len(args) else None
            if target is None or target.device != META:
                continue
            rest = {name: value for name, value in kwargs.items() if name not in known.writes}
            reads = self._reads((args if by_name else args[1:], rest))
            overwrites = by_name or func in OVERWRITES
            others = [name for name in known.writes if isinstance(name, str) and name != place]
            operation = Into(func, place, tuple((name, kwargs[name].dtype) for name in others)) if by_name else func
            self.overwrite(target, self._drawn(operation, known), reads, overwrites)

    def overwrite(self, target: torch.Tensor, function: Any, reads: Any, overwrites: bool = True) -> None:
        """`function(target, *args, **kwargs)`, reads being the two of them or None where they have no values."""
        before = self.storages.read(target)
        if before is None and overwrites and reads is not None and covers_storage(target):
            numel = target.untyped_storage().nbytes() // target.element_size()
            (blank,) = values.call(torch.zeros, (numel,), {"dtype": target.dtype}, [target.view(-1)])
            before = Read(blank, target.dtype, tuple(target.shape), target.stride(), 0)
        value = None if before is None or reads is None else values.write(function, before, *reads)
        self.storages.hold(target, value, self.timeline)

    # How long they take.

    def _charge(self, func: Any, args: Any, inputs: Any, outputs: Any) -> None:
        if func in FREE:
            self.timeline.view()
            return
        name = func.overloadpacket.__name__
        if declared := self._declared.get(func.name()):
            products = declared(*args)
            seconds = sum(self._grouped_s(product) for product in products)
            self.timeline.compute(name, seconds, len(products))
        elif sizes := product_of(func, args):
            self.timeline.compute(name, self.device.matmul_s(*sizes, self._precision(inputs[-1])))
        else:
            self.move(name, *work_of(func, inputs, outputs), self.device.scan_s(scanned_rows(func, args)))

    def move(self, name: str, num_bytes: float, launches: int, beyond_s: float = 0.0) -> None:
        """Kernels that are as fast as memory is, and beyond_s slower."""
        self.timeline.compute(name, launches * self.device.memory_s(num_bytes / launches) + beyond_s, launches)

    def _grouped_s(self, product: GroupedProduct) -> float:
        rows_e = self.storages.peek(product.rows_e).tolist()
        return self.device.grouped_s(product.kernel, rows_e, product.n, product.k, self._precision(product.weight))

    def _precision(self, tensor: torch.Tensor) -> str:
        if tensor.dtype not in self._precisions:
            raise ValueError(f"a described device has no time for matrix products in {tensor.dtype}")
        return self._precisions[tensor.dtype]

    # Operations whose time or result depends on values.

    def _read_item(self, func: Any, args: Any, kwargs: Any) -> Any:
        (tensor,) = args
        if tensor.device == META:
            self.timeline.synchronise()
        else:
            self.timeline.view()
        return func(self.storages.peek(tensor))

    def _copy_to(self, func: Any, args: Any, kwargs: Any) -> Any:
        """A copy of another type or on another device; to the host it waits, and what has no values stays without."""
        tensor, target = args[0], kwargs.get("device")
        if target == CPU and tensor.device == META:
            self.timeline.compute("copy_to_host", self.device.transfer_s(tensor.nbytes))
            self.timeline.synchronise()
            return func(self.storages.peek(tensor), **kwargs) if self.storages.read(tensor) else tensor
        if target == META and tensor.device != META:
            out = torch.empty_like(tensor, device=META, dtype=kwargs.get("dtype") or tensor.dtype)
            (value,) = values.call(torch.clone, (self._reads(tensor.to(out.dtype)),), {}, [out])
            self.storages.hold(out, value, self.timeline)
            self.timeline.compute("copy_to_device", self.device.transfer_s(out.nbytes))
            return out
        return self._carry_out(func, _known(func), args, kwargs)

    def _copy_into(self, func: Any, args: Any, kwargs: Any) -> Any:
        target, source = args[0], args[1]
        if target.device == CPU and source.device == META:
            self.timeline.compute("copy_to_host", self.device.transfer_s(source.nbytes))
            self.timeline.synchronise()
            return func(target, self.storages.peek(source))
        if target.device == META and source.device == CPU and source.dim() > 0:
            func(target, _shapes(source))
            self._write(func, _known(func), args, kwargs)
            self.timeline.compute("copy_to_device", self.device.transfer_s(source.nbytes))
            return target
        return self._carry_out(func, _known(func), args, kwargs)

    def _measure(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Operations whose results are on the host, or have a length that it knows only once the device has counted."""
        inputs = _tensors(args, kwargs)
        if all(tensor.device != META for tensor in inputs):
            return func(*args, **kwargs)
        self.move(func.overloadpacket.__name__, *work_of(func, inputs, []))
        self.timeline.synchronise()
        real_args, real_kwargs = self._peeked((args, kwargs))
        found = func(*real_args, **real_kwargs)
        if isinstance(found, bool):
            return found
        outputs = [torch.empty_like(one, device=META) for one in (found if isinstance(found, tuple) else (found,))]
        read_args, read_kwargs = self._reads((args, kwargs))
        self._hold(outputs, values.call(func, read_args, read_kwargs, outputs))
        return tuple(outputs) if isinstance(found, tuple) else outputs[0]

    def _peeked(self, args: Any) -> Any:
        if isinstance(args, torch.Tensor):
            return self.storages.peek(args)
        if type(args) in (tuple, list):
            return type(args)(map(self._peeked, args))
        return {name: self._peeked(value) for name, value in args.items()} if isinstance(args, dict) else args

    def _index(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Masks are turned into the places that they have, which the host waits for; a number needs no places."""
        tensor, indices, *rest = args
        if not any(index is not None and index.dtype in (torch.bool, torch.uint8) for index in indices):
            return self._carry_out(func, _known(func), args, kwargs)
        if func in PUTS and _fills(indices, *rest):
            (mask,), missing = indices, tensor.dim() - indices[0].dim()
            with self:
                return tensor.masked_fill_(mask.view(*mask.shape, *[1] * missing), rest[0].item())
        places = []
        for index in indices:
            if index is not None and index.dtype in (torch.bool, torch.uint8):
                with self:
                    places += aten.nonzero.default(index).unbind(1)
            else:
                places.append(index)
        return self._carry_out(func, _known(func), (tensor, places, *rest), kwargs)

    def _repeat(self, func: Any, args: Any, kwargs: Any) -> Any:
        """`repeat_interleave`: without output_size the host waits for the sum."""
        (repeats,) = args
        if repeats.device == META and kwargs.get("output_size") is None:
            self.timeline.synchronise()
            kwargs = {"output_size": int(self.storages.peek(repeats).sum())}
        return self._carry_out(func, _known(func), args, kwargs)

    def _multiply_groups(self, func: Any, args: Any, kwargs: Any) -> Any:
        """torch's `grouped_mm` of rows sorted by expert, which the host takes apart where the device has no kernel."""
        (x_NK, w_eKO), ends_e = args[:2], args[2] if len(args) > 2 else kwargs.get("offs")
        if x_NK.device != META:
            return func(*args, **kwargs)
        if x_NK.dim() != 2 or w_eKO.dim() != 3 or ends_e is None:
            raise ValueError("a described device has times for grouped_mm of rows [N, K] with matrices [e, K, O] only")
        precision, launches = self._precision(w_eKO), 1
        rows_e = self.storages.peek(ends_e).diff(prepend=torch.zeros(1, dtype=ends_e.dtype)).tolist()
        if not self.device.is_one_kernel("grouped", precision):
            self.timeline.synchronise()
            launches = max(1, sum(rows > 0 for rows in rows_e))
        out = x_NK.new_empty(len(x_NK), w_eKO.shape[2])
        self.storages.hold(out, None, self.timeline)
        seconds = self.device.grouped_s("grouped", rows_e, w_eKO.shape[2], w_eKO.shape[1], precision)
        self.timeline.compute("grouped_mm", seconds, launches)
        return out

    def _attend(self, func: Any, args: Any, kwargs: Any) -> Any:
        query, key, value = args[:3]
        if query.device != META:
            return func(*args, **kwargs)
        out = query.new_empty(*query.shape[:-1], value.shape[-1])
        self.storages.hold(out, None, self.timeline)
        (batch, heads, length, width), seconds = query.shape, self.device.attention_s
        self.timeline.compute("attention", seconds(batch, heads, length, key.shape[-2], width, self._precision(query)))
        return out


class Into(NamedTuple):
    """An operation that writes a result where it is told by name, as a function of that place.

    others: the names and types of its other results.
    """

    func: Any
    name: str
    others: tuple[tuple[str, torch.dtype], ...] = ()

    def __call__(self, target: torch.Tensor, *args: Any, **kwargs: Any) -> None:
        blank = {name: torch.empty(0, dtype=dtype) for name, dtype in self.others}
        self.func(*args, **{self.name: target}, **blank, **kwargs)


class Drawn(NamedTuple):
    """An operation that draws random numbers, from a seed of its own whenever it is carried out."""

    func: Any
    seed: int

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        with torch.random.fork_rng(devices=()):
            torch.manual_seed(self.seed)
            return self.func(*args, **kwargs)


SPECIAL: dict[Any, Callable[..., Any]] = {
    aten._local_scalar_dense.default: Simulation._read_item,
    aten._to_copy.default: Simulation._copy_to,
    aten.copy_.default: Simulation._copy_into,
    aten.nonzero.default: Simulation._measure,
    aten.bincount.default: Simulation._measure,
    aten.masked_select.default: Simulation._measure,
    aten._unique2.default: Simulation._measure,
    aten.unique_dim.default: Simulation._measure,
    aten.equal.default: Simulation._measure,
    aten.allclose.default: Simulation._measure,
    aten.unique_consecutive.default: Simulation._measure,
    aten.index.Tensor: Simulation._index,
    aten.index_put_.default: Simulation._index,
    aten._index_put_impl_.default: Simulation._index,
    aten.repeat_interleave.Tensor: Simulation._repeat,
    aten.scaled_dot_product_attention.default: Simulation._attend,
    aten._grouped_mm.default: Simulation._multiply_groups,
}
PUTS = {aten.index_put_.default, aten._index_put_impl_.default}
INNER = (str(Path(torch.__file__).parent), str(Path(__file__).parent), "<frozen")
_inner: dict[CodeType, bool] = {}
_operations: dict[Any, Operation] = {}
_layouts: dict[Any, tuple[type | None, list[tuple[Any, Any, torch.dtype]]]] = {}  # by operation and arguments


def _place() -> tuple[CodeType, int]:
    """Where the program is at an operation: its innermost call that is neither torch's nor the simulation's."""
    frame: Any = sys._getframe(2)
    while frame.f_back is not None:
        code = frame.f_code
        if (inner := _inner.get(code)) is None:
            inner = _inner[code] = code.co_filename.startswith(INNER)
        if not inner:
            break
        frame = frame.f_back
    return frame.f_code, frame.f_lasti


def _known(func: Any) -> Operation:
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


def _fills(indices: Sequence[Any], value: torch.Tensor, accumulate: bool = False, *unsafe: bool) -> bool:
    """Whether `index_put_` only fills what one mask marks with a number of the host, as torch finds too."""
    return len(indices) == 1 and value.device == CPU and value.numel() == 1 and not accumulate


def _tensors(args: Any, kwargs: Any) -> list[torch.Tensor]:
    found = []
    for each in (*args, *kwargs.values()) if kwargs else args:
        if isinstance(each, torch.Tensor):
            found.append(each)
        elif isinstance(each, tuple | list):
            found += [one for one in each if isinstance(one, torch.Tensor)]
    return found


def _shaped(func: Any, args: Any, kwargs: Any) -> Any:
    """New tensors like an operation's results; torch's own rules for shapes are slow, so each is asked once."""
    key = (func, _signature(args), _signature(kwargs) if kwargs else None)
    if (layouts := _layouts.get(key)) is None:
        out = func(*_shapes(args), **_shapes(kwargs))
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


def _shapes(args: Any) -> Any:
    """The arguments with shapes only, where host tensors stand beside device tensors."""
    if isinstance(args, torch.Tensor):
        return args if args.device == META or args.dim() == 0 else torch.empty_like(args, device=META)
    if type(args) in (tuple, list):
        return type(args)(map(_shapes, args))
    if isinstance(args, dict):
        return {name: _shapes(value) for name, value in args.items()}
    return args
