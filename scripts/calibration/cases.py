"""Which calls calibrate a network: collectives of many sizes, for its tables or to check them.

Letters in names: G ranks.
"""

from dataclasses import dataclass, replace

ITEMSIZE = 4  # float32
COLLECTIVES = ("all_gather", "reduce_scatter", "all_to_all", "all_reduce", "broadcast")
HOT = 4  # an uneven exchange sends rank 0 so many times what it sends to each other rank


@dataclass(frozen=True)
class Case:
    """A collective of one size.

    elements: of a rank's part (its input of an all-gather, its output of a reduce-scatter, what it sends to each rank
    in an all-to-all), else of the whole tensor. use: table, between (a size that the table lacks) or uneven. late:
    whether one rank comes after the others.
    """

    collective: str
    ranks: int
    elements: int
    use: str = "table"
    late: bool = False

    @property
    def volume_bytes(self) -> int:
        """V, as clusters/network.py defines it."""
        return round(volume_factor(self.collective, self.ranks) * self.elements * ITEMSIZE)


@dataclass(frozen=True, kw_only=True)
class Timing(Case):
    """A case and the median of its calls."""

    median_us: float


def volume_factor(collective: str, ranks: int) -> float:
    """V over the bytes of `Case.elements`."""
    return {"all_reduce": 2 * (ranks - 1) / ranks, "broadcast": 1}.get(collective, ranks - 1)


def cases_for(ranks: int, max_bytes: int, device: str) -> list[Case]:
    """All sizes for ranks that come together and, on CPUs, for one late; a host that is late does not delay a GPU."""
    lates = (False, True) if device == "cpu" else (False,)
    return [replace(case, late=late) for late in lates for case in sizes_for(ranks, max_bytes)]


def sizes_for(ranks: int, max_bytes: int) -> list[Case]:
    """One element, then V = 1 KiB, 2 KiB, ... max_bytes; between them sizes to check; uneven exchanges."""
    doubling = [1024 << step for step in range((max_bytes // 1024).bit_length())]
    between = [512, *(round(size * 2**0.5) for size in doubling[:-1])]
    cases = []
    for collective in COLLECTIVES:
        per_element = volume_factor(collective, ranks) * ITEMSIZE
        table = {1, *(max(1, round(size / per_element)) for size in doubling)}
        held_out = {max(1, round(size / per_element)) for size in between} - table
        cases += [Case(collective, ranks, elements) for elements in sorted(table)]
        cases += [Case(collective, ranks, elements, "between") for elements in sorted(held_out)]
        if collective == "all_to_all":
            cases += [Case(collective, ranks, elements, "uneven") for elements in sorted(table) if elements >= HOT]
    return cases


def uneven_splits(elements: int, ranks: int, rank: int) -> tuple[list[int], list[int]]:
    """(received_G, sent_G) of an exchange whose busiest rank is the receiver 0; so it is with a hot expert."""
    share_G = [elements, *[elements // HOT] * (ranks - 1)]
    return [share_G[rank]] * ranks, share_G
