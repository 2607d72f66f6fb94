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


def paper_capacity_factor(num_experts: int) -> float:
    """min(E, 50): the rule of the MoEShard paper, section 4.1."""
    return float(min(num_experts, 50))


def lossless_capacity_factor(num_tokens: int, num_experts: int, max_expert_tokens: int) -> float:
    """A factor whose capacity ceil(T/E * factor) is exactly `max_expert_tokens`, in DeepSpeed's float32 too.

    It aims half a slot below the wanted capacity, so that rounding can push it over neither of the two whole numbers.
    """
    return (max(max_expert_tokens, 1) - 0.5) * num_experts / num_tokens


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
    return lossless_capacity_factor(shape.max_tokens, shape.num_experts, shape.max_expert_tokens)


class DeepSpeedMoE(System):
    """Expert parallelism over all ranks with a capacity: each rank computes E * C rows whatever the routing.

    capacity_factor: a number, "paper" for min(E, 50), or "lossless" for the smallest that drops no token of this
    workload, which only a router whose draws are known beforehand can tell. drop_tokens=False ignores it and takes
    the largest count of any rank and expert as the capacity (one all-reduce). Which tokens are dropped is
    DeepSpeed's choice.
    """

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
        """ValueError but for E/G experts a rank, a positive or named capacity, enough tokens and top-1 routing."""
        divisible(
            "model.num_experts", shape.num_experts, world_size, "expert parallelism puts E/G experts on each rank"
        )
        if capacity_factor not in ("paper", "lossless") and (isinstance(capacity_factor, str) or capacity_factor <= 0):
            raise ValueError(
                f"system.capacity_factor is {capacity_factor!r}; it must be a positive number, 'paper' or 'lossless'"
            )
        if shape.max_tokens < cls.MIN_CAPACITY:
            raise ValueError(
                f"batch_size * seq_len is {shape.max_tokens}; DeepSpeed needs at least {cls.MIN_CAPACITY} tokens a rank"
            )
        if shape.top_k != 1:
            raise ValueError(f"system deepspeed is driven with top-1 routing only, got top_k = {shape.top_k}")

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
            k=1,
            eval_capacity_factor=self._capacity_factor,
            min_capacity=self.MIN_CAPACITY,
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
        num_tokens, padding = len(x_TD), self.shape.max_tokens - len(x_TD)
        expert_T, used_T = routing.expert_TK.squeeze(1), None
        if padding:  # every rank must bring as many tokens; DeepSpeed routes only the used ones
            x_TD, expert_T = pad(x_TD, (0, 0, 0, padding)), pad(expert_T, (0, padding))
            used_T = (torch.arange(self.shape.max_tokens, device=x_TD.device) < num_tokens).long()
        self._moe.deepspeed_moe.gate.expert_T = expert_T
        y_TD = self._moe(x_TD, used_T)[0][:num_tokens]
        self._sections.leave()
        return y_TD * routing.weight_TK

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
        """C: slots per expert and source rank (DeepSpeed 0.19.8, `top1gating`)."""
        if not self._drop_tokens:
            return min(int(tokens_GE.max()), self.shape.max_tokens)
        per_expert = torch.tensor(self.shape.max_tokens / self.shape.num_experts) * torch.tensor(self._capacity_factor)
        return max(int(torch.ceil(per_expert)), self.MIN_CAPACITY)


class ExpertMLP(nn.Module):
    """An expert: act(x W_i + b_i) W_o + b_o."""

    def __init__(self, shape: LayerShape) -> None:
        super().__init__()
        self.activation = ACTIVATIONS[shape.activation]
        self.wi = nn.Linear(shape.d_model, self.activation.in_width(shape.d_ff), bias=shape.biased)
        self.wo = nn.Linear(shape.d_ff, shape.d_model, bias=shape.biased)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.wo(self.activation.function(self.wi(x)))


def _given_routing_gate(gate: Any) -> Any:
    """DeepSpeed's gate with its linear layer replaced by logits that name the experts we were given."""
    from deepspeed.moe.sharded_moe import TopKGate, top1gating

    class GivenRoutingGate(TopKGate):
        expert_T: torch.Tensor

        def forward(self, input, used_token=None, sparse_routes=False, use_tutel=False):
            """DeepSpeed's top-1 gate on logits so far apart that softmax gives the chosen expert all the weight."""
            num_experts = self.wg.weight.shape[0]
            logits_TE = one_hot(self.expert_T, num_experts).to(torch.float32) * LOGIT
            return top1gating(
                logits_TE,
                self.eval_capacity_factor,
                self.min_capacity,
                used_token,
                None,
                self.drop_tokens,
                self.use_rts,
                self.ep_group,
                sparse_routes,
                use_tutel,
            )

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
