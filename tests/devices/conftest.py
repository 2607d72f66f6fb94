from collections.abc import Callable
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate

from devices import Device

CONF = Path(__file__).parents[2] / "conf"


@pytest.fixture(scope="session")
def device_of() -> Callable[..., Device]:
    """A described device of conf/device, with overrides as on the command line."""

    def build(name: str, *overrides: str) -> Device:
        with initialize_config_dir(str(CONF), version_base="1.3"):
            config = compose("config", [f"device={name}", *overrides])
        return instantiate(config.device)

    return build
