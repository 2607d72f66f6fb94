import json
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir

from experiments.composition import with_implied
from experiments.panels import Job, experiment_points, sweep_points
from experiments.plan import Plan, Point, make_plan
from tests.experiments.tiny import CONF, changed, configuration

BASE = configuration("experiment=fig3", "experiment.twin=null")
SYSTEMS = {system: configuration(f"system={system}").system for system in ("deepspeed", "moeshard")}


def configs(launches: int = 1, seed: int = 0, systems: tuple[str, ...] = ("deepspeed", "moeshard"), **changes: int):
    """One configuration per system; num_experts=8 changes the model, batch_size=3 the batch."""
    made = []
    for system in systems:
        values = {f"model.{key}" if hasattr(BASE.model, key) else key: value for key, value in changes.items()}
        made.append(changed(BASE, {"system": SYSTEMS[system], "seed": seed, "tier.launches": launches, **values}))
    return made


def points(**options: Any) -> list[Point]:
    """Two panels that share the point of 4 experts and batch 2."""
    return [
        Point("a", "Figure 3a", "speedup", (), "num_experts", 4, 8, configs(num_experts=4, **options)),
        Point("a", "Figure 3a", "speedup", (), "num_experts", 8, 16, configs(num_experts=8, **options)),
        Point("b", "Figure 3b", "speedup", (), "batch_size", 2, 10, configs(batch_size=2, **options)),
        Point("b", "Figure 3b", "speedup", (), "batch_size", 3, 100, configs(batch_size=3, **options)),
    ]


def cells_of(plan: Plan, panel: int, place: int) -> list[str]:
    return plan.document["panels"][panel]["points"][place]["cells"]


def test_panels_share_the_cells_of_the_same_point():
    plan = make_plan(points())
    assert cells_of(plan, 0, 0) == cells_of(plan, 1, 0)
    assert len(plan.cells) == 3 * 2 and len(plan.launches) == 3
    every = [cells_of(plan, panel, place) for panel in (0, 1) for place in (0, 1)]
    assert len({cell for cells in every for cell in cells}) == 6


def test_document():
    plan = make_plan(points())
    document = json.loads(json.dumps(plan.document))
    assert document == plan.document
    assert [(panel["name"], panel["title"], panel["x_name"]) for panel in document["panels"]] == [
        ("a", "Figure 3a", "num_experts"),
        ("b", "Figure 3b", "batch_size"),
    ]
    assert [(point["x"], point["published_x"]) for point in document["panels"][0]["points"]] == [(4, 8), (8, 16)]
    assert {key: document[key] for key in ("schema", "experiment", "scale", "tier", "baseline", "campaign")} == {
        "schema": 2,
        "experiment": "fig3",
        "scale": "laptop",
        "tier": "smoke",
        "baseline": "deepspeed",
        "campaign": "fig3-laptop-smoke-seed0",
    }
    assert [launch["cells"] for launch in document["launches"]] == plan.launches
    systems = [plan.cells[cell].system for cell in cells_of(plan, 0, 0)]
    assert systems == ["deepspeed", "moeshard"]


def test_each_launch_has_all_systems_of_one_workload():
    plan = make_plan(points(launches=3))
    assert sorted(cell for launch in plan.launches for cell in launch) == sorted(plan.cells)
    for launch, described in zip(plan.launches, plan.document["launches"], strict=True):
        cells = [plan.cells[cell] for cell in launch]
        assert [cell.system for cell in cells] == ["deepspeed", "moeshard"]
        assert {cell.launch_id for cell in cells} == {described["id"]}
        assert {cell.launch for cell in cells} == {described["launch"]}


def test_repetitions_come_one_after_another_and_belong_to_every_point():
    plan = make_plan(points(launches=3))
    assert [launch["launch"] for launch in plan.document["launches"]] == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert len(plan.cells) == 3 * 3 * 2
    for panel in (0, 1):
        for place in (0, 1):
            cells = cells_of(plan, panel, place)
            assert len(set(cells)) == 6 and [plan.cells[cell].launch for cell in cells] == [0, 0, 1, 1, 2, 2]


