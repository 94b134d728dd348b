"""Devices as data, and targets: what exactly a latency belongs to."""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

from platformdirs import user_config_path
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from pydantic_core import PydanticCustomError

from natdeploy.errors import DeviceError, UsageError
from natdeploy.hardware.runtimes import RUNTIMES
from natdeploy.invalid import faults
from natdeploy.runtimes import runner
from natdeploy.toml import toml_text

TOOLS = ("benchmark_model", "onnxruntime_perf_test", "trtexec")
"""Programs of the runtimes' makers that time a model where there is no Python."""

_TARGET = re.compile(
    r"(?P<device>.*\.toml(?:#\d+)?|[^/]+)"
    r"(?:/(?P<runtime>[a-z]+)(?:\+(?P<delegate>[a-z]+))?(?:-(?P<precision>[a-z0-9]+))?(?:-(?P<threads>[1-9]\d*)t)?)?"
)
_MEMBER = re.compile(r"(?P<name>.+?)(?:#(?P<number>[^#,]*))?")

# ---- the schema of a device file


def _plain(text: str) -> str:
    if not text.isprintable():
        raise PydanticCustomError("line", "it must be one line of text")
    return text


def _line(text: str) -> str:
    if not _plain(text).strip():
        raise PydanticCustomError("line", "it must be one line of text")
    return text


def _address(text: str) -> str:
    if text.startswith("-") or any(character.isspace() for character in text):
        raise PydanticCustomError("address", "an address has no spaces and does not begin with '-'")
    return text


def _absolute(text: str) -> str:
    if not text.startswith("/"):
        raise PydanticCustomError("path", "a path on the device begins with '/'")
    return text


