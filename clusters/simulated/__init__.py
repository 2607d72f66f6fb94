"""Ranks whose operations are priced on a described device instead of carried out.

The same program runs, unmodified, on every rank. Device tensors live on torch's `meta` device, so that activations and
weights have shapes only; ids, counts and masks keep their values (`values`). Every operation advances two clocks of
its rank, the host's and the device's (`timeline`), by what the described device says of it (`operations`); collectives
join the ranks' clocks (`group`). Ranks are threads that run one at a time (`ranks`), so a run is deterministic.
"""

from clusters.simulated.cluster import Simulated
from clusters.simulated.timeline import SimulatedClock

__all__ = ["Simulated", "SimulatedClock"]
