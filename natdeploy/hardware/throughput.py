"""Images a second on a target: the library's own queue, or several sessions at once, in fresh processes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from natdeploy.errors import DeviceError
from natdeploy.hardware.bench import Candidate, MeasureSettings, Setup
from natdeploy.hardware.book import Blank, Book
from natdeploy.hardware.device import Target
from natdeploy.hardware.measure import UNSTABLE
from natdeploy.hardware.rounds import Work, run_rounds
from natdeploy.hardware.runner_bench import Died, Runner
from natdeploy.hardware.tools import timed_by_tool
from natdeploy.progress import Progress
from natdeploy.runtimes import throughput

STREAMS = MeasureSettings(warmup_s=1.0, warmup_runs=50, min_s=3.0, min_runs=64, reference_s=0.2, slices=6)
"""For a number that leaves the product; `slices` are windows in which requests are counted."""


@dataclass(frozen=True)
class Counts:
    """Requests of a model that ended in one process.

    Attributes:
        counts: in each window.
        window_s: length of a window.
        how: they were kept going, in words.
        reference_ms: the reference's latency around them.
    """

    counts: tuple[int, ...]
    window_s: float
    how: str
    reference_ms: float


@dataclass(frozen=True)
class Throughput:
    """What was measured of one model.

    Attributes:
        id: of the candidate.
        images_per_s: median of the processes' rates.
        process_images_per_s: rate of each.
        windows: requests that ended in each window, by process.
        window_s: length of a window.
        n: requests counted.
        how: they were kept going, in words.
        unstable: the processes' rates differ by more than 3 %.
        drift: by how much the reference's latency beside it differs between processes, 0.1 is 10 %.
    """

    id: str
    images_per_s: float
    process_images_per_s: tuple[float, ...]
    windows: tuple[tuple[int, ...], ...]
    window_s: float
    n: int
    how: str
    unstable: bool
    drift: float


@dataclass(frozen=True)
class ThroughputResult:
    """Measurements in the order of the candidates, why others have none, and what the runner found on the device."""

    measurements: tuple[Throughput, ...]
    failures: Mapping[str, str]
    environment: Mapping[str, Any]


def measure_throughput(
    candidates: Sequence[Candidate],
    reference: Candidate,
    target: Target,
    settings: MeasureSettings,
    *,
    seed: int,
    progress: Progress,
    book: Book[Counts] | None = None,
) -> ThroughputResult:
    """Images a second of models, one after the other, in a new order in each process.

    Args:
        candidates: with distinct ids.
        reference: its latency is taken between them, to see whether the machine stays as it is.
        target: device, runtime and precision; its threads are those of each session where sessions run at once.
        settings: how long.
        seed: of the order and of the input values.
        progress: gets one step a model and process.
        book: what is known already, and where each process's counts are kept as soon as it has ended.

    Raises:
        DeviceError: the device cannot be reached or has no Python, or the reference does not run.
    """
    if timed_by_tool(target.device):
        raise DeviceError(
            f"{target.device.name} is timed by a vendor's tool, one request at a time; throughput needs Python, named in its file"
        )
    work = Work(
        candidates,
        reference,
        target,
        settings,
        seed,
        make_bench=ThroughputBench,
        doing="throughput",
        keep_going=True,
        book=Blank() if book is None else book,
    )
    found = run_rounds(work, progress)
    shapes = {each.id: each.shape for each in candidates}
    measurements = tuple(_summary(name, records, shapes[name]) for name, records in found.records.items())
    return ThroughputResult(measurements, found.failures, found.environment)


class ThroughputBench:
    """The runner's loop of many requests at once, one model after the other.

    Raises:
        DeviceError: the device has no Python.
    """

    def __init__(self, setup: Setup) -> None:
        self.environment: Mapping[str, Any] = {}
        self._setup = setup
        self._runner = Runner.of(setup, loop=Path(throughput.__file__))

    def steps(self, models: int) -> int:
        return models

    def round(self, models: Sequence[Candidate], advance: Callable[[int], None]) -> Mapping[str, Counts | str]:
        settings = self._setup.settings
        answer = self._runner.run(models, self._setup.reference, advance, silence_s=settings.silence_s)
        if isinstance(answer, Died):
            return {answer.model: answer.why}
        self.environment = answer.environment
        return {each["id"]: _counts(each, settings) for each in answer.records}


def _counts(record: Mapping[str, Any], settings: MeasureSettings) -> Counts | str:
    """What was counted, or why nothing was."""
    if "error" in record:
        return str(record["error"])
    if not any(record["counts"]):
        return f"no request ended within the {settings.min_s:g} s in which they are counted"
    return Counts(tuple(record["counts"]), record["window_s"], record["how"], record["reference_ms"])


def _summary(name: str, records: Sequence[Counts], shape: Sequence[int]) -> Throughput:
    batch = shape[0] if len(shape) > 1 else 1
    rates = tuple(batch * sum(each.counts) / (len(each.counts) * each.window_s) for each in records)
    beside = [each.reference_ms for each in records]
    return Throughput(
        id=name,
        images_per_s=median(rates),
        process_images_per_s=rates,
        windows=tuple(each.counts for each in records),
        window_s=records[0].window_s,
        n=sum(sum(each.counts) for each in records),
        how=records[0].how,
        unstable=max(rates) > (1 + UNSTABLE) * min(rates),
        drift=max(beside) / min(beside) - 1,
    )
