"""Measures a plan: networks, then blocks until the predictor is good enough or the budget is spent. Interrupted, it goes on."""

from __future__ import annotations

import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from itertools import takewhile
from pathlib import Path
from typing import Any

import numpy as np

from natdeploy._version import __version__
from natdeploy.errors import DeviceError, DeviceLostError
from natdeploy.hardware.bench import BLOCKS, SUBNETS, Candidate, MeasureSettings
from natdeploy.hardware.check import runtime_version
from natdeploy.hardware.device import Target
from natdeploy.hardware.farm import Farm
from natdeploy.hardware.measure import MeasureResult, harness, measure
from natdeploy.hardware.runtimes import get_runtime
from natdeploy.latency.blocks import block_key, family, input_shape
from natdeploy.latency.journal import Journal
from natdeploy.latency.plan import Plan
from natdeploy.latency.table import Provenance, Role, Table
from natdeploy.progress import Progress
from natdeploy.space import Arch, Block

CHUNK = 20
"""Models measured together: an interruption loses no more than these."""

NOISY = 0.1
"""Processes that differ by more than this have met something else on the machine: the model is measured once more."""

_FOUND = (
    "runtime_version",
    "provider",
    "harness",
    "utc",
    "cpu",
    "cores",
    "memory_mb",
    "os",
    "governor",
    "temperature_c",
    "waiting_counted",
)
"""What the harness finds on the device and a table's provenance takes over."""


Convert = Callable[[Block | Arch, Path], None]
"""Writes the file of a block, loadable at any size if the block has one, or of a whole network."""


def profile_table(
    plan: Plan,
    convert: Convert,
    targets: Sequence[Target],
    journal_path: Path,
    *,
    budget_s: float,
    good_enough: Callable[[Table], bool],
    progress: Progress,
    block_settings: MeasureSettings = BLOCKS,
    subnet_settings: MeasureSettings = SUBNETS,
) -> tuple[Table, Journal]:
    """Measures a plan.

    Whole networks come first, because a predictor learns most from them; then blocks, in the plan's order. Blocks that differ in
    size alone share one file. What raises, hangs or crashes is kept as a failure, and not tried again.

    Args:
        plan: what.
        convert: writes files for the targets' runtime.
        targets: where; several are devices of one kind that share the work.
        journal_path: keeps everything measured; called again with the same file, the function goes on there.
        budget_s: of measuring. The plan's networks and its first `plan.least` blocks are measured even if it is too short.
        good_enough: asked before every chunk of further blocks whether they are still needed.
        progress: gets the seconds of measuring.
        block_settings: how long a block is measured.
        subnet_settings: how long a whole network is measured.

    Raises:
        DeviceError: the targets failed, or are no longer what they were when the table was begun.
        DamagedFileError: the file holds something else than an earlier part of this measurement.
    """
    journal_path.parent.mkdir(parents=True, exist_ok=True)
    journal = Journal(journal_path, _signature(plan, targets[0]))
    nets = [arch for _, arch in roles(plan)]

    def table() -> Table:
        return Table(
            journal.blocks(plan.blocks),
            journal.subnets(roles(plan)),
            _provenance(plan, targets[0], journal, block_settings, subnet_settings),
            dict(journal.failures),
        )

    def spent() -> bool:
        return journal.measuring_s >= budget_s * len(targets)

    def stages() -> Iterator[Iterator[_Chunk]]:
        """One after the other: what is worth measuring next depends on everything measured before."""
        yield _chunks([arch for arch in nets if str(arch) not in journal], subnet_settings)
        wanted = [block for block in plan.blocks if block_key(block) not in journal]
        least = max(0, plan.least - (len(plan.blocks) - len(wanted)))
        yield _chunks(wanted[:least], block_settings)
        yield takewhile(lambda _: not (spent() or good_enough(table())), _chunks(wanted[least:], block_settings))
        again = set(journal.noisy(NOISY))
        for settings, models in ((subnet_settings, nets), (block_settings, plan.blocks)):
            noisy = [model for model in models if model_id(model) in again]
            yield takewhile(lambda _: not spent(), _chunks(noisy, settings))

    with (
        tempfile.TemporaryDirectory() as folder,
        progress.task(f"measuring {plan.space.name} on {targets[0]}", max(1, round(budget_s)), "s of measuring") as advance,
    ):
        bench = _Bench(plan, convert, Path(folder), _Clock(advance, journal.measuring_s, len(targets)))

        def take(chunk: _Chunk, target: Target, measured: _Measured) -> None:
            try:
                journal.add(
                    measured.result,
                    measured.failures,
                    device=_which(target),
                    measuring_s=measured.measuring_s,
                    converting_s=measured.converting_s,
                )
            except DeviceError as error:
                # One device fewer is no reason to leave the others idle.
                raise (DeviceLostError(str(error)) if len(targets) > 1 else error) from error

        farm = Farm(targets, progress.note, name=_which)
        for stage in stages():
            farm.work_on(stage, bench.measure, take)
    return table(), journal


def roles(plan: Plan) -> list[tuple[Role, Arch]]:
    """The plan's networks. Any stretch of them holds all sizes and both roles, so that what differs between stretches of time
    cannot pass for a property of either.
    """
    pairs: list[tuple[Role, Arch]] = [*(("fit", arch) for arch in plan.fit), *(("test", arch) for arch in plan.test)]
    order = np.random.default_rng(plan.seed).permutation(len(pairs))
    return [pairs[i] for i in order]


