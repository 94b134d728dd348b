"""What is timed and for how long, and what a harness gives of it in one fresh process, whichever harness it is."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

from natdeploy.hardware.device import Target
from natdeploy.hardware.transports import Transport

_Told_co = TypeVar("_Told_co", covariant=True)


@dataclass(frozen=True)
class Candidate:
    """A model file to be timed. Several may share a file of dynamic size.

    Attributes:
        id: tells it from the others.
        model: the file.
        shape: of its one input, batch included; of the first where it takes several.
        inputs: shape and numpy's name of the type of every input, where it takes anything else than one float32 array.
        precision: of the file, where it is not the target's.
    """

    id: str
    model: Path
    shape: tuple[int, ...]
    inputs: tuple[tuple[tuple[int, ...], str], ...] = ()
    precision: str | None = None


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
class Round:
    """A model's times in one process, in milliseconds. What the harness does not tell is None.

    Attributes:
        references_ms: the reference's latency beside each slice of the model's runs.
        ratios: by slice, the model's latency in units of the reference's.
        floors_ms: by slice, the fastest run.
        n: timed runs.
        mean_ms: wall time of a run.
        median_ms: wall time of a run.
        samples_ms: wall time of every run; none where they are not told.
        load_ms: time to load the model.
        first_ms: time of the first run.
        waited: share of the runs' wall time in which their thread stood without a core, because of other processes.
        inside_ms: median of what the runtime's library counts of each run.
    """

    references_ms: tuple[float, ...]
    ratios: tuple[float, ...]
    floors_ms: tuple[float, ...]
    n: int
    mean_ms: float
    median_ms: float | None
    samples_ms: tuple[float, ...]
    load_ms: float | None
    first_ms: float | None
    waited: float | None = None
    inside_ms: float | None = None


@dataclass(frozen=True)
class Setup:
    """What a harness works with.

    Attributes:
        transport: to the device.
        target: device, runtime, precision and threads.
        settings: how long to measure.
        seed: of the input values.
        reference: measured beside each model.
        names: of the models' files in the device's folder, by their paths here.
    """

    transport: Transport
    target: Target
    settings: MeasureSettings
    seed: int
    reference: Candidate
    names: Mapping[Path, str]


class Bench(Protocol[_Told_co]):
    """A harness on a device to which the models have been pushed."""

    @property
    def environment(self) -> Mapping[str, Any]:
        """What is known of the device and the harness; complete after the first round."""

    def steps(self, models: int) -> int:
        """How often `round` calls `advance` for so many models."""

    def round(self, models: Sequence[Candidate], advance: Callable[[int], None]) -> Mapping[str, _Told_co | str]:
        """Measures models in a fresh process (or one each), in the order given, the reference between them.

        Returns:
            By id, the record or why there are none. Models without an answer have to be asked for again: another one took the
            process down that they were in.

        Raises:
            DeviceError: the device failed, or the reference does not run.
        """
