"""Values of tensors without memory: what any program on ids and counts finds is what it finds on a CPU."""

import gc
import random
import weakref

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from clusters.simulated import values
from clusters.simulated.schemas import META
from clusters.simulated.values import NoValues
from tests.clusters.simulated.stub import alone

CPU = torch.device("cpu")
MODES = {"no_grad": torch.no_grad, "inference_mode": torch.inference_mode}
STEPS = 25


class Program:
    """A random program on a few small tensors, many of them views of one another; `told` is what it has asked for.

    The same seed makes the same program whatever the device.
    """

    def __init__(self, seed: int, device: torch.device) -> None:
        self.chance, self.device = random.Random(seed), device
        self.tensors = [
            torch.tensor([3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8], device=device),
            torch.tensor([[2.5, -1.0], [0.25, 3.0], [-4.5, 8.0]], device=device),
            torch.tensor([True, False, True], device=device),
        ]
        self.told: list[str] = []

    def run(self, steps: int) -> list[str]:
        for _ in range(steps):
            step = self.chance.choice(STEPS_OF_PROGRAMS)
            new = step(self)
            self.tensors += [one for one in new or () if one.numel() <= 200]
            while len(self.tensors) > 8:
                del self.tensors[self.chance.randrange(len(self.tensors))]
        for tensor in self.tensors:
            self.tell(tensor)
        return self.told

    def tell(self, tensor: torch.Tensor) -> None:
        self.told.append(f"{tensor.dtype} {tuple(tensor.shape)} {tensor.tolist()}")

    def pick(self, *dtypes: torch.dtype) -> torch.Tensor:
        """One of the tensors, of one of these types; with elements."""
        found = [one for one in self.tensors if one.numel() and (not dtypes or one.dtype in dtypes)]
        if not found:
            return torch.arange(1, 7, device=self.device).to(dtypes[0] if dtypes else torch.int64)
        return self.chance.choice(found)

    def target(self, *dtypes: torch.dtype) -> torch.Tensor:
        """A tensor that may be written: no two of its elements are one."""
        tensor = self.pick(*dtypes)
        return tensor if torch._debug_has_internal_overlap(tensor) == 0 else tensor.clone()

    def below(self, limit: int, count: int) -> torch.Tensor:
        """int64 [count]: places below a limit, from the values of some tensor."""
        ids = self.pick(torch.int64, torch.int32).flatten().long() % limit
        return ids.repeat(-(-count // len(ids)))[:count]

    def mask(self, shape: tuple[int, ...]) -> torch.Tensor:
        count = torch.Size(shape).numel()
        return (self.below(3, count) > 0).view(shape)


def sliced(p: Program):
    tensor = p.pick()
    first = p.chance.randrange(len(tensor)) if tensor.dim() else 0
    return [tensor[first:]] if tensor.dim() else [tensor.unsqueeze(0)]


def every_other(p: Program):
    tensor = p.pick()
    return [tensor[::2]] if tensor.dim() else [tensor.expand(2, 3)]


def turned(p: Program):
    tensor = p.pick()
    return [tensor.transpose(0, -1)] if tensor.dim() else []


def viewed(p: Program):
    tensor = p.pick().contiguous()
    return [tensor.view(2, -1) if tensor.numel() % 2 == 0 else tensor.view(-1)]


def expanded(p: Program):
    tensor = p.pick()
    return [tensor.unsqueeze(0).expand(3, *tensor.shape), tensor.flatten()[:1].expand(4)]


def split(p: Program):
    return list(p.pick().flatten().split(p.chance.randrange(1, 5)))[:3]


def chunked(p: Program):
    return list(torch.atleast_1d(p.pick()).chunk(2))


def unbound(p: Program):
    tensor = p.pick()
    return list(tensor.unbind(-1))[:2] if tensor.dim() else []


def other_bits(p: Program):
    tensor = p.pick(torch.float32, torch.int32)
    return [tensor.view(torch.int32 if tensor.dtype == torch.float32 else torch.float32)]


def other_type(p: Program):
    return [p.pick(torch.int64, torch.int32, torch.bool).to(p.chance.choice([torch.int64, torch.int32, torch.float32]))]


def indexed(p: Program):
    tensor = p.pick().flatten()
    return [tensor[p.below(len(tensor), 5)], tensor.index_select(0, p.below(len(tensor), 3))]


def gathered(p: Program):
    tensor = p.pick().flatten()
    return [tensor.gather(0, p.below(len(tensor), 7))]


def masked(p: Program):
    tensor = p.pick()
    return [tensor[p.mask(tuple(tensor.shape))], *p.mask((6,)).nonzero(as_tuple=True)]


def masked_rows(p: Program):
    tensor = p.pick()
    return [tensor[p.mask((len(tensor),))]] if tensor.dim() else []


def sorted_(p: Program):
    return list(p.pick(torch.int64, torch.int32).flatten().sort(stable=True, descending=p.chance.random() < 0.5))


def argsorted(p: Program):
    return [p.pick(torch.int64).flatten().argsort(stable=True)]


def largest(p: Program):
    tensor = p.pick(torch.int64, torch.int32)
    return [tensor.flatten().topk(1)[0], *tensor.max(dim=0)] if tensor.dim() else []


def counted(p: Program):
    return [torch.bincount(p.below(6, 9), minlength=6), torch.nn.functional.one_hot(p.below(4, 5), 4)]


def summed_up(p: Program):
    tensor = p.pick(torch.int64, torch.int32)
    return [tensor.cumsum(-1) if tensor.dim() else tensor, tensor.sum()]


def repeated(p: Program):
    repeats = p.below(3, 4)
    tensor = p.pick().flatten()
    return [torch.repeat_interleave(repeats), tensor[:1].repeat_interleave(2), tensor.repeat(2)]


def joined(p: Program):
    dtype = p.pick().dtype
    return [torch.cat([p.pick(dtype).flatten(), p.pick(dtype).flatten()]), torch.stack([p.pick(dtype).sum()] * 2)]


def chosen(p: Program):
    tensor = p.pick(torch.int64, torch.float32)
    return [torch.where(p.mask(tuple(tensor.shape)), tensor, tensor * 2)]


def calculated(p: Program):
    return [p.pick(torch.int64) * 3 % 7, p.pick(torch.int64) // 2, p.pick(torch.float32) * -0.0, ~p.pick(torch.bool)]


def unique(p: Program):
    return list(torch.unique(p.pick(torch.int64), return_inverse=True, return_counts=True))


def rolled(p: Program):
    return [p.pick().flatten().roll(1), torch.atleast_1d(p.pick()).flip(0)]


def made(p: Program):
    like = p.pick()
    return [like.new_zeros(3), torch.full_like(like, 2), torch.arange(4, device=p.device), like.new_tensor([1, 0, 1])]


def added_in_place(p: Program):
    p.target(torch.int64, torch.int32).add_(p.chance.randrange(4))


def added_to_itself(p: Program):
    tensor = p.target(torch.int64)
    tensor += tensor


def overwritten(p: Program):
    tensor = p.target()
    tensor.copy_(p.pick(tensor.dtype).flatten()[0].clone())


def filled(p: Program):
    p.target().fill_(p.chance.randrange(2))


def zeroed(p: Program):
    p.target().zero_()


def assigned(p: Program):
    tensor = p.target()
    if tensor.dim():
        tensor[p.chance.randrange(len(tensor))] = p.chance.randrange(5)
        tensor[len(tensor) // 2 :] = tensor[0].clone()


def assigned_at_places(p: Program):
    tensor = torch.atleast_1d(p.target(torch.int64))
    places = torch.unique(p.below(len(tensor), 3))
    tensor[places] = torch.ones_like(tensor[places])


def assigned_by_mask(p: Program):
    tensor = p.target(torch.int64)
    mask = p.mask(tuple(tensor.shape))
    tensor[mask] = 7
    tensor[mask] = torch.arange(int(mask.sum()), device=p.device)


def masked_fill(p: Program):
    tensor = p.target()
    tensor.masked_fill_(p.mask(tuple(tensor.shape)), 1)


def scattered(p: Program):
    counts = torch.zeros(8, dtype=torch.int64, device=p.device)
    ids = p.below(8, 6)
    counts.scatter_add_(0, ids, torch.ones_like(ids))
    return [counts, torch.zeros_like(counts).scatter_(0, ids.sort()[0].unique(), 4)]


def scattered_into_a_view(p: Program):
    tensor = p.target(torch.int64).flatten()
    half = tensor[len(tensor) // 2 :]
    half.scatter_reduce_(0, p.below(len(half), 4), p.below(50, 4), "amax")
    return [tensor]


def copied_to_places(p: Program):
    tensor = p.pick(torch.int64, torch.float32).flatten().clone()
    order = torch.randperm(len(tensor), generator=torch.Generator().manual_seed(len(tensor))).to(p.device)
    return [torch.empty_like(tensor).index_copy_(0, order, tensor), tensor.index_add_(0, order, tensor.clone())]


def put(p: Program):
    tensor = p.target(torch.int64).flatten()
    return [tensor.index_put_((p.below(len(tensor), 4),), p.below(9, 4), accumulate=True)]


def into_outputs(p: Program):
    tensor = p.pick(torch.int64).flatten()
    most, where = torch.zeros_like(tensor), torch.zeros_like(tensor)
    torch.sort(tensor, stable=True, out=(most, where))
    total = torch.zeros(2, len(tensor), dtype=torch.int64, device=p.device)
    torch.cumsum(tensor, 0, out=total[1])
    torch.add(total[1], 1, out=total[0])
    return [most, where, total]


def reshaped_in_place(p: Program):
    tensor = p.pick().clone()
    return [tensor.unsqueeze_(0), tensor.clone().squeeze_(0)]


def from_the_host(p: Program):
    """What the host does with its tensor afterwards changes nothing."""
    host = torch.tensor([p.chance.randrange(5) for _ in range(4)])
    copied = host.to(p.device, copy=True)
    sums = copied + host
    target = torch.zeros(4, dtype=torch.int64, device=p.device)
    target.copy_(host)
    picked = copied[host % 4]
    host += 100
    return [copied, sums, target, picked]


def to_the_host(p: Program):
    tensor = p.pick()
    host = tensor.cpu().clone()
    host.fill_(1)
    p.tell(host + tensor.cpu())


def asked(p: Program):
    tensor = p.pick(torch.int64)
    p.told += [str(tensor.flatten()[0].item()), str(int(tensor.max())), str(bool((tensor > 3).any()))]
    p.tell(p.pick())


def compared(p: Program):
    tensor = p.pick(torch.int64)
    p.told += [str(torch.equal(tensor, tensor + 0)), str(torch.equal(tensor, tensor + 1))]


def forgotten(p: Program):
    if len(p.tensors) > 2:
        del p.tensors[p.chance.randrange(len(p.tensors))]
        gc.collect(0)


STEPS_OF_PROGRAMS = [
    *(sliced, every_other, turned, viewed, expanded, split, chunked, unbound, other_bits, other_type, indexed),
    *(gathered, masked, masked_rows, sorted_, argsorted, largest, counted, summed_up, repeated, joined, chosen),
    *(calculated, unique, rolled, made, added_in_place, added_to_itself, overwritten, filled, zeroed, assigned),
    *(assigned_at_places, assigned_by_mask, masked_fill, scattered, scattered_into_a_view, copied_to_places, put),
    *(into_outputs, reshaped_in_place, from_the_host, to_the_host, asked, compared, forgotten),
]


@given(mode=st.sampled_from(sorted(MODES)), seed=st.integers(0, 2**32))
@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
def test_any_program_finds_what_it_finds_on_a_cpu(mode, seed):
    with MODES[mode]():
        expected = Program(seed, CPU).run(STEPS)
        found, _ = alone(lambda line: Program(seed, META).run(STEPS))
    assert found == expected


@pytest.mark.parametrize("step", STEPS_OF_PROGRAMS, ids=lambda step: step.__name__)
def test_each_step_of_those_programs(step):
    """Alone, so that a failure names it."""

    def told(device: torch.device) -> list[str]:
        program = Program(1, device)
        program.tensors += step(program) or []
        return program.run(0)

    assert alone(lambda line: told(META))[0] == told(CPU)


def found(program):
    return alone(lambda line: program())[0]


def test_the_same_operation_before_and_after_a_change():
    def program():
        x = torch.tensor([1, 2, 3], device=META)
        y = x[1:]
        before = x.sum(), y.sum(), x * 2
        y += 10
        after = x.sum(), y.sum(), x * 2
        return [one.tolist() for one in (*before, *after)]

    assert found(program) == [6, 5, [2, 4, 6], 26, 25, [2, 24, 26]]


def test_two_outputs_by_name_change_no_other_tensor_of_the_same_value():
    def program():
        x, other = torch.tensor([3, 1, 2], device=META), torch.zeros(3, dtype=torch.int64, device=META)
        most, where = (torch.zeros(3, dtype=torch.int64, device=META) for _ in range(2))
        torch.sort(x, out=(most, where))
        return [one.tolist() for one in (most, where, other)]

    assert found(program) == [[1, 2, 3], [1, 2, 0], [0, 0, 0]]


def test_host_tensors_whose_place_is_taken_again():
    """A host tensor that is gone leaves its id to the next one, which holds something else."""

    def program():
        x = torch.zeros(1, dtype=torch.int64, device=META)
        kept = [x + torch.full((1,), number) for number in range(50)]
        return [one.item() for one in kept]

    assert found(program) == list(range(50))


def test_device_tensors_whose_place_is_taken_again():
    def program():
        sums = []
        for number in range(200):
            x = torch.full((4,), number, device=META)
            x[0] += 1
            sums.append(x.sum())
            if number % 7 == 0:
                gc.collect(0)
        return [one.item() for one in sums]

    assert found(program) == [4 * number + 1 for number in range(200)]


def test_equal_operations_on_equal_values_are_carried_out_once(monkeypatch):
    monkeypatch.setattr(values, "_calls", weakref.WeakValueDictionary())  # other tests may still hold an `arange(6)`
    carried_out = []

    def program():
        a, b = (torch.arange(6, device=META) % 4 for _ in range(2))
        one, other = a.sort(), b.sort()
        assert one.values.tolist() == other.values.tolist() == [0, 0, 1, 1, 2, 3]
        b += 1
        return b.sort().values.tolist()

    original = values.Call.outputs

    def counting(self):
        if self._function is not None:
            carried_out.append(self)
        return original(self)

    monkeypatch.setattr(values.Call, "outputs", counting)
    assert found(program) == [1, 1, 2, 2, 3, 4]
    assert len(carried_out) == 5  # arange, remainder, sort; an addition and another sort


def test_what_no_tensor_has_any_more_is_gone_without_a_collection(monkeypatch):
    """Routes of 32 ranks and 58 layers would wait for one in gigabytes."""
    monkeypatch.setattr(values, "_calls", calls := weakref.WeakValueDictionary())

    def program():
        gc.collect()
        gc.disable()
        try:
            order = torch.arange(6, device=META).sort(descending=True)
            assert order.indices.tolist() == [5, 4, 3, 2, 1, 0] and len(calls)
            del order
            return [len(calls)]
        finally:
            gc.enable()

    assert found(program) == [0]


def test_random_numbers_are_drawn_anew_each_time_and_again_in_the_next_run():
    def program():
        first, second = torch.rand(4, device=META), torch.rand(4, device=META)
        order, again = torch.randperm(20, device=META), torch.randperm(20, device=META)
        third = torch.zeros(4, device=META).uniform_()
        fourth = torch.zeros(4, device=META).uniform_()
        return [one.tolist() for one in (first, second, third, fourth, order, again)]

    drawn = found(program)
    assert len(set(map(str, drawn))) == 6 and all(0 <= value < 1 for row in drawn[:4] for value in row)
    assert sorted(drawn[4]) == sorted(drawn[5]) == list(range(20))
    assert found(program) == drawn


def test_drawing_leaves_the_host_s_own_generator_alone():
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    found(lambda: torch.rand(7, device=META).tolist())
    assert torch.equal(torch.rand(2), expected)


ASKING = {
    "item": lambda a, ids: a.sum().item(),
    "float": lambda a, ids: float(a[0, 0]),
    "if": lambda a, ids: 1 if a.sum() > 0 else 0,
    "tolist": lambda a, ids: a.tolist(),
    "tolist of a copy": lambda a, ids: a.cpu().tolist(),
    "numpy": lambda a, ids: a.cpu().numpy(),
    "nonzero": lambda a, ids: (a > 0).nonzero(),
    "mask": lambda a, ids: ids[a[:, 0] > 0],
    "mask of activations": lambda a, ids: a[a > 0],
    "order": lambda a, ids: ids[a[:, 0].argsort()].tolist(),
    "top": lambda a, ids: a.topk(1).indices.tolist(),
    "counts": lambda a, ids: torch.bincount(a[:, 0].long()),
    "repeats": lambda a, ids: torch.repeat_interleave(ids, a[:, 0].long()),
    "host copy": lambda a, ids: torch.zeros(4, 3).copy_(a),
    "partly written": lambda a, ids: (a[:, 0].fill_(1), a[:, 0].tolist()),
    "written with activations": lambda a, ids: (ids.copy_(a[:, 0]), ids.tolist()),
    "equal": lambda a, ids: torch.equal(a, a),
}


@pytest.mark.parametrize("how", ASKING)
def test_who_asks_for_an_activation_is_told_in_one_sentence(how):
    def program():
        return ASKING[how](torch.empty(4, 3, device=META), torch.tensor([1, 2, 0, 1], device=META))

    with pytest.raises(NoValues, match="asks for the values of an activation or a weight, which have shapes only; use"):
        found(program)


def test_what_is_made_of_numbers_keeps_them():
    def program():
        x = torch.zeros(2, dtype=torch.int32, device=META)
        makers = [
            torch.tensor([1, 2], device=META),
            torch.as_tensor([1, 2], device=META),
            torch.asarray([1, 2], device=META),
            torch.tensor([1, 2]).to(META),
            torch.tensor([1, 2]).to("meta", non_blocking=True),
            x.new_tensor([1, 2]),
            x.new_tensor([1, 2], dtype=torch.int64),
            torch.scalar_tensor(1, device=META, dtype=torch.int64) + torch.arange(2, device=META),
            torch.linspace(1, 2, 2, device=META).long(),
            torch.full((2,), 2, device=META) - torch.eye(2, dtype=torch.int64, device=META)[0],
        ]
        assert makers[5].dtype == torch.int32
        return [one.tolist() for one in makers]

    assert found(program) == [[1, 2]] * 10


def test_activations_hide_nothing_that_does_not_depend_on_them():
    def program():
        a, ids = torch.empty(4, 3, device=META), torch.tensor([1, 2, 0, 1], device=META)
        y = torch.zeros_like(a).index_copy_(0, ids.argsort(), a[ids])
        assert y.shape == (4, 3) and a.cpu().shape == (4, 3)
        written = torch.empty(4, device=META)
        written.copy_(ids)  # all of it
        return ids.bincount().tolist(), written.tolist(), (y.shape[0] + ids).tolist()

    assert found(program) == ([1, 2, 1], [1, 2, 0, 1], [5, 6, 4, 5])
