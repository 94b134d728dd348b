"""Images a second on a target: the library's own queue, or several sessions at once, in fresh processes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from natdeploy.errors import DeviceError
from natdeploy.hardware.bench import Candidate, MeasureSettings
from natdeploy.hardware.book import Blank, Book, add_to, anew_if_changed
from natdeploy.hardware.conditions import settle
from natdeploy.hardware.device import Target
from natdeploy.hardware.measure import UNSTABLE, push_models
from natdeploy.hardware.runner_bench import Died, Runner
from natdeploy.hardware.runtimes import get_runtime
from natdeploy.hardware.tools import timed_by_tool
from natdeploy.hardware.transports import connect
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
    book = Blank() if book is None else book
    attempt = partial(_measure, candidates, reference, target, settings, seed=seed, progress=progress, book=book)
    return anew_if_changed(attempt, book, target, progress)


def _measure(
    candidates: Sequence[Candidate],
    reference: Candidate,
    target: Target,
    settings: MeasureSettings,
    *,
    seed: int,
    progress: Progress,
    book: Book[Counts],
) -> ThroughputResult:
    rounds = {process: dict(book.known(process)) for process in range(settings.processes)}
    missing = [candidate for candidate in candidates if any(candidate.id not in found for found in rounds.values())]
    failures: dict[str, str] = {}
    environment = book.environment
    if missing:
        with connect(target.device) as transport:
            names = push_models(transport, get_runtime(target.runtime), [reference, *missing])
            loop = Path(throughput.__file__)
            program = Runner(transport, target, asdict(settings), seed=seed, names=names, loop=loop)
            begun = list(book.environment.get("conditions", ()))
            steps = sum(each.id not in found for each in missing for found in rounds.values())
            with progress.task(f"throughput on {target}", steps, "steps") as advance:
                for process, found in rounds.items():
                    order = [candidates[i] for i in np.random.default_rng([seed, process]).permutation(len(candidates))]
                    unanswered = [each for each in order if each.id not in found and each.id not in failures]
                    if not unanswered:
                        continue
                    utc = datetime.now(UTC).isoformat(timespec="seconds")
                    conditions = settle(transport, target.device, progress)
                    begun.append({"process": process, "utc": utc, **conditions})
                    while unanswered:
                        answer = program.run(unanswered, reference, advance, silence_s=settings.silence_s)
                        if isinstance(answer, Died):
                            failures[answer.model] = answer.why
                        else:
                            environment = {**answer.environment, **conditions, "conditions": [*begun]}
                            told = {each["id"]: _counts(each, settings) for each in answer.records}
                            failures |= {name: each for name, each in told.items() if isinstance(each, str)}
                            counts = {name: each for name, each in told.items() if isinstance(each, Counts)}
                            add_to(book, process, counts, environment)
                            found.update(counts)
                        unanswered = [each for each in unanswered if each.id not in found and each.id not in failures]
    good = {each: [found[each.id] for found in rounds.values()] for each in candidates if each.id not in failures}
    measurements = tuple(_summary(each, found) for each, found in good.items())
    return ThroughputResult(measurements, failures, environment)


def _counts(record: Mapping[str, Any], settings: MeasureSettings) -> Counts | str:
    """What was counted, or why nothing was."""
    if "error" in record:
        return str(record["error"])
    if not any(record["counts"]):
        return f"no request ended within the {settings.min_s:g} s in which they are counted"
    return Counts(tuple(record["counts"]), record["window_s"], record["how"], record["reference_ms"])


def _summary(candidate: Candidate, records: Sequence[Counts]) -> Throughput:
    batch = candidate.shape[0] if len(candidate.shape) > 1 else 1
    rates = tuple(batch * sum(each.counts) / (len(each.counts) * each.window_s) for each in records)
    beside = [each.reference_ms for each in records]
    return Throughput(
        id=candidate.id,
        images_per_s=median(rates),
        process_images_per_s=rates,
        windows=tuple(each.counts for each in records),
        window_s=records[0].window_s,
        n=sum(sum(each.counts) for each in records),
        how=records[0].how,
        unstable=max(rates) > (1 + UNSTABLE) * min(rates),
        drift=max(beside) / min(beside) - 1,
    )
