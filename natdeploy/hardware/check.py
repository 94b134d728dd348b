"""What a device has and lacks, found out by going there: the answer to `why does measuring not work?`."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from natdeploy.errors import DeviceError
from natdeploy.hardware.conditions import settle
from natdeploy.hardware.device import Device
from natdeploy.hardware.runtimes import RUNTIMES
from natdeploy.hardware.transports import ProgramError, Transport, connect
from natdeploy.progress import Silent

PYTHON_NEEDED = (3, 8)

_ANSWER_S = 120.0
"""Seconds a device may take to import a library: a slow card reader takes half a minute for TensorRT."""

# Lines of a name and a value. Any POSIX shell runs it, Android's included.
_FACTS = """
echo "free_kb $(df -Pk . | tail -n 1 | { read -r _ _ _ free _ && echo "$free"; })"
while read -r name value _; do
  case $name in MemTotal:) echo "memory_kb $value" ;; MemAvailable:) echo "available_kb $value" ;; esac
done </proc/meminfo
echo "os $(uname -srm)"
while IFS=: read -r name value; do
  case $name in "model name"* | Hardware* | Model*) echo "cpu $value" ;; esac
done </proc/cpuinfo
if [ -r /proc/device-tree/model ]; then echo "cpu $(tr -d '\\000' </proc/device-tree/model)"; fi
echo "governor $(cat /sys/devices/system/cpu/cpu0/cpufreq/scaling_governor 2>/dev/null)"
"""

# Also says what is wrong with a Python that is too old for the rest, so it must be readable to that one.
_PYTHON = """
import json, sys
print(json.dumps({"version": list(sys.version_info[:3])}))
if sys.version_info >= (3, 8):
    for name in ["numpy"] + sys.argv[1:]:
        try:
            module = __import__(name)
            print(json.dumps({"name": name, "version": module.version() if name != "numpy" else module.__version__}))
        except Exception as error:
            print(json.dumps({"name": name, "error": "%s: %s" % (type(error).__name__, error)}))
"""


@dataclass(frozen=True)
class Check:
    """What was found on a device.

    Attributes:
        device: its name.
        os: name, release and machine.
        cpu: as the system names it; None where it does not.
        governor: of the first core; None where there is none to be read.
        temperature_c: where the device's file says where to read it.
        clock_mhz: likewise.
        free_mb: room where private folders are made.
        memory_mb: of the machine.
        available_mb: of it that is free.
        settings: what became of each that the device's file wants changed; by now all are put back.
        python: version, None where there is none.
        versions: of numpy and of each runtime of the device's file; None where it is missing.
        advice: what has to be done before the device can be measured on; a sentence each.
    """

    device: str
    os: str | None
    cpu: str | None
    governor: str | None
    temperature_c: float | None
    clock_mhz: float | None
    free_mb: int | None
    memory_mb: int | None
    available_mb: int | None
    settings: Mapping[str, str]
    python: str | None
    versions: Mapping[str, str | None]
    advice: tuple[str, ...]


def check(device: Device) -> Check:
    """Connects, looks, and leaves everything as it was.

    Raises:
        DeviceError: the device cannot be reached, refuses us, or is in use; the message says what to do.
    """
    with connect(device) as transport:
        conditions = settle(transport, device.model_copy(update={"cool_c": None}), Silent())
        facts = dict(line.partition(" ")[::2] for line in _lines(transport, "sh", "-c", _FACTS))
        python, versions, advice = _python(transport, device)
        return Check(
            device=device.name,
            os=facts.get("os"),
            cpu=facts.get("cpu", "").strip() or None,
            governor=facts.get("governor") or None,
            temperature_c=conditions.get("temperature_c"),
            clock_mhz=conditions.get("clock_mhz"),
            free_mb=_mb(facts.get("free_kb")),
            memory_mb=_mb(facts.get("memory_kb")),
            available_mb=_mb(facts.get("available_kb")),
            settings=dict(transport.settings),
            python=python,
            versions=versions,
            advice=advice,
        )


def _python(transport: Transport, device: Device) -> tuple[str | None, dict[str, str | None], tuple[str, ...]]:
    """Version of Python, versions of what measuring needs, and advice on what is missing."""
    if transport.python is None:
        return None, {}, ()
    modules = {Path(str(RUNTIMES[name].__file__)).stem: name for name in device.runtimes}
    with tempfile.TemporaryDirectory() as folder:
        script = Path(folder) / "probe.py"
        script.write_text(_PYTHON)
        transport.push(script, script.name)
    for name in device.runtimes:
        file = Path(str(RUNTIMES[name].__file__))
        transport.push(file, file.name)
    try:
        first, *rest = [json.loads(line) for line in _lines(transport, transport.python, "probe.py", *modules)]
    except ProgramError as error:
        return None, {}, (f"Python does not run there: {error}; the runner needs {_dotted(PYTHON_NEEDED)} or later",)
    except ValueError as error:
        raise DeviceError(f"Python on {device.name} answered something else than was asked ({error}); does it print?") from error
    version = tuple(first["version"])
    if version < PYTHON_NEEDED:
        return _dotted(version), {}, (f"Python there is {_dotted(version)}; the runner needs {_dotted(PYTHON_NEEDED)} or later",)
    requirements = {"numpy": "numpy"} | {module: RUNTIMES[name].REQUIREMENT for module, name in modules.items()}
    versions = {modules.get(found["name"], found["name"]): found.get("version") for found in rest}
    advice = tuple(
        f"{modules.get(found['name'], found['name'])} does not work there ({found['error']}); "
        f"install it there: {transport.python} -m pip install {requirements[found['name']]}"
        for found in rest
        if "error" in found
    )
    return _dotted(version), versions, advice


def _lines(transport: Transport, *argv: str) -> list[str]:
    lines: list[str] = []
    transport.run(argv, silence_s=_ANSWER_S, on_line=lines.append)
    return lines


def _mb(kb: str | None) -> int | None:
    return int(kb) // 1024 if kb and kb.isdigit() else None


def _dotted(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))
