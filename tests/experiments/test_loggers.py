"""The mirror holds what was stored, keeps secrets, and never stops or outlives a cell (real wandb, offline)."""

import json
import os
import socket
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import psutil
import pytest

from experiments.configuration import instantiate
from experiments.loggers import NoLogger, WandbLogger, describe, medians, without_secrets
from experiments.records import document
from tests.experiments.tiny import configuration

ROOT = Path(__file__).parents[2]
SECRET = "c0ffee" * 7
# ms of (iteration, rank): the slowest rank has 4, 6 and 9 ms.
TTFT_IG = np.array([[1.0, 4.0], [6.0, 2.0], [9.0, 3.0]])


@pytest.fixture(autouse=True)
def no_account(tmp_path, monkeypatch):
    """A home without a login, and nothing set by whoever runs the tests."""
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("NETRC", str(tmp_path / "home/netrc"))


def samples() -> pd.DataFrame:
    rows = [("measure", "ttft_ms", None, None, TTFT_IG), ("warmup", "ttft_ms", None, None, 100 * TTFT_IG)]
    rows += [("first", "ttft_ms", None, None, 1000 * TTFT_IG), ("instrumented", "ttft_ms", None, None, 2 * TTFT_IG)]
    for layer, factor in ((1, 1.0), (3, 2.0)):
        rows += [("instrumented", "layer_moe_ms", layer, None, factor * TTFT_IG)]
        rows += [("instrumented", "section_ms", layer, "route", 0.1 * factor * TTFT_IG)]
        rows += [("instrumented", "section_ms", layer, "experts", 0.5 * factor * TTFT_IG)]
        rows += [("measure", "dropped", layer, None, np.array([[0, 1], [2, 2], [3, 3]]))]
    columns = ["phase", "metric", "layer", "section", "iteration", "rank", "value"]
    long = [
        (*labels, i, rank, float(value)) for *labels, value_IG in rows for (i, rank), value in np.ndenumerate(value_IG)
    ]
    frame = pd.DataFrame(long, columns=columns).astype({"layer": "Int64", "section": "str"})
    return frame.sample(frac=1, random_state=0)  # the order of rows says nothing


def run_json(**changes: Any) -> dict[str, Any]:
    run = {"cell": "0123456789ab", "campaign": "fig3-laptop-quick-seed0", "state": "ok", "reason": None, "launch": 1}
    run |= {
        "system": "moeshard",
        "engine": "grouped",
        "source": "emulated",
        "tier": "quick",
        "config": document(configuration()),
    }
    run |= {"point": {"num_experts": 4, "batch_size": 2, "seq_len": 12, "world_size": 2}}
    return run | changes


def logger(folder: Path, mode: str | None = "offline") -> WandbLogger:
    return WandbLogger(project="tests", entity=None, mode=mode, dir=str(folder))


