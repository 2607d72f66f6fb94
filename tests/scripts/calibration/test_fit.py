"""What is fitted to timings: tables that ascend, the duplex, and the error on what the tables lack."""

from dataclasses import replace

import pytest

from clusters.network import Network
from scripts.calibration.cases import Timing
from scripts.calibration.fit import errors_of, fitted, tables_of


def timing(volume_bytes: int, median_us: float, use: str = "table", collective: str = "all_gather") -> Timing:
    """Of two ranks, where V is the bytes of the elements."""
    return Timing(collective, 2, volume_bytes // 4, use, median_us=median_us)


def test_table_ascends_where_measurements_do_not():
    points = [(4096, 30.04), (4, 10.0), (1024, 22.0), (2048, 20.0)]
    timings = [*(timing(*point) for point in points), timing(3000, 99.0, "between")]
    assert tables_of(timings) == {"all_gather": {2: [[4, 10.0], [1024, 21.0], [2048, 21.0], [4096, 30.0]]}}


def test_error_is_of_what_the_table_has_not_seen():
    timings = [timing(0, 10.0), timing(1000, 20.0), timing(500, 15.0, "between"), timing(800, 9.0, "between")]
    errors = errors_of(timings, Network("x", tables=tables_of(timings)))
    assert errors == {("all_gather", 2, "between", False): [(pytest.approx(0), 500), (pytest.approx(1), 800)]}


@pytest.mark.parametrize("duplex", [0.0, 0.3, 1.0])
def test_uneven_exchanges_decide_the_duplex(duplex: float):
    """Two ranks; what rank 0 receives and what it sends are 4 : 1, so V is 1 to 5/8 of the larger."""
    table = [timing(size, 10 + size / 100, collective="all_to_all") for size in (4, 1 << 12, 1 << 20)]
    share = duplex + (1 - duplex) * 5 / 8
    uneven = [timing(size, 10 + share * size / 100, "uneven", "all_to_all") for size in (1 << 12, 1 << 16, 1 << 20)]
    network = fitted([*table, *uneven], "n")
    (errors,) = errors_of([*table, *uneven], network).values()
    assert (
        network.duplex == pytest.approx(duplex) and max(abs(error) for error, _ in errors) < 1e-3
    )  # the table is to 0.1 us


def test_ranks_that_come_late_have_a_network_of_their_own():
    """Half as fast in both directions together; its check is held against it."""
    together = [timing(size, 10 + size / 100, collective="all_to_all") for size in (4, 1 << 12, 1 << 20)]
    uneven = timing(1 << 20, 10 + 5 / 8 * (1 << 20) / 50, "uneven", "all_to_all")
    late = [replace(one, median_us=10 + one.volume_bytes / 50, late=True) for one in together]
    timings = [*together, *late, replace(uneven, late=True)]
    network = fitted(timings, "n", "here")
    assert network.late is not None and (network.duplex, network.late.duplex) == (1, 0)
    assert network.seconds("all_to_all", (1 << 20,), 2) == pytest.approx((10 + (1 << 20) / 100) * 1e-6, rel=1e-3)
    assert network.late.seconds("all_to_all", (1 << 20,), 2) == pytest.approx((10 + (1 << 20) / 50) * 1e-6, rel=1e-3)
    ((error, _),) = errors_of(timings, network)["all_to_all", 2, "uneven", True]
    assert abs(error) < 1e-3


def test_large_uneven_exchanges_outvote_small_ones():
    table = [timing(size, 10 + size / 100, collective="all_to_all") for size in (4, 1 << 12, 1 << 20)]
    uneven = [
        timing(size, 10 + share * size / 100, "uneven", "all_to_all")
        for size, share in ((1 << 8, 1), (1 << 9, 1), (1 << 10, 1), (1 << 20, 5 / 8))
    ]
    assert fitted([*table, *uneven], "n").duplex == 0
