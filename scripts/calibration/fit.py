"""The network that meets measured collectives: tables, their duplex, and how far it is from what they lack."""

from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np
from scipy.optimize import isotonic_regression

from clusters.network import Network
from scripts.calibration.cases import ITEMSIZE, Case, Timing, uneven_splits

Points = list[list[float]]  # [bytes, microseconds]
Errors = dict[tuple[str, int, str, bool], list[tuple[float, int]]]  # (error, bytes) by collective, ranks, use and late


def tables_of(timings: Iterable[Timing]) -> dict[str, dict[int, Points]]:
    """Tables for `Network`, by collective and number of ranks."""
    found: dict[str, dict[int, Points]] = {}
    for timing in sorted(timings, key=lambda timing: timing.volume_bytes):
        if timing.use == "table":
            points = found.setdefault(timing.collective, {}).setdefault(timing.ranks, [])
            points.append([timing.volume_bytes, timing.median_us])
    return {
        collective: {ranks: ascending(points) for ranks, points in by_ranks.items()}
        for collective, by_ranks in found.items()
    }


def ascending(points: Points) -> Points:
    """The points, to 0.1 us: more bytes never take less time.

    Where measurements say otherwise isotonic regression takes their neighbours' mean.
    """
    times_us = isotonic_regression([us for _, us in points]).x
    return [[size, round(float(us), 1)] for (size, _), us in zip(points, times_us, strict=True)]


def volume_of(case: Case, network: Network) -> float:
    """V of a case; of an uneven exchange as the network's duplex has it."""
    if case.use != "uneven":
        return case.volume_bytes
    splits = [uneven_splits(case.elements, case.ranks, rank)[1] for rank in range(case.ranks)]
    sent_GG = np.array(splits, dtype=float) * (1 - np.eye(case.ranks)) * ITEMSIZE
    return network.volumes(case.collective, sent_GG, range(case.ranks))[0]


def predicted_us(case: Case, network: Network) -> float:
    """What the network says of a case."""
    return 1e6 * network.seconds(case.collective, (volume_of(case, network),), case.ranks)


def fitted(timings: Sequence[Timing], name: str, source: str = "") -> Network:
    """The network of ranks that come together and, where it was measured, of those that do not."""
    late = [timing for timing in timings if timing.late]
    together = _fitted([timing for timing in timings if not timing.late], name)
    return replace(together, source=source, late=_fitted(late, f"{name}, late") if late else None)


def _fitted(timings: Sequence[Timing], name: str) -> Network:
    """The tables, and the duplex (in tenths) with which the uneven exchanges are met best.

    Errors count in microseconds, so that the large exchanges decide, in which the bytes and not the latency cost time.
    """
    tables = tables_of(timings)
    uneven = [timing for timing in timings if timing.use == "uneven"]

    def error_us(network: Network) -> float:
        return sum(abs(predicted_us(timing, network) - timing.median_us) for timing in uneven)

    candidates = (Network(name, duplex=tenths / 10, tables=tables) for tenths in range(10, -1, -1))
    return min(candidates, key=error_us)


def errors_of(timings: Iterable[Timing], network: Network) -> Errors:
    """Predicted / measured - 1 of every timing that is not in the tables."""
    errors: Errors = {}
    for timing in timings:
        if timing.use != "table":
            model = network.late if timing.late else network
            assert model is not None  # `fitted` has one for late timings
            error = predicted_us(timing, model) / timing.median_us - 1
            found = errors.setdefault((timing.collective, timing.ranks, timing.use, timing.late), [])
            found.append((error, timing.volume_bytes))
    return errors
