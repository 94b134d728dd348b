"""What a device without Python tells of itself: what the runner finds on others, by the same names and in the same units."""

from __future__ import annotations

from typing import Any

from natdeploy.errors import DeviceError
from natdeploy.hardware.transports import Transport

# A name, a tab and a value a line; what cannot be read has no line. Plain POSIX: dash, busybox, and Android's mksh with toybox.
SCRIPT = r"""
say() { if [ -n "$2" ]; then printf '%s\t%s\n' "$1" "$2"; fi; }
first() { if [ -r "$1" ]; then head -n 1 "$1" 2>/dev/null; fi; }
field() { sed -n "s/^$2[^:]*:[[:space:]]*//p" "$1" 2>/dev/null | head -n 1; }
cpu=$(field /proc/cpuinfo 'model name')
family=$(field /proc/cpuinfo 'cpu family')
if [ -n "$cpu" ] && [ -n "$family" ]; then cpu="$cpu, family $family model $(field /proc/cpuinfo model)"; fi
[ -n "$cpu" ] || cpu=$(field /proc/cpuinfo Hardware)
[ -n "$cpu" ] || cpu=$(getprop ro.soc.model 2>/dev/null)
[ -n "$cpu" ] || cpu=$(uname -m)
say cpu "$cpu"
cores=$(grep -c '^processor' /proc/cpuinfo 2>/dev/null)
[ "${cores:-0}" -gt 0 ] || cores=$(nproc 2>/dev/null)
say cores "$cores"
say affinity "$(field /proc/self/status Cpus_allowed_list)"
say governor "$(first /sys/devices/system/cpu/cpu0/cpufreq/scaling_governor)"
say temperature "$(first /sys/class/thermal/thermal_zone0/temp)"
say load "$(first /proc/loadavg)"
say memory "$(field /proc/meminfo MemTotal)"
android=$(getprop ro.build.version.release 2>/dev/null)
say os "$(uname -srm)${android:+, Android $android}"
say utc "$(date -u +%Y-%m-%dT%H:%M:%S+00:00)"
"""

_ANSWER_S = 60.0


def shell_facts(transport: Transport) -> dict[str, Any]:
    """Processor, cores, operating system and time; memory, load, governor and temperature, None where the device does not tell.

    Raises:
        DeviceError: its shell does not answer as a shell does.
    """
    lines: list[str] = []
    try:
        transport.run(["sh", "-c", SCRIPT, "sh"], silence_s=_ANSWER_S, on_line=lines.append)
    except TimeoutError as error:
        raise DeviceError(f"the device's shell said nothing for {_ANSWER_S:g} s; is the device busy?") from error
    return read_facts(lines)


def read_facts(lines: list[str]) -> dict[str, Any]:
    """The facts of what the script printed."""
    told = dict(line.rstrip("\r").split("\t", 1) for line in lines if "\t" in line)
    cores = told.get("cores", "")
    if not {"cpu", "os", "utc"} <= told.keys() or not cores.isdecimal():
        said = " | ".join(lines)[:200] or "nothing"
        raise DeviceError(f"the device's shell was asked for processor, cores, system and time, and answered {said!r}")
    temperature, memory = told.get("temperature", ""), told.get("memory", "").split(" ")[0]
    load = told.get("load", "").split(" ")[0]
    return {
        "cpu": told["cpu"],
        "cores": int(cores),
        "affinity": _cores(told.get("affinity", "")),
        "governor": told.get("governor"),
        "temperature_c": int(temperature) / 1000 if temperature.lstrip("-").isdecimal() else None,
        "memory_mb": int(memory) // 1024 if memory.isdecimal() else None,
        "os": told["os"],
        "load": float(load) if load.replace(".", "", 1).isdecimal() else None,
        "utc": told["utc"],
    }


def _cores(text: str) -> list[int] | None:
    """Numbers of a kernel list such as `0-3,6`."""
    try:
        ends = [[int(end) for end in part.split("-")] for part in text.split(",")]
    except ValueError:
        return None
    return [core for span in ends for core in range(span[0], span[-1] + 1)]
