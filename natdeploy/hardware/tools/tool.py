"""What a vendor's tool is to natdeploy, and how what it printed is read: strictly, or not at all."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from natdeploy.errors import DeviceError

NUMBER = r"\d+(?:\.\d+)?(?:e[+-]\d+)?"
"""Regular expression of a number that C++ streams print; neither a sign nor `nan` nor `inf` is one."""

DIGITS = 6
"""Significant digits that C++ streams print."""


class UnreadableError(DeviceError):
    """A tool ran, and what it printed is not what its version is known to print."""


@dataclass(frozen=True)
class Job:
    """One call of a tool: a model, and how it is run.

    Attributes:
        model: the file here.
        file: its name in the device's folder.
        shape: of the one input, batch included.
        threads: of the runtime.
        precision: that the file was converted to.
        delegate: of the runtime.
        seed: of the input's values, where the tool takes one.
        warmup_runs: untimed, at least.
        warmup_s: untimed, at least.
        min_runs: timed, at least.
        min_s: timed, at least.
        limit_s: after which the tool should end by itself, as far as it can.
        expected_ms: what a run took in an earlier call; None before there was one.
    """

    model: Path
    file: str
    shape: tuple[int, ...]
    threads: int
    precision: str
    delegate: str
    seed: int
    warmup_runs: int
    warmup_s: float
    min_runs: int
    min_s: float
    limit_s: float
    expected_ms: float | None = None

    def runs(self, runs: int, seconds: float) -> int:
        """So many that both are reached, as far as it is known how long one takes."""
        return max(runs, math.ceil(1e3 * seconds / self.expected_ms)) if self.expected_ms else runs


@dataclass(frozen=True)
class Timings:
    """What one call told of its timed runs, in milliseconds. What a tool does not tell is None.

    Attributes:
        n: timed runs.
        mean_ms: of them.
        min_ms: the fastest.
        median_ms: of them.
        samples_ms: every one of them, where the tool tells them.
        load_ms: time to load the model.
        first_ms: time of the first run.
        provider: what computed, where the tool names it.
    """

    n: int
    mean_ms: float
    min_ms: float
    median_ms: float | None = None
    samples_ms: tuple[float, ...] = ()
    load_ms: float | None = None
    first_ms: float | None = None
    provider: str | None = None

    @property
    def typical_ms(self) -> float:
        """The median, or the mean where no median is told: always the same of the two for one build of a tool."""
        return self.mean_ms if self.median_ms is None else self.median_ms


class Tool(Protocol):
    """A module for one program of a runtime's makers that times a model.

    Attributes:
        NAME: of the program.
        RUNTIME: whose models it runs.
        HARNESS: as it is recorded with every number; numbers of different harnesses are never ranked together.
        DELEGATES: of the runtime's, those that it is used with.
        PLACES: programs that are looked for, in this order; one without `/` is looked for in PATH.
        ASK: arguments of a call that tells its version; none where it has no way to tell it.
        RESULT: whether a call leaves a file that has to be read as well.
    """

    NAME: str
    RUNTIME: str
    HARNESS: str
    DELEGATES: tuple[str, ...]
    PLACES: tuple[str, ...]
    ASK: tuple[str, ...]
    RESULT: bool

    def version(self, digest: str, lines: Sequence[str]) -> str:
        """What tells one build from another: the runtime's version where the tool knows it, else the digest of its file.

        Args:
            digest: of the tool's file.
            lines: that a call with ASK printed.

        Raises:
            UnreadableError: the version is not among them.
        """

    def prepare(self, job: Job, version: str) -> list[str]:
        """Arguments of a call that is made once before a model is timed; empty where none is needed."""

    def arguments(self, job: Job, version: str, result: str) -> list[str]:
        """Arguments of a call that times.

        Args:
            job: what.
            version: of the tool.
            result: name in the device's folder for the file that it leaves, if it leaves one.
        """

    def parse(self, job: Job, lines: Sequence[str], result: Sequence[str]) -> Timings:
        """What a call told.

        Args:
            job: of the call.
            lines: of its standard output.
            result: lines of the file that it left.

        Raises:
            UnreadableError: a line is missing, is there twice or has another form; numbers contradict each other; a time is zero or
                no run was timed.
        """


def unreadable(tool: str, why: str, line: str | None = None) -> UnreadableError:
    """The error, naming the tool and the line."""
    shown = "" if line is None else f": {line[:200]!r}"
    return UnreadableError(f"{tool} {why}{shown}; docs/runtimes.md tells which versions are known")


def only(tool: str, begin: str, pattern: re.Pattern[str], lines: Sequence[str]) -> re.Match[str]:
    """The one line that begins so, which must have the whole form of the pattern.

    Raises:
        UnreadableError: there is none or more than one, or it has another form.
    """
    found = [line for line in lines if line.startswith(begin)]
    if len(found) != 1:
        last = found[-1] if found else next((line for line in reversed(lines) if line), "")
        raise unreadable(tool, f"printed {begin!r} {len(found)} times instead of once; the last line was", last)
    match = pattern.fullmatch(found[0])
    if match is None:
        raise unreadable(tool, "printed a line of another form", found[0])
    return match


def positive(tool: str, text: str, line: str) -> float:
    """A number above zero. Raises UnreadableError."""
    value = float(text) if re.fullmatch(NUMBER, text) else math.nan
    if not 0 < value < math.inf:
        raise unreadable(tool, f"told {text!r} as a time", line)
    return value


def agree(tool: str, told: float, computed: float, tolerance: float, line: str) -> None:
    """Two ways to one number must lead to it. Raises UnreadableError."""
    if not abs(told - computed) <= tolerance * computed:
        raise unreadable(tool, f"contradicts itself ({told:g} and {computed:g})", line)
