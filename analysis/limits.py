"""What the machine allows at best: lower bounds of an MoE layer's time, and how near each system comes to them.

    useful     = flops of rows that carry a token / G / matmul ceiling       no padding, no imbalance, free transfers

is the same for all systems. The others bound the work that a system chose, its padding and its transfers included:

    compute    = max(flops / matmul ceiling, memory bytes / copy ceiling) of the rank that has most to do
    serial     = compute + transfers          nothing overlaps
    overlapped = max(compute, transfers)      everything does

Flops and bytes are counted, not measured. The ceilings are the best that any launch of the campaign measured: one that
was disturbed just then would make the bounds of its cells too long. Transfers are the network model's times of the
recorded collectives, known on emulated and simulated clusters only. The experts' matrix products are all that counts as
computation: routing and permuting are what a bound asks to be free.
Shape letters: I iterations, L MoE layers, G ranks.
"""

import numpy as np
import pandas as pd

from analysis.frames import select
from analysis.labels import number, short_axis_name, system_name, x_text
from analysis.load import SIMULATED, Campaign
from analysis.reduce import KEYS, SECTION, compute_bound_ms, cubes
from analysis.stats import median_interval, median_of
from analysis.tables import Table

UNKNOWN_LINK = "the time of a transfer alone is known on emulated and simulated clusters only"
NO_CEILINGS = "the ceilings of the machine were not measured"
NOT_OBSERVED = "no layer was observed"
TIMES = ["layer_ms", "useful_ms", "compute_ms", "transfer_ms", "serial_ms", "overlapped_ms"]
RATES = ("matmul_flops_per_s", "copy_bytes_per_s")
COUNTS = ["flops", "memory_bytes", "bytes_sent"]
PERCENT = "percent/"  # prefix of a column: the bound of a section (or of the layer: serial, overlapped) / its time


def limits(campaign: Campaign, panel: dict) -> pd.DataFrame:
    """One row for each ok cell of a panel, twins left out: TIMES and percents (medians), COUNTS, and a reason.

    Counts are those of the rank with most, per layer, the mean over iterations and layers. What is not known is NaN,
    and `reason` says why.
    """
    best = best_ceilings(campaign)
    rows = [
        {"x_name": panel["x_name"], "x": point["x"], "y": point.get("y"), "cell": cell}
        | {name: campaign.runs[cell][name] for name in ("system", "engine", "precision", "launch", "source")}
        | cell_limits(campaign, cell, best.get(ceiling_kind(campaign.runs[cell])))
        for point in panel["points"]
        for cell in point["cells"]
        if cell in campaign.frames and not campaign.runs[cell]["twin"]
    ]
    return pd.DataFrame(rows)


def best_ceilings(campaign: Campaign) -> dict[tuple, dict[str, float]]:
    """The highest rates that any launch measured, by `ceiling_kind`."""
    best: dict[tuple, dict[str, float]] = {}
    for run in (campaign.runs[cell] for cell in campaign.frames):
        known = best.setdefault(ceiling_kind(run), {}) if run.get("ceilings") else {}
        for name in RATES if run.get("ceilings") else ():
            known[name] = max(known.get(name, 0.0), run["ceilings"][name])
    return best


def ceiling_kind(run: dict) -> tuple:
    """Ceilings are comparable where the type of a number and the number of threads are the same."""
    ceilings = run.get("ceilings") or {}
    return (ceilings.get("dtype"), ceilings.get("threads"))


def cell_limits(campaign: Campaign, cell: str, ceilings: dict[str, float] | None) -> dict:
    """The numbers of one cell: a dict of scalars."""
    run, frame = campaign.runs[cell], campaign.frames[cell]
    ranks = run["point"]["world_size"]
    counted, observed = (cubes(frame, phase, ranks) for phase in ("measure", "instrumented"))
    found = {name: float(counted[name].max(axis=-1).mean()) for name in COUNTS if name in counted}
    counted = observed if "flops" in observed else counted  # older campaigns counted one pass only
    compute_L = compute_bound_ms(counted, ceilings)
    if compute_L is None or "layer_moe_ms" not in observed:
        return found | {"reason": NO_CEILINGS if not ceilings else NOT_OBSERVED}
    transfers = section_transfers(campaign.collectives(cell), observed["layer_moe_ms"].shape[:2])
    known = run["source"] in ("emulated", SIMULATED) and (bool(transfers) or ranks == 1)
    no_time_IL = np.zeros(observed["layer_moe_ms"].shape[:2])
    transfer_IL = sum(transfers.values(), no_time_IL) if known else np.full_like(no_time_IL, np.nan)
    useful_L = useful_bound_ms(counted, ceilings)
    bounds = {"useful": np.broadcast_to(useful_L, transfer_IL.shape)}
    bounds |= {"serial": compute_L + transfer_IL, "overlapped": np.maximum(compute_L, transfer_IL)}
    layer_IL = observed["layer_moe_ms"].max(axis=-1)
    times = {"layer": layer_IL, "compute": np.broadcast_to(compute_L, layer_IL.shape), "transfer": transfer_IL} | bounds
    percents = {name: bound_IL / layer_IL for name, bound_IL in bounds.items()}
    percents |= section_percents(observed, compute_L, transfers)
    found |= {f"{name}_ms": median_of(values_IL) for name, values_IL in times.items()}
    found |= {PERCENT + name: 100 * median_of(share_IL) for name, share_IL in percents.items()}
    return found | {"reason": "" if known else UNKNOWN_LINK}


