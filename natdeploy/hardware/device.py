"""Devices as data, and targets: what exactly a latency belongs to."""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator
from pydantic_core import PydanticCustomError

from natdeploy.errors import UsageError
from natdeploy.hardware.runtimes import RUNTIMES
from natdeploy.runtimes import runner

_TARGET = re.compile(
    r"(?P<device>.*\.toml|[^/]+)"
    r"(?:/(?P<runtime>[a-z]+)(?:\+(?P<delegate>[a-z]+))?(?:-(?P<precision>[a-z0-9]+))?(?:-(?P<threads>[1-9]\d*)t)?)?"
)


class Device(BaseModel):
    """A machine, as its file in devices/ describes it.

    Attributes:
        name: what users call it.
        description: one line for people.
        transport: the way to it.
        runtimes: that it has; the first is the default.
        threads: that a model runs on unless the user says otherwise.
        python: interpreter there; None where there is none.
        tools: path there by name of a vendor's tool; one that is not named is looked for.
        harness: what times: natdeploy's runner, or the runtime's own tool.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(pattern=r"[a-z0-9][a-z0-9_]*")
    description: str
    transport: Literal["local"]
    runtimes: tuple[str, ...] = Field(min_length=1)
    threads: int = Field(ge=1)
    python: str | None = "python3"
    tools: dict[str, str] = {}
    harness: Literal["runner", "tool"] = "runner"

    @field_validator("runtimes")
    @classmethod
    def _known(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        unknown = [name for name in names if name not in RUNTIMES]
        if unknown:
            raise PydanticCustomError(
                "runtime", "{name} is no runtime; known are {known}", {"name": unknown[0], "known": ", ".join(RUNTIMES)}
            )
        return names


@dataclass(frozen=True)
class Target:
    """Device, runtime and its delegate, precision and threads: latencies of different targets are different quantities."""

    device: Device
    runtime: str
    delegate: str
    precision: str
    threads: int

    @property
    def slug(self) -> str:
        """Name of the target's files within its device's folder. The runtime's usual delegate goes without saying."""
        usual = self.delegate == RUNTIMES[self.runtime].DELEGATES[0]
        return f"{self.runtime}{'' if usual else f'+{self.delegate}'}-{self.precision}-{self.threads}t"

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


def parse_target(text: str, *, precision: str | None = None, threads: int | None = None) -> Target:
    """Reads `host`, `host/openvino`, `host/tflite+reference`, `host/openvino-bf16`, or what `str(target)` writes.

    What is left out is the default of the device or of the runtime.

    Args:
        text: as above; the device may be the path of a .toml file.
        precision: instead of what the text says.
        threads: instead of what the text says.

    Raises:
        UsageError: another form, an unknown device, or what the device or the runtime does not have.
    """
    match = _TARGET.fullmatch(text)
    if match is None:
        raise UsageError(
            f"{text!r} is no target; expected DEVICE, DEVICE/RUNTIME or DEVICE/RUNTIME-PRECISION-THREADSt, such as host/onnxruntime"
        )
    device = load_device(match["device"])
    name = match["runtime"] or device.runtimes[0]
    if name not in device.runtimes:
        raise UsageError(f"device {device.name} has no runtime {name!r}; it has {', '.join(device.runtimes)}")
    runtime = RUNTIMES[name]
    delegate = match["delegate"] or runtime.DELEGATES[0]
    if delegate not in runtime.DELEGATES:
        raise UsageError(f"{name} has no delegate {delegate!r}; it has {', '.join(runtime.DELEGATES)}")
    computed = precision or match["precision"] or runtime.PRECISIONS[0]
    if computed not in runtime.PRECISIONS:
        raise UsageError(f"{name} computes in {', '.join(runtime.PRECISIONS)}, not in {computed}")
    written = int(match["threads"]) if match["threads"] else device.threads
    chosen = written if threads is None else threads
    if chosen < 1:
        raise UsageError(f"{chosen} threads cannot run a model; give 1 or more")
    return Target(device, name, delegate, computed, chosen)


def host_facts() -> dict[str, Any]:
    """Processor, cores, memory, operating system and governor of this machine, as the runner records them on any device."""
    return runner.environment()
