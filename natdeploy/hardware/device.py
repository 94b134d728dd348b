"""Devices as data, and targets: what exactly a latency belongs to."""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from natdeploy.errors import UsageError
from natdeploy.runtimes import ort, runner

RUNTIMES = {ort.NAME: ort}
"""The runtime modules by name."""

_TARGET = re.compile(r"(?P<device>.*\.toml|[^/]+)(?:/(?P<runtime>[a-z]+)(?:-(?P<precision>[a-z0-9]+)-(?P<threads>[1-9]\d*)t)?)?")


class Device(BaseModel):
    """A machine, as its file in devices/ describes it.

    Attributes:
        name: what users call it.
        description: one line for people.
        transport: the way to it.
        runtimes: that it has; the first is the default.
        precision: that numbers are computed in.
        threads: that a model runs on unless the user says otherwise.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(pattern=r"[a-z0-9][a-z0-9_]*")
    description: str
    transport: Literal["local"]
    runtimes: tuple[Literal["onnxruntime"], ...] = Field(min_length=1)
    precision: Literal["fp32"]
    threads: int = Field(ge=1)


@dataclass(frozen=True)
class Target:
    """Device, runtime, precision and threads: latencies of different targets are different quantities."""

    device: Device
    runtime: str
    precision: str
    threads: int

    @property
    def slug(self) -> str:
        """Name of the target's files within its device's folder."""
        return f"{self.runtime}-{self.precision}-{self.threads}t"

    def __str__(self) -> str:
        return f"{self.device.name}/{self.slug}"


def device_names() -> tuple[str, ...]:
    """Devices that ship with natdeploy."""
    files = resources.files("natdeploy.devices").iterdir()
    return tuple(sorted(file.name.removesuffix(".toml") for file in files if file.name.endswith(".toml")))


def load_device(name_or_path: str) -> Device:
    """A shipped device by name, or any other by the path of its .toml file.

    Raises:
        UsageError: there is none, or its file does not describe a device.
    """
    if name_or_path.endswith(".toml"):
        path = Path(name_or_path)
        if not path.is_file():
            raise UsageError(f"there is no device file {path}")
        text = path.read_text()
    elif name_or_path in device_names():
        text = resources.files("natdeploy.devices").joinpath(f"{name_or_path}.toml").read_text()
    else:
        known = ", ".join(device_names())
        raise UsageError(f"there is no device {name_or_path!r}; known are {known}, or give the path of a .toml file")
    try:
        return Device.model_validate(tomllib.loads(text))
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"device file {name_or_path} is no TOML: {error}") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise UsageError(f"device file {name_or_path} is wrong at {where!r}: {first['msg'].lower()}") from error


def parse_target(text: str, threads: int | None = None) -> Target:
    """Reads `host`, `host/onnxruntime`, or what `str(target)` writes; what is left out is the device's default.

    Args:
        text: as above; the device may be the path of a .toml file.
        threads: instead of the device's default.

    Raises:
        UsageError: another form, an unknown device, or what the device does not have.
    """
    match = _TARGET.fullmatch(text)
    if match is None:
        raise UsageError(
            f"{text!r} is no target; expected DEVICE, DEVICE/RUNTIME or DEVICE/RUNTIME-PRECISION-THREADSt, such as host/onnxruntime"
        )
    device = load_device(match["device"])
    runtime, precision = match["runtime"] or device.runtimes[0], match["precision"] or device.precision
    if runtime not in device.runtimes:
        raise UsageError(f"device {device.name} has no runtime {runtime!r}; it has {', '.join(device.runtimes)}")
    if precision != device.precision:
        raise UsageError(f"device {device.name} computes in {device.precision}, not in {precision}")
    written = int(match["threads"]) if match["threads"] else device.threads
    chosen = written if threads is None else threads
    if chosen < 1:
        raise UsageError(f"{chosen} threads cannot run a model; give 1 or more")
    return Target(device, runtime, precision, chosen)


def host_facts() -> dict[str, Any]:
    """Processor, cores, memory, operating system and governor of this machine, as the runner records them on any device."""
    return runner.environment()
