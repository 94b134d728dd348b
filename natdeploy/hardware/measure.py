"""Measures models on a target: pushes them and the runner, runs fresh processes, pulls and summarises.

Protocol (docs/design.md): latency mode, batch 1, one request at a time; several fresh processes, candidates in a new order in
each; a reference model timed in slices between; percentiles by nearest rank and only from enough runs; raw samples kept.
"""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from natdeploy.errors import DeviceError
from natdeploy.hardware.conditions import settle
from natdeploy.hardware.device import Target
from natdeploy.hardware.runtimes import Runtime, get_runtime
from natdeploy.hardware.transports import ProgramError, Transport, connect
from natdeploy.progress import Progress
from natdeploy.runtimes import runner

RUNS_NEEDED = {50: 11, 90: 64, 95: 130, 99: 662}
"""Fewest runs from which a percentile says anything: MLPerf Inference's early-stopping rule at confidence 0.99."""

HARNESS = runner.HARNESS
"""What times where a device has Python. Numbers of different harnesses are never ranked together."""

_QUIET = 5
"""Percentile of slices that stands for the machine at rest: low enough to be at rest, high enough not to be luck."""

UNSTABLE = 0.03
"""Processes whose medians differ by more than this do not agree."""


@dataclass(frozen=True)
class Candidate:
    """A model file to be timed, and the shape of its one input, batch included. Several may share a file of dynamic size."""

    id: str
    model: Path
    shape: tuple[int, ...]


@dataclass(frozen=True)
class MeasureSettings:
    """How long to measure each model, in each process.

    Attributes:
        warmup_s: untimed, at least.
        warmup_runs: untimed, at least.
        min_s: timed, at least.
        min_runs: timed, at least.
        reference_s: time of the reference beside each model.
        slices: parts the timing is cut into, each between two parts of the reference's.
        processes: fresh ones.
        silence_s: a model that takes longer to load or to run hangs; building an engine takes minutes.
    """

    warmup_s: float
    warmup_runs: int
    min_s: float
    min_runs: int
    reference_s: float
    slices: int
    processes: int = 3
    silence_s: float = 300.0


NETS = MeasureSettings(warmup_s=1.0, warmup_runs=50, min_s=1.0, min_runs=64, reference_s=0.5, slices=20)
"""For a number that leaves the product: 192 runs and more, enough for p50, p90 and p95."""

SUBNETS = MeasureSettings(warmup_s=0.05, warmup_runs=3, min_s=0.2, min_runs=16, reference_s=0.1, slices=8, processes=4)
"""For whole nets of a latency table. Another process says more than more runs in the same one."""

BLOCKS = MeasureSettings(warmup_s=0.03, warmup_runs=5, min_s=0.1, min_runs=24, reference_s=0.06, slices=8)
"""For blocks of a latency table, of which there are many."""

QUICK = MeasureSettings(warmup_s=0.0, warmup_runs=1, min_s=0.0, min_runs=8, reference_s=0.0, slices=2, processes=2)
"""For trying out whether everything works; its numbers mean little."""


@dataclass(frozen=True)
class Measurement:
    """What was measured of one model.

    Attributes:
        id: of the candidate.
        p50_ms: median wall time of a run, over all processes.
        p90_ms: 90th percentile; None where there are too few runs.
        n: timed runs.
        process_p50_ms: median wall time in each process.
        relative: latency in units of the reference's: in each slice the median undisturbed time (wall time less waiting for a
            core) over the reference's right before and after; then the median over all slices of all processes. Steadier than
            wall time where other processes come and go, for they slow both.
        latency_ms: `relative` times the reference's latency: what a run takes while nothing else wants the machine.
        floor_ms: the fastest undisturbed run of a slice, 5th percentile over slices. The steadiest number of all for models so
            short that they find quiet moments on any machine, such as blocks; too lucky for whole networks.
        load_ms: median time to load, over processes.
        first_ms: median time of the first run.
        unstable: the processes' wall medians differ by more than 3 %.
        spread: by how much the processes' `relative` differ, 0.1 is 10 %: what noise the summary could not take out.
        samples_ms: wall time of every run, one list a process.
    """

    id: str
    p50_ms: float
    p90_ms: float | None
    n: int
    process_p50_ms: tuple[float, ...]
    relative: float
    latency_ms: float
    floor_ms: float
    load_ms: float
    first_ms: float
    unstable: bool
    spread: float
    samples_ms: tuple[tuple[float, ...], ...]


