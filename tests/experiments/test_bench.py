"""What a launch holds for its systems."""

from types import SimpleNamespace
from typing import Any

import pytest

from clusters.clocks import HostClock, VirtualClock
from experiments.profiler import Profiler


@pytest.mark.parametrize(
    ("clock", "link", "planned"),
    [
        (VirtualClock, 29.2e9, 29.2e9),
        (HostClock, 4**15 * 1.3, 4**15),
        (HostClock, 4**15 * 0.7, 4**15),
        (HostClock, None, float("inf")),  # one rank sends to nobody
        (VirtualClock, None, float("inf")),
    ],
)
def test_planners_are_told_a_modelled_link_as_it_is_and_measured_rates_roughly(clock, link, planned):
    ceilings = {"matmul_flops_per_s": 80e9, "link_bytes_per_s": link, "copy_bytes_per_s": 5e9, "operation_us": 3.0}
    program: Any = SimpleNamespace(session=SimpleNamespace(clock=object.__new__(clock)))
    assert Profiler(program, ceilings).rates == (4**18, planned, None, None, 4**16, 4**-9)
