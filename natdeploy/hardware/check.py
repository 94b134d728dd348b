"""Whether a device can be measured: what it is, what its Python has, and what is missing.

Two probes travel: a shell script for what any Linux or Android tells, and a Python file for what can be imported there.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from natdeploy.errors import DeviceError
from natdeploy.hardware import probe, tools
from natdeploy.hardware.device import TOOLS, Device
from natdeploy.hardware.runtimes import RUNTIMES, installed_version
from natdeploy.hardware.transports import ProgramError, Transport, connect

SILENCE_S = 120.0
"""Loading TensorRT from an SD card takes a while."""

LEAST_FREE_MB = 500
"""A table's models, all at once."""

TOOL_OF = {runtime: tool.NAME for runtime, tool in tools.TOOLS.items()}
"""The tool that times a runtime's models where there is no Python."""

_SHELL_PROBE = Path(__file__).with_name("probe.sh")


@dataclass(frozen=True)
class Core:
    """A core by its number; its highest frequency and its governor are None where the system does not tell."""

    number: int
    max_khz: int | None
    governor: str | None


@dataclass(frozen=True)
class Sensor:
    """A file with a temperature in thousandths of a degree, what it is of, and what it said."""

    path: str
    kind: str
    celsius: float | None


@dataclass(frozen=True)
class DeviceReport:
    """What a device told. None is what it did not tell.

    Attributes:
        device: that was asked, with one address at most.
        model: as its maker calls it.
        system: Android's version.
        os: kernel and architecture.
        cpu: name of the processor.
        cores: in the order of their numbers.
        memory_mb: main memory.
        free_mb: space where natdeploy works.
        boot_id: changes whenever the device starts.
        sensors: of temperature, that can be read.
        tools: path of every vendor's tool that was found.
        python: version; None where there is none, or none is wanted.
        numpy: version.
        runtimes: version by name, of those of the device's runtimes that load.
        settings: what became of each that the device's file wants changed; by now all are put back.
        problems: what keeps it from being measured, each with what to do.
    """

    device: Device
    model: str | None = None
    system: str | None = None
    os: str | None = None
    cpu: str | None = None
    cores: tuple[Core, ...] = ()
    memory_mb: int | None = None
    free_mb: int | None = None
    boot_id: str | None = None
    sensors: tuple[Sensor, ...] = ()
    tools: dict[str, str] = field(default_factory=dict)
    python: str | None = None
    numpy: str | None = None
    runtimes: dict[str, str] = field(default_factory=dict)
    settings: dict[str, str] = field(default_factory=dict)
    problems: tuple[str, ...] = ()

    @property
    def big_cores(self) -> tuple[int, ...]:
        """Numbers of the cores that are faster than the slowest ones; empty where all are alike, or not all tell."""
        maxima = [core.max_khz for core in self.cores]
        known = [khz for khz in maxima if khz is not None]
        if len(known) < len(maxima) or not known or max(known) == min(known):
            return ()
        return tuple(core.number for core in self.cores if core.max_khz is not None and core.max_khz > min(known))


def check(device: Device) -> DeviceReport:
    """Asks a device what it is and has. What is missing is in the report's problems.

    Args:
        device: with one address at most.

    Raises:
        DeviceError: it cannot be reached, or answers with something else.
    """
    device.require_address()
    try:
        with connect(device) as transport:
            settings = dict(transport.settings)
            facts = _shell_facts(transport, device)
            told = _python_facts(transport, device) if device.python is not None else {}
    except TimeoutError as error:
        raise DeviceError(f"{device.name} said nothing for {SILENCE_S:g} s while it was asked what it has; is it busy?") from error
    report = _report(device, facts, told)
    return replace(report, settings=settings, problems=_problems(report, told))


def runtime_version(device: Device, runtime: str) -> str:
    """The version of a runtime's library on a device; the tool's name where a vendor's tool times, which does not tell its version.

    Raises:
        DeviceError: the device cannot be reached or has no such runtime.
    """
    if device.transport == "local" and device.harness == "runner":
        return installed_version(RUNTIMES[runtime])
    report = check(device.members()[0])
    if device.harness == "runner" and runtime in report.runtimes:
        return report.runtimes[runtime]
    if device.harness == "tool" and TOOL_OF.get(runtime) in report.tools:
        return TOOL_OF[runtime]
    raise DeviceError(f"{device.name} cannot be measured: {'; '.join(report.problems) or f'it has no {runtime}'}")


def _run(transport: Transport, argv: Sequence[str]) -> list[str]:
    lines: list[str] = []
    transport.run(argv, silence_s=SILENCE_S, on_line=lines.append)
    return lines


