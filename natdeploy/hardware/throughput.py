"""Images a second on a target: the library's own queue, or several sessions at once, in fresh processes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from natdeploy.errors import DeviceError
from natdeploy.hardware.bench import Candidate, MeasureSettings
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
) -> ThroughputResult:
    """Images a second of models, one after the other, in a new order in each process.

    Args:
        candidates: with distinct ids.
        reference: its latency is taken between them, to see whether the machine stays as it is.
        target: device, runtime and precision; its threads are those of each session where sessions run at once.
        settings: how long.
        seed: of the order and of the input values.
        progress: gets one step a model and process.

    Raises:
        DeviceError: the device cannot be reached or has no Python, or the reference does not run.
    """
    if timed_by_tool(target.device):
        raise DeviceError(
            f"{target.device.name} is timed by a vendor's tool, one request at a time; throughput needs Python, named in its file"
        )
    runtime = get_runtime(target.runtime)
    rounds: dict[str, list[Mapping[str, Any]]] = {candidate.id: [] for candidate in candidates}
    failures: dict[str, str] = {}
    environment: dict[str, Any] = {}
    begun = []
    with connect(target.device) as transport:
        names = push_models(transport, runtime, [reference, *candidates])
        loop = Path(throughput.__file__)
        program = Runner(transport, target, asdict(settings), seed=seed, names=names, loop=loop)
        with progress.task(f"throughput on {target}", len(candidates) * settings.processes, "steps") as advance:
            for process in range(settings.processes):
                utc = datetime.now(UTC).isoformat(timespec="seconds")
                conditions = settle(transport, target.device, progress)
                begun.append({"process": process, "utc": utc, **conditions})
                order = [candidates[i] for i in np.random.default_rng([seed, process]).permutation(len(candidates))]
                while waiting := [each for each in order if each.id not in failures and len(rounds[each.id]) <= process]:
                    answer = program.run(waiting, reference, advance, silence_s=settings.silence_s)
                    if isinstance(answer, Died):
                        failures[answer.model] = answer.why
                        continue
                    environment = {**answer.environment, **conditions}
                    for record in answer.records:
                        if "error" in record:
                            failures[record["id"]] = record["error"]
                        else:
                            rounds[record["id"]].append(record)
    shapes = {each.id: each.shape for each in candidates}
    found_of = {name: records for name, records in rounds.items() if name not in failures}
    measurements = tuple(_summary(name, records, shapes[name]) for name, records in found_of.items())
    return ThroughputResult(measurements, failures, {**environment, "conditions": begun})


def _summary(name: str, records: Sequence[Mapping[str, Any]], shape: Sequence[int]) -> Throughput:
    batch = shape[0] if len(shape) > 1 else 1
    rates = tuple(batch * sum(each["counts"]) / (len(each["counts"]) * each["window_s"]) for each in records)
    beside = [each["reference_ms"] for each in records]
    return Throughput(
        id=name,
        images_per_s=median(rates),
        process_images_per_s=rates,
        windows=tuple(tuple(each["counts"]) for each in records),
        window_s=records[0]["window_s"],
        n=sum(sum(each["counts"]) for each in records),
        how=records[0]["how"],
        unstable=max(rates) > (1 + UNSTABLE) * min(rates),
        drift=max(beside) / min(beside) - 1,
    )
