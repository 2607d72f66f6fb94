"""What the clock saw on one rank: marks now, rows later."""

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple

from clusters.clocks import Clock, Exchange, IdleClock, ModelledClock, PreemptedClock


@dataclass(frozen=True)
class Interval:
    """One timed thing; layer and section are None where they do not apply."""

    metric: str
    layer: int | None
    section: str | None
    start: Any
    end: Any


class Seen(NamedTuple):
    """A collective inside an MoE layer: what the clock saw of it and where."""

    layer: int
    section: str | None
    sequence: int
    layer_start: Any
    exchange: Exchange


class Span(NamedTuple):
    """An interval with its place on the clock, in seconds."""

    metric: str
    phase: str
    iteration: int
    layer: int | None
    section: str | None
    start_s: float
    end_s: float


class Recorder:
    """Collects the marks of one iteration. Layers and sections are marked only while `observing` (instrumented pass).

    `align` brings the ranks together without synchronising the device. On an emulated clock the collectives of the
    observed layers are kept too: other clusters do not say when a collective began.
    """

    def __init__(self, clock: Clock, align: Callable[[], None]) -> None:
        self.observing = False
        self._clock, self._align = clock, align
        self._layer: int | None = None
        self._layer_start: Any = None
        self._section: str | None = None
        self._intervals: list[Interval] = []
        self._seen: list[Seen] = []
        self._rows: list[dict[str, Any]] = []
        self._known: list[dict[str, Any]] = []
        self._collectives: list[dict[str, Any]] = []
        if isinstance(clock, ModelledClock):
            clock.on_exchange = self._see

    def span(self, section: str) -> AbstractContextManager:
        """Time a section of the current layer, if the run is observed; what a system does before its layer is not."""
        seen = self.observing and self._layer is not None
        return self._interval("section_ms", section) if seen else nullcontext()

    @contextmanager
    def layer(self, block: int) -> Iterator[None]:
        """Time one MoE layer from the moment the last rank has come, if the run is observed.

        Without the meeting a rank that is late would be billed twice: by those who wait for it in their next layer.
        """
        if not self.observing:
            yield
            return
        self._layer = block
        with self._interval("entry_skew_ms"):
            self._align()
        with self._interval("layer_moe_ms") as self._layer_start:
            yield
        self._layer = self._layer_start = None

    @contextmanager
    def iteration(self, **labels: Any) -> Iterator[None]:
        """Time one forward pass as ttft_ms; `labels` go into every row of it."""
        labels["time"] = round(time.time(), 3)
        before_s = self._preempted_s()
        with self._interval("ttft_ms"):
            yield
        if before_s is not None and (after_s := self._preempted_s()) is not None:
            self._known.append({**labels, "metric": "preempted_ms", "value": (after_s - before_s) * 1e3, "unit": "ms"})
        for interval in self._intervals:
            self._rows.append({**labels, "interval": interval})
        for seen in self._seen:
            self._collectives.append({"cell": labels["cell"], "iteration": labels["iteration"], "seen": seen})
        self._intervals, self._seen = [], []

    def rows(self) -> list[dict[str, Any]]:
        """Every interval as a row with its value in ms; waits for the device.

        On a simulated clock also `idle_*`: the time of it in which the device waited for its host to issue something.
        """
        rows = [self._resolve(row) for row in self._rows] + self._known
        timed = self._rows if isinstance(self._clock, IdleClock) else []
        return rows + [self._idle(row) for row in timed if row["interval"].metric != "entry_skew_ms"]

    def spans(self) -> list[Span]:
        """Every interval, for clocks that tell what time it is."""
        assert isinstance(self._clock, ModelledClock)
        at, intervals = self._clock.at, ((row, row["interval"]) for row in self._rows)
        return [
            Span(one.metric, row["phase"], row["iteration"], one.layer, one.section, at(one.start), at(one.end))
            for row, one in intervals
        ]

    def collectives(self) -> list[dict[str, Any]]:
        """Every collective of the observed layers as a row, in ms since its layer began; waits for the device."""
        return [
            {"cell": row["cell"], "iteration": row["iteration"]} | self._told(row["seen"]) for row in self._collectives
        ]

    def _told(self, seen: Seen) -> dict[str, Any]:
        assert isinstance(self._clock, ModelledClock)
        start_s, exchange = self._clock.at(seen.layer_start), seen.exchange
        moments = ("resumed", "issued", "waited", "started", "finished")
        times = {f"{name}_ms": (getattr(exchange, f"{name}_s") - start_s) * 1e3 for name in moments}
        return {
            "layer": seen.layer,
            "section": seen.section,
            "sequence": seen.sequence,
            "collective": exchange.collective,
            "ranks": len(exchange.sent_to_G),
            **times,
            "bytes_sent": sum(exchange.sent_to_G),
            "bytes_received": exchange.received,
            "sent_to": exchange.sent_to_G,
            "asynchronous": exchange.asynchronous,
        }

    def _see(self, exchange: Exchange) -> None:
        if self._layer_start is not None and self._layer is not None:
            here = sum(seen.layer == self._layer for seen in self._seen)
            self._seen.append(Seen(self._layer, self._section, here, self._layer_start, exchange))

    def _preempted_s(self) -> float | None:
        return self._clock.preempted_s() if isinstance(self._clock, PreemptedClock) else None

    def ttft_ms(self, cell: str, phase: str) -> list[float]:
        """This rank's forward passes of one cell and phase so far; waits for the device."""
        wanted = ("ttft_ms", cell, phase)
        rows = [row for row in self._rows if (row["interval"].metric, row["cell"], row["phase"]) == wanted]
        return [self._resolve(row)["value"] for row in rows]

    def _resolve(self, row: dict[str, Any]) -> dict[str, Any]:
        labels = dict(row)
        interval: Interval = labels.pop("interval")
        milliseconds = self._clock.seconds(interval.start, interval.end) * 1e3
        return {
            **labels,
            "metric": interval.metric,
            "layer": interval.layer,
            "section": interval.section,
            "value": milliseconds,
            "unit": "ms",
        }

    def _idle(self, row: dict[str, Any]) -> dict[str, Any]:
        assert isinstance(self._clock, IdleClock)
        resolved, interval = self._resolve(row), row["interval"]
        idle_s = self._clock.idle_seconds(interval.start, interval.end)
        return {**resolved, "metric": f"idle_{interval.metric}", "value": idle_s * 1e3}

    @contextmanager
    def _interval(self, metric: str, section: str | None = None) -> Iterator[Any]:
        outside, self._section = self._section, section or self._section
        start = self._clock.mark()
        yield start
        self._intervals.append(Interval(metric, self._layer, section, start, self._clock.mark()))
        self._section = outside
