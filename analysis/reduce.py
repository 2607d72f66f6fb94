"""One cell's raw rows reduced over ranks, per iteration: the slowest rank decides, its fellows are kept beside it.

Shape letters: I iterations, L MoE layers (1 for whole-pass metrics), G ranks, E experts.
"""

import numpy as np
import pandas as pd

from analysis.frames import select

KEYS = ["iteration", "layer", "rank"]
SECTIONS = ["route", "metadata", "plan", "weights", "dispatch", "experts", "combine"]
SECTION = "section_ms/"  # prefix of a section's reduced metric: "section_ms/experts"


def reduce_cell(samples: pd.DataFrame, world_size: int, ceilings: dict | None = None) -> dict[str, np.ndarray]:
    """Arrays [I, L] by metric; one that was not recorded is absent.

    TTFT and counts come from the measured pass, layers, sections and entry skew from the instrumented one. With the
    machine's ceilings there is "percent_of_bound/experts" too.
    Raises ValueError when sources are mixed, or when an iteration lacks the row of a rank.
    """
    single(samples, "source")
    measured, observed = (cubes(samples, phase, world_size) for phase in ("measure", "instrumented"))
    reduced = {}
    if "ttft_ms" in measured:
        reduced |= over_ranks("ttft", measured["ttft_ms"])
    if "ttft_ms" in observed:
        reduced["ttft_instrumented_ms"] = observed["ttft_ms"].max(axis=-1)
    if "layer_moe_ms" in observed:
        reduced |= over_ranks("layer_moe", observed["layer_moe_ms"])
        reduced["layer_moe_mean_rank_ms"] = observed["layer_moe_ms"].mean(axis=-1)
    slowest = [name for name in observed if name.startswith(SECTION) or name == "entry_skew_ms"]
    reduced |= {name: observed[name].max(axis=-1) for name in slowest}
    return reduced | reduce_counts(measured) | bound(measured, observed, ceilings)


def cubes(samples: pd.DataFrame, phase: str, world_size: int) -> dict[str, np.ndarray]:
    """Every metric of one pass as [I, L, G]; a section is a metric of its own."""
    samples = select(samples, phase=phase)
    if samples[["metric", "iteration", "rank"]].isna().to_numpy().any():
        raise ValueError(f"Cell {samples['cell'].iloc[0]} has rows without a metric, an iteration or a rank.")
    metric_R, metrics = pd.factorize(samples["metric"])
    section_R, sections = pd.factorize(samples["section"])  # -1: none
    place_RK = samples[KEYS].astype("float64").fillna(-1).to_numpy()
    value_R, found = samples["value"].to_numpy(dtype=float), {}
    for metric, section in set(zip(metric_R.tolist(), section_R.tolist(), strict=True)):
        rows = (metric_R == metric) & (section_R == section)
        name = metrics[metric] if section < 0 else f"{metrics[metric]}/{sections[section]}"
        try:
            found[name] = cube(place_RK[rows], value_R[rows], world_size, summed=section >= 0)
        except ValueError as error:
            raise ValueError(f"Cell {samples['cell'].iloc[0]} has {rows.sum()} rows of {name}; {error}.") from error
    return {name: found[name] for name in sorted(found, key=section_order)}


def section_order(name: str) -> tuple[int, str]:
    """Sections as they follow one another in a layer; a system's own sections come last."""
    section = name.removeprefix(SECTION)
    return (SECTIONS.index(section) if section in SECTIONS else len(SECTIONS), name)


def over_ranks(name: str, ms_ILG: np.ndarray) -> dict[str, np.ndarray]:
    """Slowest rank, fastest rank, and what lies between."""
    slowest_IL, fastest_IL = ms_ILG.max(axis=-1), ms_ILG.min(axis=-1)
    return {f"{name}_ms": slowest_IL, f"{name}_min_rank_ms": fastest_IL, f"{name}_spread_ms": slowest_IL - fastest_IL}


