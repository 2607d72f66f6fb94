"""The clocks of one simulated rank, by hand: a kernel takes a second unless the test says otherwise."""

import gc
from itertools import pairwise

import pytest
import torch

from clusters.simulated.timeline import Timeline
from tests.clusters.simulated.stub import META, Device, Event, Host, alone, with_host

SECOND = 1e6  # in microseconds


def clocks(program, device):
    _, line = alone(program, device)
    return line.host_s, line.device_s


def tensor(*shape: int, **options) -> torch.Tensor:
    """Activations; taking them costs nothing."""
    return torch.empty(*shape, device=META, **options)


def three_kernels(line):
    for _ in range(3):
        tensor(3).relu()


def test_a_host_that_is_fast_runs_ahead_of_the_device():
    """Issued at 0.1, 0.2, 0.3 s, run from 0.1 to 3.1 s."""
    host_s, device_s = clocks(three_kernels, with_host(operation_us=0.1 * SECOND))
    assert (host_s, device_s) == pytest.approx((0.3, 3.1))


def test_a_host_that_is_slow_is_waited_for():
    """Issued at 5, 10, 15 s; the last one then takes its second."""
    assert clocks(three_kernels, with_host(operation_us=5 * SECOND)) == (15, 16)


def test_a_device_is_idle_until_its_host_issues_something():
    """5 s until the first kernel, 4 until the second; a collective that is waited for is no idleness."""
    line = Timeline(0, Host(operation_us=5 * SECOND))
    line.compute("work", 1)
    assert line.moment() == (6, 5)
    line.compute("work", 1)
    assert line.moment() == (11, 9)
    line.wait_for(20)
    assert line.moment() == (20, 9)
    line.compute("work", 1)  # issued at 15, before the device comes to it
    assert line.moment() == (21, 9)
    line.synchronise()
    line.view()
    line.host_s += 2
    assert line.moment() == (23, 11)


def test_an_operation_costs_more_where_the_host_has_not_just_been():
    """Three different places cost 2 s each; a loop's place 2 s once and 1 s after, though a line holds two places."""

    def apart(line):
        tensor(3).relu()
        tensor(3).abs()
        tensor(3).neg()

    def loop(line):
        for _ in range(3):
            tensor(3).relu().abs()

    slow = with_host(operation_us=SECOND, unrepeated=2.0)
    assert (clocks(apart, slow)[0], clocks(loop, slow)[0]) == (6, 2 + 2 + 4)
    assert clocks(apart, with_host(operation_us=SECOND))[0] == 3


def test_a_place_is_forgotten_after_many_others():
    line = Timeline(0, Host(operation_us=SECOND, unrepeated=2.0))
    for place in [0, 0, *range(1, 20), 0]:
        line.execute(place)
        line.compute("work", 0)
    assert line.host_s == 2 + 1 + 19 * 2 + 2


@pytest.mark.parametrize(
    ("shape", "dim", "rows"), [((30, 8), 0, 30), ((30, 8), 1, 0), ((30, 8), -2, 30), ((30,), 0, 0), ((30, 1), 0, 0)]
)
def test_columns_are_added_up_row_after_row(shape, dim, rows):
    _, device_s = clocks(lambda line: tensor(*shape).cumsum(dim), Device(scanned_row_s=1.0))
    assert device_s == rows


def test_a_host_that_is_the_device_waits_for_each():
    assert clocks(three_kernels, with_host(operation_us=5 * SECOND, synchronous=True)) == (18, 18)


def test_views_cost_the_host_only():
    def program(line):
        x = tensor(4, 6)
        x.T, x.view(3, 8), x[1:, ::2], x.unsqueeze(0).expand(5, 4, 6), x.split(2), x.reshape(24), x.unbind()
        assert x.contiguous() is x and x.to(torch.float32) is x

    host_s, device_s = clocks(program, with_host(view_us=SECOND, operation_us=100 * SECOND))
    assert 7 <= host_s <= 12 and device_s == 0  # x[1:, ::2] is two views, expand after unsqueeze another


