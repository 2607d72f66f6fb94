"""Time a collective that computation hides, on a real cluster or emulated, to hold one against the other.

    python -m scripts.two_hosts --rate 1gbit -m scripts.check_overlap --out real.csv
    python -m scripts.check_overlap --network conf/network/hosts_1gbit.yaml --out emulated.csv --against real.csv

For each share of the transfer's own time: issue an all-gather asynchronously, compute that long, wait. An ideal link
takes max(transfer, computation); a network card that works by itself comes close, a CPU that moves the data does not.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch
import torch.distributed as dist
import yaml

from clusters.launch import launch, prepare
from clusters.network import Network, NetworkModel
from clusters.session import ClusterSpec, Session, connect
from experiments.configuration import instantiate

SHARES = (0.0, 0.25, 0.5, 1.0, 1.5, 2.0)  # of the transfer's own time, computed meanwhile
PART_BYTES = 4 << 20  # of each rank
ROUNDS = 15
SIDE = 128  # of the matrix product that computation is made of


def measure(session: Session) -> pd.DataFrame:
    """Rows share, compute_ms, transfer_ms, overlapped_ms: medians over rounds of the slowest rank."""
    timer = _Timer(session)
    x = torch.ones(PART_BYTES // 4)
    with session.clock.running():
        for products in (0, 1):  # connections and buffers
            timer.time(x, products)
        transfer_ms = timer.median(x, products=0)
        product_ms = timer.median(None, products=200) / 200
        rows = []
        for share in SHARES:
            products = round(share * transfer_ms / product_ms)
            times = {"compute_ms": timer.median(None, products), "overlapped_ms": timer.median(x, products)}
            rows.append({"share": share, "transfer_ms": timer.median(x, products=0)} | times)
    return pd.DataFrame(rows)


class _Timer:
    def __init__(self, session: Session) -> None:
        self._session = session
        self._a, self._b = torch.ones(SIDE, SIDE), torch.ones(SIDE, SIDE)

    def time(self, x: torch.Tensor | None, products: int) -> tuple[Any, Any]:
        """Marks around: issue an all-gather of x if there is one, compute, wait for it."""
        gather, group = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor, self._session.group
        out = None if x is None else torch.empty(group.size() * len(x))
        dist.all_reduce(torch.zeros(1), group=group)
        start = self._session.clock.mark()
        work = None if x is None else gather(out, x, group=group, async_op=True)
        for _ in range(products):
            torch.mm(self._a, self._b)
        if work is not None:
            work.wait()
        return start, self._session.clock.mark()

    def median(self, x: torch.Tensor | None, products: int) -> float:
        """Of ROUNDS, in ms; the slowest rank's."""
        seconds = [self._session.clock.seconds(*self.time(x, products)) for _ in range(ROUNDS)]
        slowest = torch.tensor(seconds).median()
        dist.all_reduce(slowest, op=dist.ReduceOp.MAX, group=self._session.group)
        return float(slowest) * 1e3


def run_rank(network_path: str, out: str) -> None:
    """Rank entry on an emulated cluster."""
    _run(ClusterSpec("emulated", 2, concurrent_ranks=None), read_network(network_path), Path(out))


def _run(spec: ClusterSpec, network: NetworkModel, out: Path) -> None:
    with connect(spec, network, out.with_suffix(".device_lock")) as session:
        rows = measure(session)
    if session.rank == 0:
        rows.to_csv(out, index=False)
        print(rows.round(2).to_string(index=False))


def read_network(path: str) -> NetworkModel:
    """A network from a file without Hydra defaults, as calibrate_network writes them."""
    return instantiate(yaml.safe_load(Path(path).read_text()))


def against(emulated: pd.DataFrame, real: pd.DataFrame) -> pd.DataFrame:
    """What the emulator's rule says of the real run's own transfer and computation, beside what it measured."""
    predicted_ms = real[["transfer_ms", "compute_ms"]].max(axis=1)
    rows = real.assign(predicted_ms=predicted_ms, error=predicted_ms / real["overlapped_ms"] - 1)
    emulated_ms = emulated["overlapped_ms"]
    return rows.assign(emulated_ms=emulated_ms, emulated_error=emulated_ms / real["overlapped_ms"] - 1)


def main(arguments: Sequence[str] | None = None) -> int:
    """Inside a torchrun launch be one of its ranks; else emulate two ranks on the network given."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--network", help="a file of conf/network: emulate two ranks on it")
    parser.add_argument("--against", type=Path, help="the real run's CSV")
    given = parser.parse_args(arguments)
    if given.network is None:
        _run(ClusterSpec("torchrun", 2, "cpu", threads=1), Network("none"), given.out)
        return 0
    prepare(ClusterSpec(), ["scripts.check_overlap"])
    launch(ClusterSpec("emulated", 2, concurrent_ranks=None), run_rank, given.network, str(given.out))
    emulated = pd.read_csv(given.out)
    told = emulated if given.against is None else against(emulated, pd.read_csv(given.against))
    told.to_csv(given.out, index=False)
    print(told.round(3).to_string(index=False))
    return 0


if __name__ == "__main__":
    from scripts import check_overlap  # ranks cannot import a function of the main module

    raise SystemExit(check_overlap.main())
