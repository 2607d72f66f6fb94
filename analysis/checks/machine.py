"""What the machine was doing, and what became of every cell."""

from collections.abc import Iterator

import numpy as np

from analysis.checks.evidence import FAIL, PASS, SKIP, WARN, Cell, Evidence, Finding, expect, graded, percent
from analysis.frames import select

ENVIRONMENT = ("python", "packages", "platform", "cpu", "cores", "git_commit", "lock_sha256", "variables")
STAMPS = ("seed", "config", "started", "finished")
FOREIGN_WARN, FOREIGN_FAIL, BUSY_BEFORE = 0.05, 0.25, 0.20
CLOCK_DROP, CEILING_SPREAD, BOUND_LIMIT = 0.05, 0.20, 105
AT_EASE = {"", "none", "gpu_idle", "idle", "0"}  # what GPUs report when nothing slows them


def known_environment(evidence: Evidence) -> Iterator[Finding]:
    """V17: everything needed to run it again is recorded, and the code was committed."""
    for cell in evidence.cells:
        environment = cell.run.get("environment") or {}
        absent = [name for name in ENVIRONMENT if environment.get(name) is None]
        absent += [name for name in STAMPS if cell.run.get(name) is None]
        if absent:
            yield Finding(cell.id, FAIL, f"Not recorded: {', '.join(absent)}.")
        elif environment.get("git_dirty"):
            yield Finding(cell.id, WARN, f"Uncommitted changes on top of {environment['git_commit'][:7]}.")
        else:
            text = f"Commit {environment['git_commit'][:7]}, Python {environment['python']}, {environment['cpu']}."
            yield Finding(cell.id, PASS, text)


def gpu_clocks(evidence: Evidence) -> Iterator[Finding]:
    """V18: no GPU was throttled or slowed down over the cell."""
    for cell in evidence.cells:
        before, after = (((cell.run.get("machine") or {}).get(at) or {}).get("gpus") for at in ("before", "after"))
        if cell.run["config"]["cluster"].get("device") == "cpu":
            yield Finding(cell.id, SKIP, "No GPU took part.")
        elif not before or not after:
            yield Finding(cell.id, FAIL, "Clocks and throttle reasons were not recorded.")
        else:
            wrong = [f"GPU {i} was throttled ({reason})" for i, reason in enumerate(map(throttle, after)) if reason]
            drops = [1 - late["clock_mhz"] / early["clock_mhz"] for early, late in zip(before, after, strict=False)]
            wrong += [f"GPU {i} lost {percent(d)} of its clock" for i, d in enumerate(drops) if d > CLOCK_DROP]
            yield expect(cell.id, wrong, f"{len(after)} GPUs kept their clocks, at {after[0]['clock_mhz']} MHz.", WARN)


def throttle(gpu: dict) -> str:
    """The reasons that slow a GPU down, without those that do not."""
    reasons = gpu.get("throttle") or []
    reasons = reasons if isinstance(reasons, list) else [reasons]
    return ", ".join(str(reason) for reason in reasons if str(reason).lower() not in AT_EASE)


def foreign_load(evidence: Evidence) -> Iterator[Finding]:
    """V19: the machine was ours: CPU time of others and stolen time during the launch, load before it."""
    for cell in evidence.cells:
        machine = cell.run.get("machine") or {}
        during, before = machine.get("during"), machine.get("before")
        if not during or not before:
            yield Finding(cell.id, FAIL, "The machine's load was not recorded.")
            continue
        total_s = during["cores"] * during["wall_s"]
        foreign = max(0.0, during["busy_cpu_s"] - during["own_cpu_s"]) / total_s
        stolen, idle = during["steal_s"] / total_s, before["busy_share"] <= BUSY_BEFORE
        text = f"Others used {percent(foreign)} of the CPU, the host took {percent(stolen)}; "
        text += f"{percent(before['busy_share'])} was busy before."
        worst = graded(cell.id, max(foreign, stolen), text, warn=FOREIGN_WARN, fail=FOREIGN_FAIL)
        yield worst if idle or worst.verdict == FAIL else worst._replace(verdict=WARN)


def ceilings(evidence: Evidence) -> Iterator[Finding]:
    """V20: upper bounds were measured, agree between launches, and nothing is faster than them."""
    for cell in evidence.cells:
        found = cell.run.get("ceilings")
        wrong = [] if found else ["The ceilings of the machine were not measured"]
        speed = f"{found['matmul_flops_per_s'] / 1e9:.4g} GFLOP/s" if found else ""
        yield expect(cell.id, wrong, f"A matmul reaches {speed} on this machine.", WARN)
    yield from ceilings_agree(evidence.cells)
    bounds = select(evidence.summary, metric="percent_of_bound")
    if len(bounds):
        highest = bounds.loc[bounds["value"].idxmax()]
        text = f"Section {highest['section']} of {highest['system']} reaches {highest['value']:.0f} % of the ceiling."
        yield Finding(None, FAIL if highest["value"] > BOUND_LIMIT else PASS, text)


def ceilings_agree(cells: list[Cell]) -> Iterator[Finding]:
    """One finding for each dtype and number of threads: the ceiling over the launches of the campaign."""
    by_kind: dict[tuple, dict[str, float]] = {}
    for cell in cells:
        if found := cell.run.get("ceilings"):
            kind = (found["dtype"], found["threads"])
            by_kind.setdefault(kind, {})[cell.run["launch_id"]] = found["matmul_flops_per_s"]
    for (dtype, threads), of_launch in by_kind.items():
        values = np.array(list(of_launch.values()))
        spread = values.max() / values.min() - 1
        text = (
            f"The {dtype} matmul ceiling on {threads} threads varies by {percent(spread)} over {len(values)} launches."
        )
        yield graded(None, spread, text, warn=CEILING_SPREAD)


def untouched_files(evidence: Evidence) -> Iterator[Finding]:
    """V21: the raw rows are those that were written."""
    for cell, run in evidence.campaign.runs.items():
        if run["state"] == "corrupt":
            yield Finding(cell, FAIL, run["reason"])
        elif run["state"] == "ok":
            yield Finding(cell, PASS, f"The checksums of {len(run['checksums'])} files are those that were written.")


def covered(evidence: Evidence) -> Iterator[Finding]:
    """V24: what did not work is a row with its reason."""
    runs = evidence.campaign.runs
    for cell, run in runs.items():
        if run["state"] != "ok":
            reason = run.get("reason")
            yield Finding(cell, WARN if reason else FAIL, f"{run['state']}: {reason or 'no reason is stored.'}")
    states = [run["state"] for run in runs.values()]
    counts = ", ".join(f"{states.count(state)} {state}" for state in sorted(set(states)))
    yield Finding(None, PASS if "ok" in states else FAIL, f"{len(runs)} cells: {counts}.")
