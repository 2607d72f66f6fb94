"""When things happen on one simulated rank: clocks of its host, its device and its links, in seconds."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple, Protocol

import torch

from clusters.clocks import Exchange

REPEATED = 16  # operations ago at most that a place of the program was come to before, if its code is still in caches


class Host(Protocol):
    """What the processor that issues work pays, in microseconds; synchronous: it is the device itself."""

    operation_us: float
    launch_us: float
    view_us: float
    collective_us: float
    synchronise_us: float
    synchronous: bool
    unrepeated: float


class Event(NamedTuple):
    """Something that took time: on which track (host, device, link or beside) of a rank, and what it was."""

    track: str
    name: str
    start_s: float
    seconds: float


class Moment(NamedTuple):
    """A moment of one rank: when its device comes to it, and how long that had waited for its host by then."""

    time_s: float
    idle_s: float


class Timeline:
    """The clocks of one rank.

    The host issues operations one after the other and runs ahead of the device, which carries them out in that order.
    A host that is the device (a CPU) waits for each. events: what happened, while `keep_events` is set.
    """

    def __init__(self, rank: int, host: Host, memory_bytes: float = float("inf")) -> None:
        self.rank, self.host, self._memory_bytes = rank, host, memory_bytes
        self.host_s = self.device_s = 0.0
        self.beside_s = 0.0  # when a unit beside the device is through
        self.links_s = {"near": 0.0, "far": 0.0}  # when each is free
        self.resumed_s = 0.0  # when the device last went on after a collective
        self._idle_s = 0.0  # of the device, whose host had not issued anything more yet
        self._pace, self._count, self._executed = 1.0, 0, dict[Any, int]()
        self.live_bytes = self.peak_bytes = 0
        self.keep_events = False
        self.events: list[Event] = []

    @property
    def now_s(self) -> float:
        """When the device would reach an operation that is issued now and takes no time."""
        return max(self.host_s, self.device_s)

    def moment(self) -> Moment:
        """Now; a device that has nothing left to do is waiting for its host already."""
        return Moment(self.now_s, self._idle_s + max(0.0, self.host_s - self.device_s))

    def execute(self, place: Any) -> None:
        """The host comes to an operation at this place of the program."""
        last, self._count = self._executed.get(place, -REPEATED), self._count + 1
        self._executed[place] = self._count
        self._pace = 1.0 if self._count - last <= REPEATED else self.host.unrepeated

    def view(self) -> None:
        """The host computes a shape; nothing is launched."""
        self._issue("view", self._pace * self.host.view_us)

    def compute(self, name: str, seconds: float, launches: int = 1) -> None:
        """Issue an operation of so many kernels that keep the device busy for so long."""
        self._issue(name, self._pace * (self.host.operation_us + (launches - 1) * self.host.launch_us))
        start_s = self._reach()
        self.device_s = start_s + seconds
        if self.host.synchronous:
            self.host_s = self.device_s
        if self.keep_events:
            self.events.append(Event("device", name, start_s, seconds))

    def beside(self, name: str, seconds: float) -> None:
        """Issue work to a unit beside the device, which begins when the device has done what was issued before."""
        self._issue(name, self._pace * self.host.operation_us)
        start_s = max(self._reach(), self.beside_s)
        self.beside_s = start_s + seconds
        if self.keep_events:
            self.events.append(Event("beside", name, start_s, seconds))

    def join(self) -> None:
        """The device waits for the unit beside it."""
        self.device_s = max(self._reach(), self.beside_s)
        if self.host.synchronous:
            self.host_s = self.device_s

    def synchronise(self) -> None:
        """The host waits until the device has done all that was issued."""
        waited_s = self.host_s
        self.host_s = self.now_s
        if not self.host.synchronous:
            self.host_s += 1e-6 * self.host.synchronise_us
        if self.keep_events:
            self.events.append(Event("host", "synchronise", waited_s, self.host_s - waited_s))

    def issue_collective(self, name: str) -> float:
        """The host hands a collective over; returns when the device reaches it."""
        self._issue(name, self.host.collective_us)
        return self.now_s

    def _reach(self) -> float:
        """When the device reaches what was issued last, its waiting for the host counted."""
        time_s, self._idle_s = self.moment()
        return time_s

    def _issue(self, name: str, cost_us: float) -> None:
        """The host is busy for so long."""
        if self.keep_events and cost_us:
            self.events.append(Event("host", name, self.host_s, 1e-6 * cost_us))
        self.host_s += 1e-6 * cost_us

    def wait_for(self, finished_s: float) -> None:
        """The device goes on when a collective has finished; a host that is the device waits with it."""
        self.device_s = max(self._reach(), finished_s)
        self.resumed_s = self.device_s
        if self.host.synchronous:
            self.host_s = self.device_s

    def allocate(self, num_bytes: int) -> None:
        """Raise torch.OutOfMemoryError where the device has less memory than the rank then holds."""
        self.live_bytes += num_bytes
        self.peak_bytes = max(self.peak_bytes, self.live_bytes)
        if self.live_bytes > self._memory_bytes:
            raise torch.OutOfMemoryError(
                f"out of memory: rank {self.rank} holds {self.live_bytes / 1e9:.1f} GB and its device has "
                f"{self._memory_bytes / 1e9:.1f} GB"
            )

    def free(self, num_bytes: int) -> None:
        self.live_bytes -= num_bytes


class SimulatedClock:
    """A rank's `clusters.clocks.Clock`: a mark is the moment at which its device reaches it.

    on_exchange is told of each collective. align: brings all ranks' devices to one moment, at no cost.
    """

    on_exchange: Callable[[Exchange], None] | None = None

    def __init__(self, timeline: Timeline, align: Callable[[], None]) -> None:
        self.timeline, self.align = timeline, align

    def mark(self) -> Moment:
        return self.timeline.moment()

    def seconds(self, start: Moment, end: Moment) -> float:
        return end.time_s - start.time_s

    def at(self, mark: Moment) -> float:
        return mark.time_s

    def idle_seconds(self, start: Moment, end: Moment) -> float:
        return end.idle_s - start.idle_s

    def running(self) -> AbstractContextManager[Any]:
        return nullcontext()
