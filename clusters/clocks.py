"""Clocks: what time it is for one rank, on a CPU, on a GPU stream, or in emulated time.

A mark is taken without synchronising; `seconds` between two marks may wait for the device, so it is asked for
after the timed region only.
"""

import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch

from clusters.device_lock import DeviceLock


class Clock(Protocol):
    """One rank's clock."""

    def mark(self) -> Any:
        """Remember this moment; never synchronises."""
        ...

    def seconds(self, start: Any, end: Any) -> float:
        """Seconds between two marks of this clock."""
        ...

    def running(self) -> AbstractContextManager:
        """Enter the timed region; on emulated clusters only one rank computes at a time inside it."""
        ...


class HostClock:
    """The host's monotonic clock, for CPU ranks: an operation is done when its call returns."""

    def mark(self) -> float:
        return time.perf_counter()

    def seconds(self, start: float, end: float) -> float:
        return end - start

    def running(self) -> AbstractContextManager:
        return nullcontext()


class ThreadMark(NamedTuple):
    """A moment of one thread: the CPU time it has used so far, and the time of day, both in seconds."""

    cpu_s: float
    wall_s: float


class ThreadClock:
    """The CPU time of the thread that asks, for a rank that computes with one thread and waits for nothing.

    Time in which the thread did not run, because another had its core or because it slept, does not count; `lost_s`
    tells how much that was.
    """

    def mark(self) -> ThreadMark:
        return ThreadMark(time.thread_time(), time.perf_counter())

    def seconds(self, start: ThreadMark, end: ThreadMark) -> float:
        return end.cpu_s - start.cpu_s

    def lost_s(self, start: ThreadMark, end: ThreadMark) -> float:
        """Seconds of wall time between two marks in which the thread did not run."""
        return max(0.0, (end.wall_s - start.wall_s) - (end.cpu_s - start.cpu_s))

    def running(self) -> AbstractContextManager:
        return nullcontext()


class CudaClock:
    """CUDA events on the current stream: a mark costs about a microsecond and waits for nothing."""

    def mark(self) -> torch.cuda.Event:
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def seconds(self, start: torch.cuda.Event, end: torch.cuda.Event) -> float:
        end.synchronize()
        return start.elapsed_time(end) / 1e3

    def running(self) -> AbstractContextManager:
        return nullcontext()


@runtime_checkable
class ModelledClock(Clock, Protocol):
    """A clock of a cluster whose collectives take what a network model says: it tells of each, and what time it is."""

    on_exchange: "Callable[[Exchange], None] | None"

    def at(self, mark: Any) -> float:
        """Seconds at a mark."""
        ...


@runtime_checkable
class IdleClock(Protocol):
    """A clock that knows how long its device waited for the host, and brings all ranks to one moment at no cost."""

    align: Callable[[], None]

    def idle_seconds(self, start: Any, end: Any) -> float:
        """Seconds between two marks in which the device had nothing to do, because the host had issued nothing."""
        ...


@runtime_checkable
class PreemptedClock(Protocol):
    """A clock that may leave out the time in which others had the core."""

    def preempted_s(self) -> float | None:
        """How many seconds that were so far; None where it counts all time."""
        ...


class VirtualMark(NamedTuple):
    """A moment in emulated time: a point of a segment, whose start the clock knows in seconds."""

    segment_s: float
    segment: Any
    now: Any


class Exchange(NamedTuple):
    """One collective as one rank saw it, in emulated seconds.

    resumed_s: when the rank last began to compute before it. waited_s: when it waited for it; at once (issued_s)
    unless it is asynchronous. started_s: when the last rank had issued it and its link was free. sent_to_G: bytes to
    each rank of the group. received: bytes from all of them.
    """

    collective: str
    resumed_s: float
    issued_s: float
    waited_s: float
    started_s: float
    finished_s: float
    sent_to_G: list[float]
    received: float
    asynchronous: bool


class VirtualClock:
    """Emulated time of one rank: the sum of its own segments, joined with the other ranks at collectives.

    A segment is what the rank computes between two collectives, alone on the device because it holds the lock.
    Outside `running` nobody takes turns and only transfers move the clock (set-up, gathering of results).
    link_free_s: when this rank's link has carried all that was issued so far. on_exchange is told of each collective.
    """

    on_exchange: Callable[[Exchange], None] | None = None

    def __init__(self, lock: DeviceLock, stopwatch: Clock) -> None:
        self.time_s = 0.0
        self.link_free_s = 0.0
        self.resumed_s = 0.0
        self._lost_s = 0.0
        self.lock = lock
        self.pending: deque[Any] = deque()  # collectives that were issued and are not carried out yet, over all groups
        self._stopwatch = stopwatch
        self._segment: Any = None
        self._held_s: float | None = None

    def mark(self) -> VirtualMark:
        assert self._segment is not None, "a mark needs a running clock"
        return VirtualMark(self.time_s, self._segment, self._stopwatch.mark())

    def seconds(self, start: VirtualMark, end: VirtualMark) -> float:
        return self.at(end) - self.at(start)

    def at(self, mark: VirtualMark) -> float:
        """Emulated seconds at a mark; waits for the device."""
        return mark.segment_s + self._stopwatch.seconds(mark.segment, mark.now)

    def preempted_s(self) -> float | None:
        """How long this rank did not run in its segments so far; None where the stopwatch counts that too."""
        if not isinstance(self._stopwatch, ThreadClock):
            return None
        if self._segment is None:
            return self._lost_s
        return self._lost_s + self._stopwatch.lost_s(self._segment, self._stopwatch.mark())

    def now_s(self) -> float:
        """Emulated seconds at this moment; waits for the device."""
        if self._held_s is not None:
            return self._held_s
        return self.time_s if self._segment is None else self.at(self.mark())

    def hold(self) -> float:
        """End the segment at this moment, though it is closed a little later; returns the emulated seconds."""
        if self._segment is None:
            return self.time_s
        self._held_s = self.now_s()
        return self._held_s

    @contextmanager
    def running(self) -> Iterator[None]:
        self._resume({})
        try:
            yield
        finally:
            self._pause()

    @contextmanager
    def paused(self) -> Iterator[dict[int, int]]:
        """Close the segment for a collective; afterwards wait for the lock and open a new segment.

        Yields a dict in which the caller notes rank -> next_arrival of those who take part (see `DeviceLock.take`).
        """
        arrivals: dict[int, int] = {}
        was_running = self._segment is not None
        if was_running:
            self._pause()
            self.lock.wait_until_idle()
        yield arrivals
        if was_running:
            self._resume(arrivals)

    def _resume(self, after: Mapping[int, int]) -> None:
        self.lock.take(after)
        self.resumed_s = self.time_s
        self._segment = self._stopwatch.mark()

    def _pause(self) -> None:
        self.time_s = self.now_s()
        self._lost_s = self.preempted_s() or 0.0
        self._segment = self._held_s = None
        self.lock.give()
