"""A workload small enough for tests, and systems that misbehave."""

import logging
import os
import signal
import sys
import time
from dataclasses import replace
from functools import cache, reduce
from pathlib import Path
from typing import Any, ClassVar
from unittest.mock import patch

import numpy as np
import torch
from hydra.core.global_hydra import GlobalHydra

from experiments import composition
from experiments.plan import Point
from experiments.records import Config, Node, document, read
from systems.dense import Dense
from systems.planned import PlannedExpertParallel
from systems.planners.base import Planner, owner_of
from systems.planners.dispatch import to_owner

CONF = str(Path(__file__).parents[2] / "conf")
TINY = [
    "tier=smoke",
    "model.num_experts=4",
    "model.d_model=16",
    "model.d_ff=32",
    "model.d_kv=8",
    "model.num_heads=2",
    "model.num_blocks=2",
    "model.vocab_size=500",
    "batch_size=2",
    "seq_len=12",
    "cluster.world_size=2",
    "network=nvlink3",  # nothing of this machine is measured
]


def configuration(*overrides: str) -> Config:
    """A resolved configuration, as the parent hands it on."""
    return _composed(overrides)


@cache
def _composed(overrides: tuple[str, ...]) -> Config:
    return composition.configuration([*TINY, *overrides])


def run(*typed: str) -> int:
    """`python -m experiments.run` in this process, which imports nothing again; its exit status."""
    from experiments.run import main  # only here: it registers with Hydra

    loggers = [one for one in logging.root.manager.loggerDict.values() if isinstance(one, logging.Logger)]
    disabled, level = [one.disabled for one in loggers], logging.root.level
    GlobalHydra.instance().clear()
    try:
        with patch.object(sys, "argv", ["run", *typed]):
            return main()
    except SystemExit as ended:
        return int(ended.code or 0)
    finally:
        GlobalHydra.instance().clear()
        logging.root.setLevel(level)
        for one, was in zip(loggers, disabled, strict=True):  # Hydra's settings of the command line disable them
            one.disabled = was


def changed(config: Config, values: dict[str, Any]) -> Config:
    """A configuration with some dotted keys, such as model.d_ff, set to values."""
    stored = document(config)
    for key, value in values.items():
        *path, last = key.split(".")
        reduce(dict.__getitem__, path, stored)[last] = value
    return read(Config, stored)


def point(*systems: str, out: Path, overrides: tuple[str, ...] = ()) -> Point:
    """One point of a panel with these systems; a dotted name is the import path of a system of the tests."""
    configs = []
    for system in systems:
        config = configuration(f"out={out}", *overrides, *([] if "." in system else [f"system={system}"]))
        if "." in system:
            node = {"_target_": system, "name": system.rpartition(".")[2], "engine": "loop"}
            config = replace(config, system=Node(node))
        configs.append(config)
    return Point("tiny", "tiny", "speedup", (), "num_experts", 4, None, configs)


class Rotating(Planner):
    """Every expert moves on by a rank with every batch."""

    replicates = False

    def place(self, loads_GE, current_EG, costs):
        return np.roll(current_EG, 1, axis=1)

    def dispatch(self, tokens_GE, replicas_EG, owner_E):
        return to_owner(tokens_GE, replicas_EG, owner_of(replicas_EG))


class RotatingExpertParallel(PlannedExpertParallel):
    """Whatever it remembers of a batch, the same batch is computed elsewhere the next time."""

    fixed: ClassVar = {"planner": Rotating(), "loads": "lagged", "migration": "swap"}

    def __init__(self, **layer):
        super().__init__(**self.fixed, **layer)


class RaisesOnRankOne(Dense):
    """Fails on one rank only, the other waits for it."""

    def forward(self, x_TD, routing):
        if self.rank == 1:
            raise RuntimeError("this system cannot count to two")
        return super().forward(x_TD, routing)


class ExitsOnRankOne(Dense):
    """Dies without a word."""

    def forward(self, x_TD, routing):
        if self.rank == 1:
            os._exit(7)
        return super().forward(x_TD, routing)


class KilledOnRankOne(Dense):
    """What the kernel does to a process that takes too much memory."""

    def forward(self, x_TD, routing):
        if self.rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().forward(x_TD, routing)


class HangsOnRankOne(Dense):
    """Never comes back."""

    def forward(self, x_TD, routing):
        if self.rank == 1:
            time.sleep(600)
        return super().forward(x_TD, routing)


class ForgetsAnExpert(Dense):
    """Computes something else than the model."""

    def forward(self, x_TD, routing):
        y_TD = super().forward(x_TD, routing)
        return torch.where((routing.expert_TK == 0).any(1, keepdim=True), 0.5 * y_TD, y_TD)


class NaNInTheSecondLayer(Dense):
    """Right in the first MoE layer only."""

    made = 0

    def __init__(self, **layer):
        super().__init__(**layer)
        NaNInTheSecondLayer.made += 1
        self.layer_number = NaNInTheSecondLayer.made

    def forward(self, x_TD, routing):
        y_TD = super().forward(x_TD, routing)
        return y_TD * float("nan") if self.layer_number == 2 else y_TD


class WrongLater(Dense):
    """Right when it is compared with the dense model, wrong when it is timed."""

    calls = 0

    def forward(self, x_TD, routing):
        self.calls += 1
        y_TD = super().forward(x_TD, routing)
        return y_TD if self.calls < 3 else 1.01 * y_TD


class DropsInSecret(Dense):
    """Gives zero for some tokens and does not say so."""

    def forward(self, x_TD, routing):
        y_TD = super().forward(x_TD, routing)
        y_TD[::3] = 0
        return y_TD
