"""What the paper shows, as it is drawn beside ours: hollow markers, a column of its own, recorded loads of experts."""

import pandas as pd

from analysis.figures.beside import SPEEDUP, TIME_MS, Column
from analysis.figures.expert_load import Recorded
from analysis.figures.speedup import Marks
from analysis.frames import select
from analysis.studies.paper.reference import Reference, layer_ms, load_reference, recorded_loads, same_series

# Column of `published_points`, the metric that it stands beside, and what it is.
SHOWN = [
    ("published", "speedup_layer_paper", "published, 4×A100"),
    ("recomputed_ttft", "speedup_ttft", "authors' raw data, 4×A100"),
]
AUTHORS = {"deepspeed": ("deepspeed", "deepspeed"), "moeshard_authors": ("moeshard", "megablocks")}
LAYERS = "Published (4×A100, E = 128, batch 250, learned router): DeepSpeed 177–180 ms, MoEShard 41.5–43.5 ms."
LOADS = "Dashed: loads of the paper's learned router (batch 250 × 120 tokens, one GPU), first and last MoE layer."


def marks(published: pd.DataFrame, summary: pd.DataFrame) -> list[Marks]:
    """Published points for the series that a panel has; both are rows of the panel."""
    found = []
    for column, metric, source in SHOWN:
        several = False
        for system, engine in published[["system", "engine"]].drop_duplicates().itertuples(index=False, name=None):
            beside = same_series(summary, system, engine)["system"].unique()
            if not len(beside):
                continue
            name = source if engine != "loop" else "the same, loop" if several else f"{source}, loop"
            rows = select(published, system=system, engine=engine).set_index("x")
            found.append(Marks(metric, beside[0], name, rows[column].to_dict(), dashed=engine == "loop"))
            several = True
    return found


def learned_loads(num_experts: int) -> Recorded | None:
    """Loads of the paper's learned router; None for a number of experts of which there is no record."""
    tokens_ILE, layers = recorded_loads(load_reference().traces, num_experts)
    loads = {layer: tokens_ILE[:, at].astype(float) for at, layer in enumerate(layers)}
    return Recorded("paper's model, real text", LOADS, loads) if loads else None


def published_column(panel: dict, published: pd.DataFrame, reference: Reference) -> Column:
    """The paper's points and the authors' layers: like ours, at the paper's x, without intervals."""
    points = [{"x": point["published_x"]} for point in panel["points"] if point["published_x"] is not None]
    ratios = published.loc[published["engine"] != "loop"].drop_duplicates("published_x")
    rows = [("moeshard_authors", SPEEDUP, row["published_x"], row["published"]) for row in ratios.to_dict("records")]
    for system, (theirs, engine) in AUTHORS.items():
        times = {x: layer_ms(reference.runs, theirs, engine, panel["x_name"], x) for x in (p["x"] for p in points)}
        rows += [(system, TIME_MS, x, value) for x, value in times.items()]
    rows = pd.DataFrame(rows, columns=["system", "metric", "x", "value"]).assign(engine="", precision="")
    return Column("published, 4×A100", points, rows.assign(ci_low=rows["value"], ci_high=rows["value"]))
