"""What a system is: one MoE layer on one rank, built from values.

Letters in names: G ranks, T tokens on this rank, K experts per token, E experts, e experts here, D d_model, F d_ff,
f d_ff of a shard, R rows received.
"""

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, Self

import torch
import torch.distributed as dist

from routers.base import Routing
from systems.engines import ACTIVATIONS, Engine

Span = Callable[[str], AbstractContextManager]


def no_span(section: str) -> AbstractContextManager:
    """The span of a run that is not instrumented."""
    return nullcontext()


@dataclass(frozen=True)
class LayerShape:
    """Sizes of one MoE layer.

    max_tokens: the most tokens that any rank brings to one call. max_expert_tokens: the most token copies that any
    rank brings for one expert in one call, where the router's draws are known before it runs and the system needs it.
    activation, biased: what an expert computes (systems.engines.activations), with biases or without.
    """

    num_experts: int
    d_model: int
    d_ff: int
    max_tokens: int
    top_k: int = 1
    max_expert_tokens: int | None = None
    activation: str = "relu"
    biased: bool = False

    def expert_elements(self, width: int) -> int:
        """Numbers in the weights of an expert, or a shard of one, with a hidden layer of this width."""
        in_width = ACTIVATIONS[self.activation].in_width(width)
        return self.d_model * (in_width + width) + self.biased * (in_width + self.d_model)

    def row_flops(self, width: int) -> int:
        """FLOPs of one row through these matrices; a multiplication and an addition are two."""
        return 2 * self.d_model * (ACTIVATIONS[self.activation].in_width(width) + width)


class LayerWeights(Protocol):
    """The expert weights of one layer; a rank asks only for what its system places there."""

    def experts(self, expert_ids: list[int]) -> tuple[torch.Tensor, ...]:
        """(wi_eDI, wo_eFD) of whole experts, and (bi_eI, bo_eD) where they have biases. I is F, or 2F of a gated
        activation, for W_gate beside W_up. Of no experts, tensors of the same type and device.
        """
        ...

    def shard(self, index: int, count: int, expert_ids: list[int] | None = None) -> tuple[torch.Tensor, ...]:
        """The same of part `index` of `count` of these experts, or of all: W_i, of a gated one both halves, cut by
        columns and W_o by rows. The first part has b_o and the others zeros, because parts are summed.
        """
        ...


@dataclass(frozen=True)
class Account:
    """What one call costs a rank, by closed form.

    rows_computed: rows through the experts, in rows of a whole expert (a shard of 1/G counts 1/G).
    rows_useful: those that carry a token. dropped: token copies of this rank that no expert computes.
    bytes_sent: bytes this rank sends to other ranks. With G ranks an all-gather sends (G-1) x its input, a
    reduce-scatter (G-1) x its output, an all-to-all what is not for this rank, an all-reduce 2 (G-1)/G x its tensor.
    memory_bytes: bytes that the experts' matrix products at least read and write here (`ffn_bytes`).
    predicted: 1 where loads were predicted well enough to keep the plan made of them, 0 where not; None: nobody tried.
    least_rows: the fewest rows that the busiest rank could have, given the ranks that hold each expert
    (systems.planners.bound); told by rank 0, 0 on the others. None: nobody chooses among holders.
    """

    rows_computed: float
    rows_useful: float
    dropped: int
    bytes_sent: float
    memory_bytes: float
    predicted: float | None = None
    least_rows: float | None = None


ExpertFfn = Callable[[int, torch.Tensor, torch.Tensor, tuple[torch.Tensor, ...]], torch.Tensor]


class Reference(Protocol):
    """The dense model of a layer (systems.dense), expert after expert."""

    def forward(self, x_TD: torch.Tensor, routing: Routing) -> torch.Tensor:
        """y_TD as the model has it."""
        ...

    def through(self, x_TD: torch.Tensor, routing: Routing, ffn: ExpertFfn) -> torch.Tensor:
        """y_TD where ffn(expert, copies_R, x_RD, weights) computes the copies of each expert: copy n is of token
        n // K, and weights are those of that expert alone.
        """
        ...


