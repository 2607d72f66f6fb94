"""A page for every system: what the code declares, what its authors say, and what was measured.

From the systems' configurations (the block `about` has what neither code nor a campaign knows), the docstrings of their
classes and the sample of `make league`.
"""

import inspect
import os
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, StrictUndefined

from analysis.labels import number, times
from analysis.load import Campaign, load_campaign
from analysis.summary import summarise
from experiments.configuration import find_class

ROOT = Path(__file__).parents[2]
CAMPAIGN = ROOT / "results/sample-league"
SAID = ("source", "published", "left_out", "unconfirmed", "proved")
TOLD = ("_target_", "name", "engine", "planner", "loads", "migration", "about")
METRICS = {
    "ttft_ms": ("forward pass, ms", number),
    "speedup_ttft": ("over EP", times),
    "layer_moe_ms": ("MoE layer, ms", number),
    "imbalance": ("max ÷ mean rows", number),
    "bytes_sent": ("sent a pass, MB", lambda value: number(value / 1e6)),
    "weight_bytes": ("expert weights of a rank, MB", lambda value: number(value / 1e6)),
    "plan": ("plan a layer, ms", number),
    "dropped": ("tokens dropped", number),
    "predicted": ("loads predicted, share", number),
}
CARD = """\
# {{ name }}

`system={{ key }}`: {{ facts }}.

{{ mechanism }}

| | |
|---|---|
| Source | {{ card.source }} |
| Its authors report | {{ card.published }} |
| Left out here | {{ card.left_out }} |
| Not confirmed | {{ card.unconfirmed }} |
| Held to, beside equality with the dense model on 1, 2 and 4 ranks | {{ card.proved }} |
{% if rows %}

Measured here ({{ source }}):

| routing | {{ headings | join(" | ") }} |
|---|{{ "---:|" * headings | length }}
{% for row in rows %}| {{ row | join(" | ") }} |
{% endfor %}{% endif %}"""


def systems() -> dict[str, dict[str, Any]]:
    """The configuration of every system by the name of its file, those of the folder CONFIG_DIR too."""
    folders = [ROOT / "conf", *map(Path, filter(None, [os.environ.get("CONFIG_DIR")]))]
    paths = [path for folder in folders for path in sorted((folder / "system").glob("*.yaml"))]
    return {path.stem: yaml.safe_load(path.read_text()) for path in paths}


def pages() -> dict[str, str]:
    """The text of every card by the name of its system."""
    measured, source = league()
    return {key: card(key, node, measured.get(key, []), source) for key, node in systems().items()}


def card(key: str, node: dict[str, Any], rows: list[dict[str, str]], source: str) -> str:
    """The text of a card, with the columns that some row has."""
    told = dict.fromkeys(SAID, "not said") | node.get("about", {})
    template = Environment(trim_blocks=True, undefined=StrictUndefined).from_string(CARD)  # noqa: S701  (Markdown, of our own files)
    headings = [title for title, _ in METRICS.values() if any(title in row for row in rows)]
    cells = [[row["routing"], *(row.get(title, "–") for title in headings)] for row in rows]
    known = {"key": key, "name": name_of(key, node), "facts": facts(node), "mechanism": mechanism(node), "card": told}
    return template.render(**known, rows=cells, headings=headings, source=source).rstrip() + "\n"


def facts(node: dict[str, Any]) -> str:
    """What the class and the configuration declare, in one line."""
    kind = find_class(node)
    found = [kind.exactness, f"engine {kind.own_engine or node.get('engine') or 'loop'}"]
    found += [f"loads {node['loads']}"] if "loads" in node else []
    found += [f"weights move by {node['migration']}"] if "migration" in node else []
    planner = node.get("planner", {})
    chosen = (node | planner).items()
    shown = {name: value for name, value in chosen if name not in TOLD and "${" not in str(value)}
    return ", ".join([*found, *(f"{name} {value}" for name, value in shown.items())])


def mechanism(node: dict[str, Any]) -> str:
    """The docstring of the planner, if there is one, else of the system's class and its module."""
    kind = find_class(node.get("planner", node))
    told = [kind] if "planner" in node else [inspect.getmodule(kind), kind]
    return "\n\n".join(text for one in told if (text := inspect.getdoc(one)))


@cache
def league() -> tuple[dict[str, list[dict[str, str]]], str]:
    """What the sample of the league says of each system, and where its numbers come from."""
    stored = load_campaign(CAMPAIGN)
    return measured_rows(stored), source_of(stored)


def measured_rows(stored: Campaign) -> dict[str, list[dict[str, str]]]:
    """By system: a row a panel and point, the routing and each metric that was measured as text."""
    summary = summarise(stored)
    summary["metric"] = summary["metric"].where(summary["section"] != "plan", "plan")
    titles = {panel["name"]: panel["title"] for panel in stored.plan["panels"]}
    found: dict[str, list[dict[str, str]]] = {}
    for place, rows in summary.groupby(["experiment", "x", "system"], sort=False):
        panel, x, system = tuple(place)  # pyright: ignore[reportArgumentType]
        value = rows.drop_duplicates("metric").set_index("metric")["value"]
        texts = {title: form(value[name]) for name, (title, form) in METRICS.items() if name in value}
        found.setdefault(str(system), []).append({"routing": f"{titles[panel]}, {x:g} experts"} | texts)
    return found


def source_of(stored: Campaign) -> str:
    """Where a campaign's numbers come from, in words."""
    run = next(iter(stored.runs.values()))
    scale, ranks = run["config"]["scale"]["name"], run["point"]["world_size"]
    return f"{run['source']}, {ranks} ranks, scale {scale}, tier {run['tier']}; {stored.folder.relative_to(ROOT)}"


def index() -> str:
    """A line for each card."""
    return "\n".join(f"- [{name_of(key, node)}]({key}.md): {facts(node)}" for key, node in systems().items())


def name_of(key: str, node: dict[str, Any]) -> str:
    """As tables and figures call the system."""
    return node.get("about", {}).get("label", key)