def test_systems_that_only_one_panel_asks_for_join_the_launch():
    shared = [
        Point("a", "a", "speedup", (), "num_experts", 4, None, configs(systems=("deepspeed",))),
        Point("b", "b", "speedup", (), "batch_size", 2, None, configs()),
    ]
    plan = make_plan(shared)
    assert len(plan.launches) == 1 and len(plan.cells) == 2


def order(plan: Plan) -> list[list[tuple[int, int]]]:
    """The points in the order of launching, for each repetition."""
    launched = [plan.cells[cells[0]] for cells in plan.launches]
    visited = [(cell.point["num_experts"], cell.point["batch_size"]) for cell in launched]
    repetitions = sorted({cell.launch for cell in launched})
    return [[p for p, cell in zip(visited, launched, strict=True) if cell.launch == i] for i in repetitions]


def test_order_is_drawn_from_the_seed_for_each_repetition():
    assert make_plan(points(launches=8)).launches == make_plan(points(launches=8)).launches
    repetitions = order(make_plan(points(launches=8)))
    assert all(sorted(visited) == [(4, 2), (4, 3), (8, 2)] for visited in repetitions)
    assert len({tuple(visited) for visited in repetitions}) > 1
    assert repetitions != order(make_plan(points(launches=8, seed=1)))


def test_no_points():
    with pytest.raises(ValueError, match=r"the experiment has no points; give experiment\.panels values"):
        make_plan([])


@cache
def composed(*overrides: str) -> list[Point]:
    with initialize_config_dir(CONF, version_base="1.3"):
        return experiment_points(compose("config", list(overrides)), list(overrides))


QUICK = configuration("tier=quick").tier.launches
ONE = "experiment.systems=[ep]"  # for what does not depend on the systems: composing all of them takes seconds


def ran_here(points: list[Point]) -> list[Point]:
    """Without the panels that are simulated beside them."""
    return [point for point in points if not point.panel.endswith("_simulated")]


def test_figure_3_is_that_of_the_paper():
    """6 and 4 points, of which one, 128 experts and batch 250, is in both panels."""
    plan = make_plan(ran_here(composed("experiment=fig3", "scale=paper", "tier=quick")))
    assert len(plan.launches) == QUICK * 9
    published = [[point["published_x"] for point in panel["points"]] for panel in plan.document["panels"]]
    assert published == [[8, 16, 32, 64, 128, 256], [10, 100, 250, 450]]
    assert cells_of(plan, 0, 4) == cells_of(plan, 1, 2)
    assert len(plan.cells) == QUICK * 9 * (5 + 1)
    twins = [cell for cell in plan.cells.values() if cell.twin]
    assert {cell.system for cell in twins} == {"moeshard"} and len(twins) == QUICK * 9


@pytest.mark.parametrize(("experiment", "num_points"), [("fig3a", 6), ("fig3b", 4), ("single", 1)])
def test_each_panel_is_an_experiment_too(experiment, num_points):
    overrides = [f"experiment={experiment}", "scale=paper", "tier=quick", ONE]
    assert len(make_plan(ran_here(composed(*overrides))).launches) == QUICK * num_points


def test_laptop_divides_the_batches_of_the_paper():
    found = ran_here(composed("experiment=fig3b", ONE))
    assert [(point.x, point.published_x) for point in found] == [(1, 10), (10, 100), (25, 250), (45, 450)]
    assert [point.configs[0].batch_size for point in found] == [1, 10, 25, 45]
    assert all(Path(config.out).name == "fig3b" for point in found for config in point.configs)


def test_the_twin_is_measured_twice_in_every_launch():
    twin = {"experiment.twin": "moeshard"}
    plan = make_plan([replace(p, configs=[changed(config, twin) for config in p.configs]) for p in points(launches=2)])
    for launch in plan.launches:
        cells = [plan.cells[cell] for cell in launch]
        assert [(cell.system, cell.twin) for cell in cells] == [
            ("deepspeed", False),
            ("moeshard", False),
            ("moeshard", True),
        ]
        assert len({cell.id for cell in cells}) == 3 and len({cell.launch_id for cell in cells}) == 1


