"""Measures models on a target: pushes them, has a harness run them in fresh processes, and summarises.

Protocol (docs/design.md): latency mode, batch 1, one request at a time; several fresh processes, candidates in a new order in
each; a reference model timed between; percentiles by nearest rank and only from enough runs; raw samples kept.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from natdeploy.hardware.bench import Candidate, MeasureSettings, Round
from natdeploy.hardware.book import Blank, Book
from natdeploy.hardware.device import Target
from natdeploy.hardware.rounds import Work, run_rounds
from natdeploy.hardware.runner_bench import RunnerBench
from natdeploy.hardware.tool_bench import ToolBench
from natdeploy.hardware.tools import timed_by_tool, tool_of
from natdeploy.progress import Progress
from natdeploy.runtimes import runner

RUNS_NEEDED = {50: 11, 90: 64, 95: 130, 99: 662}
"""Fewest runs from which a percentile says anything: MLPerf Inference's early-stopping rule at confidence 0.99."""

_QUIET = 5
"""Percentile of slices that stands for the machine at rest: low enough to be at rest, high enough not to be luck."""

UNSTABLE = 0.03
"""Processes whose medians differ by more than this do not agree."""


@dataclass(frozen=True)
class Measurement:
    """What was measured of one model. What the harness does not tell is None.

    Attributes:
        id: of the candidate.
        mean_ms: wall time of a run, over all processes.
        p50_ms: median wall time of a run, over all processes; of a harness that tells no single runs, the median of the processes'
            medians.
        p90_ms: 90th percentile; None also where there are too few runs.
        n: timed runs.
        process_p50_ms: median wall time in each process.
        relative: latency in units of the reference's: in each slice the median undisturbed time (wall time less waiting for a
            core) over the reference's right before and after; then the median over all slices of all processes. Steadier than
            wall time where other processes come and go, for they slow both. A vendor's tool counts no waiting and makes one slice a
            process, and there the ratio is of mean wall times.
        latency_ms: `relative` times the reference's latency: what a run takes while nothing else wants the machine.
        floor_ms: the fastest undisturbed run of a slice, 5th percentile over slices. The steadiest number of all for models so
            short that they find quiet moments on any machine, such as blocks; too lucky for whole networks.
        load_ms: median time to load, over processes.
        first_ms: median time of the first run.
        unstable: the processes' wall medians (or means) differ by more than 3 %.
        spread: by how much the processes' `relative` differ, 0.1 is 10 %: what noise the summary could not take out.
        samples_ms: wall time of every run, one list a process, empty where they are not told.
        waited: share of wall time that went to other processes, of the worst process; None where it is not counted.
        drift: by how much the reference's latency beside it differs between processes, 0.1 is 10 %.
        inside_ms: what the runtime's library counts of a run itself, without the call to it: median of the processes' medians.
    """

    id: str
    mean_ms: float
    p50_ms: float | None
    p90_ms: float | None
    n: int
    process_p50_ms: tuple[float | None, ...]
    relative: float
    latency_ms: float
    floor_ms: float
    load_ms: float | None
    first_ms: float | None
    unstable: bool
    spread: float
    samples_ms: tuple[tuple[float, ...], ...]
    waited: float | None = None
    drift: float | None = None
    inside_ms: float | None = None

    @property
    def typical_ms(self) -> float:
        """The median, or the mean where the harness tells no median."""
        return self.mean_ms if self.p50_ms is None else self.p50_ms


@dataclass(frozen=True)
class MeasureResult:
    """Measurements in the order of the candidates, without those that failed.

    Attributes:
        measurements: of every candidate that ran in every process.
        failures: why the others did not, by id.
        reference_ms: the reference's latency while nothing else wants the machine: 5th percentile over all its slices of the
            median undisturbed time.
        environment: what the harness found on the device, and what it is called. `conditions` tells when each process began and
            the state of the device then.
    """

    measurements: tuple[Measurement, ...]
    failures: Mapping[str, str]
    reference_ms: float
    environment: Mapping[str, Any]

    def __getitem__(self, candidate_id: str) -> Measurement:
        return next(each for each in self.measurements if each.id == candidate_id)


