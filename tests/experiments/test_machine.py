import subprocess
from types import SimpleNamespace

from experiments import machine


def test_state_of_a_machine_without_gpus():
    state = machine.state("cpu")
    assert 0 <= state["busy_share"] <= 1 and state["load_1min"] >= 0 and state["gpus"] == []


def test_meter_tells_our_own_seconds_from_the_machine_s():
    meter = machine.Meter()
    sum(range(3_000_000))
    seen = meter.read(ranks_cpu_s=0.0)
    assert 0 < seen["own_cpu_s"] <= seen["wall_s"] * 1.5
    assert seen["busy_cpu_s"] >= 0 and seen["steal_s"] >= 0 and seen["cores"] >= 1
    assert meter.read(ranks_cpu_s=5.0)["own_cpu_s"] >= 5


def test_gpus_as_nvidia_smi_tells_them(monkeypatch):
    printed = "1980, 650.12, 61, 0x0000000000000004\n345, [N/A], 30, 0x0000000000000001\n"
    monkeypatch.setattr(subprocess, "run", lambda *args, **kwargs: SimpleNamespace(stdout=printed))
    assert machine.state("cuda")["gpus"] == [
        {"clock_mhz": 1980.0, "power_w": 650.12, "temperature_c": 61.0, "throttle": ["sw_power_cap"]},
        {"clock_mhz": 345.0, "power_w": None, "temperature_c": 30.0, "throttle": []},
    ]


def test_no_nvidia_smi_is_no_gpu_state(monkeypatch):
    def absent(*args, **kwargs):
        raise FileNotFoundError("nvidia-smi")

    monkeypatch.setattr(subprocess, "run", absent)
    assert machine.state("cuda")["gpus"] == []