Line = Annotated[str, AfterValidator(_line)]
Address = Annotated[Line, AfterValidator(_address)]
DevicePath = Annotated[Line, AfterValidator(_absolute)]
# TOML has arrays and no tuples: the container is read leniently, what it holds is not.
Lines = Annotated[tuple[Line, ...], Field(strict=False)]
Positive = Annotated[float, Field(gt=0)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class Setting(_Strict):
    """Something on a device that is set before timing and put back afterwards: a file's content, or what commands change.

    Attributes:
        name: for people.
        file: that is written to, such as a governor's; what it held before is put back.
        value: that is written.
        save: command whose last line of output is the state before.
        apply: command that sets.
        restore: command that puts back; `{state}` in an argument stands for what `save` printed.
    """

    name: Line
    file: DevicePath | None = None
    value: Line | None = None
    save: Lines = ()
    apply: Lines = ()
    restore: Lines = ()

    @model_validator(mode="after")
    def _one_kind(self) -> Setting:
        by_file = bool(self.file and self.value) and not (self.save or self.apply or self.restore)
        by_command = bool(self.apply and self.restore) and not (self.file or self.value)
        if not (by_file or by_command):
            raise PydanticCustomError("setting", "a setting has either file and value, or apply and restore (and save)")
        if not self.save and any("{state}" in argument for argument in self.restore):
            raise PydanticCustomError("setting", "restore needs the state, and there is no save that prints it")
        return self


class Peak(_Strict):
    """The most arithmetic that a processor does, by its specification; for estimates only.

    Attributes:
        runtimes: that compute on this processor, with their usual delegate.
        gflops: by precision; a multiply-accumulate is two operations, and those of int8 are counted alike.
        cores: that do so much together; None where threads play no part, as on a GPU.
    """

    runtimes: Annotated[tuple[str, ...], Field(strict=False, min_length=1)]
    gflops: Annotated[dict[str, Positive], Field(min_length=1)]
    cores: int | None = Field(None, ge=1)

    @field_validator("runtimes")
    @classmethod
    def _known(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        return _known_runtimes(names)


class Device(_Strict):
    """A machine, or several of one kind, as a file in devices/ describes it.

    Attributes:
        name: what users call it.
        description: one line for people.
        sources: where its numbers come from.
        verified: on which hardware the file was tried; None where on none.
        transport: the way to it.
        addresses: ssh destinations (`user@host`, `ssh://user@host:port`, a Host of the user's ssh configuration) or serials of adb.
            Several are a farm of one kind, with one table.
        ssh_config: passed to ssh with -F.
        python: program on the device; None where it has none. In a file, "" stands for none.
        folder: on the device, in which private folders are made.
        runtimes: that it has; the first is the default.
        precisions: by runtime, the first is the default; a runtime that is not named has its own.
        delegates: likewise.
        threads: that a model runs on unless the user says otherwise.
        cores: that programs are pinned to; all where empty.
        settings: made before timing and put back afterwards.
        temperature: file with the temperature in thousandths of a degree.
        cool_c: timing waits until the device is no warmer.
        clock: file with the clock of the moment.
        memory_mb: main memory. This and the next two are from specifications and for estimates only.
        bandwidth_gbs: of the memory.
        peak_gflops: of its processors.
        tools: path on the device by name of a vendor's tool (TOOLS).
        harness: what times: natdeploy's runner, or a vendor's tool where there is no Python.
    """

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_]*$")]
    description: Annotated[str, AfterValidator(_plain)]
    sources: Lines = ()
    verified: Line | None = None
    transport: Literal["local", "ssh", "adb"]
    addresses: Annotated[tuple[Address, ...], Field(strict=False)] = ()
    ssh_config: Annotated[Path, Field(strict=False)] | None = None
    python: Line | None
    folder: DevicePath | None = None
    runtimes: Annotated[tuple[str, ...], Field(strict=False, min_length=1)]
    precisions: dict[str, Annotated[tuple[str, ...], Field(strict=False, min_length=1)]] = {}
    delegates: dict[str, Annotated[tuple[str, ...], Field(strict=False, min_length=1)]] = {}
    threads: int = Field(ge=1)
    cores: Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(strict=False)] = ()
    settings: Annotated[tuple[Setting, ...], Field(strict=False)] = ()
    temperature: DevicePath | None = None
    cool_c: Positive | None = None
    clock: DevicePath | None = None
    memory_mb: int | None = Field(None, ge=1)
    bandwidth_gbs: Positive | None = None
    peak_gflops: Annotated[tuple[Peak, ...], Field(strict=False)] = ()
    tools: dict[str, DevicePath] = {}
    harness: Literal["runner", "tool"]

    @model_validator(mode="before")
    @classmethod
    def _usual(cls, values: Any) -> Any:
        """What a file leaves out: Android has no Python, and without Python a vendor's tool times."""
        if not isinstance(values, Mapping):
            return values
        python = values.get("python", None if values.get("transport") == "adb" else "python3")
        python = None if python == "" else python
        return {"harness": "tool" if python is None else "runner", **values, "python": python}

    @field_validator("runtimes")
    @classmethod
    def _known(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        return _known_runtimes(names)

    @field_validator("addresses", "runtimes", "cores", "settings")
    @classmethod
    def _distinct(cls, values: tuple[Any, ...]) -> tuple[Any, ...]:
        names = [value.name if isinstance(value, Setting) else value for value in values]
        twice = next((name for place, name in enumerate(names) if name in names[:place]), None)
        if twice is not None:
            raise PydanticCustomError("twice", "{name} is there twice", {"name": str(twice)})
        return values

    @field_validator("tools")
    @classmethod
    def _known_tools(cls, tools: dict[str, str]) -> dict[str, str]:
        for name in tools.keys() - set(TOOLS):
            raise PydanticCustomError("tool", "{name} is no tool; known are {known}", {"name": name, "known": ", ".join(TOOLS)})
        return tools

    @model_validator(mode="after")
    def _consistent(self) -> Device:
        if self.transport == "local" and self.addresses:
            raise PydanticCustomError("addresses", "a local device has no addresses")
        if self.ssh_config is not None and self.transport != "ssh":
            raise PydanticCustomError("ssh_config", "ssh_config is for devices that are reached by ssh")
        if self.harness == "runner" and self.python is None:
            raise PydanticCustomError("harness", 'the runner needs Python on the device; name it, or set harness to "tool"')
        if self.cores and self.threads > len(self.cores):
            raise PydanticCustomError("threads", "there are more threads than cores to pin them to")
        if self.cool_c is not None and self.temperature is None:
            raise PydanticCustomError("cool_c", "cool_c needs temperature, the file to read")
        for what, chosen, has in (("precisions", self.precisions, "PRECISIONS"), ("delegates", self.delegates, "DELEGATES")):
            for runtime, names in chosen.items():
                if runtime not in self.runtimes:
                    raise PydanticCustomError(what, f"{what} names {runtime}, which is not among the device's runtimes")
                if unknown := [name for name in names if name not in getattr(RUNTIMES[runtime], has)]:
                    known = ", ".join(getattr(RUNTIMES[runtime], has))
                    raise PydanticCustomError(what, f"{runtime} has {known} and no {unknown[0]}")
        return self

    @property
    def address(self) -> str | None:
        """The address, where there is one and no other."""
        return self.addresses[0] if len(self.addresses) == 1 else None

    def members(self) -> tuple[Device, ...]:
        """One device an address; the device itself where there is none."""
        return tuple(self.model_copy(update={"addresses": (each,)}) for each in self.addresses) or (self,)

    def precisions_of(self, runtime: str) -> tuple[str, ...]:
        """What a runtime computes in here, the default first."""
        return self.precisions.get(runtime, RUNTIMES[runtime].PRECISIONS)

    def delegates_of(self, runtime: str) -> tuple[str, ...]:
        """What a runtime computes on here, the default first."""
        return self.delegates.get(runtime, RUNTIMES[runtime].DELEGATES)

    def require_address(self) -> None:
        """Raises DeviceError where ssh would not know where to go; adb alone finds the only device that is attached."""
        if self.transport == "ssh" and not self.addresses:
            raise DeviceError(
                f"device {self.name} has no address yet; say where it is: natdeploy devices add {self.name} --ssh USER@HOST"
            )

    def to_toml(self) -> str:
        """The text of a file that describes this device."""
        values = _present(self.model_dump(mode="json", exclude_none=True))
        values["settings"] = [_present(setting) for setting in values.get("settings", [])] or None
        if self.python is None and self.transport != "adb":
            values["python"] = ""
        return f"{toml_text(values)}\n"


def _present(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value not in ([], {})}


def _known_runtimes(names: tuple[str, ...]) -> tuple[str, ...]:
    for name in names:
        if name not in RUNTIMES:
            known = {"name": name, "known": ", ".join(RUNTIMES)}
            raise PydanticCustomError("runtime", "{name} is no runtime; known are {known}", known)
    return names


# ---- where device files lie


def devices_folder() -> Path:
    """The folder of the user's own devices: `$NATDEPLOY_DEVICES`, or `devices` in the user's configuration folder."""
    chosen = os.environ.get("NATDEPLOY_DEVICES")
    return Path(chosen) if chosen else user_config_path("natdeploy") / "devices"


def device_files() -> dict[str, Path]:
    """The file of every device by name: those that ship, and the user's own, which come before shipped ones of the same name."""
    folders = (Path(str(resources.files("natdeploy.devices"))), devices_folder())
    return {path.stem: path for folder in folders for path in sorted(folder.glob("*.toml"))}


def device_names() -> tuple[str, ...]:
    """Devices that are known by name."""
    return tuple(sorted(device_files()))


def load_device(text: str) -> Device:
    """A device by name, or by the path of its .toml file; `#2` after it chooses its second address, `pi#1,pi#3` two of them.

    Raises:
        UsageError: there is none, it has no such address, or its file does not describe a device.
    """
    name, numbers = _name_and_numbers(text)
    path = device_file(name)
    device = read_device(path)
    if device.name != name and not name.endswith(".toml"):
        raise UsageError(f"device file {path} is wrong at 'name': it must be {name!r}, as its file is called")
    if numbers in ([], [None]):
        return device
    return device.model_copy(update={"addresses": tuple(_member(device, number) for number in dict.fromkeys(numbers))})


def device_file(text: str) -> Path:
    """The file of a device, in any form that `load_device` reads.

    Raises:
        UsageError: there is none.
    """
    name, _ = _name_and_numbers(text)
    files = device_files()
    if name.endswith(".toml"):
        if not Path(name).is_file():
            raise UsageError(f"there is no device file {name}")
        return Path(name)
    if name not in files:
        known = ", ".join(sorted(files))
        raise UsageError(f"there is no device {name!r}; known are {known}, or give the path of a .toml file")
    return files[name]


def _name_and_numbers(text: str) -> tuple[str, list[str | None]]:
    """`pi#1,pi#3` taken apart. Raises UsageError where names differ."""
    parts = [] if text.endswith(".toml") else [match for part in text.split(",") if (match := _MEMBER.fullmatch(part))]
    names = {part["name"] for part in parts} or {text}
    if len(names) > 1:
        raise UsageError(f"{text} names devices of several kinds ({', '.join(sorted(names))}); a farm is of one")
    return names.pop(), [part["number"] for part in parts]


def _member(device: Device, number: str | None) -> str:
    count = len(device.addresses)
    if number is not None and number.isdecimal() and 1 <= int(number) <= count:
        return device.addresses[int(number) - 1]
    has = f"lists {count} address{'es' if count > 1 else ''}, the first is #1" if count else "lists no addresses"
    asked = "without a number" if number is None else f"#{number}"
    raise UsageError(f'there is no {device.name} {asked}: its file {has}; list them there as addresses = ["...", "..."]')


def read_device(path: Path) -> Device:
    """The device that a file describes.

    Raises:
        UsageError: it describes none; the message names file, key and reason.
    """
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"device file {path} cannot be read: {error}") from error
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"device file {path} is no TOML: {error}") from error
    return make_device(values, f"device file {path}")


