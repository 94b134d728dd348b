"""Programs of the runtimes' makers that time a model: used where a device has no Python, or its file says so."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from natdeploy.errors import DeviceError
from natdeploy.hardware.device import Device, Target
from natdeploy.hardware.tools import benchmark_model, onnxruntime_perf_test, trtexec
from natdeploy.hardware.tools.tool import Job, Timings, Tool, UnreadableError
from natdeploy.hardware.transports import ProgramError, Transport

__all__ = ["TOOLS", "FoundTool", "Job", "Timings", "Tool", "UnreadableError", "find", "timed_by_tool", "tool_of"]

TOOLS: Mapping[str, Tool] = {module.RUNTIME: module for module in (benchmark_model, onnxruntime_perf_test, trtexec)}
"""By runtime."""

_ANSWER_S = 60.0

# The first that is there, and the digest of its file: sha256sum is in coreutils, busybox and toybox, cksum in POSIX.
_FIND = r"""
for place; do
  case $place in
    */*) path=$place ;;
    *) path=$(command -v -- "$place") || continue ;;
  esac
  if [ -f "$path" ] && [ -x "$path" ]; then
    printf 'path %s\n' "$path"
    digest=$(sha256sum <"$path" 2>/dev/null) || digest=$(cksum <"$path")
    printf 'digest %s\n' "${digest%% *}"
    exit
  fi
done
"""


@dataclass(frozen=True)
class FoundTool:
    """A tool on a device: its path there, and which build it is."""

    tool: Tool
    path: str
    version: str


def timed_by_tool(device: Device) -> bool:
    """Whether a vendor's tool times there, and not natdeploy's runner."""
    return device.harness == "tool"


def tool_of(target: Target) -> Tool:
    """The tool that times a target.

    Raises:
        DeviceError: there is none for its runtime or delegate.
    """
    tool = TOOLS.get(target.runtime)
    if tool is None:
        known = ", ".join(TOOLS)
        raise DeviceError(f"{target.runtime} has no tool that times without Python on {target.device.name}; take one of {known}")
    if target.delegate not in tool.DELEGATES:
        known = ", ".join(tool.DELEGATES)
        raise DeviceError(f"{tool.NAME} is not used with {target.delegate}, only with {known}; name one in the target")
    return tool


def find(transport: Transport, device: Device, tool: Tool) -> FoundTool:
    """Looks for a tool on a device: where the device's file says, else in the usual places.

    Raises:
        DeviceError: it is not there; the message says what to do.
    """
    named = device.tools.get(tool.NAME)
    places = (named,) if named else tool.PLACES
    lines = _answer(transport, device, ["sh", "-c", _FIND, "sh", *places])
    facts = dict(line.split(" ", 1) for line in lines if " " in line)
    if not {"path", "digest"} <= facts.keys():
        where = f"is no program {named}" if named else f"is no {tool.NAME} (looked for: {', '.join(places)})"
        raise DeviceError(
            f"there {where} on {device.name}; put it there and make it executable, or name its path in the device's file: "
            f'tools = {{ {tool.NAME} = "/path/to/{tool.NAME}" }}'
        )
    told = _answer(transport, device, [facts["path"], *tool.ASK]) if tool.ASK else []
    return FoundTool(tool, facts["path"], tool.version(facts["digest"], told))


def _answer(transport: Transport, device: Device, argv: Sequence[str]) -> list[str]:
    """What a program on a device says, at once. Raises DeviceError."""
    lines: list[str] = []
    try:
        transport.run(argv, silence_s=_ANSWER_S, on_line=lines.append)
    except TimeoutError as error:
        raise DeviceError(f"{argv[0]} on {device.name} gave no answer within {_ANSWER_S:g} s; is the device busy?") from error
    except ProgramError as error:
        raise DeviceError(f"{argv[0]} on {device.name} does not run: {error}") from error
    return lines
