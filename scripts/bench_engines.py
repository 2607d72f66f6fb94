"""Time the engines on the same expert FFN in turns, in percent of a dense product of the same size.

    python -m scripts.bench_engines --out results/bench-engines

Dense: all rows through one expert, by the fastest way that torch has here, in the same rounds. A share is the median
over rounds of dense time / engine time, with its quartiles. An engine is timed from the tokens' experts to the
weighted results: sorting, both products, and everything back in order. Peer: Hugging Face's own loop over experts
(SwitchTransformersExperts), which computes the same from the same weights and experts.
"""

import argparse
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from tqdm import tqdm
from transformers import SwitchTransformersConfig
from transformers.models.switch_transformers.modeling_switch_transformers import SwitchTransformersExperts

from analysis.tables import Table, write_tables
from experiments.configuration import TOLERANCES, set_precision
from systems.engines import ACTIVATIONS, ENGINES, Copies, find_engine
from systems.engines.activations import expert_ffn
from systems.engines.base import DTYPES

ROUTINGS = {"uniform": 0.0, "skewed": 0.6}  # extra weight of the hot tenth of the experts, as the paper's alpha_r
D_MODEL = 768
FEWEST = 9  # rounds
DOWN, ACROSS = ["activation", "precision", "routing"], ["width", "tokens"]  # panels of the figure
Call = Callable[[], torch.Tensor]


@dataclass(frozen=True)
class Case:
    """One expert FFN: `tokens` rows of 768 over `num_experts` experts whose hidden layer has `width` units.

    activation: what stands between the products (systems.engines.activations); a gated one has three, not two.
    """

    precision: str
    num_experts: int
    width: int
    tokens: int
    routing: str
    activation: str = "relu"

    @property
    def in_width(self) -> int:
        """Columns of W_i."""
        return ACTIVATIONS[self.activation].in_width(self.width)

    @property
    def flops(self) -> float:
        """Of all products."""
        return 2.0 * self.tokens * D_MODEL * (self.in_width + self.width)