def model_id(what: Block | Arch) -> str:
    """Name of a row."""
    return block_key(what) if isinstance(what, Block) else str(what)


def _which(target: Target) -> str:
    """Which of several devices of one kind a target is on."""
    return target.device.address or target.device.name


_Models = Sequence[Block | Arch]


@dataclass(frozen=True)
class _Chunk:
    """Models measured together, and how long each."""

    models: _Models
    settings: MeasureSettings


@dataclass(frozen=True)
class _Measured:
    """What became of a chunk, see `Journal.add`."""

    result: MeasureResult
    failures: Mapping[str, str]
    measuring_s: float
    converting_s: float


def _chunks(models: _Models, settings: MeasureSettings) -> Iterator[_Chunk]:
    return (_Chunk(models[start : start + CHUNK], settings) for start in range(0, len(models), CHUNK))


class _Clock:
    """Turns seconds that devices measure into whole steps of a progress bar."""

    def __init__(self, advance: Callable[[int], None], begun_s: float, devices: int) -> None:
        self._advance, self._devices, self._shown, self._seconds = advance, devices, 0, 0.0
        self._lock = threading.Lock()
        self.add(begun_s)

    def add(self, seconds: float) -> None:
        with self._lock:
            self._seconds += seconds / self._devices
            whole = int(self._seconds)
            self._advance(whole - self._shown)
            self._shown = whole


class _Ticking:
    """Progress of a measurement that is a part of a longer one, which may not be wanted any more."""

    def __init__(self, clock: _Clock, still_wanted: Callable[[], None]) -> None:
        self._clock, self._still_wanted = clock, still_wanted

    @contextmanager
    def task(self, name: str, total: int, unit: str) -> Iterator[Callable[[int], None]]:
        last = time.monotonic()

        def advance(_: int) -> None:
            nonlocal last
            self._still_wanted()
            now = time.monotonic()
            self._clock.add(now - last)
            last = now

        yield advance

    def note(self, message: str) -> None:
        pass


class _Bench:
    """Converts models, each file once, and measures them beside the reference."""

    def __init__(self, plan: Plan, convert: Convert, folder: Path, clock: _Clock) -> None:
        self._plan, self._convert, self._folder, self._clock = plan, convert, folder, clock
        self._files: dict[Block | Arch, Path] = {}
        self._refused: dict[Path, str] = {}
        self._converting = threading.Lock()

    def measure(self, chunk: _Chunk, target: Target, still_wanted: Callable[[], None]) -> _Measured:
        suffix = get_runtime(target.runtime).SUFFIX
        start = time.monotonic()
        with self._converting:
            paths = {what: self._path(what, suffix) for what in [self._plan.reference, *chunk.models]}
            self._write(paths, target)
            failures = {model_id(what): self._refused[path] for what, path in paths.items() if path in self._refused}
        converted = time.monotonic()
        reference = self._candidate(self._plan.reference, paths)
        result = measure(
            [self._candidate(what, paths) for what in chunk.models if model_id(what) not in failures],
            replace(reference, id="reference"),
            target,
            chunk.settings,
            seed=self._plan.seed,
            progress=_Ticking(self._clock, still_wanted),
            keep_going=True,
        )
        return _Measured(result, failures, time.monotonic() - converted, converted - start)

    def _path(self, what: Block | Arch, suffix: str) -> Path:
        """Blocks that differ in size alone have one file."""
        alike = family(what) if isinstance(what, Block) else what
        return self._files.setdefault(alike, self._folder / f"{len(self._files)}{suffix}")

    def _candidate(self, what: Block | Arch, paths: Mapping[Block | Arch, Path]) -> Candidate:
        shape = input_shape(what) if isinstance(what, Block) else (1, 3, *self._plan.space.input_size(what.resolution))
        return Candidate(model_id(what), paths[what], shape)

    def _write(self, paths: Mapping[Block | Arch, Path], target: Target) -> None:
        """Writes the files that are still missing."""
        for what, path in paths.items():
            if path.exists() or path in self._refused:
                continue
            try:
                self._convert(what, path)
            except Exception as error:
                reason = (str(error).strip().splitlines() or [""])[0][:200]
                self._refused[path] = f"not converted: {type(error).__name__}: {reason}"
        if (reference := paths[self._plan.reference]) in self._refused:
            raise DeviceError(f"{target} cannot run the reference network {self._plan.reference}: {self._refused[reference]}")


def _signature(plan: Plan, target: Target) -> dict[str, Any]:
    """Latencies with the same signature may stand in one table."""
    return {
        "target": str(target),
        "runtime_version": runtime_version(target.device, target.runtime),
        "harness": harness(target),
        "classes": plan.classes,
        "reference": str(plan.reference),
    }


def _provenance(
    plan: Plan, target: Target, journal: Journal, block_settings: MeasureSettings, subnet_settings: MeasureSettings
) -> Provenance:
    return Provenance(
        device=target.device.name,
        runtime=target.runtime,
        delegate=target.delegate,
        precision=target.precision,
        threads=target.threads,
        batch=1,
        space=plan.space.name,
        classes=plan.classes,
        reference=str(plan.reference),
        reference_ms=journal.reference_ms,
        reference_drift=journal.drift,
        tool_version=__version__,
        measured_s=journal.measuring_s,
        block_settings=asdict(block_settings),
        subnet_settings=asdict(subnet_settings),
        **{name: journal.environment[name] for name in _FOUND},
    )
