"""Ranks as threads of one process that run one at a time, and go on with the next where one has to wait."""

import threading
from collections.abc import Callable
from typing import Any, TypeVar

Result = TypeVar("Result")


class Stopped(BaseException):
    """This rank is stopped because another one has failed."""


class Turns:
    """Whose turn it is: a rank runs until it waits for what others have yet to do, then the next one that can goes on.

    Ranks take turns in the order of their numbers, so every run is the same.
    """

    def __init__(self, world_size: int) -> None:
        self.world_size = world_size
        self.rank = -1  # who runs
        self._waits_for: list[Callable[[], bool] | None] = [None] * world_size  # what each rank waits for
        self._done = [False] * world_size
        self._wake = [threading.Semaphore(0) for _ in range(world_size)]
        self.failure: tuple[int, BaseException] | None = None
        self._telling: list[Callable[[], str]] = [lambda: "nothing"] * world_size

    def run(self, program: Callable[[int], Result]) -> list[Result]:
        """`program(rank)` on every rank; raises what the first rank raised that failed, its `rank` noted on it."""
        results: list[Any] = [None] * self.world_size
        threads = [
            threading.Thread(target=self._run, args=(rank, program, results), name=f"rank {rank}", daemon=True)
            for rank in range(self.world_size)
        ]
        for thread in threads:
            thread.start()
        self._pass_on()
        for thread in threads:
            thread.join()
        if self.failure is not None:
            rank, error = self.failure
            error.add_note(f"on simulated rank {rank}")
            raise error
        return results

    def wait(self, until: Callable[[], bool], telling: Callable[[], str] = lambda: "something") -> None:
        """Let other ranks run until `until()`; telling: what this rank waits for, should that never be."""
        if until():
            return
        rank = self.rank
        self._waits_for[rank], self._telling[rank] = until, telling
        self._pass_on()
        self._wake[rank].acquire()
        if self.failure is not None:
            raise Stopped
        self._waits_for[rank] = None

    def _run(self, rank: int, program: Callable[[int], Any], results: list[Any]) -> None:
        self._wake[rank].acquire()
        try:
            if self.failure is None:
                results[rank] = program(rank)
        except Stopped:
            pass
        except BaseException as error:
            self.failure = self.failure or (rank, error)
        self._done[rank] = True
        self._pass_on()

    def _pass_on(self) -> None:
        """Wake the next rank that can run: any that is left, once one has failed."""
        order = [(self.rank + step) % self.world_size for step in range(1, self.world_size + 1)]
        left = [rank for rank in order if not self._done[rank]]
        for rank in left:
            until = self._waits_for[rank]
            if self.failure is not None or until is None or until():
                self.rank = rank
                self._wake[rank].release()
                return
        if left:
            stuck = left[0]
            self.failure = (stuck, RuntimeError(f"rank {stuck} waits for ever: {self._telling[stuck]()}"))
            self.rank = stuck
            self._wake[stuck].release()