def records(path: Path) -> list[Any]:
    """The records of a .wandb file: LevelDB's log format (32 KiB blocks; checksum, length, type) after 7 bytes."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, at, pending, found = path.read_bytes(), 7, b"", []
    while at + 7 <= len(data):
        if 32768 - at % 32768 < 7:  # a block's unused end
            at += 32768 - at % 32768
        length, kind = struct.unpack_from("<HB", data, at + 4)
        pending, at = pending + data[at + 7 : at + 7 + length], at + 7 + length
        if kind in (1, 4):  # whole, or the last part
            found, pending = [*found, Record.FromString(pending)], b""
    return found


def values(items: Any) -> dict[str, Any]:
    return {"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in items}


def mirrored(folder: Path) -> list[dict[str, Any]]:
    """What each offline run under `folder` says, in the order of logging."""
    runs = []
    for path in sorted(folder.glob("wandb/offline-run-*/*.wandb"), key=lambda path: path.stat().st_mtime_ns):
        log, summary = records(path), {}
        for record in log:
            summary |= values(record.summary.update)
        [exit_code] = [record.exit.exit_code for record in log if record.WhichOneof("record_type") == "exit"]
        first = next(record.run for record in log if record.WhichOneof("record_type") == "run")
        history = [values(record.history.item) for record in log if record.WhichOneof("record_type") == "history"]
        config = values(first.config.update)
        runs.append({"run": first, "config": config, "summary": summary, "history": history, "exit": exit_code})
    return runs


def test_medians_take_the_slowest_rank_and_the_right_pass():
    found = medians(samples())
    assert found == pytest.approx(
        {
            "ttft_ms": 6.0,
            "layer_moe_ms": 8.5,  # of 4, 6, 9 and 8, 12, 18
            "section_ms/route": 0.85,
            "section_ms/experts": 4.25,
            "dropped": 8.0,  # of 2, 8, 12 over layers and ranks
        }
    )


def test_medians_without_an_instrumented_pass():
    measured = samples().query("phase == 'measure'")
    assert medians(measured) == {"ttft_ms": 6.0, "dropped": 8.0}


def test_offline_runs_hold_what_was_stored(tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("WANDB_API_KEY", SECRET)
    server = socket.create_server(("127.0.0.1", 0))
    server.settimeout(0.1)
    monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{server.getsockname()[1]}")
    threads = {thread.name for thread in threading.enumerate()}
    mirror = logger(tmp_path / "out")
    mirror.cell(run_json(), samples())
    mirror.cell(run_json(state="oom", reason=f"out of memory at {SECRET}", system="deepspeed", twin=True), None)
    mirror.close()

    ok, failed = mirrored(tmp_path / "out")
    assert (ok["run"].project, ok["run"].run_group, ok["run"].job_type) == (
        "tests",
        "fig3-laptop-quick-seed0",
        "moeshard",
    )
    assert ok["run"].display_name == "moeshard E=4 batch=2 launch 1"
    assert list(ok["run"].tags) == ["emulated", "quick", "laptop"]
    assert ok["config"]["router"] == configuration().router and ok["config"]["run"]["cell"] == "0123456789ab"
    assert ok["summary"].items() >= {**medians(samples()), "state": "ok", "reason": None}.items() and ok["exit"] == 0
    assert [step["iteration/ttft_ms"] for step in ok["history"]] == [4.0, 6.0, 9.0]

    assert failed["run"].display_name == "deepspeed E=4 batch=2 launch 1 twin" and failed["exit"] == 1
    assert failed["summary"]["state"] == "oom" and failed["summary"]["reason"] == "out of memory at ***"
    assert "ttft_ms" not in failed["summary"]

    assert capfd.readouterr() == ("", "")
    assert not [child for child in psutil.Process().children() if "wandb" in child.name()]  # nothing beside the ranks
    assert {thread.name for thread in threading.enumerate()} == threads
    written = [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert written and not [path for path in written if SECRET.encode() in path.read_bytes()]
    assert {path.suffix for path in written} == {".log", ".wandb"}  # no code, requirements, metadata or console
    with server, pytest.raises(TimeoutError):  # offline: nobody called
        server.accept()


def test_without_a_login_the_campaign_goes_on_and_one_sentence_says_so(tmp_path, capfd):
    mirror = logger(tmp_path / "out", mode="online")
    for _ in range(2):
        mirror.cell(run_json(), samples())
    out, err = capfd.readouterr()
    assert out == "" and err.count("\n") == 1
    assert err.startswith("warning: Weights & Biases gets no more cells of this campaign (no API key")


def test_without_a_network_the_campaign_goes_on(tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("WANDB_API_KEY", SECRET)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setitem(sys.modules["experiments.loggers"].SETTINGS, "init_timeout", 1)
    started = time.monotonic()
    mirror = logger(tmp_path / "out", mode="online")
    for _ in range(2):
        mirror.cell(run_json(), samples())
    out, err = capfd.readouterr()
    assert time.monotonic() - started < 30
    assert out == "" and err.startswith("warning: Weights & Biases gets no more cells") and err.count("\n") == 1
    assert SECRET not in err
    assert not [child for child in psutil.Process().children() if "wandb" in child.name()]


def test_default_mode_is_wandbs_own(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    logger(tmp_path, mode=None).cell(run_json(), None)
    assert len(mirrored(tmp_path)) == 1


def test_unknown_mode_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"logger\.mode is 'on'; it must be offline, online or null"):
        logger(tmp_path, mode="on")


def test_configuration_files_build_them():
    assert isinstance(instantiate(configuration().logger), NoLogger)
    node = configuration("logger=wandb", "logger.mode=offline", "out=somewhere").logger
    assert isinstance(instantiate(node), WandbLogger) and node["dir"] == "somewhere"


def test_wandb_is_imported_by_its_first_cell_only(tmp_path):
    code = (
        "import sys; from experiments.loggers import NoLogger, WandbLogger;"
        f"WandbLogger('p', None, 'offline', {str(tmp_path)!r}).close(); NoLogger().cell({{}}, None);"
        "sys.exit('wandb' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, timeout=60).returncode == 0
    assert list(tmp_path.iterdir()) == []


def test_secrets_stay_here(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", SECRET)
    config = {
        "corpus": {"path": f"https://me:{SECRET[:5]}@host/{SECRET}/a.txt", "hub_token": "x", "num_tokens": 5},
        "system": {"drop_tokens": False, "options": [{"api_key": "x", "keys": 2}]},
    }
    assert without_secrets(config) == {
        "corpus": {"path": "https://***@host/***/a.txt", "num_tokens": 5},
        "system": {"drop_tokens": False, "options": [{"keys": 2}]},
    }
    assert SECRET not in json.dumps(describe(run_json(config={**document(configuration()), **config})))
