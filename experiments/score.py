"""`python -m experiments.score PLANNER [key=value ...]`: what a planner's plans are worth on real models' loads.

PLANNER: package.module.Class, a system's name in conf/system or its .yaml, or `all`: every system with a planner. The
planner runs alone, without tensors and ranks; docs/score.md says what is reported. Keys: planner.OPTION; placed_by
(profiled, lagged, oracle or none), migration, placement, every and window, as the options of a planned system; loads (a
file), model and phase (of a file that does not tell), ranks (such as 8,32), device, seed, and extra_slots (experts that
a rank may hold beyond E/G).
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from devices import load_device
from experiments.configuration import find_class, options
from experiments.judge import CONF, read_system
from experiments.referee import Violation
from experiments.score_loads import BATCHES, LAYERS, Source, sources
from experiments.scoring import PRECISION, Scorer, View, overall
from experiments.values import check_value, meant
from systems.planned import PlannedExpertParallel
from systems.planners.base import Planner

PLANNED = "systems.planned.PlannedExpertParallel"
VIEW = {"placed_by": "loads", "migration": "migration", "placement": "placement", "every": "every", "window": "window"}
OWN = {"loads": None, "model": None, "phase": None, "ranks": None, "device": "h200_sxm", "seed": 0, "extra_slots": None}
MOVES = {"oracle": "point_to_point", "lagged": "point_to_point"}  # how weights get there where nothing is said
COLUMNS = {
    "load": "load",
    "ranks": "ranks",
    "max_over_mean": "max÷mean",
    "worst": "worst",
    "over_least": "÷least",
    "held": "held",
    "experts_moved": "moved",
    "weights_ms": "weights_ms",
    "remote_share": "remote",
    "activated": "active",
    "plan_ms_min": "plan_ms_min",
    "plan_ms_median": "median",
    "layer_ms": "layer_ms",
    "over_ep": "EP÷it",
}


class Subject(NamedTuple):
    """A planner and its node; the class of system that asks it, with its options, and what these say of loads."""

    planner: Planner
    node: dict[str, Any]
    kind: type[PlannedExpertParallel]
    given: dict[str, Any]
    view: View

    def refusal(self, source: Source, ranks: int) -> str:
        """Why it cannot plan these sizes, which is no fault; "" where it can."""
        try:
            self.kind.check(source.shape, ranks, **self.given)
        except ValueError as refusal:
            return str(refusal)
        except Exception as error:
            name = type(self.planner).__name__
            raise Violation(f"planner {name} fails: {type(error).__name__}: {error}") from error
        return ""


def subject(name: str, typed: dict[str, Any]) -> Subject:
    """From what was typed; ValueError, in one sentence, for a class or an option that there is not."""
    node = read_system(name)
    typed_planner = typed.get("planner", {})
    changes = {VIEW[key]: value for key, value in typed.items() if key in VIEW}
    if is_a(find_class(node), Planner):
        changes = {"loads": "profiled"} | changes
        changes = {"migration": MOVES.get(changes["loads"], "static")} | changes
        node = {"_target_": PLANNED, "name": node["name"], "planner": {"_target_": name}}
    kind = find_class(node)
    if not is_a(kind, PlannedExpertParallel):
        raise ValueError(f"{name} has no planner; it must be a planner's class, or a system with a planner")
    planner = node["planner"] | typed_planner
    given = kind.every_option(**options(node | changes | {"planner": planner}, "system"))
    return Subject(given["planner"], planner, kind, given, View(**{key: given[key] for key in VIEW.values()}))


def is_a(found: Any, kind: type) -> bool:
    """Whether what a name stands for is a class of this kind."""
    return isinstance(found, type) and issubclass(found, kind)


def score(one: Subject, scorer: Scorer, loads: Sequence[Source], ranks: Sequence[int] = ()) -> dict[str, Any]:
    """The score of one planner and what it is made of; a number only where the planner takes all loads.

    Raises Violation at the first rule that the planner breaks, and ValueError, in one sentence, where it takes none.
    """
    settings = [(source, number) for source in loads for number in source.ranks(ranks)]
    refusals = [one.refusal(source, number) for source, number in settings]
    scored = [
        scorer.score(one.planner, one.view, *setting)
        for setting, refusal in zip(settings, refusals, strict=True)
        if not refusal
    ]
    if not scored:
        raise ValueError(next(iter(refusals), f"ranks is {list(ranks)}; none of them divides the experts of the loads"))
    refused = [
        {"load": source.name, "ranks": number, "refusal": refusal}
        for (source, number), refusal in zip(settings, refusals, strict=True)
        if refusal
    ]
    about = {"planner": one.node, "view": {key: getattr(one.view, name) for key, name in VIEW.items()}}
    return about | {"score": None if refused else overall(scored), "refused": refused, "loads": scored}


def score_all(typed: dict[str, Any], scorer: Scorer, loads: Sequence[Source], ranks: Sequence[int]) -> dict[str, Any]:
    """By name, every system of conf/system with a planner; of one that cannot be scored, what was said."""
    reports = {}
    for path in sorted(CONF.glob("*.yaml")):
        if "planner" not in read_system(path.stem):
            continue
        try:
            reports[path.stem] = score(subject(path.stem, typed), scorer, loads, ranks)
        except ValueError as error:
            reports[path.stem] = {"said": str(error)}
    return reports


def table(report: dict[str, Any]) -> str:
    """What was scored and how, its loads, a line each, and the score."""
    options = {key.strip("_"): value for key, value in (report["planner"] | report["view"]).items()}
    shown = pd.DataFrame(report["loads"])[list(COLUMNS)].set_axis(list(COLUMNS.values()), axis=1)
    lines = [", ".join(f"{key} {value}" for key, value in options.items())]
    lines += [shown.to_string(index=False, float_format="%.3g")]
    lines += [f"{one['load']} on {one['ranks']} ranks is refused: {one['refusal']}" for one in report["refused"]]
    score = "none, because loads are refused" if report["score"] is None else f"{report['score']:.4f}"
    return "\n".join([*lines, f"score: {score}"])


def summary(reports: dict[str, Any]) -> str:
    """Of many planners a line each, the best first: the score, its part of each model and phase, means over loads."""
    rows = [{"system": name} | _line(report) for name, report in reports.items()]
    frame = pd.DataFrame(rows).sort_values("score", ascending=False, na_position="last").dropna(axis=1, how="all")
    return frame.to_string(index=False, na_rep="-", float_format="%.3g")


def _line(report: dict[str, Any]) -> dict[str, Any]:
    if "said" in report:
        return {"score": None, "said": report["said"]}
    loads = pd.DataFrame(report["loads"])
    parts = {group: overall(mine.to_dict("records")) for group, mine in loads.groupby("group")}
    means = {COLUMNS[key]: loads[key].mean() for key in ("max_over_mean", "over_least")}
    line = {"placed_by": report["view"]["placed_by"], "score": report["score"], **parts, **means}
    line |= {"most held": loads["held"].max(), "plan_ms": loads["plan_ms_median"].mean()}
    return line | {"said": f"refuses {len(report['refused'])} loads" if report["refused"] else None}


def typed_values(arguments: Sequence[str]) -> dict[str, Any]:
    """What key=value says, in nested keys; ValueError for a key that there is not."""
    for argument in arguments:
        key, equals, _ = argument.partition("=")
        if not equals or (key not in VIEW.keys() | OWN.keys() and not key.startswith("planner.")):
            known = [*VIEW, *OWN, "planner.OPTION"]
            raise ValueError(f"{argument!r} is no option; {meant(key, known, 'options are key=value, with the keys')}")
    values = OmegaConf.to_container(OmegaConf.from_dotlist(list(arguments)))
    assert isinstance(values, dict)
    return {str(key): value for key, value in values.items()}


def main(argv: Sequence[str] | None = None) -> int:
    """Score one planner or all; 1 where a rule is broken, 2 for what cannot be scored."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("planner", metavar="PLANNER")
    parser.add_argument("options", nargs="*", metavar="key=value")
    parser.add_argument("--json", type=Path, help="a file for everything that was found, layer by layer")
    given = parser.parse_args(argv)
    try:
        typed = typed_values(given.options)
        own = OWN | {key: value for key, value in typed.items() if key in OWN}
        asked = {key: value for key, value in typed.items() if key not in OWN}
        check_value("seed", own["seed"], int, {"least": 0})
        check_value("extra_slots", own["extra_slots"], int | None, {"least": 0})
        loads = sources(own["loads"] and Path(own["loads"]), own["model"], own["phase"], own["seed"])
        ranks = whole_numbers("ranks", own["ranks"])
        scorer = Scorer(load_device(str(own["device"])), own["extra_slots"])
        if given.planner == "all":
            found: Any = score_all(asked, scorer, loads, ranks)
            print(summary(found))
        else:
            found = score(subject(given.planner, asked), scorer, loads, ranks)
            print(table(found))
    except Violation as violation:
        print(f"error: {violation}", file=sys.stderr)
        return 1
    except (OSError, ValueError, KeyError, TypeError, YAMLError, OmegaConfBaseException) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    if given.json:
        about = {"device": scorer.device.name, "device_identity": scorer.device.identity, "precision": PRECISION}
        about |= {"seed": own["seed"], "layers": LAYERS, "batches": BATCHES, "extra_slots": own["extra_slots"]}
        given.json.write_text(json.dumps(about | {"scored": found}, indent=1, default=float))
    return 0


def whole_numbers(name: str, typed: Any) -> list[int]:
    """Of 8, [8, 32] or "8,32"; none of null."""
    parts = typed if isinstance(typed, list) else str("" if typed is None else typed).split(",")
    if not all(str(part).strip().isdecimal() and int(part) for part in parts if part != ""):
        raise ValueError(f"{name} is {typed!r}; it must be whole numbers of at least 1 with commas between")
    return [int(part) for part in parts if part != ""]


if __name__ == "__main__":
    sys.exit(main())
