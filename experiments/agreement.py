"""Did the systems of a launch compute the same thing at every timed iteration, and from the same inputs?

Letters in names: S systems, B sequences, L tokens of a sequence, T = B*L, D d_model.
"""

import hashlib
from collections import Counter
from collections.abc import Mapping
from functools import cache
from typing import Any

import torch
import torch.distributed as dist

from experiments.configuration import TOLERANCES
from experiments.records import Member
from systems.collectives import all_gather


def sketch(hidden_BLD: torch.Tensor) -> torch.Tensor:
    """float32 [B, L]: every token's last hidden state in a fixed random direction; NaN and infinity stay."""
    return hidden_BLD.float() @ _direction(hidden_BLD.shape[-1], hidden_BLD.device)


@cache
def _direction(d_model: int, device: torch.device) -> torch.Tensor:
    return torch.randn(d_model, generator=torch.Generator().manual_seed(0)).to(device)


def deviations(
    sketch_SBL: torch.Tensor, expert_SBX: torch.Tensor, voters: list[int] | None = None
) -> tuple[torch.Tensor, int]:
    """([S] each system's largest distance from the median system, relative to the largest value; tokens left out).

    The median is over `voters`, all by default: a system that is there twice has one vote.

    expert_SBX: the experts of a sequence's tokens in all layers. Left out are the sequences that some system routed
    otherwise, as a learned router may do with a tie when outputs differ by rounding.
    """
    same_B = (expert_SBX == expert_SBX[0]).flatten(2).all(2).all(0)
    left_out = int((expert_SBX != expert_SBX[0]).any(0).sum())
    compared_SN = sketch_SBL[:, same_B].flatten(1)
    if not compared_SN.numel():
        return torch.full((len(sketch_SBL),), torch.inf), left_out
    votes_SN = compared_SN if voters is None else compared_SN[voters]
    median_N = votes_SN.nanquantile(0.5, dim=0, interpolation="midpoint")  # one system's NaN condemns it alone
    scale = median_N.abs().max()
    return (compared_SN - median_N).abs().amax(1) / scale, left_out


def agree(
    sketches: dict[str, dict[int, torch.Tensor]],
    experts: dict[str, dict[int, torch.Tensor]],
    *,
    members: Mapping[str, Member],
    precision: str,
    num_layers: int,
    group: dist.ProcessGroup,
) -> dict[str, dict[str, Any]]:
    """By cell: how far its outputs are from those of the launch's other cells, on all ranks.

    sketches, experts: by cell and iteration. Each iteration is compared among the cells that had it; `iterations` says
    how many of a cell's were. Empty where fewer than two cells can be compared. A system that drops tokens computes
    something else: the caller leaves it out. The tolerance is that of one layer times the number of MoE layers.
    """
    cells = list(sketches)
    if len(cells) < 2:
        return {}
    worst, compared, left_out = dict.fromkeys(cells, torch.zeros(())), Counter[str](), 0
    for iteration in sorted(set().union(*sketches.values())):
        present = [cell for cell in cells if iteration in sketches[cell]]
        if len(present) < 2:
            continue
        voters = [place for place, cell in enumerate(present) if not members[cell].twin]
        sketch_SBL = torch.stack([sketches[cell][iteration] for cell in present]).cpu()
        expert_SBX = torch.stack([experts[cell][iteration] for cell in present]).cpu()
        error_S, tokens = deviations(sketch_SBL, expert_SBX, voters)
        left_out += tokens
        compared.update(present)
        worst |= {cell: torch.maximum(worst[cell], error) for cell, error in zip(present, error_S, strict=True)}
    mine = torch.stack([*worst.values(), torch.tensor(float(left_out))]).double()
    device = next(iter(next(iter(sketches.values())).values())).device
    ranks_GS = all_gather(mine.unsqueeze(0).to(device), group).cpu()
    tolerance = TOLERANCES[precision] * num_layers
    return {
        cell: {
            "with": [members[other].system.name for other in cells if other != cell],
            "iterations": compared[cell],
            "relative_error": error,
            "tolerance": tolerance,
            "tokens_routed_otherwise": int(ranks_GS[:, -1].sum()),
            "passed": error <= tolerance,
        }
        for cell, error in zip(cells, ranks_GS[:, :-1].amax(0).tolist(), strict=True)
    }


def digest_tensors(tensors: dict[str, torch.Tensor]) -> str:
    """16 hex digits of names and bytes."""
    found = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        found.update(name.encode())
        found.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()[:16]


def digest_strings(parts: list[str]) -> str:
    """16 hex digits of a list of strings."""
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]
