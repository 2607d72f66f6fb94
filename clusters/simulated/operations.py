"""What a simulated rank does with every operation: the shape of its result, its value if it has one, and its time.

Composite operations are taken apart first, so that what is priced is what a device would launch.
"""

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import CodeType
from typing import Any, NamedTuple

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from clusters.simulated import values
from clusters.simulated.prices import FREE, GroupedProduct, Prices, product_of, scanned_rows, work_of
from clusters.simulated.schemas import META, Operation, known, shaped, shapes, tensors_of
from clusters.simulated.special import CPU, SPECIAL
from clusters.simulated.timeline import Timeline
from clusters.simulated.values import Read, Storages, covers_storage

aten = torch.ops.aten
OVERWRITES = {aten.copy_.default, aten.fill_.Scalar, aten.fill_.Tensor, aten.zero_.default}
BLANKS = {
    *(aten.empty.memory_format, aten.empty_strided.default, aten.empty_like.default),
    *(aten.new_empty.default, aten.new_empty_strided.default),
}
NARROW = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float8_e4m3fn: "fp8"}
Declared = Mapping[str, Callable[..., Any]]
INNER = (str(Path(torch.__file__).parent), str(Path(__file__).parent), "<frozen")
_inner: dict[CodeType, bool] = {}


class Simulation(TorchDispatchMode):
    """One rank's operations on its timeline. precision: of products of float32 matrices (fp32 or tf32).

    declared: by name of an operation of ours, the grouped products that it consists of, given its arguments, or what
    moves the clocks itself.
    """

    def __init__(
        self, timeline: Timeline, device: Prices, storages: Storages, precision: str, declared: Declared
    ) -> None:
        super().__init__()
        self.timeline, self.device, self.storages = timeline, device, storages
        self._declared, self._draws = declared, 0
        self._precisions = {torch.float32: precision if precision in ("fp32", "tf32") else "fp32", **NARROW}

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
        operation = known(func)
        if operation.composite:
            with self:
                return func.decompose(*args, **kwargs)
        return self.carry_out(func, operation, args, kwargs)

    def carry_out(self, func: Any, operation: Operation, args: Any, kwargs: Any) -> Any:
        """Its result, priced, as an operation that depends on shapes only."""
        inputs = tensors_of(args, kwargs)
        if not any(tensor.device == META for tensor in inputs) and kwargs.get("device") != META:
            self.timeline.view()  # on the host
            return func(*args, **kwargs)
        if operation.view:
            self.timeline.view()
            return func(*args, **kwargs)
        if operation.writes:
            out = args[0] if operation.writes == (0,) else func(*shapes(args), **shapes(kwargs))
            self.write(func, operation, args, kwargs)
            self._charge(func, args, inputs, [])
            return out
        out = shaped(func, args, kwargs)
        outputs: list[torch.Tensor] = [out] if isinstance(out, torch.Tensor) else list(out or ())
        self.hold(outputs, self._values(func, inputs, args, kwargs, outputs))
        self._charge(func, args, inputs, outputs)
        return out

    # What results contain.

    def _values(
        self, func: Any, inputs: list[torch.Tensor], args: Any, kwargs: Any, outputs: list[torch.Tensor]
    ) -> list[values.Value] | list[None]:
        unknown: list[None] = [None] * len(outputs)
        reads = self.reads_of((args, kwargs))
        if func in BLANKS and (not outputs[0].is_floating_point() or (inputs and reads is not None)):
            # The same one for all ranks, so that what they fill it with is the same too.
            return values.call(torch.zeros, (tuple(outputs[0].shape),), {"dtype": outputs[0].dtype}, outputs)
        if func in BLANKS or reads is None:
            return unknown  # numbers that were never written have no value
        read_args, read_kwargs = reads
        if "device" in read_kwargs:
            read_kwargs = {**read_kwargs, "device": CPU}
        return values.call(self._drawn(func, known(func)), read_args, read_kwargs, outputs)

    def _drawn(self, func: Any, operation: Operation) -> Any:
        """A random operation with its seed, which is another one each time; all ranks draw alike."""
        if not operation.random:
            return func
        self._draws += 1
        return Drawn(func, self._draws)

    def hold(self, outputs: Sequence[torch.Tensor], contents: Sequence[values.Value | None]) -> None:
        """Note what new tensors contain, and that they take memory."""
        for output, content in zip(outputs, contents, strict=True):
            self.storages.hold(output, content, self.timeline)

    def reads_of(self, args: Any) -> Any:
        """The arguments with Reads for tensors; None where one of them has no value."""
        if isinstance(args, torch.Tensor):
            return self.storages.read(args)
        if type(args) in (tuple, list):
            made = []
            for each in args:
                read = self.reads_of(each)
                if read is None and each is not None:
                    return None
                made.append(read)
            return type(args)(made)
        if isinstance(args, dict):
            made = {name: self.reads_of(value) for name, value in args.items()}
            return None if any(made[name] is None and args[name] is not None for name in made) else made
        return args

    def write(self, func: Any, operation: Operation, args: Any, kwargs: Any) -> None:
        """Give the storages that an operation changes in place what they contain afterwards."""
        for place in operation.writes:
            by_name = isinstance(place, str)
            target = kwargs.get(place) if by_name else args[place] if place < len(args) else None
            if target is None or target.device != META:
                continue
            rest = {name: value for name, value in kwargs.items() if name not in operation.writes}
            reads = self.reads_of((args if by_name else args[1:], rest))
            overwrites = by_name or func in OVERWRITES
            others = [name for name in operation.writes if isinstance(name, str) and name != place]
            changes = Into(func, place, tuple((name, kwargs[name].dtype) for name in others)) if by_name else func
            self.overwrite(target, self._drawn(changes, operation), reads, overwrites)

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
            work = declared(*args)
            if not isinstance(work, list):
                work.charge(self.timeline)
                return
            self.timeline.compute(name, sum(map(self._grouped_s, work)), len(work))
        elif sizes := product_of(func, args):
            self.timeline.compute(name, self.device.matmul_s(*sizes, self.precision_of(inputs[-1])))
        else:
            self.move(name, *work_of(func, inputs, outputs), self.device.scan_s(scanned_rows(func, args)))

    def move(self, name: str, num_bytes: float, launches: int, beyond_s: float = 0.0) -> None:
        """Kernels that are as fast as memory is, and beyond_s slower."""
        self.timeline.compute(name, launches * self.device.memory_s(num_bytes / launches) + beyond_s, launches)

    def _grouped_s(self, product: GroupedProduct) -> float:
        rows_e = self.storages.peek(product.rows_e).tolist()
        return self.device.grouped_s(product.kernel, rows_e, product.n, product.k, self.precision_of(product.weight))

    def precision_of(self, tensor: torch.Tensor) -> str:
        if tensor.dtype not in self._precisions:
            raise ValueError(f"a described device has no time for matrix products in {tensor.dtype}")
        return self._precisions[tensor.dtype]


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
