"""Described devices: how long a kernel, a copy and a collective take on a machine that need not be here."""

from devices.device import Device
from devices.load import load_device
from devices.parts import Grouped, Host

__all__ = ["Device", "Grouped", "Host", "load_device"]