READING = {
    "item": lambda x: x.sum().item(),
    "tolist": lambda x: x.tolist(),
    "cpu": lambda x: x.cpu(),
    "if": lambda x: 1 if x.any() else 0,
    "int": lambda x: int(x[0]),
    "nonzero": lambda x: x.nonzero(),
    "where": lambda x: torch.where(x),
    "boolean mask": lambda x: x[x],
    "assigned by mask": lambda x: x.__setitem__(x, x[:2].clone()),
    "bincount": lambda x: x.view(torch.uint8).bincount(),
    "masked_select": lambda x: x.masked_select(x),
    "unique": lambda x: torch.unique(x),
    "equal": lambda x: torch.equal(x, x),
    "repeat_interleave": lambda x: torch.repeat_interleave(x.view(torch.uint8).long()),
    "copied into a host tensor": lambda x: torch.empty(4, dtype=torch.bool).copy_(x),
}


@pytest.mark.parametrize("how", READING)
def test_who_asks_for_values_waits_for_the_device(how):
    """A kernel of 10 s is under way; the host goes on a second after it and all that the question itself takes."""

    def program(line):
        x = torch.tensor([True, False, True, False], device=META)
        line.compute("work", 10)
        READING[how](x)
        waits = [event for event in line.events if event.name == "synchronise"]
        assert len(waits) == 1 and waits[0].seconds >= 11
        return waits[0]

    wait, line = alone(program, Device(host=Host(synchronise_us=SECOND), kernel_s=0.5))
    assert line.host_s == wait.start_s + wait.seconds >= 11.5


NOT_READING = {
    "sort": lambda x: x.sort(),
    "assigned number": lambda x: x.__setitem__(slice(0, 2), 1),
    "number where a mask is": lambda x: x.__setitem__(x > 0, 1),
    "masked_fill_": lambda x: x.masked_fill_(x > 0, 1),
    "where": lambda x: torch.where(x > 0, x, 0),
    "places": lambda x: x[x.argsort()],
    "repeat_interleave of known length": lambda x: x.repeat_interleave(x, output_size=6),
    "from the host": lambda x: x.copy_(torch.ones(4)),
    "new": lambda x: torch.tensor([1, 2], device=x.device),
}


@pytest.mark.parametrize("what", NOT_READING)
def test_who_asks_for_no_values_does_not_wait(what):
    def program(line):
        x = torch.tensor([1, 2, 3, 0], device=META)
        line.compute("work", 10)
        NOT_READING[what](x)

    assert clocks(program, Device(host=Host(synchronise_us=SECOND), kernel_s=1))[0] == 0


def test_products_and_bytes_have_their_prices():
    """[2, 3] @ [3, 5] of 30 products; 40 B written; 5 B and 20 B moved; 8 B there and 8 B back; none for nothing."""

    def program(line):
        found = []

        def took(operation):
            before = line.device_s
            operation()
            found.append(line.device_s - before)

        a, b, c = tensor(2, 3), tensor(3, 5), tensor(4, 2, 3)
        took(lambda: a @ b)
        took(lambda: torch.nn.functional.linear(a, b.T))
        took(lambda: torch.bmm(c, b.expand(4, 3, 5)))
        took(lambda: torch.zeros(10, device=META))
        took(lambda: a + a)
        took(lambda: torch.ones(2).to(META))
        took(lambda: torch.ones(2, device=META).cpu())
        took(lambda: tensor(0, 3) @ b)
        return found

    device = Device(product_s=1, byte_s=100, transferred_byte_s=1000)
    found, _ = alone(program, device)
    assert found == [30, 30, 120, 4000, 7200, 8000, 800 + 8000, 0]


def test_a_product_in_a_type_without_price_is_refused():
    with pytest.raises(ValueError, match=r"no time for matrix products in torch\.float64"):
        alone(lambda line: tensor(2, 2, dtype=torch.float64) @ tensor(2, 2, dtype=torch.float64))


