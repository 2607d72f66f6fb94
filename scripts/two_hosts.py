"""Run a torchrun program on two hosts that this machine plays: two network namespaces and a wire of a given speed.

    python -m scripts.two_hosts --rate 1gbit -m experiments.run cluster=torchrun cluster.device=cpu experiment=fig3a
    python -m scripts.two_hosts --rate 1gbit -m scripts.calibrate_network --name ethernet1g
    python -m scripts.two_hosts --rate 100mbit -- program.py arguments

Each host runs one rank on its half of the cores and talks through the kernel's own TCP over a veth pair, whose ends are
shaped by a token bucket, as a full-duplex network adapter is. Unlike two machines they share memory bandwidth, the last
cache and the kernel; the wire adds no latency of its own. Linux, root, `ip` and `tc` (iproute2) are needed.
"""

import argparse
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import IO

from clusters.launch import PROCESS_ENVIRONMENT

ADDRESSES = ("10.77.0.1", "10.77.0.2")
PORT = "29500"  # free: nothing else listens in a namespace of our own
WIRE = "wire"  # the interface's name in both namespaces
PACKET_BYTES = 16384  # largest bundle of segments that the kernel hands to the wire at once
# A bucket of 250 us lets 31 KB pass unshaped at 1 Gbit/s (3 % of 1 MB), yet outlasts a late timer; one bundle must fit.
BUCKET_S, LEAST_BUCKET_BYTES = 250e-6, 2 * PACKET_BYTES
QUEUE_BYTES = 16 << 20  # above what the sockets of a job may have queued: the wire delays and never drops
GRACE_S = 15.0  # for a host to end after the other failed, or after it was told to
STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
UNAVAILABLE = 2


class Unavailable(RuntimeError):
    """This machine cannot play two hosts; str() is one sentence."""


def bits_per_second(rate: str) -> float:
    """100mbit -> 1e8, as tc reads it. Raises ValueError for what is no rate."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([kmg]?)bit", rate)
    bits = float(match[1]) * {"": 1, "k": 1e3, "m": 1e6, "g": 1e9}[match[2]] if match else 0.0
    if bits < 1e6:
        raise ValueError(f"--rate is {rate!r}; it must be at least 1mbit, written like 100mbit, 2.5gbit")
    return bits


def bucket_bytes(rate: str) -> int:
    """Size of the token bucket: what may pass at once before the rate applies."""
    return max(LEAST_BUCKET_BYTES, int(bits_per_second(rate) / 8 * BUCKET_S))


@contextmanager
def two_hosts(rate: str) -> Iterator[tuple[str, str]]:
    """Two network namespaces joined by a wire of `rate`; yields their names, ends all that runs in them, removes them.

    Raises Unavailable where that cannot be done, ValueError for a rate that is none.
    """
    bits_per_second(rate)
    _require()
    _remove_abandoned()
    names = (f"moe-{os.getpid()}-0", f"moe-{os.getpid()}-1")
    with ExitStack() as cleaning:
        for name in names:
            cleaning.callback(_remove, name)
            _run("ip", "netns", "add", name)
        _run("ip", "link", "add", WIRE, "netns", names[0], "type", "veth", "peer", "name", WIRE, "netns", names[1])
        for name, address in zip(names, ADDRESSES, strict=True):
            _connect(name, address, rate)
        yield names


def _require() -> None:
    lacking = [tool for tool in ("ip", "tc") if shutil.which(tool) is None]
    if sys.platform != "linux" or lacking:
        raise Unavailable(f"two hosts on one machine need Linux with iproute2; not found: {lacking or 'Linux'}")
    if os.geteuid() != 0:
        raise Unavailable("two hosts on one machine need root, to create network namespaces")


def _connect(name: str, address: str, rate: str) -> None:
    bundle = ("gso_max_size", str(PACKET_BYTES))  # a bundle above the bucket would be dropped
    _run("ip", "-n", name, "link", "set", WIRE, *bundle)
    _run("ip", "-n", name, "address", "add", f"{address}/24", "dev", WIRE)
    for interface in ("lo", WIRE):
        _run("ip", "-n", name, "link", "set", interface, "up")
    bucket = ("burst", str(bucket_bytes(rate)), "limit", str(QUEUE_BYTES))
    _run("tc", "-n", name, "qdisc", "add", "dev", WIRE, "root", "tbf", "rate", rate, *bucket)


def _run(*command: str) -> str:
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode:
        raise Unavailable(f"this machine refuses `{' '.join(command)}`: {result.stderr.strip()}")
    return result.stdout


def _remove(name: str) -> None:
    """Kill what runs in the namespace (nothing but ours can), then remove it, and with it its end of the wire."""
    if not Path("/run/netns", name).exists():
        return
    for pid in _run("ip", "netns", "pids", name).split():
        with suppress(ProcessLookupError):
            os.kill(int(pid), signal.SIGKILL)
    _run("ip", "netns", "delete", name)


def _remove_abandoned() -> None:
    """Remove what a run left behind that was killed without a chance to clean up."""
    for line in _run("ip", "netns", "list").splitlines():
        match = re.match(r"moe-(\d+)-[01]\b", line)
        if match and not Path(f"/proc/{match[1]}").exists():
            _remove(match[0])


def torchrun(number: int) -> list[str]:
    """The command that starts host `number`'s rank; a program, or -m and a module, follows it."""
    nodes = ["--nnodes", "2", "--nproc-per-node", "1", "--node-rank", str(number)]
    return [sys.executable, "-m", "torch.distributed.run", *nodes, "--master-addr", ADDRESSES[0], "--master-port", PORT]


