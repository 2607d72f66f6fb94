"""Systems that take turns in one program, timed."""

import gc
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
import torch.distributed as dist

from clusters.clocks import IdleClock
from clusters.session import Session
from experiments.accountant import Accountant
from experiments.agreement import sketch
from experiments.configuration import find_class, options
from experiments.profiler import Profiler
from experiments.program import Program
from experiments.recorder import Recorder
from experiments.records import Member, Workload
from routers.drawn import DrawnRouter
from systems.base import System
from systems.collectives import all_gather
from systems.engines import find_engine

Progress = Callable[[str], None]


class Bench:
    """A program on one rank. Systems are added by cell id; each has one instance per MoE block."""

    def __init__(self, workload: Workload, session: Session, cache_dir: str, ceilings: dict[str, Any]) -> None:
        self.workload, self.session = workload, session
        self.recorder = Recorder(session.clock, self._align)
        self.program = Program(workload, session, self.recorder, cache_dir)
        self.members: dict[str, Member] = {}
        self.systems: dict[str, dict[int, System]] = {}
        self.sketches: dict[str, dict[int, torch.Tensor]] = defaultdict(dict)
        self.accountant = Accountant(self.program, self.systems)
        self._profiler = Profiler(self.program, ceilings)
        self._order: Counter[str] = Counter()

    def add(self, cell: str, member: Member) -> None:
        """Build a system; a system that brings its own engine is given one that it does not use."""
        kind, given = find_class(member.system), options(member.system, "system")
        needed, shape, profile = kind.needs(**kind.every_option(**given)), self.program.shape, {}
        if "draws" in needed:
            shape = replace(shape, max_expert_tokens=self._profiler.max_expert_tokens())
        if "scores" in needed and isinstance(self.program.router, DrawnRouter):
            self.program.router.scored = True
        if "rates" in needed:
            given["rates"] = self._profiler.rates
        if "profile" in needed:
            profile = {block: {"profile": one} for block, one in self._profiler.profile().items()}
        self.members[cell] = member
        self.systems[cell] = {
            block: kind(
                **given,
                **profile.get(block, {}),
                **self.program.given(block),
                shape=shape,
                engine=find_engine("loop" if kind.own_engine else member.engine, shape.activation),
            )
            for block in self.program.layers
        }

    def built(self) -> None:
        """All systems are there: what only their building needs is let go, so that it takes no memory beside them."""
        self._profiler.profile.cache_clear()

    @torch.inference_mode()
    def measure(self, visits: Iterable[tuple[str, int]], phase: str, progress: Progress) -> None:
        """Run these iterations of these cells, one forward pass each.

        phase: warmup, measure or instrumented (the last one observes layers and sections).
        """
        self.recorder.observing = phase == "instrumented"
        with _no_garbage_collection():
            for cell, iteration in visits:
                progress(cell)
                self.program.prefetch(iteration)
                with self.session.clock.running():
                    hidden_BLD = self.timed_forward(cell, iteration, phase=phase)
                    if phase != "warmup":
                        self.sketches[cell][iteration] = sketch(hidden_BLD)
        self.recorder.observing = False

    def last_ttft_s(self, cells: list[str], phase: str) -> dict[str, float]:
        """Seconds of each cell's last forward pass of a phase, the slowest rank's; the same on all ranks."""
        mine_C = torch.tensor([self.recorder.ttft_ms(cell, phase)[-1] for cell in cells], device=self.session.device)
        slowest_C = all_gather(mine_C.unsqueeze(0), self.session.group).amax(0) / 1e3
        return dict(zip(cells, slowest_C.tolist(), strict=True))

    def timed_forward(self, cell: str, iteration: int, *, phase: str) -> torch.Tensor:
        """The model's output with a cell's systems, timed from a moment at which all ranks begin."""
        start = self.program.start(iteration)
        self._align()
        with self.recorder.iteration(cell=cell, iteration=iteration, phase=phase, order=self._order[phase]):
            hidden_BLD = self.program.forward(self.systems[cell], start, iteration)
            if phase != "warmup":  # which nobody asks for
                self.accountant.note(cell, iteration)
        self._order[phase] += 1
        return hidden_BLD

    def _align(self) -> None:
        """Bring the ranks together without waiting for the device: the start mark follows on the same stream."""
        if isinstance(self.session.clock, IdleClock):
            self.session.clock.align()
            return
        dist.all_reduce(torch.zeros(1, device=self.session.device), group=self.session.group)


@contextmanager
def _no_garbage_collection():
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
