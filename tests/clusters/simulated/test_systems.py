"""Every system on simulated ranks: it runs, moves the bytes of its account, and takes the rows that it really takes."""

import json

import pytest

from clusters.launch import launch
from clusters.session import ClusterSpec
from experiments.conformance import GATED
from tests.clusters.simulated import systems_program
from tests.clusters.simulated.stub import call
from tests.systems import test_conformance

AUTHORS = {"moeshard_authors", "moeshard_authors_loop"}  # they want equally many tokens on every rank
SYSTEMS = {
    name: {**node, "engine": "loop", "hidden": None} if name in AUTHORS else node
    for name, node in test_conformance.SYSTEMS.items()
}
MAX_TOP_K = test_conformance.MAX_TOP_K | dict.fromkeys(AUTHORS, 1)
SKIPPED = {name: ["ragged"] for name in AUTHORS}
SPEC = {"systems": SYSTEMS, "max_top_k": MAX_TOP_K, "skipped": SKIPPED}
RANKS = (2, pytest.param(4, marks=pytest.mark.slow))


@pytest.fixture(scope="module")
def simulated():
    """Number of ranks -> what each told; each simulated once."""
    known = {}

    def of(ranks: int):
        if ranks not in known:
            known[ranks] = call(systems_program.simulated, SPEC, ranks, ranks=ranks)
        return known[ranks]

    return of


@pytest.fixture(scope="module")
def emulated(tmp_path_factory):
    known = {}

    def of(ranks: int):
        if ranks not in known:
            folder = tmp_path_factory.mktemp(f"emulated{ranks}")
            (folder / "spec.json").write_text(json.dumps(SPEC | {"ranks": ranks}))
            launch(ClusterSpec("emulated", ranks), systems_program.emulated, str(folder / "spec.json"))
            known[ranks] = [json.loads((folder / f"traces.{rank}.json").read_text()) for rank in range(ranks)]
        return known[ranks]

    return of


@pytest.mark.parametrize("name", SYSTEMS)
@pytest.mark.parametrize("ranks", RANKS)
def test_a_system_moves_the_bytes_of_its_account(simulated, ranks, name):
    for rank, traces in enumerate(simulated(ranks)):
        mine = {key: trace for key, trace in traces.items() if key.startswith(f"{name}/")}
        skipped = SKIPPED.get(name, ())
        activations = 0 if name in test_conformance.ONLY_RELU else len(GATED)
        assert len(mine) == (5 - len(skipped) + activations) * min(MAX_TOP_K[name], 2)
        for key, trace in mine.items():
            assert trace["bytes_sent"] == pytest.approx(trace["bytes_accounted"], rel=1e-12), (rank, key)
            assert (trace["bytes_sent"] > 0) == (name != "dense"), (rank, key)


@pytest.mark.parametrize("name", SYSTEMS)
@pytest.mark.parametrize("ranks", RANKS)
def test_a_system_exchanges_and_computes_what_it_does_on_emulated_ranks(simulated, emulated, ranks, name):
    """Every collective with its bytes to every rank, every call of the engine with its rows and their order."""
    for rank, (found, expected) in enumerate(zip(simulated(ranks), emulated(ranks), strict=True)):
        assert found.keys() == expected.keys()
        for key in (key for key in found if key.startswith(f"{name}/")):
            for what in ("output", "exchanges", "engine"):
                assert found[key][what] == expected[key][what], (rank, key, what)
