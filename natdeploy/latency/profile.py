"""Measures a plan: networks, then blocks until the predictor is good enough or the budget is spent. Interrupted, it goes on."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from natdeploy._version import __version__
from natdeploy.errors import DeviceError
from natdeploy.hardware.device import Target
from natdeploy.hardware.measure import BLOCKS, SUBNETS, Candidate, MeasureSettings, harness, measure
from natdeploy.hardware.runtimes import get_runtime, installed_version
from natdeploy.hardware.tools import timed_by_tool
from natdeploy.latency.blocks import block_key, input_shape
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
    target: Target,
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
        convert: writes files for the target's runtime.
        target: where.
        journal_path: keeps everything measured; called again with the same file, the function goes on there.
        budget_s: of measuring. The plan's networks and its first `plan.least` blocks are measured even if it is too short.
        good_enough: asked before every chunk of further blocks whether they are still needed.
        progress: gets the seconds of measuring.
        block_settings: how long a block is measured.
        subnet_settings: how long a whole network is measured.

    Raises:
        DeviceError: the target failed, or is no longer what it was when the table was begun.
        DamagedFileError: the file holds something else than an earlier part of this measurement.
    """
    journal_path.parent.mkdir(parents=True, exist_ok=True)
    journal = Journal(journal_path, _signature(plan, target))
    with tempfile.TemporaryDirectory() as folder:
        bench = _Bench(plan, convert, target, journal, Path(folder))

        def table() -> Table:
            return Table(
                journal.blocks(plan.blocks),
                journal.subnets(roles(plan)),
                _provenance(plan, target, journal, block_settings, subnet_settings),
                dict(journal.failures),
            )

        with progress.task(f"measuring {plan.space.name} on {target}", max(1, round(budget_s)), "s of measuring") as advance:
            clock = _Clock(advance, journal.measuring_s)
            for chunk in _chunks([arch for _, arch in roles(plan) if str(arch) not in journal]):
                bench.measure(chunk, subnet_settings, clock)
            wanted = [block for block in plan.blocks if block_key(block) not in journal]
            least = max(0, plan.least - (len(plan.blocks) - len(wanted)))
            for chunk in _chunks(wanted[:least]):
                bench.measure(chunk, block_settings, clock)
            for chunk in _chunks(wanted[least:]):
                if journal.measuring_s >= budget_s or good_enough(table()):
                    break
                bench.measure(chunk, block_settings, clock)
            again = set(journal.noisy(NOISY))
            for settings, models in ((subnet_settings, [a for _, a in roles(plan)]), (block_settings, list(plan.blocks))):
                for chunk in _chunks([model for model in models if model_id(model) in again]):
                    if journal.measuring_s < budget_s:
                        bench.measure(chunk, settings, clock)
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


class _Clock:
    """Turns seconds into whole steps of a progress bar."""

    def __init__(self, advance: Callable[[int], None], begun_s: float) -> None:
        self._advance, self._shown, self._seconds = advance, 0, 0.0
        self.add(begun_s)

    def add(self, seconds: float) -> None:
        self._seconds += seconds
        whole = int(self._seconds)
        self._advance(whole - self._shown)
        self._shown = whole


class _Ticking:
    """Progress of a measurement that is a part of a longer one."""

    def __init__(self, clock: _Clock) -> None:
        self._clock = clock

    @contextmanager
    def task(self, name: str, total: int, unit: str) -> Iterator[Callable[[int], None]]:
        last = time.monotonic()

        def advance(_: int) -> None:
            nonlocal last
            now = time.monotonic()
            self._clock.add(now - last)
            last = now

        yield advance

    def note(self, message: str) -> None:
        pass


class _Bench:
    """Converts models, each file once, and measures them beside the reference."""

    def __init__(self, plan: Plan, convert: Convert, target: Target, journal: Journal, folder: Path) -> None:
        self._plan, self._convert, self._target, self._journal = plan, convert, target, journal
        self._folder, self._suffix = folder, get_runtime(target.runtime).SUFFIX
        self._files: dict[Block | Arch, Path] = {}
        self._refused: dict[Path, str] = {}

    def measure(self, chunk: Sequence[Block | Arch], settings: MeasureSettings, clock: _Clock) -> None:
        start = time.monotonic()
        self._write([self._plan.reference, *chunk])
        failures = {model_id(what): self._refused[self._path(what)] for what in chunk if self._path(what) in self._refused}
        converted = time.monotonic()
        result = measure(
            [self._candidate(what) for what in chunk if model_id(what) not in failures],
            replace(self._candidate(self._plan.reference), id="reference"),
            self._target,
            settings,
            seed=self._plan.seed,
            progress=_Ticking(clock),
            keep_going=True,
        )
        measuring_s = time.monotonic() - converted
        self._journal.add(result, failures, measuring_s=measuring_s, converting_s=converted - start)

    def _path(self, what: Block | Arch) -> Path:
        """Blocks that differ in size alone have one file."""
        family = replace(what, size=0) if isinstance(what, Block) else what
        return self._files.setdefault(family, self._folder / f"{len(self._files)}{self._suffix}")

    def _candidate(self, what: Block | Arch) -> Candidate:
        shape = input_shape(what) if isinstance(what, Block) else (1, 3, what.resolution, what.resolution)
        return Candidate(model_id(what), self._path(what), shape)

    def _write(self, wanted: Sequence[Block | Arch]) -> None:
        """Writes the files that are still missing."""
        for what in wanted:
            path = self._path(what)
            if path.exists() or path in self._refused:
                continue
            try:
                self._convert(what, path)
            except Exception as error:
                reason = (str(error).strip().splitlines() or [""])[0][:200]
                self._refused[path] = f"not converted: {type(error).__name__}: {reason}"
        reference = self._path(self._plan.reference)
        if reference in self._refused:
            raise DeviceError(f"{self._target} cannot run the reference network {self._plan.reference}: {self._refused[reference]}")


def _chunks(items: Sequence[Block | Arch]) -> list[Sequence[Block | Arch]]:
    return [items[start : start + CHUNK] for start in range(0, len(items), CHUNK)]


def _signature(plan: Plan, target: Target) -> dict[str, Any]:
    """Latencies with the same signature may stand in one table."""
    return {
        "target": str(target),
        # Which build a vendor's tool is, only the device knows; the journal compares what every chunk found there.
        "runtime_version": None if timed_by_tool(target.device) else installed_version(get_runtime(target.runtime)),
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