def _shell_facts(transport: Transport, device: Device) -> list[list[str]]:
    """Fields of every line of the shell probe."""
    transport.push(_SHELL_PROBE, _SHELL_PROBE.name)
    wanted = [f"{name}={device.tools.get(name, '')}" for name in TOOLS]
    lines = _run(transport, ["sh", _SHELL_PROBE.name, *wanted])
    if not lines or lines[-1] != "end":
        last = f"its last line was {lines[-1]!r}" if lines else "it printed nothing"
        raise DeviceError(
            f"{device.name} did not answer what it is: {last}; does a program of its shell's profile print something?"
        )
    # What a device says is shown and written to files: characters that steer a terminal are left out.
    return [["".join(filter(str.isprintable, field)) for field in line.split("\t")] for line in lines[:-1]]


def _python_facts(transport: Transport, device: Device) -> dict[str, Any]:
    """What the Python probe prints, runtimes by their own names; with `problem` alone where Python does not run."""
    modules = {Path(str(RUNTIMES[name].__file__)).stem: name for name in device.runtimes}
    for name in modules.values():
        code = Path(str(RUNTIMES[name].__file__))
        transport.push(code, code.name)
    code = Path(probe.__file__)
    transport.push(code, code.name)
    assert transport.python is not None, "the device has one"
    try:
        lines = _run(transport, [transport.python, code.name, *modules])
    except ProgramError as error:
        return {"problem": str(error)}
    try:
        told: dict[str, Any] = json.loads(lines[-1])
        return {**told, "runtimes": {modules[name]: found for name, found in told["runtimes"].items()}}
    except (IndexError, KeyError, TypeError, ValueError) as error:
        raise DeviceError(f"Python on {device.name} printed something else than what it has; {lines[-1:] or 'nothing'}") from error


def _report(device: Device, facts: list[list[str]], told: dict[str, Any]) -> DeviceReport:
    single = {name: fields[0] or None for name, *fields in facts if len(fields) == 1}
    runtimes = {name: found["version"] for name, found in told.get("runtimes", {}).items() if "version" in found}
    memory_kb, free_kb = (_number(single.get(name)) for name in ("memory_kb", "free_kb"))
    cores = [Core(int(fields[0]), _number(fields[1]), fields[2] or None) for name, *fields in facts if name == "core"]
    return DeviceReport(
        device,
        model=single.get("model"),
        system=single.get("system"),
        os=single.get("os"),
        cpu=single.get("cpu"),
        boot_id=single.get("boot_id"),
        cores=tuple(sorted(cores, key=lambda core: core.number)),
        memory_mb=None if memory_kb is None else memory_kb // 1024,
        free_mb=None if free_kb is None else free_kb // 1024,
        sensors=tuple(_sensor(fields) for name, *fields in facts if name == "temperature"),
        tools={fields[0]: fields[1] for name, *fields in facts if name == "tool"},
        python=told.get("python"),
        numpy=told.get("numpy", {}).get("version"),
        runtimes=runtimes,
    )


def _sensor(fields: list[str]) -> Sensor:
    path, kind, value = fields
    number = _number(value)
    return Sensor(path, kind, None if number is None else number / 1000)


def _number(text: str | None) -> int | None:
    return int(text) if text and text.lstrip("-").isdecimal() else None


def _problems(report: DeviceReport, told: dict[str, Any]) -> tuple[str, ...]:
    """Sentences; none where at least one of the device's runtimes can be timed and there is room."""
    device, found = report.device, []
    if report.free_mb is not None and report.free_mb < LEAST_FREE_MB:
        found.append(
            f"only {report.free_mb} MB are free where natdeploy works; make room, or name another `folder` in the device file"
        )
    if device.harness == "tool":
        missing = [runtime for runtime in device.runtimes if TOOL_OF.get(runtime) not in report.tools]
        found += [
            f"{runtime}: {TOOL_OF[runtime]} was not found; copy it to the device and name its path under [tools] in the device file"
            if runtime in TOOL_OF
            else f"{runtime}: no vendor's tool times it; it needs Python on the device"
            for runtime in missing
        ]
        return tuple(found)
    needed = "the runner needs Python 3.8 or later; install it there, or name it in the device file as `python`"
    if report.python is None:
        return (*found, f"{device.python} does not run ({told['problem']}); {needed}")
    if tuple(int(part) for part in report.python.split(".")[:2]) < (3, 8):
        return (*found, f"{device.python} is Python {report.python}; {needed}")
    if report.numpy is None:
        return (*found, f"numpy does not load ({told['numpy']['problem']}); on the device: {device.python} -m pip install numpy")
    for runtime in device.runtimes:
        if runtime not in report.runtimes:
            install = f"{device.python} -m pip install {RUNTIMES[runtime].REQUIREMENT}"
            found.append(f"{runtime} does not load ({told['runtimes'][runtime]['problem']}); on the device: {install}")
    return tuple(found)