def reduce_counts(measured: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Per layer: imbalance, the busiest rank over the least that replicas allow, whether loads were predicted; per
    forward pass: padding, tokens dropped, bytes, flops; expert weights of a rank.
    """
    reduced = {name: per_pass(measured[name]) for name in ("dropped", "bytes_sent", "flops") if name in measured}
    if "weight_bytes" in measured:
        reduced["weight_bytes"] = measured["weight_bytes"].sum(axis=1).max(axis=-1)[:, None]
    if "predicted" in measured:
        reduced["predicted"] = measured["predicted"].mean(axis=-1)
    computed_ILG, useful_ILG = measured.get("rows_computed"), measured.get("rows_useful")
    if computed_ILG is not None:
        reduced["imbalance"] = computed_ILG.max(axis=-1) / computed_ILG.mean(axis=-1)
    if computed_ILG is not None and "least_rows" in measured:  # rank 0 tells it
        reduced["over_least"] = computed_ILG.max(axis=-1) / measured["least_rows"].max(axis=-1)
    if computed_ILG is not None and useful_ILG is not None:
        reduced["padding"] = per_pass(computed_ILG) / per_pass(useful_ILG)
    return reduced


def bound(measured: dict, observed: dict, ceilings: dict | None) -> dict[str, np.ndarray]:
    """Percent of the machine's ceilings that experts reach: the busiest rank's bound in the slowest rank's time."""
    counted = observed if "flops" in observed else measured  # older campaigns counted one pass only
    fastest_ms_L, experts_ILG = compute_bound_ms(counted, ceilings), observed.get(f"{SECTION}experts")
    if fastest_ms_L is None or experts_ILG is None:
        return {}
    return {"percent_of_bound/experts": 100 * fastest_ms_L / experts_ILG.max(axis=-1)}


def compute_bound_ms(measured: dict, ceilings: dict | None) -> np.ndarray | None:
    """Milliseconds [L] that the experts of the rank with most to do take at least: its flops at the matmul ceiling, or
    its bytes (where they were counted) at the copy ceiling, whichever is longer. None without ceilings or counts.
    """
    if not ceilings or "flops" not in measured:
        return None
    rates = {"flops": ceilings["matmul_flops_per_s"], "memory_bytes": ceilings["copy_bytes_per_s"]}
    # Means, because the two passes may differ in their number of iterations.
    bounds_LG = [measured[name].mean(axis=0) / rate for name, rate in rates.items() if name in measured]
    return 1e3 * np.max(bounds_LG, axis=0).max(axis=-1)


def expert_load(tokens_ILE: np.ndarray) -> dict[str, np.ndarray]:
    """How unequal experts are, over all ranks' tokens, per iteration and layer: CV, Gini, empty ones, max / mean."""
    mean_IL = tokens_ILE.mean(axis=-1)
    return {
        "expert_cv": tokens_ILE.std(axis=-1) / mean_IL,
        "expert_gini": gini(tokens_ILE),
        "empty_experts": (tokens_ILE == 0).sum(axis=-1),
        "expert_imbalance": tokens_ILE.max(axis=-1) / mean_IL,
    }


def load_cube(routing: pd.DataFrame, num_experts: int) -> np.ndarray:
    """Tokens per expert summed over ranks, [I, L, E], from `Campaign.routing`; experts without a row got none."""
    iterations, i = np.unique(routing["iteration"], return_inverse=True)
    layers, layer = np.unique(routing["layer"], return_inverse=True)
    shape = (len(iterations), len(layers), num_experts)
    place = np.ravel_multi_index((i, layer, routing["expert"].to_numpy()), shape)
    return np.bincount(place, weights=routing["tokens"], minlength=np.prod(shape)).reshape(shape)


def gini(tokens_E: np.ndarray) -> np.ndarray:
    """Gini coefficient over the last axis: 0 when all experts get the same, (E-1)/E when one gets all."""
    sorted_E, num_experts = np.sort(tokens_E, axis=-1), tokens_E.shape[-1]
    weight_E = 2 * np.arange(1, num_experts + 1) - num_experts - 1
    return (weight_E * sorted_E).sum(axis=-1) / (num_experts * tokens_E.sum(axis=-1))


def per_pass(counts_ILG: np.ndarray) -> np.ndarray:
    """Counts summed over layers and ranks: [I, 1]."""
    return counts_ILG.sum(axis=(1, 2))[:, None]


def cube(place_RK: np.ndarray, value_R: np.ndarray, world_size: int, *, summed: bool) -> np.ndarray:
    """One metric of one cell as [I, L, G]; every rank needs a row for every iteration and layer.

    summed: of a section that a layer enters more than once (our router's `route`, DeepSpeed's gate) the sum counts.
    """
    iteration_R, layer_R = (np.unique(place_RK[:, key], return_inverse=True)[1] for key in (0, 1))
    shape = (int(iteration_R.max()) + 1, int(layer_R.max()) + 1, world_size)
    rank_R = place_RK[:, 2].astype(int)
    wrong = f"{shape[0]} iterations x {shape[1]} layers x {shape[2]} ranks make {np.prod(shape)}, each once"
    if set(place_RK[:, 2]) != set(range(world_size)):
        raise ValueError(wrong)
    at_R = np.ravel_multi_index((iteration_R, layer_R, rank_R), shape)
    count = np.bincount(at_R, minlength=int(np.prod(shape)))
    if count.min() < 1 or (count.max() > 1 and not summed):
        raise ValueError(wrong)
    return np.bincount(at_R, weights=value_R, minlength=len(count)).reshape(shape)


def single(rows: pd.DataFrame, column: str) -> object:
    """The one value of a column that a statistic must not mix."""
    values = rows[column].unique()
    if len(values) > 1:
        raise ValueError(f"One statistic cannot mix {column} {', '.join(sorted(map(str, values)))}.")
    return values[0] if len(values) else None
