"""A vendor's tool as harness, where a device has no Python: a process for every model, the reference's between them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from natdeploy.errors import DeviceError
from natdeploy.hardware.bench import Candidate, Round, Setup
from natdeploy.hardware.shell_facts import shell_facts
from natdeploy.hardware.tools import Job, Timings, UnreadableError, find, tool_of
from natdeploy.hardware.transports import ProgramError


class ToolBench:
    """Finds the tool of a target, and asks the device what it is. The tool runs a model's slices in one piece.

    Raises:
        DeviceError: there is no tool for the target, or none on the device.
    """

    def __init__(self, setup: Setup) -> None:
        transport, target, settings = setup.transport, setup.target, setup.settings
        self._transport, self._target, self._settings = transport, target, settings
        self._seed, self._reference, self._names = setup.seed, setup.reference, setup.names
        self._found = find(transport, target.device, tool_of(target))
        self._prepared: set[tuple[str, tuple[int, ...]]] = set()
        self._took_ms: dict[str, float] = {}
        self._calls = 0
        self.environment: Mapping[str, Any] = {
            **shell_facts(transport),
            "harness": self._found.tool.HARNESS,
            "runtime": target.runtime,
            "runtime_version": self._found.version,
            "provider": target.delegate,
            "precision": target.precision,
            "threads": target.threads,
            "waiting_counted": False,
            "settings": asdict(settings),
        }

    def steps(self, models: int) -> int:
        return models

    def round(self, models: Sequence[Candidate], advance: Callable[[int], None]) -> Mapping[str, Round | str]:
        answers: dict[str, Round | str] = {}
        before: Timings | None = self._reference_times()
        for candidate in models:
            before = before or self._reference_times()
            times = self._times_or_reason(candidate, self._settings.min_s)
            if isinstance(times, str):
                answers[candidate.id] = times
                before = None  # a hang may have lasted minutes
            else:
                after = self._reference_times()
                answers[candidate.id] = _round(times, before, after)
                before = after
            advance(1)
        return answers

    def _reference_times(self) -> Timings:
        times = self._times_or_reason(self._reference, self._settings.reference_s)
        if isinstance(times, str):
            raise DeviceError(f"the reference network does not run on {self._target}: {times}")
        if times.provider is not None:
            self.environment = {**self.environment, "provider": times.provider}
        return times

    def _times_or_reason(self, candidate: Candidate, seconds: float) -> Timings | str:
        """Of one call, or why there are none: what the model, and not the device, is to blame for."""
        try:
            return self._times(candidate, seconds)
        except TimeoutError:
            return f"no answer within {self._settings.silence_s:g} s"
        except (ProgramError, UnreadableError) as error:
            return str(error)

    def _times(self, candidate: Candidate, seconds: float) -> Timings:
        """Of one call. A model that has to be prepared is, before its first."""
        settings, target, tool = self._settings, self._target, self._found.tool
        job = Job(
            model=candidate.model,
            file=self._names[candidate.model],
            shape=tuple(candidate.shape),
            threads=target.threads,
            precision=candidate.precision or target.precision,
            delegate=target.delegate,
            seed=self._seed,
            warmup_runs=settings.warmup_runs,
            warmup_s=settings.warmup_s,
            min_runs=settings.min_runs,
            min_s=seconds,
            limit_s=settings.silence_s / 3,  # of warming up and of timing, in which it says nothing
            expected_ms=self._took_ms.get(candidate.id),
        )
        if (job.file, job.shape) not in self._prepared:
            if arguments := tool.prepare(job, self._found.version):
                self._run([self._found.path, *arguments])
            self._prepared.add((job.file, job.shape))
        self._calls += 1
        result = f"result{self._calls}.txt"
        lines = self._run([self._found.path, *tool.arguments(job, self._found.version, result)])
        times = tool.parse(job, lines, self._run(["cat", result]) if tool.RESULT else ())
        self._took_ms[candidate.id] = times.typical_ms
        return times

    def _run(self, argv: Sequence[str]) -> list[str]:
        lines: list[str] = []
        self._transport.run(argv, silence_s=self._settings.silence_s, on_line=lines.append)
        return lines


def _round(times: Timings, before: Timings, after: Timings) -> Round:
    """Of one model between two of the reference.

    The ratio is of means. Another program on the same core doubles the mean of both, but the median of long runs alone: short ones
    mostly find the core free, and a ratio of medians would be that of two different machines.
    """
    return Round(
        references_ms=((before.typical_ms + after.typical_ms) / 2,),
        ratios=(2 * times.mean_ms / (before.mean_ms + after.mean_ms),),
        floors_ms=(times.min_ms,),
        n=times.n,
        mean_ms=times.mean_ms,
        median_ms=times.median_ms,
        samples_ms=times.samples_ms,
        load_ms=times.load_ms,
        first_ms=times.first_ms,
    )
