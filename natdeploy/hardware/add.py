"""A user's own device: a known kind, an address, and what the device told about itself."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from natdeploy.errors import UsageError
from natdeploy.files import write_atomic
from natdeploy.hardware.check import DeviceReport, Sensor, check
from natdeploy.hardware.device import Device, devices_folder, load_device, make_device

_SENSORS = ("cpu", "soc", "gpu")
"""Kinds of temperature sensors, the ones nearest to what is timed first."""


@dataclass(frozen=True)
class Added:
    """A device file that was written.

    Attributes:
        device: that it describes.
        path: of the file.
        report: what the device told.
        found: in words, what the file has from it.
    """

    device: Device
    path: Path
    report: DeviceReport
    found: tuple[str, ...]


def add_device(
    like: str,
    transport: Literal["ssh", "adb"],
    address: str,
    *,
    name: str | None = None,
    python: str | None = None,
    force: bool = False,
) -> Added:
    """Asks a device what it is and writes its file to the user's folder.

    Args:
        like: known device whose file is the pattern: its kind, or `linux_arm64` or `android` for any.
        transport: the way to it.
        address: ssh destination, or serial of adb.
        name: of the new device; that of the pattern by default, which the new file then stands for.
        python: program on the device, where it is not the pattern's.
        force: replace a file that is there.

    Raises:
        UsageError: the pattern is unknown, the new device makes no sense, or its file is there.
        DeviceError: the device cannot be reached. Nothing is written then.
    """
    pattern = load_device(like)
    if "local" in (pattern.transport, transport) or pattern.transport != transport:
        raise UsageError(f"{pattern.name} is reached by {pattern.transport}, not by {transport}; give another --like")
    chosen = name or pattern.name
    path = devices_folder() / f"{chosen}.toml"
    if path.exists() and not force:
        raise UsageError(f"there is a device file {path} already; give another --name, or replace it with --force")
    values: dict[str, Any] = {**pattern.model_dump(exclude={"verified"}), "name": chosen, "addresses": [address]}
    if python is not None:
        values["python"] = python
    report = check(make_device(values, f"device {chosen}"))
    found = _found(report)
    values |= {name: value for name, (value, _) in found.items()}
    values["verified"] = f"{report.model or report.cpu or report.os}, asked what it has on {datetime.now(UTC):%Y-%m-%d}"
    device = make_device(values, f"device {chosen}")
    write_atomic(path, device.to_toml().encode())
    return Added(device, path, report, tuple(text for _, text in found.values()))


def _found(report: DeviceReport) -> dict[str, tuple[Any, str]]:
    """Fields of the file that the device itself decides, each with a sentence; what it does not tell stays as in the pattern."""
    found: dict[str, tuple[Any, str]] = {}
    if report.memory_mb is not None:
        found["memory_mb"] = (report.memory_mb, f"memory: {report.memory_mb} MB")
    if len(big := report.big_cores) >= report.device.threads:
        numbers = ", ".join(map(str, big))
        found["cores"] = (big, f"big cores: {numbers}, by their highest frequencies; models run on these alone")
    if (sensor := _best(report)) is not None:
        found["temperature"] = (sensor.path, f"temperature: {sensor.path} ({sensor.kind or 'of unknown kind'})")
    if report.cores and all(core.max_khz is not None for core in report.cores):
        number = max(report.big_cores, default=report.cores[0].number)
        clock = f"/sys/devices/system/cpu/cpu{number}/cpufreq/scaling_cur_freq"
        found["clock"] = (clock, f"clock: {clock}")
    if report.tools:
        found["tools"] = (dict(report.tools), f"tools: {', '.join(report.tools.values())}")
    return found


def _best(report: DeviceReport) -> Sensor | None:
    """The sensor nearest to what is timed. One that shows nothing plausible is of no use."""
    working = [sensor for sensor in report.sensors if sensor.celsius is not None and 0 < sensor.celsius < 150]
    for kind in _SENSORS:
        for sensor in working:
            if re.search(kind, sensor.kind, re.IGNORECASE):
                return sensor
    return working[0] if working else None
