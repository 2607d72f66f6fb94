"""What ranks do in the cluster tests; in a module of its own because other processes import it."""

import faulthandler
import json
import os
import signal
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from clusters import emulated
from clusters.clocks import DeviceLock, VirtualClock
from clusters.network import Network
from clusters.session import ClusterSpec, connect


class ScriptedWatch:
    """A stopwatch that shows what the script says: `compute` takes as long as it claims."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def mark(self) -> float:
        return self.now_s

    def seconds(self, start: float, end: float) -> float:
        return end - start

    def compute(self, seconds: float) -> None:
        self.now_s += seconds


BYTE_A_SECOND, TEN_SECONDS = Network("bytes", bandwidth_gbs=1e-9), Network("ten seconds", base_us=10e6)
NETWORKS = {"volumes": BYTE_A_SECOND, "late": replace(TEN_SECONDS, late=Network("twenty seconds", base_us=20e6))}


class NetworkOfTheScript:
    """Whatever the running script has; 10 s for everything unless NETWORKS says otherwise."""

    script = ""

    def __getattr__(self, name: str) -> Any:
        return getattr(NETWORKS.get(self.script, TEN_SECONDS), name)


def scripted(folder: str) -> None:
    """Run the scripts below on a scripted clock, each from 0 s; leaves script -> time_s, exchanges in told.<rank>."""
    store, rank, world_size = next(dist.rendezvous("env://"))
    watch, network, told = ScriptedWatch(), NetworkOfTheScript(), {}
    clock = VirtualClock(DeviceLock(Path(folder) / "device_lock", rank, world_size), watch)
    emulated.register(clock, network)
    dist.init_process_group(emulated.BACKEND, store=store, rank=rank, world_size=world_size)
    SUBGROUPS["pair"], SUBGROUPS["same"] = dist.new_group([0, 1]), dist.new_group([0, 1])
    for name, script in SCRIPTS.items():
        exchanges: list[dict[str, Any]] = []
        clock.time_s, clock.link_free_s, network.script = 0.0, 0.0, name
        clock.on_exchange = lambda exchange, found=exchanges: found.append(exchange._asdict())
        if script is after_a_collective:
            dist.all_reduce(torch.ones(1))
        with clock.running():
            script(watch, rank)
        told[name] = {"time_s": clock.time_s, "exchanges": exchanges}
    (Path(folder) / f"told.{rank}").write_text(json.dumps(told))
    dist.destroy_process_group()


def barrier(watch: ScriptedWatch, rank: int) -> None:
    watch.compute(rank + 1)
    dist.barrier()


def after_a_collective(watch: ScriptedWatch, rank: int) -> None:
    """As barrier, after an all-reduce before the clock runs, which must not stop the clock."""
    barrier(watch, rank)


def late(watch: ScriptedWatch, rank: int) -> None:
    """First all within 10 s, the latency, then the last 12 s after the first."""
    watch.compute(5 * rank)
    dist.barrier()
    watch.compute(6 * rank)
    dist.barrier()


def overlap(watch: ScriptedWatch, rank: int) -> None:
    """Issue at 1, 2, 3 s; compute 4 s while the link is busy from 3 to 13 s."""
    watch.compute(rank + 1)
    work = dist.all_reduce(torch.ones(1), async_op=True)
    watch.compute(4)
    work.wait()


def hidden(watch: ScriptedWatch, rank: int) -> None:
    """As overlap, but 20 s of computation hide the transfer altogether."""
    watch.compute(rank + 1)
    work = dist.all_reduce(torch.ones(1), async_op=True)
    watch.compute(20)
    work.wait()


def busy_link(watch: ScriptedWatch, rank: int) -> None:
    """Two collectives issued at once: the second waits for the link; waited for in the other order."""
    first = dist.all_reduce(torch.ones(1), async_op=True)
    second = dist.all_reduce(torch.ones(1), async_op=True)
    second.wait()
    watch.compute(1)
    first.wait()


def subgroups(watch: ScriptedWatch, rank: int) -> None:
    """Rank 2 is alone; ranks 0 and 1 meet at 2 s and do not wait for it."""
    watch.compute(rank + 1)
    if rank < 2:
        dist.all_reduce(torch.ones(1), group=SUBGROUPS["pair"])


def waits_in_another_order(watch: ScriptedWatch, rank: int) -> None:
    """Legal as long as all ranks issue in the same order."""
    works = [dist.all_reduce(torch.ones(1), async_op=True) for _ in range(2)]
    for work in works if rank == 0 else reversed(works):
        work.wait()


def volumes(watch: ScriptedWatch, rank: int) -> None:
    """One byte a second. 12 B all-reduce 16 s; 4 B a rank all-gathered, scattered, exchanged 8 s each; uneven 24 s."""
    from systems.collectives import all_gather, all_to_all, reduce_scatter

    group, x = dist.group.WORLD, torch.ones(6)
    dist.all_reduce(x[:3])
    all_gather(x[:1], group)
    reduce_scatter(x[:3], group)
    all_to_all(x[:3], group)
    all_to_all(x, group, received_G=[rank + 1] * 3, sent_G=[1, 2, 3])


def logged(watch: ScriptedWatch, rank: int) -> None:
    """Two asynchronous all-reduces of 12 B, issued at 1 to 3 s and at once after; waited for 4 s later, all at once."""
    watch.compute(rank + 1)
    dist.all_reduce(torch.ones(3), async_op=True)
    second = dist.all_reduce(torch.ones(3), async_op=True)
    watch.compute(4)
    second.wait()
    watch.compute(1)
    dist.broadcast(torch.ones(2), src=1)


def shared_link(watch: ScriptedWatch, rank: int) -> None:
    """Two groups of the same ranks have one link: the second collective starts when the first is through."""
    if rank < 2:
        first = dist.all_reduce(torch.ones(1), group=SUBGROUPS["pair"], async_op=True)
        second = dist.all_reduce(torch.ones(1), group=SUBGROUPS["same"], async_op=True)
        first.wait()
        second.wait()


def opposite_waits(watch: ScriptedWatch, rank: int) -> None:
    """Two groups, issued in one order on both ranks and waited for in opposite ones: issue decides who has the link."""
    if rank < 2:
        works = [
            dist.all_reduce(torch.ones(1), group=SUBGROUPS["pair"], async_op=True),
            dist.all_reduce(torch.ones(3), group=SUBGROUPS["same"], async_op=True),
        ]
        for work in works if rank else reversed(works):
            work.wait()


SUBGROUPS: dict = {}
SCRIPTS = {
    f.__name__: f
    for f in (
        barrier,
        after_a_collective,
        late,
        overlap,
        hidden,
        busy_link,
        subgroups,
        waits_in_another_order,
        volumes,
        logged,
        shared_link,
        opposite_waits,
    )
}


def every_collective(folder: str) -> None:
    """Call each collective on this cluster and leave what came out in collectives.<rank>."""
    with connect(ClusterSpec("emulated", 3), Network("none"), Path(folder) / "device_lock") as session:
        rank, found = session.rank, {}
        x = torch.arange(6.0) + 10 * rank
        summed = x.clone()
        dist.all_reduce(summed)
        found["all_reduce"] = summed.tolist()
        root = x.clone()
        dist.broadcast(root, src=1)
        found["broadcast"] = root.tolist()
        parts = [torch.empty(6) for _ in range(3)]
        dist.all_gather(parts, x)
        found["all_gather"] = torch.cat(parts).tolist()
        exchanged = torch.empty(6)
        dist.all_to_all_single(exchanged, x)
        found["all_to_all"] = exchanged.tolist()
        uneven = torch.empty(3 * (rank + 1))
        splits = [rank + 1] * 3
        dist.all_to_all_single(uneven, x, output_split_sizes=splits, input_split_sizes=[1, 2, 3])
        found["all_to_all_v"] = uneven.tolist()
        with session.clock.running():
            dist.barrier()
        (Path(folder) / f"collectives.{rank}").write_text(json.dumps(found))


def two_at_once(folder: str) -> None:
    """Three ranks, two locks: leaves the wall-clock times between which each rank computed in turns.<rank>."""
    with connect(
        ClusterSpec("emulated", 3, concurrent_ranks=2), Network("none"), Path(folder) / "device_lock"
    ) as session:
        turns = []
        with session.clock.running():
            for _ in range(3):
                start = time.monotonic()
                time.sleep(0.1)
                turns.append((start, time.monotonic()))
                dist.barrier()
    (Path(folder) / f"turns.{session.rank}").write_text(json.dumps(turns))


def raise_on_rank_one(folder: str) -> None:
    with connect(ClusterSpec("emulated", 2), Network("none"), Path(folder) / "device_lock") as session:
        if session.rank == 1:
            raise RuntimeError("rank one has had enough")
        with session.clock.running():
            dist.barrier()


def hang_on_rank_one(folder: str) -> None:
    faulthandler.dump_traceback_later(3, exit=True)
    with (
        connect(ClusterSpec("emulated", 2), Network("none"), Path(folder) / "device_lock") as session,
        session.clock.running(),
    ):
        if session.rank == 1:
            time.sleep(600)
        dist.barrier()


def die_holding_the_lock(folder: str) -> None:
    with (
        connect(ClusterSpec("emulated", 2), Network("none"), Path(folder) / "device_lock") as session,
        session.clock.running(),
    ):
        if session.rank == 1:
            os._exit(3)
        dist.barrier()


DTYPES = (
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.int64,
    torch.int32,
    torch.int8,
    torch.uint8,
    torch.bool,
)


def like_gloo(folder: str) -> None:
    """Every collective of 4 ranks on every kind of number, bit for bit as gloo; small whole numbers, so sums are."""
    with connect(ClusterSpec("emulated", 4, timeout_s=60), Network("none"), Path(folder) / "device_lock") as session:
        ours, gloo = session.group, dist.new_group(backend="gloo")
        for dtype in DTYPES:
            generator = torch.Generator().manual_seed(session.rank)
            x = torch.randint(0, 2 if dtype == torch.bool else 5, (12, 3), generator=generator).to(dtype)
            for name, collective in COLLECTIVES.items():
                got, expected = collective(x.clone(), ours, session.rank), collective(x.clone(), gloo, session.rank)
                assert torch.equal(got, expected), f"{name} of {dtype}: {got} is not {expected}"


def _reduced(op):
    def all_reduce(x, group, rank):
        dist.all_reduce(x, op=op, group=group)
        return x

    return all_reduce


def _broadcast(x, group, rank):
    dist.broadcast(x, src=2, group=group)
    return x


def _gathered(x, group, rank):
    out = x.new_empty(48, 3)
    dist.all_gather_into_tensor(out, x, group=group)
    return out


def _gathered_list(x, group, rank):
    parts = [torch.empty_like(x) for _ in range(4)]
    dist.all_gather(parts, x, group=group)
    return torch.cat(parts)


def _scattered(x, group, rank):
    out = x.new_empty(3, 3)
    dist.reduce_scatter_tensor(out, x, op=dist.ReduceOp.MAX, group=group)
    return out


def _exchanged(x, group, rank):
    out = torch.empty_like(x)
    dist.all_to_all_single(out, x, group=group)
    return out


def _exchanged_ragged(x, group, rank):
    """Rank r sends (r, 2, 0, 1) rows: some get none, rank 2 gets none at all."""
    sent = [rank, 2, 0, 1]
    received = [[0, 1, 2, 3], [2] * 4, [0] * 4, [1] * 4][rank]
    out = x.new_empty(sum(received), 3)
    dist.all_to_all_single(out, x[: sum(sent)], received, sent, group=group)
    return out


COLLECTIVES = {
    "all_reduce(SUM)": lambda x, *rest: x if x.dtype == torch.bool else _reduced(dist.ReduceOp.SUM)(x, *rest),
    "all_reduce(MAX)": _reduced(dist.ReduceOp.MAX),
    "all_reduce(MIN)": _reduced(dist.ReduceOp.MIN),
    "broadcast": _broadcast,
    "all_gather": _gathered,
    "all_gather of a list": _gathered_list,
    "reduce_scatter": _scattered,
    "all_to_all": _exchanged,
    "ragged all_to_all": _exchanged_ragged,
}


def hard_cases(folder: str) -> None:
    """Large, strided and asynchronous tensors, several groups at once, sums in the order of ranks, and refusals."""
    with connect(ClusterSpec("emulated", 4, timeout_s=60), Network("none"), Path(folder) / "device_lock") as session:
        rank, clock = session.rank, session.clock
        halves = [dist.new_group([0, 1]), dist.new_group([2, 3])]
        odds = [dist.new_group([0, 2]), dist.new_group([1, 3])]
        half, odd = halves[rank // 2], odds[rank % 2]
        with clock.running():
            for size in (1, 3 << 20, 5):  # 12 MB between two small ones
                x = torch.arange(4 * size, dtype=torch.float32) + rank
                out = torch.empty_like(x)
                dist.all_to_all_single(out, x)
                start = torch.arange(4).repeat_interleave(size)
                assert torch.equal(out, torch.arange(size).repeat(4) + start + size * rank)
            wide = torch.zeros(3, 8)
            wide[:, 0] = rank
            into = torch.zeros(12, 2)[:, :1]
            dist.all_gather_into_tensor(into, wide[:, :1])
            assert into.flatten().tolist() == [source for source in range(4) for _ in range(3)]
            dist.all_reduce(wide[:, :1])
            assert wide.sum() == 3 * 6
            parts = [torch.tensor([value]) for value in (1e8, 1.0, -1e8, 1.0)]
            dist.all_reduce(total := parts[rank].clone())
            assert total.item() == (((parts[0] + parts[1]) + parts[2]) + parts[3]).item()
            one, two, three = torch.tensor([1.0 + rank]), torch.tensor([10.0 + rank]), torch.tensor([rank == 3])
            works = [
                dist.all_reduce(one, group=half, async_op=True),
                dist.all_reduce(two, group=odd, async_op=True),
                dist.all_reduce(three, op=dist.ReduceOp.MAX, async_op=True),
            ]
            for work in works if rank % 2 else reversed(works):
                work.wait()
            assert one.item() == (3 if rank < 2 else 7) and two.item() == (22, 24)[rank % 2] and three.item()
            parameter = torch.nn.Parameter(torch.full((2,), float(rank)))
            dist.broadcast(parameter, src=3)
            assert parameter.tolist() == [3, 3]
        for refused, call in REFUSED.items():
            try:
                call(rank)
            except ValueError as error:
                assert refused in str(error), error
            else:
                raise AssertionError(f"not refused: {refused}")


REFUSED = {
    "not with AVG": lambda rank: dist.all_reduce(torch.ones(1), op=dist.ReduceOp.AVG),
    "5 rows are not [1, 1, 1, 1]": lambda rank: dist.all_to_all_single(torch.ones(5), torch.ones(4)),
    "bytes from the ranks of its group": lambda rank: dist.all_to_all_single(
        torch.ones(8), torch.ones(4), [2] * 4, [1] * 4
    ),
    "the ranks of its group call barrier, all_reduce": lambda rank: (
        dist.all_reduce(torch.ones(1)) if rank else dist.barrier()
    ),
}


def killed_in_a_collective(folder: str) -> None:
    """Rank 1 dies as a rank that is out of memory does, while the others wait for it with their data written."""
    with connect(ClusterSpec("emulated", 3, timeout_s=60), Network("none"), Path(folder) / "device_lock") as session:
        dist.all_reduce(torch.ones(1 << 20))
        if session.rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        dist.all_reduce(torch.ones(1 << 20))


def late_for_a_collective(folder: str) -> None:
    with connect(ClusterSpec("emulated", 2, timeout_s=2), Network("none"), Path(folder) / "device_lock") as session:
        if session.rank == 1:
            time.sleep(600)
        dist.barrier()


def scheduling(folder: str) -> None:
    """Leave threads.json of gloo's own threads, of a group made later too: [name, policy] each."""
    with connect(ClusterSpec("gloo", 2), Network("none"), Path(folder) / "device_lock") as session:
        dist.barrier(group=dist.new_group([0, 1]))
        tasks = [Path("/proc/self/task", task) for task in os.listdir("/proc/self/task")]
        found = [((task / "comm").read_text().strip(), os.sched_getscheduler(int(task.name))) for task in tasks]
        if session.rank == 0:
            (Path(folder) / "threads.json").write_text(json.dumps([one for one in found if "gloo" in one[0]]))
