"""What each call of a system was given and what it cost this rank."""

from collections.abc import Mapping
from typing import Any

import torch

from experiments.program import Program
from routers.base import Routing
from systems.base import Account, System
from systems.collectives import all_gather

Call = tuple[str, int, int]  # cell, block, iteration


class Accountant:
    """Keeps each call's routing and plan while the clock runs, and reckons once it has stopped."""

    def __init__(self, program: Program, systems: Mapping[str, Mapping[int, System]]) -> None:
        self._program, self._systems = program, systems
        self.routings: dict[Call, Routing] = {}
        self._plans: dict[Call, Any] = {}

    def note(self, cell: str, iteration: int) -> None:
        """A cell's forward pass that has just been made."""
        for block, layer in self._program.layers.items():
            assert layer.routing is not None
            self.routings[cell, block, iteration] = layer.routing
            self._plans[cell, block, iteration] = self._systems[cell][block].plan

    def accounts(self, calls: list[Call]) -> list[tuple[torch.Tensor, Account]]:
        """(tokens_GE on the host, what the call cost this rank) for each call that was made."""
        accounts = []
        for call, tokens_GE in zip(calls, self._tokens_of(calls), strict=True):
            system = self._systems[call[0]][call[1]]
            system.plan = self._plans[call]
            accounts.append((tokens_GE, system.account(tokens_GE, self._program.dtype.itemsize)))
        return accounts

    def _tokens_of(self, calls: list[Call]) -> torch.Tensor:
        """int64 [n, G, E] on the host: token copies per source rank and expert, for each call."""
        num_experts = self._program.shape.num_experts
        tokens_nE = torch.stack([self.routings[call].tokens_per_expert(num_experts) for call in calls])
        return all_gather(tokens_nE.unsqueeze(0), self._program.session.group).transpose(0, 1).cpu()
