"""The lock that emulated ranks hold while they compute, so that each has the device to itself."""

import fcntl
import os
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np


class DeviceLock:
    """The right to use the device: an exclusive lock on a file that the ranks of a launch share.

    Who holds it is not to be disturbed. A rank that is done sleeps until all others are done too before it moves any
    data (`wait_until_idle`), and a rank that gets the lock starts only when those it has just exchanged data with
    are asleep again. The kernel frees all locks of a rank that dies.

    concurrent_ranks: how many locks there are; rank r waits for number r mod concurrent_ranks. More than one where the
    emulated ranks share a host, so that they meet in its caches and memory as they would there.
    """

    def __init__(self, path: Path, rank: int, world_size: int, concurrent_ranks: int = 1) -> None:
        self.rank = rank
        self._turn = open(path.with_suffix(f".turn{rank % concurrent_ranks}"), "a+b")  # noqa: SIM115  (held for the rank's life)
        self._computing = open(path.with_suffix(".computing"), "a+b")  # noqa: SIM115
        with open(path, "a+b") as arrivals:
            arrivals.truncate(8 * world_size)
            self._arrivals = np.memmap(arrivals, dtype=np.int64, mode="r+", shape=(world_size,))

    @property
    def next_arrival(self) -> int:
        return int(self._arrivals[self.rank]) + 1

    def take(self, after: Mapping[int, int]) -> None:
        """Wait for the lock, then until each rank in `after` has come to wait for it that many times.

        The second wait is for quiet only and ends after a while: a rank may be busy with a later collective.
        """
        fcntl.flock(self._computing, fcntl.LOCK_SH)
        self._arrivals[self.rank] += 1
        fcntl.flock(self._turn, fcntl.LOCK_EX)
        deadline_s = time.perf_counter() + 0.01
        while any(self._arrivals[rank] < arrival for rank, arrival in after.items()):
            if time.perf_counter() > deadline_s:
                break
            os.sched_yield()

    def give(self) -> None:
        fcntl.flock(self._turn, fcntl.LOCK_UN)
        fcntl.flock(self._computing, fcntl.LOCK_UN)

    def wait_until_idle(self) -> None:
        """Sleep until no rank computes or waits to compute."""
        fcntl.flock(self._computing, fcntl.LOCK_EX)
        fcntl.flock(self._computing, fcntl.LOCK_UN)
