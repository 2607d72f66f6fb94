"""What device tensors without memory contain, as far as it can be known.

A storage on the `meta` device has a `Value` here if its content follows from routing, counts and constants alone; one
that depends on a weight or an activation has none. A value is computed when a program asks for it, most never are.
Values do not change: an operation that writes in place gives its storage a new value. So equal operations on the same
values, such as those of all ranks on what they have gathered, are computed once.
"""

import weakref
from collections.abc import Callable, Sequence
from functools import partial
from itertools import count
from typing import Any, NamedTuple, Protocol

import torch

_serials = count()
_calls: "weakref.WeakValueDictionary[Any, Call]" = weakref.WeakValueDictionary()


class NoValues(RuntimeError):
    """A program asks for the content of a tensor that has a shape only."""

    def __init__(self) -> None:
        super().__init__(
            "a simulated rank asks for the values of an activation or a weight, which have shapes only; "
            "use another router or system, or cluster=emulated"
        )


class Value:
    """The content of a storage; `content()` is a real tensor that must not be changed."""

    __slots__ = ("__weakref__", "_call", "_index", "_made", "serial")

    def __init__(self, call: "Call", index: int) -> None:
        self.serial, self._call, self._index = next(_serials), call, index
        self._made: torch.Tensor | None = None

    def content(self) -> torch.Tensor:
        if self._made is None:
            self._made = self._call.outputs()[self._index]
        return self._made


class Read(NamedTuple):
    """A tensor as a view of a value."""

    value: Value
    dtype: torch.dtype
    size: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int

    def tensor(self) -> torch.Tensor:
        return self.of(self.value.content())

    def of(self, content: torch.Tensor) -> torch.Tensor:
        """The same view of another content."""
        return torch.empty(0, dtype=self.dtype).set_(content.untyped_storage(), self.offset, self.size, self.stride)

    def key(self) -> Any:
        return (self.value.serial, *self[1:])


class Call:
    """An operation on values that has not been carried out yet, or its outputs."""

    __slots__ = ("__weakref__", "_function", "_made", "_values")

    def __init__(self, function: Callable[[], Sequence[torch.Tensor]], num_outputs: int) -> None:
        self._function: Callable[[], Sequence[torch.Tensor]] | None = function
        self._made: Sequence[torch.Tensor] = ()
        self._values: list[Callable[[], Value | None]] = [lambda: None] * num_outputs

    @property
    def values(self) -> list[Value]:
        """What the outputs hold: each keeps its call, which knows it weakly, so that both go with the last tensor."""
        values = [known() or Value(self, index) for index, known in enumerate(self._values)]
        self._values = [weakref.ref(value) for value in values]
        return values

    def outputs(self) -> Sequence[torch.Tensor]:
        if self._function is not None:
            self._made, self._function = self._function(), None  # what it needed may go
        return self._made


def call(function: Callable[..., Any], args: Any, kwargs: Any, likes: Sequence[torch.Tensor]) -> list[Value]:
    """The values of `function(*args, **kwargs)`, whose Reads become tensors; likes: its outputs' layouts."""
    key = _key((function, args, kwargs))
    if (known := _calls.get(key)) is None:
        layouts = [(tuple(like.shape), like.stride(), like.dtype) for like in likes]

        def compute() -> list[torch.Tensor]:
            made = function(*_real(args), **_real(kwargs))
            made = made if isinstance(made, tuple | list) else (made,)
            return [_laid_out(one, *layout) for one, layout in zip(made, layouts, strict=True)]

        _calls[key] = known = Call(compute, len(layouts))
    return known.values


def write(function: Callable[..., Any], target: Read, args: Any, kwargs: Any) -> Value:
    """The value of a storage after `function(view of it, *args, **kwargs)` has changed it in place."""
    key = _key(("write", function, target, args, kwargs))
    if (known := _calls.get(key)) is None:

        def compute() -> list[torch.Tensor]:
            changed = target.value.content().clone()
            function(target.of(changed), *_real(args), **_real(kwargs))
            return [changed]

        _calls[key] = known = Call(compute, 1)
    return known.values[0]


def constant(tensor: torch.Tensor) -> Value:
    """The value of a real tensor, copied."""
    made = tensor.detach().clone(memory_format=torch.contiguous_format)
    return Call(lambda: [made], 1).values[0]


class Storages:
    """All device storages there are: their values, and who holds their memory."""

    def __init__(self) -> None:
        self._known: dict[int, tuple[Value | None, weakref.ref, Callable[[int], None], int]] = {}

    def hold(self, tensor: torch.Tensor, value: Value | None, holder: "Holder") -> None:
        """Note a tensor's storage with its value; a new storage takes the holder's memory until it is gone."""
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._known:
            self._known[key] = (value, *self._known[key][1:])
            return
        num_bytes = storage.nbytes()
        self._known[key] = (value, weakref.ref(storage, partial(self._forget, key)), holder.free, num_bytes)
        holder.allocate(num_bytes)

    def _forget(self, key: int, gone: weakref.ref) -> None:
        _, _, free, num_bytes = self._known.pop(key)
        free(num_bytes)

    def read(self, tensor: torch.Tensor) -> Read | None:
        """A device tensor as a view of its storage's value, or a copy of one on the host; None: it has a shape only."""
        if tensor.device.type == "cpu":
            tensor_value = constant(tensor)
            return Read(tensor_value, tensor.dtype, tuple(tensor.shape), _packed_stride(tensor), 0)
        known = self._known.get(tensor.untyped_storage()._cdata)
        if known is None or known[0] is None:
            return None
        return Read(known[0], tensor.dtype, tuple(tensor.shape), tensor.stride(), int(tensor.storage_offset()))

    def peek(self, tensor: torch.Tensor) -> torch.Tensor:
        """The real content of a tensor, not to be changed; NoValues where there is none."""
        if tensor.device.type == "cpu":
            return tensor
        read = self.read(tensor)
        if read is None:
            raise NoValues
        return read.tensor()


class Holder(Protocol):
    """Whoever's memory a storage takes."""

    def allocate(self, num_bytes: int) -> None: ...

    def free(self, num_bytes: int) -> None: ...


def covers_storage(tensor: torch.Tensor) -> bool:
    """Whether a tensor is all of its storage."""
    return tensor.is_contiguous() and tensor.nbytes == tensor.untyped_storage().nbytes()


def _packed_stride(tensor: torch.Tensor) -> tuple[int, ...]:
    return torch.empty(tensor.shape, device="meta").stride()


def _laid_out(tensor: torch.Tensor, size: Any, stride: Any, dtype: torch.dtype) -> torch.Tensor:
    if tensor.storage_offset() == 0 and tensor.stride() == stride and tensor.dtype == dtype and not tensor._is_view():
        return tensor
    return torch.empty_strided(size, stride, dtype=dtype).copy_(tensor)


def _real(args: Any) -> Any:
    if isinstance(args, Read):
        return args.tensor()
    if isinstance(args, tuple | list):
        return type(args)(map(_real, args)) if type(args) in (tuple, list) else args
    if isinstance(args, dict):
        return {name: _real(value) for name, value in args.items()}
    return args


def _key(args: Any) -> Any:
    if isinstance(args, Read):
        return args.key()
    if type(args) in (tuple, list):
        return tuple(map(_key, args))
    if isinstance(args, dict):
        return tuple((name, _key(value)) for name, value in args.items())
    if isinstance(args, torch.Tensor):
        return id(args), next(_serials)  # on the host, where it may change: never the same
    return (type(args), str(args) if isinstance(args, float) else args)  # 1, True and 1.0 are equal, and 0.0 and -0.0
