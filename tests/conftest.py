"""What `make test` needs to run two test files at a time on two cores."""

import os

import pytest

# Before torch is imported: two workers with a thread for each core would wait for one another in every product.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

# Where ranks and command lines are started: minutes, so no worker may be left alone with them at the end.
LONG = ("tests/experiments/", "tests/clusters/", "tests/systems/", "tests/test_secrets.py")


def pytest_collection_modifyitems(items):
    """Long files first; the order within a file stays."""
    items.sort(key=lambda item: not item.nodeid.startswith(LONG))


@pytest.fixture(scope="session", autouse=True)
def one_fork_server():
    """Every rank of this process comes from one fork server, so it imports what any test needs, whichever is first."""
    from clusters.launch import prepare
    from clusters.session import ClusterSpec
    from experiments.worker import PRELOAD

    with pytest.MonkeyPatch.context() as patch:
        prepare(ClusterSpec(), [*PRELOAD, "experiments.conformance", "scipy.optimize"])
        patch.setattr("multiprocessing.set_forkserver_preload", lambda modules: None)
        yield


@pytest.fixture(autouse=True)
def nothing_is_timed(monkeypatch):
    """engine=auto takes the first of the engines that can run: tests must not depend on what this machine measures."""
    from systems.engines import auto

    auto.choose.cache_clear()
    monkeypatch.setattr(auto.probe, "fastest", lambda engines, work, threads: engines[0])
    yield
    auto.choose.cache_clear()


@pytest.fixture
def has_compiler():
    """Skips, in a sentence, where the kernels of engine=cpu cannot be compiled."""
    from systems.engines.cpu import kernels

    try:
        kernels()
    except ValueError as refusal:
        pytest.skip(str(refusal))