@dataclass(frozen=True)
class MeasureResult:
    """Measurements in the order of the candidates, without those that failed.

    Attributes:
        measurements: of every candidate that ran in every process.
        failures: why the others did not, by id.
        reference_ms: the reference's latency while nothing else wants the machine: 5th percentile over all its slices of the
            median undisturbed time.
        environment: what the runner found on the device.
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


def measure(
    candidates: Sequence[Candidate],
    reference: Candidate,
    target: Target,
    settings: MeasureSettings,
    *,
    seed: int,
    progress: Progress,
    keep_going: bool = False,
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

    Raises:
        DeviceError: the device cannot be reached, the runner failed before its first model, or (without keep_going) a model
            raised, crashed or hung.
    """
    runtime = get_runtime(target.runtime)
    with connect(target.device) as transport:
        names = _push_models(transport, runtime, [reference, *candidates])
        code = Path(str(runtime.__file__))
        transport.push(code, code.name)
        transport.push(Path(runner.__file__), "runner.py")
        plan = {
            "runtime": code.name,
            "threads": target.threads,
            "precision": target.precision,
            "delegate": target.delegate,
            "seed": seed,
            "settings": asdict(settings),
            "reference": _model(reference, names),
        }
        models = [_model(candidate, names) for candidate in candidates]
        records: dict[str, list[dict[str, Any]]] = {candidate.id: [] for candidate in candidates}
        failures: dict[str, str] = {}
        environment: dict[str, Any] = {}
        steps = len(models) * (settings.slices + 1)
        with progress.task(f"measuring on {target}", steps * settings.processes, "steps") as advance:
            for process in range(settings.processes):
                conditions = settle(transport, target.device, progress)
                order = np.random.default_rng([seed, process]).permutation(len(models))
                found: list[dict[str, Any]] | None = None
                while found is None:
                    todo = [models[i] for i in order if models[i]["id"] not in failures]
                    try:
                        environment, found = _one_process(transport, plan | {"candidates": todo}, settings.silence_s, advance)
                        environment |= conditions
                    except _ModelError as broken:
                        failures[broken.model] = str(broken)
                        _raise_unless(keep_going, failures, target)
                failures |= {record["id"]: record["error"] for record in found if "error" in record}
                _raise_unless(keep_going, failures, target)
                for record in found:
                    records[record["id"]].append(record)
    good = {name: found for name, found in records.items() if name not in failures}
    parts = [part for found in good.values() for record in found for part in record["slices"]]
    reference_ms = _rank([part["reference_ms"] for part in parts], _QUIET) if parts else math.nan
    measurements = tuple(_summary(name, found, reference_ms) for name, found in good.items())
    return MeasureResult(measurements, failures, reference_ms, environment)


def _raise_unless(keep_going: bool, failures: Mapping[str, str], target: Target) -> None:
    if failures and not keep_going:
        name, why = next(iter(failures.items()))
        raise DeviceError(f"{name} does not run on {target}: {why}")


def _push_models(transport: Transport, runtime: Runtime, candidates: Sequence[Candidate]) -> dict[Path, str]:
    """Pushes every file once, whatever number of candidates share it; its name on the device by its path here."""
    names: dict[Path, str] = {}
    for candidate in candidates:
        if candidate.model not in names:
            names[candidate.model] = name = f"{len(names)}{candidate.model.suffix}"
            transport.push(candidate.model, name)
            for companion in runtime.companions(candidate.model):
                transport.push(companion, Path(name).with_suffix(companion.suffix).name)
    return names


def _model(candidate: Candidate, names: Mapping[Path, str]) -> dict[str, Any]:
    return {"id": candidate.id, "model": names[candidate.model], "shape": candidate.shape}


class _ModelError(Exception):
    """A model hung, or took the whole process down with it."""

    def __init__(self, model: str, why: str) -> None:
        super().__init__(why)
        self.model = model


def _one_process(
    transport: Transport, plan: Mapping[str, Any], silence_s: float, advance: Callable[[int], None]
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Environment and records of a fresh process. Raises _ModelError where one model is to blame."""
    running: str | None = None
    if transport.python is None:
        raise DeviceError("there is no Python on this device to run the runner; name one as `python` in its file")

    def listen(line: str) -> None:
        nonlocal running
        try:
            running = json.loads(line)["id"]
        except (ValueError, TypeError, KeyError) as error:
            raise DeviceError(f"the runner was to say which model it is at, but said {line!r}; does a library print?") from error
        advance(1)

    with tempfile.TemporaryDirectory() as folder:
        here = Path(folder)
        (here / "plan.json").write_text(json.dumps(plan))
        transport.push(here / "plan.json", "plan.json")
        try:
            transport.run([transport.python, "runner.py", "plan.json", "result.jsonl"], silence_s=silence_s, on_line=listen)
        except TimeoutError as error:
            if running is None:
                raise DeviceError(
                    f"the runner said nothing for {silence_s:g} s before its first model; is the device busy?"
                ) from error
            raise _ModelError(running, f"no answer within {silence_s:g} s") from error
        except ProgramError as error:
            if running is None:
                raise
            raise _ModelError(running, str(error)) from error
        transport.pull("result.jsonl", here / "result.jsonl")
        environment, *records = [json.loads(line) for line in (here / "result.jsonl").read_text().splitlines()]
    return environment, records


def _summary(name: str, records: Sequence[Mapping[str, Any]], reference_ms: float) -> Measurement:
    samples = tuple(tuple(ms for part in record["slices"] for ms in part["wall_ms"]) for record in records)
    pooled = [ms for process in samples for ms in process]
    medians = tuple(runner.median(list(process)) for process in samples)
    slices = [[(_undisturbed(part), part["reference_ms"]) for part in record["slices"]] for record in records]
    ratios = [[runner.median(times) / beside for times, beside in process] for process in slices]
    relative = median([ratio for process in ratios for ratio in process])
    in_process = [median(process) for process in ratios]
    return Measurement(
        id=name,
        p50_ms=runner.median(pooled),
        p90_ms=percentile(pooled, 90),
        n=len(pooled),
        process_p50_ms=medians,
        relative=relative,
        latency_ms=relative * reference_ms,
        floor_ms=_rank([min(times) for process in slices for times, _ in process], _QUIET),
        load_ms=median([record["load_ms"] for record in records]),
        first_ms=median([record["first_ms"] for record in records]),
        unstable=max(medians) > (1 + UNSTABLE) * min(medians),
        spread=max(in_process) / min(in_process) - 1,
        samples_ms=samples,
    )


def _undisturbed(part: Mapping[str, Sequence[float]]) -> list[float]:
    return [wall - waited for wall, waited in zip(part["wall_ms"], part["waited_ms"], strict=True)]
