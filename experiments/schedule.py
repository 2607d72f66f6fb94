"""In which order the systems of a point take turns, and how long a turn is."""

import random
from collections.abc import Iterator, Mapping

from experiments.records import Tier

PROFILED = 4  # batches that placements are made from beforehand; their tokens follow those of the last phase


def iterations_of(tier: Tier) -> dict[str, range]:
    """The iterations of each phase: no two share one, so that nothing kept from one phase can serve another.

    The timed phases have room for the longest turns. The first forward pass, which is compared with the dense model, is
    the first of warmup, which is never empty here.
    """
    room = tier.rounds * tier.longest_turn
    ranges, start = {}, 0
    for phase, length in {"measure": room, "instrumented": room, "warmup": tier.warmup + 1}.items():
        ranges[phase] = range(start, start + length)
        start += length
    return ranges


def turns_of(ttft_s: Mapping[str, float], tier: Tier) -> dict[str, int]:
    """How many forward passes each system has in a round, by how long one takes.

    As many as fill `turn_s`, at least one and at most `longest_turn`: little wall time then narrows the intervals of
    fast systems, whose few milliseconds vary most.
    """
    return {cell: max(1, min(tier.longest_turn, round(tier.turn_s / s))) for cell, s in ttft_s.items()}


def interleave(turns: Mapping[str, int], rounds: int, seed: int, first: int = 0) -> Iterator[list[tuple[str, int]]]:
    """The forward passes of each round, as (system, iteration): [A B C] [C B A] ..., where all have one a round.

    turns: how many each system has in a round. They are spread over it, A B C B A B, because passes that follow one
    another share what disturbs them. first: the number of everyone's first iteration. The first order is drawn from the
    seed and then reversed each time, so that slow drift of the machine meets all systems alike.
    """
    order = sorted(turns)
    random.Random(seed).shuffle(order)
    for place in range(rounds):
        visits = []
        for lap in range(max(turns.values(), default=0)):
            visits += [(cell, first + place * turns[cell] + lap) for cell in order if lap < turns[cell]]
            order.reverse()
        yield visits
