"""Make a routing trace of the loads that the paper's authors recorded with the learned router of Switch-Base.

    git clone https://github.com/sacs-epfl/moe-inference CHECKOUT
    python -m scripts.import_routing_traces CHECKOUT OUT.csv.gz [--dataset cocktail] [--iterations 12]

Reads the runs under CHECKOUT/outputs/ that ran on one GPU, without router skew, on the data set asked for, and that
noted tokens per expert: `*/*/data.json` says what ran, `0/moe_l<block>.csv` has a row for each iteration after warm-up.
The decoder's layers (`moe_l<block>_decode.csv`, one token a sequence) are left out.
"""

import argparse
import gzip
import json
from collections.abc import Iterator
from pathlib import Path

import pandas as pd

from routers.trace import COLUMNS

TOKENS = "tokens per expert"


def find_runs(checkout: Path, dataset: str) -> dict[int, Path]:
    """The folder of the run with each number of experts; ValueError where there is none, or more than one."""
    runs: dict[int, Path] = {}
    for found in sorted(checkout.glob("outputs/*/*/data.json")):
        settings = json.loads(found.read_text())
        wanted = settings.get("dataset") == dataset and settings.get("world_size") == 1
        if wanted and not settings.get("enable_router_skew") and has_tokens(found.parent):
            earlier = runs.setdefault(settings["num_experts"], found.parent)
            if earlier != found.parent:
                raise ValueError(
                    f"{earlier} and {found.parent} are both on {dataset} with {settings['num_experts']} experts"
                )
    if not runs:
        raise ValueError(
            f"{checkout} has no outputs/*/*/data.json with dataset {dataset!r}, world_size 1 and no router skew "
            f"beside which 0/moe_l1.csv has a column {TOKENS!r}"
        )
    return runs


def has_tokens(run: Path) -> bool:
    """Whether any file of the encoder's layers counts tokens per expert."""
    return any(TOKENS in pd.read_csv(path, nrows=0).columns for path in encoder_layers(run).values())


def encoder_layers(run: Path) -> dict[int, Path]:
    """The file of each MoE layer of the encoder, by block."""
    found = {path.stem.removeprefix("moe_l"): path for path in (run / "0").glob("moe_l*.csv")}
    return {int(block): path for block, path in found.items() if block.isdigit()}


def read_run(num_experts: int, run: Path, iterations: int | None) -> Iterator[tuple[int, int, int, str]]:
    """Rows of the trace: the first `iterations` recorded of every layer, or all."""
    for block, path in encoder_layers(run).items():
        recorded = pd.read_csv(path).sort_values("iteration")[:iterations]
        for iteration, tokens in zip(recorded["iteration"], recorded[TOKENS], strict=True):
            yield num_experts, block, int(iteration), " ".join(map(str, json.loads(tokens)))


def write_trace(rows: pd.DataFrame, out: Path) -> None:
    """The same rows give the same bytes."""
    text = rows.sort_values(list(COLUMNS[:3])).to_csv(index=False, columns=list(COLUMNS), lineterminator="\n")
    out.write_bytes(gzip.compress(text.encode(), mtime=0))


def main() -> None:
    """Read the authors' checkout and write one trace."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkout", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--dataset", default="cocktail", help="`dataset` in data.json (cocktail)")
    parser.add_argument("--iterations", type=int, help="keep the first so many recorded iterations (all)")
    arguments = parser.parse_args()
    try:
        runs = find_runs(arguments.checkout, arguments.dataset)
    except ValueError as error:
        raise SystemExit(f"error: {error}") from None
    rows = [row for experts, run in runs.items() for row in read_run(experts, run, arguments.iterations)]
    write_trace(pd.DataFrame(rows, columns=list(COLUMNS)), arguments.out)
    print(f"{len(rows)} rows of num_experts {', '.join(map(str, sorted(runs)))} in {arguments.out}")


if __name__ == "__main__":
    main()