def make_device(values: Mapping[str, Any], what: str) -> Device:
    """The device of some values.

    Args:
        values: by field.
        what: what the values are of, for the message.

    Raises:
        UsageError: they describe none; the message names key and reason.
    """
    try:
        return Device.model_validate(values)
    except ValidationError as error:
        first = faults(error)[0]
        where = f" at {first.place!r}" if first.place else ""
        raise UsageError(f"{what} is wrong{where}: {first.reason}") from error


# ---- targets


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
        """Name of the target's files within its device's folder. The delegate that is usual there goes without saying."""
        usual = self.delegate == self.device.delegates_of(self.runtime)[0]
        return f"{self.runtime}{'' if usual else f'+{self.delegate}'}-{self.precision}-{self.threads}t"

    def __str__(self) -> str:
        return f"{self.device.name}/{self.slug}"


def parse_target(text: str, *, precision: str | None = None, threads: int | None = None, runtime: str | None = None) -> Target:
    """Reads `host`, `host/openvino`, `host/tflite+reference`, `host/openvino-bf16`, or what `str(target)` writes.

    What is left out is the default of the device or of the runtime.

    Args:
        text: as above; the device in any form that `load_device` reads.
        precision: instead of what the text says.
        threads: instead of what the text says.
        runtime: where the text names none.

    Raises:
        UsageError: another form, an unknown device, or what the device or the runtime does not have.
    """
    match = _TARGET.fullmatch(text)
    if match is None:
        raise UsageError(
            f"{text!r} is no target; expected DEVICE, DEVICE/RUNTIME or DEVICE/RUNTIME-PRECISION-THREADSt, such as host/onnxruntime"
        )
    device = load_device(match["device"])
    name = match["runtime"] or runtime or device.runtimes[0]
    if name not in device.runtimes:
        raise UsageError(f"device {device.name} has no runtime {name!r}; it has {', '.join(device.runtimes)}")
    delegates, precisions = device.delegates_of(name), device.precisions_of(name)
    delegate = match["delegate"] or delegates[0]
    if delegate not in delegates:
        raise UsageError(f"{name} has no delegate {delegate!r}; it has {', '.join(delegates)}")
    computed = precision or match["precision"] or precisions[0]
    if computed not in precisions:
        raise UsageError(f"{name} computes in {', '.join(precisions)}, not in {computed}")
    written = int(match["threads"]) if match["threads"] else device.threads
    chosen = written if threads is None else threads
    if chosen < 1:
        raise UsageError(f"{chosen} threads cannot run a model; give 1 or more")
    return Target(device, name, delegate, computed, chosen)


def device_of(target: str) -> str:
    """The part of a target's text that names the device."""
    match = _TARGET.fullmatch(target)
    return target if match is None else match["device"]


def host_facts() -> dict[str, Any]:
    """Processor, cores, memory, operating system and governor of this machine, as the runner records them on any device."""
    return runner.environment()