def test_attention_is_one_kernel():
    def program(line):
        x = tensor(2, 3, 5, 8)
        return torch.nn.functional.scaled_dot_product_attention(x, x, x).shape

    shape, line = alone(program, with_host())
    assert shape == (2, 3, 5, 8) and line.device_s == 1
    assert [event.name for event in line.events if event.track == "device"] == ["attention"]


def test_memory_is_held_until_the_last_view_of_it_goes():
    def program(line):
        x = tensor(10)
        y = x[2:]
        del x
        assert line.live_bytes == 40
        z = y + 1
        assert (line.live_bytes, line.peak_bytes) == (72, 72)
        z += 1
        z.relu_()
        assert line.live_bytes == 72
        del y
        gc.collect()
        assert line.live_bytes == 32
        (z + z) + z
        return line.live_bytes, line.peak_bytes

    (live, peak), line = alone(program)
    assert (live, peak) == (32, 96) and line.live_bytes == 0


def test_values_take_no_memory_of_the_device():
    def program(line):
        x = torch.arange(1000, device=META)
        x.sum().item()
        x.cpu()
        return line.live_bytes, line.peak_bytes

    assert alone(program)[0] == (8000, 8008)


def test_more_than_the_device_has_is_out_of_memory():
    """8 bytes kept, 8 of others come and go, 8 more are too many."""

    def program(line):
        kept = tensor(2)
        for _ in range(3):
            kept + kept
        return torch.cat([kept, kept])

    alone(program, Device(memory_bytes=24))
    with pytest.raises(torch.OutOfMemoryError, match=r"out of memory: rank 0 holds 0\.0 GB and its device has 0\.0 GB"):
        alone(program, Device(memory_bytes=23))


def test_events_of_every_track_stand_one_after_the_other():
    def program(line):
        x = tensor(4)
        for _ in range(3):
            x = (x * 2)[1:]
        torch.ones(3, device=META).tolist()
        return x.shape

    _, line = alone(program, with_host(operation_us=SECOND, view_us=SECOND / 4, synchronise_us=SECOND / 2))
    for track in ("host", "device"):
        events = [event for event in line.events if event.track == track]
        assert len(events) >= 5 and all(event.seconds > 0 for event in events)
        for before, after in pairwise(events):
            assert after.start_s >= before.start_s + before.seconds - 1e-9, (before, after)
    first, second, *_ = (event for event in line.events if event.name == "mul")
    assert first == Event("host", "mul", 0.25, 1) and second == Event("device", "mul", 1.25, 1)


def test_nothing_is_kept_unless_asked_for():
    line = Timeline(0, Host())
    line.compute("work", 1)
    line.synchronise()
    line.issue_collective("barrier")
    assert line.events == []


@pytest.mark.parametrize(("dtype", "host_s", "device_s"), [(torch.bfloat16, 0.1, 6 * 8 * 4), (torch.float32, 0.4, 192)])
def test_a_grouped_product_is_priced_by_its_rows_and_taken_apart_where_the_device_has_no_kernel(
    dtype, host_s, device_s
):
    """6 rows of depth 8 and width 4, at a second a multiplication; one kernel in bf16, else a launch an expert."""
    costs = {"operation_us": 0.1 * SECOND, "launch_us": 0.1 * SECOND, "synchronise_us": 0.2 * SECOND}
    device = Device(host=Host(**costs), product_s=1.0)

    def program(line):
        ends_e = torch.tensor([4, 4, 6], dtype=torch.int32, device=META)
        line.host_s = line.device_s = 0.0
        torch.nn.functional.grouped_mm(tensor(6, 8, dtype=dtype), tensor(3, 8, 4, dtype=dtype), offs=ends_e)

    host, done = clocks(program, device)
    assert host == pytest.approx(host_s) and done == pytest.approx(device_s + host_s)
