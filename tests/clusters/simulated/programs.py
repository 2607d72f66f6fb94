"""What simulated ranks do in the tests; in a module of its own because other processes import it."""

import random
from typing import Any

import torch
import torch.distributed as dist

from clusters.session import Session
from clusters.simulated.timeline import Timeline
from systems.collectives import all_gather, all_to_all, reduce_scatter


def barrier(session: Session, timeline: Timeline) -> float:
    """Ranks of 1, 2, 3 s meet."""
    timeline.compute("work", session.rank + 1)
    dist.barrier()
    return timeline.now_s


def overlap(session: Session, timeline: Timeline, work_s: float) -> float:
    """Issue at 1, 2, 3 s; compute while the link is busy."""
    timeline.compute("work", session.rank + 1)
    work = dist.all_reduce(torch.ones(1, device=session.device), async_op=True)
    timeline.compute("work", work_s)
    work.wait()
    return timeline.now_s


def busy_link(session: Session, timeline: Timeline) -> float:
    """Two collectives issued at once: the second waits for the link; waited for in the other order."""
    x = torch.ones(1, device=session.device)
    first, second = dist.all_reduce(x, async_op=True), dist.all_reduce(x, async_op=True)
    second.wait()
    timeline.compute("work", 1)
    first.wait()
    return timeline.now_s


def subgroups(session: Session, timeline: Timeline) -> float:
    """Rank 2 is alone; ranks 0 and 1 meet at 2 s and do not wait for it."""
    pair = dist.new_group([0, 1])
    timeline.compute("work", session.rank + 1)
    if session.rank < 2:
        dist.all_reduce(torch.ones(1, device=session.device), group=pair)
    return timeline.now_s


def two_groups(session: Session, timeline: Timeline) -> float:
    """Two groups of the same ranks have one link; they are issued in one order and waited for in opposite ones."""
    pair, same = dist.new_group([0, 1]), dist.new_group([0, 1])
    if session.rank < 2:
        x = torch.ones(1, device=session.device)
        works = [dist.all_reduce(x, group=pair, async_op=True), dist.all_reduce(x, group=same, async_op=True)]
        for work in works if session.rank else reversed(works):
            work.wait()
    return timeline.now_s


