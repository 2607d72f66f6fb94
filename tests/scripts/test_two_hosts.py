"""Two namespaces on one machine: arithmetic of the wire, refusals, and a real all-reduce over it."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from scripts import two_hosts as hosts

ALL_REDUCE = """
import time, torch, torch.distributed as dist
dist.init_process_group("gloo")
x, times = torch.ones(500_000), []
for _ in range(6):
    dist.barrier()
    start = time.perf_counter()
    y = x.clone()
    dist.all_reduce(y)
    times.append(time.perf_counter() - start)
assert y.eq(2).all()
if dist.get_rank() == 0:
    print(min(times))
dist.destroy_process_group()
"""


@pytest.fixture(scope="module")
def can_play() -> None:
    """Skip where this machine cannot play two hosts."""
    try:
        with hosts.two_hosts("1gbit"):
            pass
    except hosts.Unavailable as reason:
        pytest.skip(str(reason))


@pytest.fixture
def program(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "program.py"
    path.write_text(ALL_REDUCE)
    yield path
    assert namespaces_of(os.getpid()) == []


def namespaces_of(pid: int) -> list[str]:
    listing = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True).stdout
    return [line for line in listing.splitlines() if line.startswith(f"moe-{pid}-")]


@pytest.mark.parametrize(
    ("rate", "bits"), [("100mbit", 1e8), ("2.5gbit", 2.5e9), ("1000kbit", 1e6), ("1000000bit", 1e6)]
)
def test_rate_is_read_as_tc_reads_it(rate: str, bits: float):
    assert hosts.bits_per_second(rate) == bits


@pytest.mark.parametrize("rate", ["", "fast", "1", "1gbps", "-1gbit", "999kbit", "0gbit", "1 gbit"])
def test_what_is_no_rate_is_named(rate: str):
    with pytest.raises(ValueError, match=f"^--rate is '{rate}'; it must be at least 1mbit"):
        hosts.bits_per_second(rate)


@pytest.mark.parametrize("rate", ["1mbit", "100mbit", "1gbit", "10gbit"])
def test_bucket_holds_a_bundle_and_bends_1_mb_by_little(rate: str):
    size = hosts.bucket_bytes(rate)
    assert size >= hosts.PACKET_BYTES
    if rate != "10gbit":
        assert size <= 0.04 * 1e6


def test_needs_a_program_to_run(capsys: pytest.CaptureFixture[str]):
    before = hosts.signal.getsignal(hosts.signal.SIGTERM)
    for arguments in ([], ["--rate", "1gbit"], ["-m"], ["--"]):
        assert hosts.main(arguments) == hosts.UNAVAILABLE
        assert "say what to run" in capsys.readouterr().err
    assert hosts.signal.getsignal(hosts.signal.SIGTERM) == before


def test_without_root_one_sentence(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setattr(hosts.shutil, "which", lambda tool: f"/sbin/{tool}")
    monkeypatch.setattr(hosts.sys, "platform", "linux")
    monkeypatch.setattr(hosts.os, "geteuid", lambda: 1000)
    assert hosts.main(["--", "program.py"]) == hosts.UNAVAILABLE
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "need root" in error


def all_reduce_ms(program: Path, rate: str, capfd: pytest.CaptureFixture[str]) -> float:
    assert hosts.run([str(program)], rate) == 0
    return float(capfd.readouterr().out) * 1e3


@pytest.mark.slow
@pytest.mark.usefixtures("can_play")
def test_the_wire_decides_how_long_2_mb_take(program: Path, capfd: pytest.CaptureFixture[str]):
    slow_ms, fast_ms = (all_reduce_ms(program, rate, capfd) for rate in ("100mbit", "1gbit"))
    assert slow_ms > 150  # 2 MB each way at 100 Mbit/s take 160 ms, less what the bucket lets through
    assert slow_ms / fast_ms > 4


@pytest.mark.slow
@pytest.mark.usefixtures("can_play")
def test_a_host_that_fails_ends_both(program: Path, capfd: pytest.CaptureFixture[str]):
    program.write_text("import os, time\nos.environ['RANK'] == '0' or exit('unwell')\ntime.sleep(200)")
    start = time.monotonic()
    assert hosts.run([str(program)], "1gbit") == 1
    assert time.monotonic() - start < 100
    assert "second host:\nunwell" in capfd.readouterr().err


@pytest.mark.slow
@pytest.mark.usefixtures("can_play")
def test_being_stopped_leaves_nothing_behind(program: Path, tmp_path: Path):
    program.write_text(f"import time\nopen({str(tmp_path / 'up')!r}, 'w').close()\ntime.sleep(200)")
    command = [sys.executable, "-m", "scripts.two_hosts", "--", str(program)]
    process = subprocess.Popen(command, cwd=Path(__file__).parents[2], stderr=subprocess.DEVNULL)
    while not (tmp_path / "up").exists():
        assert process.poll() is None
        time.sleep(0.1)
    assert len(namespaces_of(process.pid)) == 2
    process.terminate()
    assert process.wait(60) == 128 + 15
    assert namespaces_of(process.pid) == []
