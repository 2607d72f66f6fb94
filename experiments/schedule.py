"""In which order the systems of a point take turns."""

import random
from collections.abc import Iterator


def interleave(cells: list[str], iterations: int, block: int, seed: int) -> Iterator[tuple[str, range]]:
    """Blocks of iterations, A B C C B A ...: every system runs each block's iterations before the next block.

    The first order is drawn from the seed and then reversed at each block, so that slow drift of the machine meets
    all systems alike.
    """
    order = sorted(cells)
    random.Random(seed).shuffle(order)
    for start in range(0, iterations, block):
        for cell in order:
            yield cell, range(start, min(start + block, iterations))
        order.reverse()