def start(name: str, number: int, command: Sequence[str], log: IO[bytes] | None) -> subprocess.Popen:
    """Start a command on one host, on its half of the cores; what it prints goes to `log`, or to our own output."""
    cores = sorted(os.sched_getaffinity(0))
    half = len(cores) // 2
    own = (cores[:half], cores[half:])[number] or cores
    # Ranks keep freed memory as those that the harness starts do. torch warns that the addresses have no names.
    environment = {"TORCH_CPP_LOG_LEVEL": "ERROR"} | os.environ | PROCESS_ENVIRONMENT | {"GLOO_SOCKET_IFNAME": WIRE}
    return subprocess.Popen(
        ["ip", "netns", "exec", name, *command],
        env=environment,
        stdout=log,
        stderr=log and subprocess.STDOUT,
        stdin=subprocess.DEVNULL,
        start_new_session=True,  # Ctrl-C reaches this process only, which then ends the hosts in order
        preexec_fn=lambda: os.sched_setaffinity(0, own),
    )


def run(command: Sequence[str], rate: str) -> int:
    """Run a torchrun program on both hosts, with host 0's output as ours; returns the exit status."""
    with two_hosts(rate) as names, tempfile.TemporaryFile() as log:
        hosts: list[subprocess.Popen] = []
        try:
            for number, name in enumerate(names):
                hosts.append(start(name, number, [*torchrun(number), *command], log if number else None))
            status = _wait(hosts)
        finally:
            _stop(hosts)
        if status and hosts[1].returncode:
            log.seek(0)
            print(f"second host:\n{log.read().decode(errors='replace')[-4000:]}", file=sys.stderr)
        return status


def _wait(hosts: Sequence[subprocess.Popen]) -> int:
    """Wait for both, but not for long once one has failed; 0 or 1."""
    deadline_s = float("inf")
    while None in (ended := [host.poll() for host in hosts]) and time.monotonic() < deadline_s:
        if any(ended):
            deadline_s = min(deadline_s, time.monotonic() + GRACE_S)
        time.sleep(0.1)
    return int(any(host.returncode != 0 for host in hosts))


def _stop(hosts: Sequence[subprocess.Popen]) -> None:
    """Ask what still runs to end; removing the namespaces ends the rest."""
    running = [host for host in hosts if host.poll() is None]
    for host in running:
        host.terminate()
    for host in running:
        with suppress(subprocess.TimeoutExpired):
            host.wait(GRACE_S)


def _exit_in_order(number: int, frame: object) -> None:
    for later in STOPPING:
        signal.signal(later, signal.SIG_IGN)  # cleaning up is under way
    raise SystemExit(128 + number)


def main(arguments: Sequence[str] | None = None) -> int:
    """Everything after -m or -- belongs to the program."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    cut = next((index for index, word in enumerate(arguments) if word in ("-m", "--")), len(arguments))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rate", default="1gbit", help="of the wire, each way; as tc writes it")
    rate = parser.parse_args(arguments[:cut]).rate
    command = arguments[cut + (arguments[cut : cut + 1] == ["--"]) :]
    try:
        if len(command) < 1 + (command[:1] == ["-m"]):
            raise ValueError("say what to run: -m MODULE ARGUMENTS, or -- PROGRAM.py ARGUMENTS")
        for number in STOPPING:
            signal.signal(number, _exit_in_order)
        return run(command, rate)
    except (ValueError, Unavailable) as error:
        print(f"two_hosts: {error}", file=sys.stderr)
        return UNAVAILABLE


if __name__ == "__main__":
    raise SystemExit(main())