def percentile(samples: Sequence[float], p: int) -> float | None:
    """Nearest rank, ceil(n p / 100) - 1 of the sorted samples; None where they are fewer than the percentile needs."""
    if len(samples) < RUNS_NEEDED[p]:
        return None
    return _rank(samples, p)


def _rank(samples: Sequence[float], p: int) -> float:
    return sorted(samples)[math.ceil(len(samples) * p / 100) - 1]


def harness(target: Target) -> str:
    """What times on a target, in words. Numbers of different harnesses are never ranked together.

    Raises:
        DeviceError: there is no Python on the device, and no tool for the runtime.
    """
    return tool_of(target).HARNESS if timed_by_tool(target.device) else runner.HARNESS


def measure(
    candidates: Sequence[Candidate],
    reference: Candidate,
    target: Target,
    settings: MeasureSettings,
    *,
    seed: int,
    progress: Progress,
    keep_going: bool = False,
    book: Book[Round] | None = None,
) -> MeasureResult:
    """Times models on a target.

    Args:
        candidates: with distinct ids.
        reference: timed beside each of them.
        target: device, runtime, precision and threads.
        settings: how long.
        seed: of the order in each process and of the input values.
        progress: gets one step a candidate's preparation and slice.
        keep_going: report candidates that fail in the result instead of raising.
        book: what is known already, and where each process's times are kept as soon as it has ended.

    Raises:
        DeviceError: the device cannot be reached, the harness is not there or failed before its first model, or (without
            keep_going) a model raised, crashed or hung.
    """
    work = Work(
        candidates,
        reference,
        target,
        settings,
        seed,
        make_bench=ToolBench if timed_by_tool(target.device) else RunnerBench,
        doing="measuring",
        keep_going=keep_going,
        book=Blank() if book is None else book,
    )
    found = run_rounds(work, progress)
    references = [ms for rounds in found.records.values() for each in rounds for ms in each.references_ms]
    reference_ms = _rank(references, _QUIET) if references else math.nan
    measurements = tuple(_summary(name, rounds, reference_ms) for name, rounds in found.records.items())
    return MeasureResult(measurements, found.failures, reference_ms, found.environment)


def _summary(name: str, rounds: Sequence[Round], reference_ms: float) -> Measurement:
    n = sum(each.n for each in rounds)
    pooled = [ms for each in rounds for ms in each.samples_ms] if all(each.samples_ms for each in rounds) else None
    medians = _all_told(each.median_ms for each in rounds)
    p50_ms = runner.median(pooled) if pooled else median(medians) if medians else None
    centres = medians or [each.mean_ms for each in rounds]
    relative = median([ratio for each in rounds for ratio in each.ratios])
    in_process = [median(each.ratios) for each in rounds]
    beside = [median(each.references_ms) for each in rounds]
    loads, firsts = (_all_told(times) for times in ((each.load_ms for each in rounds), (each.first_ms for each in rounds)))
    return Measurement(
        id=name,
        mean_ms=sum(each.n * each.mean_ms for each in rounds) / n,
        p50_ms=p50_ms,
        p90_ms=percentile(pooled, 90) if pooled else None,
        n=n,
        process_p50_ms=tuple(each.median_ms for each in rounds),
        relative=relative,
        latency_ms=relative * reference_ms,
        floor_ms=_rank([ms for each in rounds for ms in each.floors_ms], _QUIET),
        load_ms=median(loads) if loads else None,
        first_ms=median(firsts) if firsts else None,
        unstable=max(centres) > (1 + UNSTABLE) * min(centres),
        spread=max(in_process) / min(in_process) - 1,
        samples_ms=tuple(each.samples_ms for each in rounds),
        drift=max(beside) / min(beside) - 1,
        waited=max(waits) if (waits := _all_told(each.waited for each in rounds)) else None,
        inside_ms=median(inside) if (inside := _all_told(each.inside_ms for each in rounds)) else None,
    )


def _all_told(values: Iterable[float | None]) -> list[float] | None:
    """All values, if none is missing."""
    listed = list(values)
    known = [value for value in listed if value is not None]
    return known if len(known) == len(listed) else None