def useful_bound_ms(counted: dict[str, np.ndarray], ceilings: dict[str, float] | None) -> np.ndarray:
    """[L] ms that the rows with a token would take, spread evenly over the ranks, at the matmul ceiling."""
    if not ceilings or not {"flops", "rows_useful", "rows_computed"} <= counted.keys():
        return np.full(1, np.nan)
    flops_per_row = counted["flops"].sum(axis=-1) / counted["rows_computed"].sum(axis=-1)
    useful_flops_IL = flops_per_row * counted["rows_useful"].mean(axis=-1)
    return useful_flops_IL.mean(axis=0) / ceilings["matmul_flops_per_s"] * 1e3


def section_percents(
    observed: dict[str, np.ndarray], compute_L: np.ndarray, transfers: dict[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """Bound / time of the slowest rank for each section that has one: matrix products, or collectives."""
    section_IL = {
        name.removeprefix(SECTION): v.max(axis=-1) for name, v in observed.items() if name.startswith(SECTION)
    }
    # A system that decides layer by layer has some sections in some layers only, which have no share.
    moving = {name: ms_IL for name, ms_IL in transfers.items() if ms_IL.any()}
    everywhere = [name for name in section_IL.keys() & moving.keys() if section_IL[name].shape == moving[name].shape]
    shares = {name: moving[name] / section_IL[name] for name in everywhere}
    return shares | ({"experts": compute_L / section_IL["experts"]} if "experts" in section_IL else {})


def section_transfers(collectives: pd.DataFrame, shape_IL: tuple[int, int]) -> dict[str, np.ndarray]:
    """Milliseconds [I, L] that the link works in each section, "" outside one. All ranks tell the same times."""
    if collectives.empty:
        return {}
    once = select(collectives, rank=collectives["rank"].min())
    places = np.ravel_multi_index([np.unique(once[name], return_inverse=True)[1] for name in KEYS[:2]], shape_IL)
    transfer_ms, sections = (once["finished_ms"] - once["started_ms"]).to_numpy(), once["section"].fillna("").to_numpy()
    by_section = {str(name): np.where(sections == name, transfer_ms, 0.0) for name in sorted(set(sections))}
    size = shape_IL[0] * shape_IL[1]
    return {name: np.bincount(places, ms, size).reshape(shape_IL) for name, ms in by_section.items()}


def limits_table(campaign: Campaign, panel: dict) -> Table:
    """A row a point and system: layer, bounds, and percent of them, medians over launches; empty where nothing ran."""
    raw = limits(campaign, panel)
    name = f"limits_{panel['name']}"
    title = f"{panel['title']}: % of what the machine allows (useful: same work for all; else a system's own work)"
    if raw.empty or "layer_ms" not in raw:
        return Table(name, title, raw, pd.DataFrame())
    columns = [*TIMES, *(column for column in raw if column.startswith(PERCENT))]
    together: dict[tuple, list[dict]] = {}
    for row in raw.to_dict("records"):
        place = [x_text(panel["x_name"], row["x"]), *([x_text(panel["y_name"], row["y"])] if two_axes(panel) else [])]
        together.setdefault((*place, row["system"], row["engine"], row["precision"]), []).append(row)
    axes = [panel["x_name"], *([panel["y_name"]] if two_axes(panel) else [])]
    rows = [
        {short_axis_name(axis): text for axis, text in zip(axes, key, strict=False)}
        | {"system": system_name(key[len(axes)])}
        | {heading(column): middle([row[column] for row in launches]) for column in columns}
        for key, launches in together.items()
    ]
    return Table(name, title, raw, pd.DataFrame(rows))


def two_axes(panel: dict) -> bool:
    """Whether the panel is a map."""
    return panel.get("y_name") is not None


def heading(column: str) -> str:
    """A column of the raw table as people read it."""
    if not column.startswith(PERCENT):
        return f"{'layer' if column == 'layer_ms' else 'bound ' + column.removesuffix('_ms')}, ms"
    part = column.removeprefix(PERCENT)
    return f"% of {part} bound" if part in ("serial", "overlapped") else f"{part or 'other'}, % of its bound"


def middle(launches: list[float]) -> str:
    """The geometric mean over launches; a dash where it is not known."""
    known = [value for value in launches if not np.isnan(value)]
    return number(median_interval([[value] for value in known])[0]) if known else "–"