class System(ABC):
    """One MoE layer on one rank: `forward(x_TD, routing) -> y_TD` in plain `torch.distributed` calls.

    A subclass states what it is: `exactness` (exact | approximate | changes-architecture), `own_engine` where it brings
    its own expert computation and the engine given to it is not used, `fixed`, the options of its base class that
    it decides itself, and `stateful`: whether its earlier calls change what a later one costs, because it looks back at
    loads, moves experts or keeps room for them. A simulation of one that is not does without a pass that is not timed.
    `check`, `padding` and `needs` are asked with every option, defaults included.

    A system that computes something else than the dense model, other than by dropping tokens, has `own_rule`: it says
    in `expected` what that is, and in `slack` how much further than by rounding an output may be from it, relative to
    the largest. One with
    `looks_ahead` is given by `begin` what the block before has after its attention, whose result `forward` gives.
    """

    exactness: ClassVar[str] = "exact"
    own_engine: ClassVar[str | None] = None
    fixed: ClassVar[dict[str, Any]] = {}
    own_rule: ClassVar[bool] = False
    slack: ClassVar[float] = 0.0
    looks_ahead: ClassVar[bool] = False
    stateful: bool = True
    plan: Any = None  # what the last call decided, if anything: a new object each; set to an earlier one for `account`

    def __new__(cls, *, shape: LayerShape, group: dist.ProcessGroup, **options: Any) -> Self:
        cls.check(shape, group.size(), **cls.every_option(**options))
        return super().__new__(cls)

    def __init__(
        self,
        *,
        shape: LayerShape,
        weights: LayerWeights,
        group: dist.ProcessGroup,
        engine: Engine,
        span: Span = no_span,
    ) -> None:
        self.shape, self.group, self.engine, self.span = shape, group, engine, span
        self.rank, self.world_size = group.rank(), group.size()

    @classmethod
    def every_option(cls, **given: Any) -> dict[str, Any]:
        """The options given, and the constructors' defaults of the others."""
        constructors = [inspect.signature(base.__init__) for base in reversed(cls.__mro__) if "__init__" in vars(base)]
        every = [one for constructor in constructors for one in constructor.parameters.values()]
        return {one.name: one.default for one in every if one.default is not one.empty} | given | cls.fixed

    @classmethod
    def check(cls, shape: LayerShape, world_size: int, **options: Any) -> None:
        """Raise ValueError, in one sentence, if these sizes cannot run; called before anything is launched or built."""
        return

    @classmethod
    def hidden_width(cls, shape: LayerShape, world_size: int) -> int:
        """Width of the hidden layer that the engine sees."""
        return shape.d_ff

    @classmethod
    def padding(cls, shape: LayerShape, world_size: int, **options: Any) -> float:
        """Rows computed per useful row as far as it is known before routing; estimates of time rest on it."""
        return 1.0

    @classmethod
    def needs(cls, **options: Any) -> frozenset[str]:
        """What else a system with these options is built with: `rates` and `profile` (systems.planners.base), arguments
        of these names; `draws`: `shape.max_expert_tokens`, which a learned router cannot tell; `scores`: a routing
        with `logits_TE`.
        """
        return frozenset()

    @abstractmethod
    def forward(self, x_TD: torch.Tensor, routing: Routing) -> torch.Tensor:
        """y_TD: each token's weighted sum of its experts' outputs; a dropped token gives zero."""

    @abstractmethod
    def account(self, tokens_GE: torch.Tensor, element_size: int) -> Account:
        """What a call costs this rank when rank g brings tokens_GE[g, e] token copies for expert e.

        A system that decides call by call tells of the one whose `plan` it has.
        """

    def begin(self, x_TD: torch.Tensor, routing: Routing) -> None:
        """Start on these tokens, for a `forward` of them that comes later; of systems with `looks_ahead`."""
        raise NotImplementedError

    def go_on(self) -> None:
        """The block before is through; of systems with `looks_ahead`."""
        raise NotImplementedError

    def expected(self, x_TD: torch.Tensor, routing: Routing, dense: "Reference") -> torch.Tensor:
        """y_TD that the call whose `plan` this system has must give, by plain arithmetic on whole experts: what checks
        go by. Another system than the dense model only where the rule is approximate.
        """
        return dense.forward(x_TD, routing)

    def experts_held(self) -> float:
        """Whole experts' worth of weights on this rank, the most so far; a shard of 1/G counts 1/G."""
        return self.shape.num_experts / self.world_size

    def ffn_bytes(self, rows: float, num_experts: int, element_size: int, width: int | None = None) -> float:
        """Bytes that experts' products at least move: the weights of `num_experts` read once, and for each of `rows`
        x read, the hidden layer written and read, y written. Padding that is computed counts as rows. width: of the
        hidden layer, if it is not that which the engine sees everywhere (`hidden_width`).
        """
        width = width or self.hidden_width(self.shape, self.world_size)
        weights = num_experts * self.shape.expert_elements(width)
        return float(weights + rows * 2 * (self.shape.d_model + width)) * element_size


def divisible(name: str, value: int, world_size: int, why: str) -> None:
    """Raise ValueError unless `value` can be divided among the ranks."""
    if value % world_size:
        raise ValueError(f"{name} ({value}) must be divisible by cluster.world_size ({world_size}): {why}")