@pytest.mark.parametrize(
    ("experiment", "panels", "kinds"),
    [
        ("fig1", ["fig1"], {"load"}),
        ("layers", ["layers"], {"layers"}),
        ("fig4", ["fig4a", "fig4b"], {"speedup"}),
        ("skew", ["skew_alpha", "skew_share"], {"speedup"}),
        ("sections", ["sections"], {"sections"}),
    ],
)
def test_panels_of_an_experiment(experiment, panels, kinds):
    found = composed(f"experiment={experiment}", "scale=laptop", ONE)
    assert list(dict.fromkeys(point.panel for point in found)) == panels and {point.kind for point in found} == kinds
    routers = {config.router.name for point in found for config in point.configs}
    assert routers == {{"fig1": "learned", "layers": "trace"}.get(experiment, "synthetic")}
    if experiment == "fig1":
        assert {config.model.checkpoint for point in found for config in point.configs} == {"small_switch"}


def test_what_is_typed_wins_over_a_panel_s_own_choice():
    found = composed("experiment=layers", "router=learned", ONE)
    assert [config.router.name for point in found for config in point.configs] == ["learned"]
    assert [config.system.name for point in found for config in point.configs] == ["ep"]


def test_points_that_panels_share_are_measured_once():
    found = composed("experiment=all", "tier=smoke", ONE)
    plan = make_plan(found)
    assert len(found) == 1 + 1 + 10 + 10 + 5 + 6 + 1 and len(plan.launches) == 20


CROSSOVER = ("experiment=crossover", "scale=laptop", ONE)


def test_a_panel_of_two_axes_has_every_pair_once():
    found = composed(*CROSSOVER)
    maps = {name: [p for p in found if p.panel == name] for name in ("map_imbalance_batch", "map_experts_ranks")}
    assert len(found) == sum(map(len, maps.values())) and {p.kind for p in found} == {"map"}
    places = {name: {(p.x, p.y) for p in points} for name, points in maps.items()}
    for name, points in maps.items():
        xs, ys = ({at[axis] for at in places[name]} for axis in (0, 1))
        assert places[name] == {(x, y) for x in xs for y in ys} and len(points) == len(xs) * len(ys)
    for p in maps["map_imbalance_batch"]:
        assert (p.x_name, p.y_name) == ("imbalance", "batch_size")
        assert {(c.router.name, c.router["imbalance"], c.batch_size) for c in p.configs} == {("matched", p.x, p.y)}
        assert {c.router["ranks"] for c in p.configs} == {4} and 1 <= p.x <= 4
    for p in maps["map_experts_ranks"]:
        assert {(c.model.num_experts, c.cluster.world_size) for c in p.configs} == {(p.x, p.y)}


def test_the_second_axis_is_scaled_and_what_is_typed_is_its_one_value():
    laptop, paper = (composed("experiment=crossover", f"scale={scale}", ONE) for scale in ("laptop", "paper"))
    laptop, paper = ({p.y for p in points if p.y_name == "batch_size"} for points in (laptop, paper))
    assert {10 * y for y in laptop} == paper and 250 in paper
    typed = composed(*CROSSOVER, "cluster.world_size=8", "batch_size=7")
    assert {p.y for p in typed if p.y_name == "world_size"} == {8}
    assert {p.y for p in typed if p.y_name == "batch_size"} == {7}
    assert len({p.x for p in typed if p.y_name == "world_size"}) > 1


def test_only_panels_of_two_axes_say_so_in_the_document():
    flat = make_plan(points()).document["panels"][0]
    assert "y_name" not in flat and all(set(point) == {"x", "published_x", "cells"} for point in flat["points"])
    two = [Point("m", "m", "map", (), "num_experts", 4, None, configs(batch_size=b), "batch_size", b) for b in (2, 3)]
    (panel,) = make_plan(two).document["panels"]
    assert panel["y_name"] == "batch_size" and [(point["x"], point["y"]) for point in panel["points"]] == [
        (4, 2),
        (4, 3),
    ]
    assert not set(panel["points"][0]["cells"]) & set(panel["points"][1]["cells"])


