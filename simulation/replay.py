"""Price the recorded collectives of an emulated run on another network; computation stays what was measured.

What a rank computes between two collectives does not depend on the network, so a layer's time on any other follows
from the recorded times by the emulator's own rules (docs/emulation.md): a collective begins when its last rank has
issued it and the link is free, takes what the network says of ranks that come so far apart, and a rank that waits for
one goes on when it has finished.
Letters: K collectives of a layer, G ranks.
"""

from dataclasses import dataclass

import numpy as np

from clusters.network import NetworkModel
from simulation.recorded import LayerRun


@dataclass
class RankClock:
    """One rank's way through a layer: the recorded time and what it becomes."""

    finished_K: np.ndarray  # recorded
    waits: list[tuple[float, int]]  # (recorded time, collective), the next one last
    recorded_ms: float = 0.0
    replayed_ms: float = 0.0

    def compute_until(self, recorded_ms: float) -> float:
        """Compute up to a recorded moment; returns that moment in replayed time."""
        self.replayed_ms += recorded_ms - self.recorded_ms
        self.recorded_ms = recorded_ms
        return self.replayed_ms

    def wait_before(self, recorded_ms: float, replayed_K: np.ndarray) -> None:
        """Go through all waits before a recorded moment, each until its collective has finished.

        A wait at the very moment of an issue came with it: a synchronous collective waits for those before it.
        """
        while self.waits and self.waits[-1][0] < recorded_ms:
            waited_ms, k = self.waits.pop()
            self.replayed_ms = max(self.compute_until(waited_ms), replayed_K[k])
            self.recorded_ms = max(waited_ms, self.finished_K[k])


def replay(run: LayerRun, network: NetworkModel) -> np.ndarray:
    """Milliseconds [G] that each rank spends in the layer on `network`; on the recorded one, those recorded.

    Raises ValueError where the network does not know so many ranks.
    """
    replayed_K, link_free_ms = np.full(len(run.collectives), np.nan), 0.0
    clocks = [RankClock(run.finished_KG[:, rank], waits_of(run, rank)) for rank in range(run.ranks)]
    for k, (collective, sent_GG) in enumerate(zip(run.collectives, run.sent_KGG, strict=True)):
        for clock, issued_ms in zip(clocks, run.issued_KG[k], strict=True):
            clock.wait_before(issued_ms, replayed_K)
        issued = [clock.compute_until(ms) for clock, ms in zip(clocks, run.issued_KG[k], strict=True)]
        ready_G = np.maximum(issued, link_free_ms)
        link_free_ms = replayed_K[k] = ready_G.max() + transfer_ms(network, collective, sent_GG, np.ptp(ready_G))
    for clock in clocks:
        clock.wait_before(np.inf, replayed_K)
    left = [clock.compute_until(ms) for clock, ms in zip(clocks, run.left_G, strict=True)]
    return np.array(left) - run.entered_G


def waits_of(run: LayerRun, rank: int) -> list[tuple[float, int]]:
    """The waits of one rank, the last first."""
    waited_K = run.waited_KG[:, rank]
    return sorted(((float(ms), k) for k, ms in enumerate(waited_K) if not np.isnan(ms)), reverse=True)


def transfer_ms(network: NetworkModel, collective: str, sent_GG: np.ndarray, spread_ms: float = 0.0) -> float:
    """Milliseconds of a collective, once begun, that moves sent_GG[g, h] bytes from rank g to rank h.

    spread_ms: from when the first rank is ready for it to when the last one is.
    """
    ranks = len(sent_GG)
    network = network.when(collective, ranks, spread_ms / 1e3)
    return 1e3 * network.seconds(collective, network.volumes(collective, sent_GG, range(ranks)), ranks)
