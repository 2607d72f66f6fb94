"""What the clock saw on one rank: marks now, rows later."""

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

from clusters.clocks import Clock


@dataclass(frozen=True)
class Interval:
    """One timed thing; layer and section are None where they do not apply."""

    metric: str
    layer: int | None
    section: str | None
    start: Any
    end: Any


class Recorder:
    """Collects the marks of one iteration. Layers and sections are marked only while `observing` (instrumented pass).

    `align` brings the ranks together without synchronising the device.
    """

    def __init__(self, clock: Clock, align: Callable[[], None]) -> None:
        self.observing = False
        self._clock, self._align = clock, align
        self._layer: int | None = None
        self._intervals: list[Interval] = []
        self._rows: list[dict[str, Any]] = []

    def span(self, section: str) -> AbstractContextManager:
        """Time a section of the current layer, if the run is observed."""
        return self._interval("section_ms", section) if self.observing else nullcontext()

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
        with self._interval("layer_moe_ms"):
            yield
        self._layer = None

    @contextmanager
    def iteration(self, **labels: Any) -> Iterator[None]:
        """Time one forward pass as ttft_ms; `labels` go into every row of it."""
        labels["time"] = time.time()
        with self._interval("ttft_ms"):
            yield
        for interval in self._intervals:
            self._rows.append({**labels, "interval": interval})
        self._intervals = []

    def rows(self) -> list[dict[str, Any]]:
        """Every interval as a row with its value in ms; waits for the device."""
        return [self._resolve(row) for row in self._rows]

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

    @contextmanager
    def _interval(self, metric: str, section: str | None = None) -> Iterator[None]:
        start = self._clock.mark()
        yield
        self._intervals.append(Interval(metric, self._layer, section, start, self._clock.mark()))
