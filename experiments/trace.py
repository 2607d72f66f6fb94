"""Slices of time as a trace that Perfetto, chrome://tracing and speedscope open: Chrome's trace-event format.

A rank is a process of the trace, each of its tracks a thread.
"""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

TRACKS = ("program", "host", "device", "link", "beside")


class Slice(NamedTuple):
    """Something that took time on one track of one rank. On a track slices follow one another; in program they nest."""

    rank: int
    track: str
    name: str
    start_s: float
    end_s: float


def document(slices: Iterable[Slice], about: dict[str, Any]) -> dict[str, Any]:
    """The trace as what JSON is written of; it begins at 0. about: what stands beside it.

    What takes less than a nanosecond is left out: viewers do not know before or after what it belongs.
    """
    slices = sorted(slices, key=lambda one: (one.start_s, -one.end_s))
    begin_s = slices[0].start_s if slices else 0.0
    events = [event for one in slices if (event := _complete(one, begin_s))["dur"] > 0]
    named = sorted({(one.rank, one.track) for one in slices}, key=lambda each: (each[0], TRACKS.index(each[1])))
    ranks = dict.fromkeys(rank for rank, _ in named)
    return {
        "displayTimeUnit": "ms",
        "otherData": about,
        "traceEvents": [
            *(event for rank in ranks for event in _process(rank)),
            *(event for rank, track in named for event in _named(rank, track)),
            *events,
        ],
    }


def _complete(one: Slice, begin_s: float) -> dict[str, Any]:
    """Microseconds in parts of 1/1024, which add up without error: one slice ends exactly where the next begins."""
    start_us, end_us = (round(1024e6 * (moment_s - begin_s)) / 1024 for moment_s in (one.start_s, one.end_s))
    event = {"ph": "X", "name": one.name, "cat": one.track, "pid": one.rank, "tid": TRACKS.index(one.track)}
    return event | {"ts": start_us, "dur": end_us - start_us}


def _process(rank: int) -> Sequence[dict[str, Any]]:
    return (
        _metadata("process_name", rank, 0, {"name": f"rank {rank}"}),
        _metadata("process_sort_index", rank, 0, {"sort_index": rank}),
    )


def _named(rank: int, track: str) -> Sequence[dict[str, Any]]:
    thread = TRACKS.index(track)
    return (
        _metadata("thread_name", rank, thread, {"name": track}),
        _metadata("thread_sort_index", rank, thread, {"sort_index": thread}),
    )


def _metadata(name: str, rank: int, thread: int, args: dict[str, Any]) -> dict[str, Any]:
    return {"ph": "M", "name": name, "pid": rank, "tid": thread, "args": args}