def two_links(session: Session, timeline: Timeline) -> list[list[Any]]:
    """Four ranks on two nodes: across takes 10 s and within 2 s, both issued at once, the second waited for first."""
    mates = [dist.new_group([0, 1]), dist.new_group([2, 3])][session.rank // 2]
    peers = [dist.new_group([0, 2]), dist.new_group([1, 3])]
    told: list[list[Any]] = []
    session.clock.on_exchange = lambda one: told.append(  # pyright: ignore[reportAttributeAccessIssue]
        [len(told), one.started_s, one.waited_s, one.finished_s]
    )
    x = torch.ones(1, device=session.device)
    far = dist.all_reduce(x, group=peers[session.rank % 2], async_op=True)
    near = dist.all_reduce(x, group=mates, async_op=True)
    near.wait()
    timeline.compute("work", 3)
    far.wait()
    return [*told, [timeline.now_s]]


def overlapping_groups(session: Session, timeline: Timeline) -> float:
    """0 with 1, then 1 with 2, then 0 with 2: each has to wait for the one before."""
    groups = {pair: dist.new_group(list(pair)) for pair in ((0, 1), (1, 2), (0, 2))}
    for pair, group in groups.items():
        if session.rank in pair:
            dist.all_reduce(torch.ones(1, device=session.device), group=group)
    return timeline.now_s


def volumes(session: Session, timeline: Timeline) -> list[float]:
    """When each collective has ended, one byte a second: 12 B all-reduced, 4 B gathered, scattered, exchanged."""
    group, rank, x, ends = session.group, session.rank, torch.ones(6, device=session.device), []
    for collective in (
        lambda: dist.all_reduce(x[:3]),
        lambda: all_gather(x[:1], group),
        lambda: reduce_scatter(x[:3], group),
        lambda: all_to_all(x[:3], group),
        lambda: all_to_all(x, group, received_G=[rank + 1] * 3, sent_G=[1, 2, 3]),
        lambda: dist.broadcast(x[:2], src=1),
    ):
        collective()
        ends.append(timeline.now_s)
    return ends


def told(session: Session, timeline: Timeline) -> list[dict[str, Any]]:
    """Two all-reduces of 12 B at 1, 2, 3 s, 4 s of work, the second waited for, 1 s of work, a broadcast."""
    exchanges: list[dict[str, Any]] = []
    session.clock.on_exchange = lambda exchange: exchanges.append(exchange._asdict())  # pyright: ignore
    timeline.compute("work", session.rank + 1)
    x = torch.ones(3, device=session.device)
    dist.all_reduce(x, async_op=True)
    second = dist.all_reduce(x, async_op=True)
    timeline.compute("work", 4)
    assert not exchanges
    second.wait()
    timeline.compute("work", 1)
    dist.broadcast(x[:2], src=1)
    return exchanges


def aligned(session: Session, timeline: Timeline) -> tuple[float, float]:
    """Ranks of 1, 2, 3 s go on at one moment, which costs nothing."""
    timeline.compute("work", session.rank + 1)
    session.clock.align()  # pyright: ignore
    start = session.clock.mark()
    timeline.compute("work", 2)
    return session.clock.at(start), session.clock.seconds(start, session.clock.mark())


def collectives(session: Session, timeline: Timeline) -> dict[str, Any]:
    """What each collective brings, x = 10 rank + 0, 1, ..., 5."""
    rank, device, found = session.rank, session.device, {}
    x = torch.arange(6, device=device) + 10 * rank
    reduced = {op: x.clone() for op in (dist.ReduceOp.SUM, dist.ReduceOp.MAX, dist.ReduceOp.MIN)}
    for op, tensor in reduced.items():
        dist.all_reduce(tensor, op=op)
    found["all_reduce"] = [tensor.tolist() for tensor in reduced.values()]
    root = x.clone()
    dist.broadcast(root, src=1)
    found["broadcast"] = root.tolist()
    parts = [torch.empty_like(x) for _ in range(3)]
    dist.all_gather(parts, x)
    found["all_gather of a list"] = torch.cat(parts).tolist()
    found["all_gather"] = all_gather(x.view(2, 3), session.group).tolist()
    found["reduce_scatter"] = reduce_scatter(x, session.group).tolist()
    found["all_to_all"] = all_to_all(x, session.group).tolist()
    found["all_to_all_v"] = all_to_all(x, session.group, [rank + 1] * 3, [1, 2, 3]).tolist()
    found["nothing for rank 0"] = all_to_all(x, session.group, [2 * rank] * 3, [0, 2, 4]).tolist()
    sent_G, pairs = [1 if rank == 0 else 0] * 3, x.view(3, 2)  # ranks 1 and 2 send no rows, of two numbers each
    found["from rank 0 only"] = all_to_all(pairs[: sum(sent_G)], session.group, [1, 0, 0], sent_G).tolist()
    into = torch.zeros(4, 6, dtype=torch.int64, device=device)
    dist.all_gather_into_tensor(into[1:], x.view(1, 6))
    found["into a part"] = into.tolist()
    column = x.view(3, 2)[:, 1]
    dist.all_reduce(column)
    found["through a view"] = x.tolist()
    later = torch.full((1,), rank, device=device)
    work = dist.all_reduce(later, async_op=True)
    work.wait()
    found["asynchronous"] = later.tolist()
    return found


def sent_before_it_changes(session: Session, timeline: Timeline) -> list[int]:
    """What was sent is what the tensor was when it was sent."""
    x = torch.full((1,), session.rank, device=session.device)
    gathered = torch.empty(3, dtype=torch.int64, device=session.device)
    work = dist.all_gather_into_tensor(gathered, x, async_op=True)
    x += 100
    work.wait()
    return gathered.tolist() + x.tolist()


def gathered_activations(session: Session, timeline: Timeline) -> list[int]:
    """Activations of one rank make the whole unknown; what is known elsewhere stays known."""
    ids = all_gather(torch.full((2,), session.rank, device=session.device), session.group)
    x = torch.empty(2, device=session.device) if session.rank == 1 else torch.ones(2, device=session.device)
    shapes = all_gather(x, session.group)
    assert shapes.shape == (6,)
    return ids.tolist() if session.rank else shapes.tolist()


def asks_for_an_activation(session: Session, timeline: Timeline) -> Any:
    if session.rank == 1:
        torch.empty(3, device=session.device).sum().item()
    dist.barrier()


def of_other_sizes(session: Session, timeline: Timeline) -> Any:
    all_gather(torch.ones(1 + (session.rank == 1), device=session.device), session.group)


def of_other_kinds(session: Session, timeline: Timeline) -> Any:
    x = torch.ones(3, device=session.device)
    dist.all_reduce(x) if session.rank else dist.broadcast(x, src=0)


def splits_that_are_no_rows(session: Session, timeline: Timeline) -> Any:
    all_to_all(torch.ones(5, device=session.device), session.group, [1, 2, 2], [1, 1, 1])


def splits_that_do_not_match(session: Session, timeline: Timeline) -> Any:
    all_to_all(torch.ones(3, device=session.device), session.group, [2, 2, 2], [1, 1, 1])


def output_of_another_size(session: Session, timeline: Timeline) -> Any:
    x = torch.ones(3, device=session.device)
    dist.all_gather_into_tensor(x.new_empty(8), x)


def input_of_another_size(session: Session, timeline: Timeline) -> Any:
    x = torch.ones(3, device=session.device)
    dist.reduce_scatter_tensor(x.new_empty(2), x)


def another_reduction(session: Session, timeline: Timeline) -> Any:
    dist.all_reduce(torch.ones(3, device=session.device), op=dist.ReduceOp.AVG)


def one_never_calls(session: Session, timeline: Timeline) -> Any:
    if session.rank != 1:
        dist.all_reduce(torch.ones(3, device=session.device))


def crossed_waits(session: Session, timeline: Timeline) -> Any:
    """Rank 0 waits for 1, who waits for 2, who waits for 0."""
    groups = [dist.new_group([0, 1]), dist.new_group([1, 2]), dist.new_group([0, 2])]
    mine = {0: (0, 2), 1: (1, 0), 2: (2, 1)}[session.rank]
    for group in mine:
        dist.all_reduce(torch.ones(3, device=session.device), group=groups[group])


def fails_on_rank_one(session: Session, timeline: Timeline) -> Any:
    if session.rank == 1:
        raise KeyError("rank one has had enough")
    dist.barrier()


def does_not_align(session: Session, timeline: Timeline) -> Any:
    if session.rank != 2:
        session.clock.align()  # pyright: ignore


def takes_too_much(session: Session, timeline: Timeline) -> Any:
    """8 bytes of 10 are taken and freed again, then 12 are wanted."""
    for _ in range(3):
        torch.empty(2, device=session.device)
    kept = torch.empty(2, device=session.device)
    torch.empty(1, device=session.device)
    return kept


def many(session: Session, timeline: Timeline, seed: int) -> list[int]:
    """Much of everything, in an order that the seed decides."""
    chance, rank = random.Random(seed), session.rank
    x, works = torch.arange(6, device=session.device) + rank, []
    for _ in range(60):
        kind = chance.randrange(6)
        if kind == 0:
            x = x + torch.randint(3, (6,), device=session.device)
        elif kind == 1:
            works.append(dist.all_reduce(x, async_op=True))
        elif kind == 2 and works:
            works.pop(0).wait()
        elif kind == 3:
            x = all_to_all(x, session.group)
        elif kind == 4:
            timeline.compute("work", chance.random() * (rank + 1))
        else:
            x = x[x.argsort(stable=True)] + int((x > 3).sum())
    return x.tolist()
