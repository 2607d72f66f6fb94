from collections.abc import Callable

import pytest

from devices import Device
from experiments.composition import configuration
from experiments.configuration import instantiate


@pytest.fixture(scope="session")
def device_of() -> Callable[..., Device]:
    """A described device of conf/device, with overrides as on the command line."""

    def build(name: str, *overrides: str) -> Device:
        return instantiate(configuration([f"device={name}", *overrides]).device, "device")

    return build
