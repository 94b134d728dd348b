"""What `natdeploy benchmark` found, as it is written to JSON and read again for a comparison."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, PositiveFloat, ValidationError, model_validator

from natdeploy.errors import UsageError
from natdeploy.files import write_atomic
from natdeploy.hardware.footprint import Footprint
from natdeploy.hardware.measure import RUNS_NEEDED, Measurement, percentile
from natdeploy.hardware.throughput import Throughput as ThroughputFound
from natdeploy.invalid import faults
from natdeploy.pipeline.model_files import Subject

DISTURBED = 0.05
"""A process whose runs stood for a larger share of their time without a core was not alone."""
SLOWER = 0.1
"""A reference that is slower by more than this in one process than in another, or such a clock, tells of a machine that changed."""

Mode = Literal["latency", "throughput"]
RESULT_FORMAT: Literal[1] = 1
"""Of the JSON of `BenchmarkResult`."""


class _Facts(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Process(_Facts):
    """One fresh process: its median, and every single run where the harness tells them."""

    p50_ms: PositiveFloat | None
    samples_ms: tuple[float, ...]


class Latency(_Facts):
    """Of one request at a time. Percentiles are None where there are too few runs for them, or no runs are told.

    Attributes:
        p50_ms: of wall time, over the runs of all processes, by nearest rank.
        p90_ms: likewise.
        p95_ms: likewise.
        p99_ms: likewise.
        mean_ms: likewise.
        n: timed runs.
        undisturbed_ms: what a run takes while nothing else wants the machine (`natdeploy.hardware.measure`).
        load_ms: median time to load the file, over processes.
        first_ms: median time of the first run.
        processes: raw samples.
        inside_ms: what the runtime's library counts of a run itself, without the call from Python; median of the processes'
            medians. OpenVINO's alone does.
    """

    p50_ms: PositiveFloat | None
    p90_ms: float | None
    p95_ms: float | None
    p99_ms: float | None
    mean_ms: PositiveFloat
    n: int
    undisturbed_ms: float
    load_ms: float | None
    first_ms: float | None
    processes: tuple[Process, ...]
    inside_ms: PositiveFloat | None = None

    @property
    def typical_ms(self) -> float:
        """The median, or the mean where the harness tells no median."""
        return self.mean_ms if self.p50_ms is None else self.p50_ms


class Rate(_Facts):
    """Of one fresh process: images a second, and requests that ended in each window."""

    images_per_s: PositiveFloat
    counts: tuple[int, ...]


class Throughput(_Facts):
    """Of as many requests at once as the target runs best.

    Attributes:
        images_per_s: median of the processes' rates.
        n: requests counted.
        how: they were kept going.
        window_s: length of a window.
        processes: raw counts.
    """

    images_per_s: PositiveFloat
    n: int
    how: str
    window_s: float
    processes: tuple[Rate, ...]


class Memory(_Facts):
    """Resident memory in a process of its own, 10^6 bytes.

    Attributes:
        model_mb: by how much the peak rose when the model was loaded and run.
        peak_mb: of the whole process.
        before_mb: of Python and the library, without the model.
    """

    model_mb: float
    peak_mb: float
    before_mb: float


class Energy(_Facts):
    """Of a run, in a process of its own.

    Attributes:
        net_mj: less that of the idle device for as long.
        gross_mj: as counted.
        idle_w: of the idle device, right before.
        runs: over which it was counted.
        counters: that were read.
    """

    net_mj: float
    gross_mj: float
    idle_w: float
    runs: int
    counters: tuple[str, ...]


class Flags(_Facts):
    """What speaks against a number. None is not known.

    Attributes:
        unstable: the processes' medians (or rates) differ by more than 3 %.
        few_runs: too few for a 90th percentile.
        disturbed: in some process the runs stood for more than 5 % of their time without a core, because of other processes.
        drifted: the reference was by more than 10 % slower in one process than in another.
        throttled: the device did not become as cool as its file demands, or its clock, held by the governor `performance`, was by
            more than 10 % lower before one process than before another.
    """

    unstable: bool
    few_runs: bool
    disturbed: bool | None
    drifted: bool | None
    throttled: bool | None

    @property
    def raised(self) -> tuple[str, ...]:
        """Names of those that are true."""
        return tuple(name for name in type(self).model_fields if getattr(self, name))


class ModelTimes(_Facts):
    """A model file and what was measured of it. What was not is None.

    Attributes:
        name: the file as it was given, or role and id of a run's net, after the run's folder where there are several.
        target: device, runtime, precision and threads.
        sha256: of every file it consists of.
        size_mb: of all of them, 10^6 bytes.
        shape: of the input, or of the first of several.
        run: folder of its run, as it was given.
        role: in it.
        id: of its architecture.
        predicted_ms: latency by the predictor.
        estimated: the prediction comes from a specification sheet.
        latency: of one request at a time.
        throughput: of many at once.
        memory: that it takes.
        energy: that a run takes.
        unreadable: counters of energy that are there and cannot be read, each with the reason.
        flags: what speaks against the numbers.
    """

    name: str
    target: str
    precision: str
    sha256: dict[str, str]
    size_mb: float
    shape: tuple[int, ...]
    run: str | None = None
    role: str | None
    id: str | None
    predicted_ms: float | None
    estimated: bool
    latency: Latency | None = None
    throughput: Throughput | None = None
    memory: Memory | None = None
    energy: Energy | None = None
    unreadable: tuple[str, ...] = ()
    flags: Flags

    @property
    def process_values(self) -> list[float]:
        """Median latency, ms, or images a second, of each process; empty where the harness tells none."""
        if self.throughput is not None:
            return [each.images_per_s for each in self.throughput.processes]
        told = [] if self.latency is None else [each.p50_ms for each in self.latency.processes]
        return [value for value in told if value is not None]

    @property
    def value(self) -> float:
        """Latency, ms, or images a second."""
        if self.throughput is not None:
            return self.throughput.images_per_s
        assert self.latency is not None
        return self.latency.typical_ms


class Section(_Facts):
    """Models that were measured together, in turns.

    Attributes:
        target: of the device and runtime; a model's own precision may be another.
        environment: what the device told, `conditions` process by process.
        reference: name of the model that was timed beside all.
        reference_ms: its latency while nothing else wants the machine.
        models: in the order in which they were named.
        failures: why others have no times, by name.
    """

    target: str
    environment: dict[str, Any]
    reference: str
    reference_ms: float | None
    models: tuple[ModelTimes, ...]
    failures: dict[str, str]


class Agreement(_Facts):
    """Predicted against measured latency of a front's nets.

    Attributes:
        run: folder of their run; None of bundles.
        target: of both.
        measured: `p50` of wall time, or `undisturbed` time, which is what predictors are learned from.
        n: nets.
        within_5: share predicted within 5 % of what was measured.
        within_10: share within 10 %.
        mape: mean of |predicted - measured| / measured.
        spearman: rank correlation; None of fewer than three nets.
    """

    run: str | None = None
    target: str
    measured: Literal["p50", "undisturbed"]
    n: int
    within_5: float
    within_10: float
    mape: float
    spearman: float | None


class Pair(_Facts):
    """A model that two results have.

    Attributes:
        name: here.
        other: there.
        value: latency, ms, or images a second, here.
        other_value: likewise there.
        ratio: of here to there, as the mean over the processes.
        low: lower end of its 95 % confidence interval; None where there are too few processes.
        high: upper end.
        real: the interval leaves out 1; None where there is no interval.
        verdict: in words.
        flags: that are raised here.
        other_flags: that are raised there.
    """

    name: str
    other: str
    value: float
    other_value: float
    ratio: float
    low: float | None
    high: float | None
    real: bool | None
    verdict: str
    flags: tuple[str, ...]
    other_flags: tuple[str, ...]


class Comparison(_Facts):
    """With another result.

    Attributes:
        other: its file.
        differences: where the environments differ, in words.
        pairs: the models of both.
        only_here: names of the models that the other has not.
        only_there: names of those that only the other has.
    """

    other: str
    differences: tuple[str, ...]
    pairs: tuple[Pair, ...]
    only_here: tuple[str, ...]
    only_there: tuple[str, ...]


class BenchmarkResult(_Facts):
    """All that one call of `natdeploy benchmark` found.

    Attributes:
        format: of this JSON.
        tool: that measured.
        mode: of all numbers: those of the two are never compared.
        begun_utc: ISO 8601.
        ended_utc: ISO 8601.
        sections: one a runtime.
        agreements: predicted against measured, run by run, where predictions apply.
        comparison: with another result.
        remarks: sentences for people.
    """

    format: Literal[1] = RESULT_FORMAT
    tool: str
    mode: Mode
    begun_utc: str
    ended_utc: str
    sections: tuple[Section, ...]
    agreements: tuple[Agreement, ...] = ()
    comparison: Comparison | None = None
    remarks: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _measured(self) -> Self:
        for model in self.models:
            if (model.latency if self.mode == "latency" else model.throughput) is None:
                raise ValueError(f"{model.name} has no {self.mode}")
        return self

    @property
    def models(self) -> Iterator[ModelTimes]:
        """Of all sections."""
        return (model for section in self.sections for model in section.models)

    @property
    def failures(self) -> Mapping[str, str]:
        """Why models have no times, by name, of all sections."""
        return {name: why for section in self.sections for name, why in section.failures.items()}

    def summary(self) -> dict[str, Any]:
        """JSON values without the raw samples."""
        samples = {"latency": {"processes": {"__all__": {"samples_ms"}}}, "throughput": {"processes": {"__all__": {"counts"}}}}
        return self.model_dump(mode="json", exclude={"sections": {"__all__": {"models": {"__all__": samples}}}})

    def write(self, path: Path) -> None:
        """Raises NatdeployError where it cannot be written."""
        write_atomic(path, (json.dumps(self.model_dump(mode="json"), indent=1, allow_nan=False) + "\n").encode())


def is_result(path: Path) -> bool:
    """Whether a path means what `write` wrote, not a model."""
    return path.suffix == ".json" and not path.is_dir()


def read_result(path: Path) -> BenchmarkResult:
    """What `write` wrote.

    Raises:
        UsageError: there is no such file, it is something else, or another version of natdeploy wrote it in another format.
    """
    try:
        return BenchmarkResult.model_validate_json(path.read_bytes())
    except OSError as error:
        raise UsageError(f"{path} cannot be read ({error.strerror}); give a file that `natdeploy benchmark --out` wrote") from error
    except ValidationError as error:
        first = faults(error)[0]
        if first.location == ("format",):
            raise UsageError(
                f"{path} has format {first.value!r}, and this natdeploy reads {RESULT_FORMAT}; measure again, "
                "or compare with the version of natdeploy that wrote it"
            ) from error
        where = f" at {first.place}" if first.place else ""
        raise UsageError(f"{path} is no result of `natdeploy benchmark --out` ({first.reason}{where})") from error


def model_times(subject: Subject, found: Measurement, environment: Mapping[str, Any]) -> ModelTimes:
    """A measured model as it is told."""
    pooled = [ms for process in found.samples_ms for ms in process] if all(found.samples_ms) else []
    return ModelTimes(
        **facts(subject),
        latency=Latency(
            p50_ms=found.p50_ms,
            p90_ms=found.p90_ms,
            p95_ms=percentile(pooled, 95),
            p99_ms=percentile(pooled, 99),
            mean_ms=found.mean_ms,
            n=found.n,
            undisturbed_ms=found.latency_ms,
            load_ms=found.load_ms,
            first_ms=found.first_ms,
            processes=tuple(
                Process(p50_ms=p50_ms, samples_ms=samples_ms)
                for p50_ms, samples_ms in zip(found.process_p50_ms, found.samples_ms, strict=True)
            ),
            inside_ms=found.inside_ms,
        ),
        flags=Flags(
            unstable=found.unstable,
            few_runs=found.n < RUNS_NEEDED[90],
            disturbed=None if found.waited is None else found.waited > DISTURBED,
            drifted=None if found.drift is None else found.drift > SLOWER,
            throttled=throttled(environment),
        ),
    )


def model_rates(subject: Subject, found: ThroughputFound, environment: Mapping[str, Any]) -> ModelTimes:
    """The same of throughput."""
    return ModelTimes(
        **facts(subject),
        throughput=Throughput(
            images_per_s=found.images_per_s,
            n=found.n,
            how=found.how,
            window_s=found.window_s,
            processes=tuple(
                Rate(images_per_s=rate, counts=counts)
                for rate, counts in zip(found.process_images_per_s, found.windows, strict=True)
            ),
        ),
        flags=Flags(
            unstable=found.unstable,
            few_runs=False,
            disturbed=None,
            drifted=found.drift > SLOWER,
            throttled=throttled(environment),
        ),
    )


def with_footprint(model: ModelTimes, found: Footprint) -> ModelTimes:
    """The model with what it takes beside time."""
    memory = None if found.memory is None else Memory.model_validate(found.memory)
    energy = None if found.energy is None else Energy.model_validate(found.energy)
    return model.model_copy(update={"memory": memory, "energy": energy, "unreadable": found.unreadable})


def facts(subject: Subject) -> dict[str, Any]:
    """Fields of a model that are known before it is measured."""
    return {
        "name": subject.name,
        "target": str(subject.target),
        "precision": subject.target.precision,
        "sha256": dict(subject.sha256),
        "size_mb": subject.size_mb,
        "shape": subject.candidate.shape,
        "run": None if subject.run is None else str(subject.run),
        "role": None if subject.net is None else subject.net.role,
        "id": subject.id,
        "predicted_ms": subject.predicted_ms,
        "estimated": subject.estimated,
    }


def throttled(environment: Mapping[str, Any]) -> bool | None:
    """Whether the device was held back, by what it told before each process; None where it told nothing of the kind."""
    conditions: Sequence[Mapping[str, Any]] = environment.get("conditions", [])
    held = environment.get("governor") == "performance"  # under others an idle clock is low
    clocks = [each["clock_mhz"] for each in conditions if held and each.get("clock_mhz") is not None]
    hot = [each["hot"] for each in conditions if each.get("hot") is not None]
    if not clocks and not hot:
        return None
    return any(hot) or (bool(clocks) and min(clocks) < (1 - SLOWER) * max(clocks))
