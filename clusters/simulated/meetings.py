"""Where simulated ranks meet: a collective finishes once all its ranks have issued it, when the network model says.

It starts when every rank's device has reached it and every rank's links that it takes are free; its ranks' devices go
on when it has finished.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from clusters.clocks import Exchange
from clusters.network import NetworkModel
from clusters.simulated.operations import Simulation
from clusters.simulated.ranks import Turns
from clusters.simulated.timeline import Event, SimulatedClock
from clusters.simulated.values import Read


@dataclass(eq=False)
class Issue:
    """A collective as one rank issued it.

    ready_s: when its device reached it. sent_to_G, received_from_G: bytes to and from each rank of the group. read:
    what it brings, if that has values. finish: told what all ranks bring and what each sends to each, in bytes, once
    they are known. Until all ranks have issued it finished_s is None and started_s, off_rank_G and received (bytes to
    each other rank, and from all of them) mean nothing.
    """

    collective: str
    ready_s: float
    sent_to_G: list[float]
    received_from_G: list[float]
    read: Read | None
    finish: Callable[[list[Read | None], np.ndarray], None]
    asynchronous: bool
    finished_s: float | None = None
    started_s: float = 0.0
    off_rank_G: list[float] = field(default_factory=list)
    received: float = 0.0

    def exchange(self, resumed_s: float, waited_s: float) -> Exchange:
        """What its rank saw of it."""
        assert self.finished_s is not None
        times = (resumed_s, self.ready_s, waited_s, self.started_s, self.finished_s)
        return Exchange(self.collective, *times, self.off_rank_G, self.received, self.asynchronous)


@dataclass
class Meeting:
    """One collective of all members: their issues by rank of the cluster, in the order of the group."""

    members: tuple[int, ...]
    issues: dict[int, Issue] = field(default_factory=dict)


class Ranks:
    """All simulated ranks of this process: whose turn it is, their operations and clocks, and what they exchange."""

    def __init__(self, world_size: int) -> None:
        self.turns = Turns(world_size)
        self.simulations: list[Simulation] = []
        self.clocks: list[SimulatedClock] = []
        self.network: NetworkModel
        self._pending: list[deque[Meeting]] = []
        self._open: dict[tuple[int, ...], list[Meeting]] = {}
        self._aligned: list[int] = []
        self._untold: list[deque[Issue]] = []

    @property
    def rank(self) -> int:
        return self.turns.rank

    @property
    def simulation(self) -> Simulation:
        return self.simulations[self.rank]

    def begin(self, simulations: list[Simulation], network: NetworkModel) -> None:
        """Start anew, on these timelines and this network."""
        self.turns = Turns(len(simulations))
        self.simulations, self.network = simulations, network
        self.clocks = [SimulatedClock(simulation.timeline, self.align) for simulation in simulations]
        self._pending = [deque() for _ in simulations]
        self._open = {}
        self._aligned = [0] * len(simulations)
        self._untold = [deque() for _ in simulations]

    def align(self) -> None:
        """Wait for all ranks; their devices go on at one moment."""
        self._aligned[self.rank] += 1
        count = self._aligned[self.rank]
        timelines = [simulation.timeline for simulation in self.simulations]
        if min(self._aligned) == count:
            now_s = max(timeline.now_s for timeline in timelines)
            for timeline in timelines:
                timeline.wait_for(now_s)
        self.turns.wait(lambda: min(self._aligned) >= count, lambda: "other ranks do not begin the same iteration")

    def issue(self, members: tuple[int, ...], issue: Issue) -> None:
        """Add this rank's part of a collective; the last one decides when it finishes."""
        meetings = self._open.setdefault(members, [])
        meeting = next((one for one in meetings if self.rank not in one.issues), None)
        if meeting is None:
            meetings.append(meeting := Meeting(members))
        meeting.issues[self.rank] = issue
        self._pending[self.rank].append(meeting)
        self._untold[self.rank].append(issue)
        while self._finish_next(members):
            pass

    def wait(self, issue: Issue) -> None:
        """Let other ranks run until all have issued it; this rank's device goes on when it has finished.

        Its clock is told, in the order of issue, of all that were issued up to it and have finished by then, as those
        on the same link have.
        """
        self.turns.wait(
            lambda: issue.finished_s is not None,
            lambda: f"not all ranks of its group call the {issue.collective} that it is in",
        )
        line, told = self.simulation.timeline, self.clocks[self.rank].on_exchange
        resumed_s, waited_s = line.resumed_s, line.now_s
        assert issue.finished_s is not None
        untold = self._untold[self.rank]
        for one in list(untold)[: untold.index(issue) + 1] if issue in untold else ():
            if one.finished_s is None or one.finished_s > issue.finished_s:  # on another link, and waited for later
                continue
            untold.remove(one)
            if told is not None:
                told(one.exchange(resumed_s, max(waited_s, one.ready_s)))
            waited_s = max(waited_s, one.finished_s)
        line.wait_for(issue.finished_s)

    def _finish_next(self, members: tuple[int, ...]) -> bool:
        """Finish the first collective of some rank that all its members have issued and have come to."""
        for rank in members:
            if not self._pending[rank]:
                continue
            meeting = self._pending[rank][0]
            here = all(self._pending[one] and self._pending[one][0] is meeting for one in meeting.members)
            if here and len(meeting.issues) == len(meeting.members):
                for one in meeting.members:
                    self._pending[one].popleft()
                self._open[meeting.members].remove(meeting)
                self._finish(meeting)
                return True
        return False

    def _finish(self, meeting: Meeting) -> None:
        issues = [meeting.issues[rank] for rank in meeting.members]
        sent_GG = _sent(issues)
        for issue in issues:
            issue.finish([one.read for one in issues], sent_GG)
        np.fill_diagonal(sent_GG, 0)
        name, size = issues[0].collective, len(issues)
        timelines = [self.simulations[rank].timeline for rank in meeting.members]
        links = self.network.links(meeting.members)
        free_G = [max(line.links_s[link] for link in links) for line in timelines]
        ready_G = [max(issue.ready_s, free_s) for issue, free_s in zip(issues, free_G, strict=True)]
        started_s = max(ready_G)
        network = self.network.when(name, meeting.members, started_s - min(ready_G))
        volumes = network.volumes(name, sent_GG, meeting.members)
        finished_s = started_s + network.seconds(name, volumes, size)
        for place, (issue, line) in enumerate(zip(issues, timelines, strict=True)):
            issue.started_s, issue.finished_s = started_s, finished_s
            line.links_s |= dict.fromkeys(links, finished_s)
            issue.off_rank_G, issue.received = sent_GG[place].tolist(), float(sent_GG[:, place].sum())
            if line.keep_events:
                line.events.append(Event("link", name, started_s, finished_s - started_s))


def _sent(issues: list[Issue]) -> np.ndarray:
    """sent_GG, bytes from each rank to each; ValueError where ranks call different things."""
    names = {issue.collective for issue in issues}
    if len(names) > 1:
        raise ValueError(f"the ranks of one group call different collectives at once: {', '.join(sorted(names))}")
    sent_GG = np.array([issue.sent_to_G for issue in issues])
    received_GG = np.array([issue.received_from_G for issue in issues]).T
    if (sent_GG != received_GG).any():
        source, target = np.argwhere(sent_GG != received_GG)[0]
        raise ValueError(
            f"{issues[0].collective}: rank {target} of the group expects {received_GG[source, target]:.0f} bytes from "
            f"rank {source}, which sends {sent_GG[source, target]:.0f}"
        )
    return sent_GG