class Workload:
    """Tokens, routing and weights of a case; every engine gets the same."""

    def __init__(self, case: Case, device: torch.device) -> None:
        self.case, self.device = case, device
        generator = torch.Generator().manual_seed(0)
        weight_E = torch.ones(case.num_experts)
        weight_E[: max(1, case.num_experts // 10)] += ROUTINGS[case.routing] * case.num_experts
        self.expert_N = torch.multinomial(weight_E, case.tokens, replacement=True, generator=generator).to(device)
        x_ND = torch.randn(case.tokens, D_MODEL, generator=generator)
        self.x_ND = x_ND.to(device, DTYPES[case.precision])
        self.ones_N1 = self.x_ND.new_ones(case.tokens, 1)  # weights of the choices
        self.wi_eDF = self._weights(D_MODEL, case.in_width, generator)
        self.wo_eFD = self._weights(case.width, D_MODEL, generator)

    def _weights(self, rows: int, columns: int, generator: torch.Generator) -> torch.Tensor:
        """One random matrix for all experts, each with a scale and memory of its own."""
        one = torch.randn(rows, columns, generator=generator).to(self.device, DTYPES[self.case.precision]) / rows**0.5
        scale_E = torch.linspace(0.5, 1.5, self.case.num_experts).to(one)
        return one * scale_E[:, None, None]

    def dense(self) -> dict[str, Call]:
        """Ways to put every row through expert 0."""
        wi_DF, wo_FD = self.wi_eDF[0].contiguous(), self.wo_eFD[0].contiguous()
        activation = ACTIVATIONS[self.case.activation]
        ways: dict[str, Call] = {"dense mm": lambda: expert_ffn(self.x_ND, activation, wi_DF, wo_FD)}
        if self.device.type == "cpu" and _packs(self.x_ND.dtype):
            wi_FD, wo_DF = (torch.ops.mkldnn._reorder_linear_weight(w.mT.contiguous()) for w in (wi_DF, wo_FD))
            linear, after = torch.ops.mkldnn._linear_pointwise, "none" if activation.gated else "relu"

            def fused() -> torch.Tensor:
                hidden_NF = linear(self.x_ND, wi_FD, None, after, [], "")
                hidden_NF = activation.function(hidden_NF) if activation.gated else hidden_NF
                return linear(hidden_NF, wo_DF, None, "none", [], "")

            ways["dense oneDNN"] = fused
        return ways

    def engine(self, name: str) -> Call:
        engine = find_engine(name, self.case.activation)
        engine.check(self.device, self.x_ND.dtype, [D_MODEL, self.case.width])
        weights = engine.prepare(self.wi_eDF, self.wo_eFD)

        def call() -> torch.Tensor:
            order_N, rows_e = engine.group(self.expert_N, self.case.num_experts)
            return engine(self.x_ND, Copies(order_N, rows_e, weight_N=self.ones_N1[:, 0].float()), *weights)

        return call

    def hugging_face(self) -> Call:
        """Its experts, of which each is a module of two linear layers; the mask of choices is part of its input."""
        case = self.case
        config = SwitchTransformersConfig(d_model=D_MODEL, d_ff=case.width, num_experts=case.num_experts)
        with torch.device("meta"):
            experts = SwitchTransformersExperts(config).eval().requires_grad_(False)
        experts = experts.to_empty(device=self.device).to(self.x_ND.dtype)
        module: Any
        for expert, module in enumerate(experts.values()):
            module.wi.weight.data, module.wo.weight.data = self.wi_eDF[expert].mT, self.wo_eFD[expert].mT
        mask_N1E = torch.nn.functional.one_hot(self.expert_N, case.num_experts).unsqueeze(1)
        return lambda: experts(self.x_ND, mask_N1E, self.ones_N1)


def _packs(dtype: torch.dtype) -> bool:
    """Whether oneDNN packs weights of this type here: bfloat16 takes AVX-512 or newer instructions."""
    onednn = torch.backends.mkldnn.is_available()
    return onednn and (dtype != torch.bfloat16 or torch.ops.mkldnn._is_mkldnn_bf16_supported())


def calls_of(workload: Workload) -> dict[str, Call]:
    """All that can run here, by name; what cannot says why."""
    peer = {"hugging face": workload.hugging_face()} if workload.case.activation == "relu" else {}
    calls = workload.dense() | peer
    for name in ENGINES:
        try:
            calls[name] = workload.engine(name)
        except ValueError as refusal:
            tqdm.write(f"{refusal}")
    return calls


def time_rounds(calls: dict[str, Call], seconds: float, device: torch.device, tolerance: float) -> pd.DataFrame:
    """Seconds [round, name]; in each round every call once, in a new order, until the time is spent.

    Raises RuntimeError where the results of two calls differ by more than the tolerance, dense ones left out.
    """
    expected = None
    for name, call in calls.items():  # warm, and the same result from all
        y = call()
        if not name.startswith("dense"):
            expected = y.float() if expected is None else expected
            error = float((y.float() - expected).norm() / expected.norm())
            if not error < tolerance:
                raise RuntimeError(f"{name} differs from the others by {error:.1e}")
        call()
    generator, rounds, end = np.random.default_rng(0), [], perf_counter() + seconds
    while perf_counter() < end or len(rounds) < FEWEST:
        times = {}
        for name in generator.permutation(list(calls)).tolist():
            start = perf_counter()
            calls[name]()
            if device.type == "cuda":
                torch.cuda.synchronize()
            times[name] = perf_counter() - start
        rounds.append(times)
    return pd.DataFrame(rounds)


def rows_of(case: Case, times: pd.DataFrame) -> Iterator[dict]:
    """One row an engine: median milliseconds, rate, and its share of the dense rate."""
    fastest = min((name for name in times if name.startswith("dense")), key=lambda name: times[name].median())
    common = {"rounds": len(times), "dense": fastest, "threads": torch.get_num_threads()}
    for name, seconds in times.median().to_dict().items():
        low, share, high = np.quantile(times[fastest] / times[name], [0.25, 0.5, 0.75])
        rate = {"engine": name, "ms": seconds * 1e3, "gflops": case.flops / seconds / 1e9}
        yield asdict(case) | rate | {"share": share, "share_low": low, "share_high": high} | common


def bench(cases: Sequence[Case], device: torch.device, seconds: float) -> pd.DataFrame:
    """Time every engine on every case: rows of `rows_of`."""
    rows = []
    for case in tqdm(cases, unit="case"):
        set_precision(case.precision)
        with torch.inference_mode():
            times = time_rounds(calls_of(Workload(case, device)), seconds, device, TOLERANCES[case.precision])
        rows += rows_of(case, times)
        tqdm.write(pd.DataFrame(rows[-len(times.columns) :])[["engine", "ms", "gflops", "share"]].round(3).to_string())
    return pd.DataFrame(rows)


def table(found: pd.DataFrame) -> Table:
    """Percent of the dense rate, a row for each case, a column for each engine."""
    columns = ["activation", "precision", "width", "num_experts", "tokens", "routing"]
    engines = found[~found.engine.str.startswith("dense")]
    percents = (100 * engines.set_index([*columns, "engine"])["share"].unstack("engine")).round().astype("Int64")
    return Table("engines", "Percent of the dense rate", found, percents.reset_index().astype(str))


def draw(found: pd.DataFrame, path: Path) -> None:
    """Percent of the dense rate against the number of experts; a panel for each activation, type, width and skew."""
    shown = found.loc[~found.engine.str.startswith("dense")]
    rows, columns = (list(shown.groupby(names, sort=False).groups) for names in (DOWN, ACROSS))
    figure = Figure(figsize=(4 * len(columns), 2.6 * len(rows)))
    axes = figure.subplots(len(rows), len(columns), squeeze=False)
    for place, here in shown.sort_values(by="num_experts").groupby(DOWN + ACROSS):
        axis = axes[rows.index(place[:3]), columns.index(place[3:])]
        for name, mine in here.groupby("engine"):
            bars = 100 * np.array([mine.share - mine.share_low, mine.share_high - mine.share])
            axis.errorbar(mine.num_experts, 100 * mine.share, bars, marker="o", markersize=4, label=name)
        axis.set(xscale="log", ylim=(0, 110), title="{}, {}, {}, hidden {}, {} tokens".format(*place))
        axis.set_xticks(numbers := sorted(shown.num_experts.unique()), map(str, numbers))
        axis.minorticks_off()
        axis.spines[["top", "right"]].set_visible(False)
    figure.supxlabel("number of experts", fontsize="medium")
    figure.supylabel("% of the dense rate", fontsize="medium")
    figure.legend(*axes[0][0].get_legend_handles_labels(), loc="upper center", ncols=len(ENGINES) + 1, frameon=False)
    figure.tight_layout(rect=(0, 0, 1, 0.96))
    figure.savefig(path, dpi=150)


def main(arguments: Sequence[str] | None = None) -> int:
    """Time, write the table and the plot."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0], allow_abbrev=False)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--precisions", nargs="+", choices=DTYPES, default=["fp32", "bf16"])
    parser.add_argument("--experts", nargs="+", type=int, default=[8, 32, 128, 256])
    parser.add_argument("--widths", nargs="+", type=int, default=[768, 1536, 3072], help="hidden units of a shard")
    parser.add_argument("--tokens", nargs="+", type=int, default=[3000])
    parser.add_argument("--routings", nargs="+", choices=ROUTINGS, default=list(ROUTINGS))
    parser.add_argument("--activations", nargs="+", choices=ACTIVATIONS, default=["relu"])
    parser.add_argument("--seconds", type=float, default=3.0, help="of rounds for each case")
    parser.add_argument("--out", type=Path, default=Path("results/bench-engines"))
    options = parser.parse_args(arguments)
    axes = (options.precisions, options.experts, options.widths, options.tokens, options.routings, options.activations)
    cases = [Case(*values) for values in product(*axes)]
    found = bench(cases, torch.device(options.device), options.seconds)
    options.out.mkdir(parents=True, exist_ok=True)
    written = write_tables(options.out, [table(found)])
    draw(found, options.out / "engines.png")
    print(table(found).shown.to_string(index=False))
    print("wrote", *written, options.out / "engines.png")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
