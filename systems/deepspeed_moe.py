"""DeepSpeed-MoE: the real `deepspeed.moe.layer.MoE`, its gating, dispatch and combine, on our routing and weights."""

import os
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.functional import one_hot, pad

from routers.base import Routing
from systems.base import Account, LayerShape, LayerWeights, Span, System, divisible
from systems.engines import ACTIVATIONS

LOGIT = 1e4  # makes DeepSpeed's softmax exactly one-hot, so that its gate weight is 1 and ours can be applied
LEAST = 1e-30  # a gate weight that has vanished is still that of an expert that was chosen


def paper_capacity_factor(num_experts: int) -> float:
    """min(E, 50): the rule of the MoEShard paper, section 4.1."""
    return float(min(num_experts, 50))


def lossless_capacity_factor(num_tokens: int, num_experts: int, max_expert_tokens: int, top_k: int = 1) -> float:
    """A factor whose capacity ceil(T/E * K * factor) is exactly `max_expert_tokens`, in DeepSpeed's float32 too.

    It aims half a slot below the wanted capacity, so that rounding can push it over neither of the two whole numbers.
    """
    return (max(max_expert_tokens, 1) - 0.5) * num_experts / (num_tokens * top_k)


def resolve_capacity_factor(capacity_factor: float | str, shape: LayerShape) -> float:
    """The number that an option stands for. Raises ValueError where "lossless" cannot be told."""
    if capacity_factor == "paper":
        return paper_capacity_factor(shape.num_experts)
    if capacity_factor != "lossless":
        return float(capacity_factor)
    if shape.max_expert_tokens is None:
        raise ValueError(
            "system.capacity_factor is 'lossless'; it must be a number or 'paper' where the router's draws are not "
            "known before it runs"
        )
    return lossless_capacity_factor(shape.max_tokens, shape.num_experts, shape.max_expert_tokens, shape.top_k)