def test_a_multirun_keeps_the_points_of_a_map_apart():
    made = composed(*CROSSOVER)
    with initialize_config_dir(CONF, version_base="1.3"):
        config = compose("config", list(CROSSOVER))
    jobs = [Job({"experiment": "crossover", "seed": seed}, config, made) for seed in ("0", "1")]
    swept = sweep_points(jobs)
    assert {(p.panel, p.x, p.y) for p in swept} == {(f"{p.panel}_seed={s}", p.x, p.y) for p in made for s in (0, 1)}


def test_launches_that_differ_in_cluster_network_or_router_only_are_neighbours():
    """They are held against one another; otherwise the order is random, and another one in each repetition."""
    made = []
    for num_experts in (4, 8, 16, 32):
        for kind in ("emulated", "gloo"):
            two = [changed(c, {"cluster.kind": kind}) for c in configs(launches=3, num_experts=num_experts)]
            made.append(Point(kind, kind, "speedup", (), "num_experts", num_experts, None, two))
    plan = make_plan(made)
    order = [(plan.cells[ids[0]].point["num_experts"], plan.cells[ids[0]].cluster.kind) for ids in plan.launches]
    assert len(order) == 3 * 8 == 3 * len(set(order))
    pairs = [order[i : i + 2] for i in range(0, len(order), 2)]
    assert all(one[0] == other[0] and one[1] != other[1] for one, other in pairs)
    repetitions = [tuple(order[i : i + 8]) for i in (0, 8, 16)]
    assert len(set(repetitions)) == 3 and len({pair[0][1] for pair in pairs}) == 2


MAKE = ("experiment=fig3", "scale=laptop", "cluster=emulated", "cluster.device=cpu", "tier=quick")


def test_a_pinned_panel_keeps_its_cluster_and_scale_whatever_is_typed():
    points = composed(*MAKE, "tier.rounds=9", "cluster.world_size=2", ONE)
    simulated = [point for point in points if point.panel.endswith("_simulated")]
    assert len(simulated) == 6 + 4 == len(ran_here(points))
    for config in (config for point in simulated for config in point.configs):
        assert (config.cluster.kind, config.cluster.device, config.cluster.world_size) == (
            *("simulated", "cuda"),
            4,
        )
        assert (config.model.d_model, config.precision, config.tier.rounds) == (768, "tf32", 1)
    batches = [point.x for point in simulated if point.panel == "fig3b_simulated"]
    assert batches == [10, 100, 250, 450]  # the pinned scale divides by 1
    assert [point.x for point in ran_here(points) if point.panel == "fig3b"] == [1, 10, 25, 45]
    assert {config.cluster.world_size for point in ran_here(points) for config in point.configs} == {2}


def test_what_is_typed_reaches_a_pinned_panel_where_it_is_not_pinned():
    points = composed(*MAKE, "seq_len=12", ONE)
    assert {config.seq_len for point in points for config in point.configs} == {12}
    assert {config.system.name for point in points for config in point.configs} == {"ep"}


@pytest.mark.parametrize("typed", ["cluster=simulated", "cluster=torchrun"])
def test_pinned_panels_are_left_out(typed, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "4")
    points = composed("experiment=fig3", ONE, *with_implied([typed]))
    assert {point.panel for point in points} == {"fig3a", "fig3b"}


def test_simulated_launches_come_first_and_once_without_a_twin():
    plan = make_plan(composed(*MAKE))
    kinds = [plan.cells[ids[0]].cluster.kind for ids in plan.launches]
    simulated = [cell for cell in plan.cells.values() if cell.cluster.kind == "simulated"]
    assert kinds == ["simulated"] * len(simulated) + ["emulated"] * 9 * QUICK  # each simulated cell is a launch
    assert {cell.launch for cell in simulated} == {0} and not any(cell.twin for cell in simulated)
    told = {key: plan.document[key] for key in ("twin", "scale", "tier", "campaign")}
    assert told == {"twin": "moeshard", "scale": "laptop", "tier": "quick", "campaign": "fig3-laptop-quick-seed0"}
