"""The state in which a device is timed: its temperature, its clock and the settings that were changed."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from natdeploy.hardware.device import Device
from natdeploy.hardware.transports import ProgramError, Transport
from natdeploy.progress import Progress

COOL_LIMIT_S = 300.0
"""Longest wait for a device to cool down; one that stands in the sun never does."""

_LOOK_S = 5.0
_ANSWER_S = 30.0


def settle(
    transport: Transport,
    device: Device,
    progress: Progress,
    *,
    limit_s: float = COOL_LIMIT_S,
    sleep: Callable[[float], None] = time.sleep,
) -> dict[str, Any]:
    """Waits until the device is as cool as its file demands, or the limit is reached, which is noted.

    Returns:
        What timing begins with, as far as the device's file says where to read it: `temperature_c`, `clock_mhz`, `cooled_s`
        (seconds waited), `hot` (it is still warmer than its file demands) and `settings` (what became of each).

    Raises:
        DeviceError: the device cannot be reached.
    """
    found: dict[str, Any] = {}
    if device.temperature is not None:
        temperature_c, waited_s = _thousandth(transport, device.temperature), 0.0
        if device.cool_c is not None:
            if temperature_c is None:
                progress.note(f"{device.name} does not tell its temperature ({device.temperature}), so it is timed as it is")
            elif temperature_c >= device.cool_c:
                progress.note(f"{device.name} has {temperature_c:g} °C; waiting until it is below {device.cool_c:g} °C")
            while temperature_c is not None and temperature_c >= device.cool_c and waited_s < limit_s:
                sleep(_LOOK_S)
                waited_s += _LOOK_S
                temperature_c = _thousandth(transport, device.temperature)
            if temperature_c is not None and temperature_c >= device.cool_c:
                progress.note(f"{device.name} still has {temperature_c:g} °C after {waited_s:g} s and is timed so; cool it better")
            found["cooled_s"] = waited_s
            found["hot"] = None if temperature_c is None else temperature_c >= device.cool_c
        found["temperature_c"] = temperature_c
    if device.clock is not None:
        found["clock_mhz"] = _thousandth(transport, device.clock)
    if transport.settings:
        found["settings"] = "; ".join(f"{name}: {what}" for name, what in transport.settings.items())
    return found


def _thousandth(transport: Transport, file: str) -> float | None:
    """A thousandth of the number in a file of the device; None where there is none to be read."""
    lines: list[str] = []
    try:
        transport.run(["cat", file], silence_s=_ANSWER_S, on_line=lines.append)
        return int(lines[0]) / 1000
    except (ProgramError, ValueError, IndexError):
        return None