class DeepSpeedMoE(System):
    """Expert parallelism over all ranks with a capacity: each rank computes E * C rows whatever the routing.

    capacity_factor: a number, "paper" for min(E, 50), or "lossless" for the smallest that drops no token of this
    workload, which only a router whose draws are known beforehand can tell; DeepSpeed multiplies it by K.
    drop_tokens=False ignores it and takes the largest count of any rank and expert as the capacity (one all-reduce).

    Each K has DeepSpeed's own gate: `top1gating`, `top2gating` without its random second expert, `topkgating`. Which
    copies are dropped is DeepSpeed's choice: of top-1 the last tokens, of top-2 the last second choices first, beyond
    that the least probable ones. Its gates of K > 1 give the weight of a dropped copy to the token's others.
    """

    stateful = False

    own_engine = "deepspeed"
    MIN_CAPACITY = 4  # DeepSpeed's default

    def __init__(self, *, capacity_factor: float | str = "paper", drop_tokens: bool = True, **layer) -> None:
        super().__init__(**layer)
        self._drop_tokens = drop_tokens
        self._capacity_factor = resolve_capacity_factor(capacity_factor, self.shape)
        self._sections = _Sections(self.span)
        self._moe = self._build(layer["weights"])

    @classmethod
    def check(cls, shape: LayerShape, world_size: int, *, capacity_factor: float | str, **_: Any) -> None:
        """ValueError but for E/G experts a rank, a positive or named capacity, and of top-1 enough tokens."""
        divisible(
            "model.num_experts", shape.num_experts, world_size, "expert parallelism puts E/G experts on each rank"
        )
        if capacity_factor not in ("paper", "lossless") and (isinstance(capacity_factor, str) or capacity_factor <= 0):
            raise ValueError(
                f"system.capacity_factor is {capacity_factor!r}; it must be a positive number, 'paper' or 'lossless'"
            )
        if shape.top_k == 1 and shape.max_tokens < cls.MIN_CAPACITY:
            raise ValueError(
                f"a rank brings {shape.max_tokens} tokens to an MoE layer; DeepSpeed's top-1 gate needs at least "
                f"{cls.MIN_CAPACITY}"
            )

    @classmethod
    def needs(cls, *, capacity_factor: float | str, drop_tokens: bool, **_: Any) -> frozenset[str]:
        return frozenset({"draws"} if capacity_factor == "lossless" and drop_tokens else ())

    @classmethod
    def padding(
        cls, shape: LayerShape, world_size: int, *, capacity_factor: float | str, drop_tokens: bool, **_: Any
    ) -> float:
        unknown = capacity_factor == "lossless" and shape.max_expert_tokens is None
        if unknown or not drop_tokens:
            return 1.0  # as many as the busiest expert gets: at least this
        return resolve_capacity_factor(capacity_factor, shape)

    def _build(self, weights: LayerWeights) -> Any:
        os.environ.setdefault("DS_ACCELERATOR", "cuda" if torch.cuda.is_available() else "cpu")
        import deepspeed
        from deepspeed.moe.layer import MoE

        # A shared-memory all-reduce that DeepSpeed would compile on first use and that no MoE layer calls.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        if not deepspeed.comm.is_initialized():
            deepspeed.comm.init_distributed(dist_backend=dist.get_backend(self.group), auto_mpi_discovery=False)
        num_local = self.shape.num_experts // self.world_size
        first = self.rank * num_local
        placed = weights.experts(list(range(first, first + num_local)))
        with torch.device("meta"):
            expert = ExpertMLP(self.shape)
        moe: Any = MoE(
            hidden_size=self.shape.d_model,
            expert=expert,
            num_experts=self.shape.num_experts,
            ep_size=self.world_size,
            k=self.shape.top_k,
            eval_capacity_factor=self._capacity_factor,
            # Ranks with fewer tokens have the others' capacity; of top-1 all bring as many.
            min_capacity=self.MIN_CAPACITY if self.shape.top_k == 1 else self._fixed_capacity,
            drop_tokens=self._drop_tokens,
            use_rts=False,
        )
        for local, mlp in enumerate(moe.deepspeed_moe.experts.deepspeed_experts):
            for linear, weight_eXX in ((mlp.wi, placed[0]), (mlp.wo, placed[1])):
                linear.weight = nn.Parameter(weight_eXX[local].T.contiguous(), requires_grad=False)
            for linear, bias_eX in zip((mlp.wi, mlp.wo), placed[2:], strict=False):
                linear.bias = nn.Parameter(bias_eX[local], requires_grad=False)
        moe.deepspeed_moe.gate = gate = _given_routing_gate(moe.deepspeed_moe.gate)
        moe.set_deepspeed_parallelism()
        gate.register_forward_pre_hook(lambda *_: self._sections.enter("route"))
        gate.register_forward_hook(lambda *_: self._sections.enter("dispatch"))
        moe.deepspeed_moe.experts.register_forward_pre_hook(lambda *_: self._sections.enter("experts"))
        moe.deepspeed_moe.experts.register_forward_hook(lambda *_: self._sections.enter("combine"))
        return moe.eval()

    def forward(self, x_TD: torch.Tensor, routing: Routing) -> torch.Tensor:
        """DeepSpeed weighs in parts of a token's sum of weights, which is applied here."""
        (num_tokens, top_k), expert_TK, used_T = routing.expert_TK.shape, routing.expert_TK, None
        if top_k == 1 and (padding := self.shape.max_tokens - num_tokens):  # which its other gates do not need
            x_TD, expert_TK = pad(x_TD, (0, 0, 0, padding)), pad(expert_TK, (0, 0, 0, padding))
            used_T = (torch.arange(self.shape.max_tokens, device=x_TD.device) < num_tokens).long()
        self._moe.deepspeed_moe.gate.given = Routing(expert_TK, routing.weight_TK)
        y_TD = self._moe(x_TD, used_T)[0][:num_tokens]
        self._sections.leave()
        return y_TD * routing.weight_TK.sum(1, keepdim=True)

    def account(self, tokens_GE: torch.Tensor, element_size: int) -> Account:
        """Every expert's buffer is sent both ways and computed in full, whatever of it is filled."""
        capacity = self.capacity(tokens_GE)
        own = slice(self.rank * (n := self.shape.num_experts // self.world_size), (self.rank + 1) * n)
        rows = float(self.shape.num_experts * capacity)
        away = (self.world_size - 1) / self.world_size
        sent = 2 * away * rows * self.shape.d_model * element_size
        agreed = 0 if self._drop_tokens else 2 * away * 8  # an all-reduce of the capacity, one int64
        return Account(
            rows_computed=rows,
            rows_useful=float(tokens_GE[:, own].clamp(max=capacity).sum()),
            dropped=int((tokens_GE[self.rank] - capacity).clamp(min=0).sum()),
            bytes_sent=sent + agreed,
            memory_bytes=self.ffn_bytes(rows, n, element_size),  # an expert's slots are computed, filled or not
        )

    def capacity(self, tokens_GE: torch.Tensor) -> int:
        """C: slots per expert and source rank."""
        return self._fixed_capacity if self._drop_tokens else min(int(tokens_GE.max()), self.shape.max_tokens)

    @property
    def _fixed_capacity(self) -> int:
        """That of a rank with most tokens (DeepSpeed 0.19.8, `_capacity`)."""
        shape, factor = self.shape, torch.tensor(self._capacity_factor * self.shape.top_k)
        return max(int(torch.ceil(shape.max_tokens / shape.num_experts * factor)), self.MIN_CAPACITY)


class ExpertMLP(nn.Module):
    """An expert: act(x W_i + b_i) W_o + b_o."""

    def __init__(self, shape: LayerShape) -> None:
        super().__init__()
        self.activation = ACTIVATIONS[shape.activation]
        self.wi = nn.Linear(shape.d_model, self.activation.in_width(shape.d_ff), bias=shape.biased)
        self.wo = nn.Linear(shape.d_ff, shape.d_model, bias=shape.biased)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.wo(self.activation.function(self.wi(x)))


def logits_of(routing: Routing, num_experts: int) -> torch.Tensor:
    """logits_TE, whose softmax is a token's gate weights in parts of their sum, and zero where it does not go."""
    log_TK = routing.weight_TK.float().clamp(min=LEAST).log()
    nothing_TE = log_TK.new_full((len(log_TK), num_experts), -torch.inf)
    return nothing_TE.scatter(1, routing.expert_TK, log_TK)


def _given_routing_gate(gate: Any) -> Any:
    """DeepSpeed's gate with its linear layer replaced by logits that name the experts we were given."""
    from deepspeed.moe.sharded_moe import TopKGate, top1gating, top2gating, topkgating

    class GivenRoutingGate(TopKGate):
        given: Routing

        def forward(self, input, used_token=None, sparse_routes=False, use_tutel=False):
            """TopKGate's in evaluation mode; the logits of top-1 are so far apart that softmax makes them one-hot."""
            num_experts, capacity = self.wg.weight.shape[0], (self.eval_capacity_factor, self.min_capacity)
            if self.k == 1:
                logits_TE = one_hot(self.given.expert_TK.squeeze(1), num_experts).to(torch.float32) * LOGIT
                random = (self.use_rts, self.ep_group, sparse_routes, use_tutel)
                return top1gating(logits_TE, *capacity, used_token, None, self.drop_tokens, *random)
            logits_TE, shared = logits_of(self.given, num_experts), (self.drop_tokens, self.ep_group)
            if self.k == 2:  # no second expert but the one given
                return top2gating(
                    logits_TE, *capacity, *shared, top2_2nd_expert_sampling=False, sparse_routes=sparse_routes
                )
            return topkgating(logits_TE, self.k, *capacity, *shared, sparse_routes=sparse_routes)

    gate.__class__ = GivenRoutingGate
    return gate


class _Sections:
    """Opens one span where the last one ends, because DeepSpeed's forward is one call."""

    def __init__(self, span: Span) -> None:
        self._span, self._open = span, None

    def enter(self, section: str) -> None:
        self.leave()
        self._open = self._span(section)
        self._open.__enter__()

    def leave(self) -> None:
        if self._open is not None:
            self._open.__exit__(None, None, None)
            self._open = None
