"""The front, measured on the target while the search goes on, and what that says about the latencies it goes by.

A predictor is off by a few per cent and by much for an estimate, and a search collects its mistakes: it ends where the predictor
is too kind. So every few rounds the whole front is measured. Networks that were measured count with what was measured from then
on, all others with the prediction times what the measured ones were off by, as a straight line in the logarithm.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median

import numpy as np
import torch

from natdeploy.errors import DeviceError
from natdeploy.hardware.bench import Candidate, MeasureSettings
from natdeploy.hardware.device import Target
from natdeploy.hardware.measure import measure
from natdeploy.hardware.runtimes import get_runtime
from natdeploy.pipeline.problem import Problem, by_objective
from natdeploy.progress import Progress
from natdeploy.search import Archive, Objectives
from natdeploy.search.objectives import CheapObjective, Floats
from natdeploy.space import Arch, Genotypes, SearchSpace
from natdeploy.stopwatch import timed
from natdeploy.store import RunStore
from natdeploy.supernet import Subnet

FRONT = MeasureSettings(warmup_s=0.05, warmup_runs=3, min_s=0.15, min_runs=16, reference_s=0.1, slices=6)
"""Of every net: less than what leaves the product, for the numbers steer the search and are measured again at the end."""

_LEVEL, _SLOPE, _NOISE = 1.0, 0.3, 0.05
"""Standard deviations: of the line's level and slope before anything is measured, and of a measurement around the line."""


def fit_line(x: Floats, y: Floats, *, level: float, slope: float, noise: float) -> Callable[[Floats], Floats]:
    """The line through points (n,) by Bayesian linear regression (Bishop 2006, equation 3.53), so that a few alike points move the
    level and leave the slope alone.

    Args:
        x: of the points; the level is that at their mean.
        y: of the points.
        level: standard deviation of the level around 0 before any point is known.
        slope: that of the slope.
        noise: that of a point around the line.
    """
    centre = x.mean()
    design = np.stack([np.ones(len(x)), x - centre], axis=1)
    precision = np.diag([level**-2, slope**-2]) + design.T @ design / noise**2
    at_centre, steepness = np.linalg.solve(precision, design.T @ y / noise**2)
    return lambda wanted: at_centre + steepness * (wanted - centre)


def corrected(total: CheapObjective, space: SearchSpace, measured_ms: Mapping[Arch, float]) -> CheapObjective:
    """Latency by measurement where there is one, else by a prediction that the measurements have corrected.

    The correction is a line (`fit_line`) of the logarithm of measured over predicted on the logarithm of predicted.

    Args:
        total: genotypes (n, variables) -> predicted ms (n,).
        space: of the genotypes.
        measured_ms: of architectures, at least one.
    """
    genotypes = space.encode_all(list(measured_ms))
    known = {row.tobytes(): latency_ms for row, latency_ms in zip(genotypes, measured_ms.values(), strict=True)}
    logs = np.log(total(genotypes))
    line = fit_line(logs, np.log(list(measured_ms.values())) - logs, level=_LEVEL, slope=_SLOPE, noise=_NOISE)

    def latency(wanted: Genotypes) -> Floats:
        predicted = total(wanted)
        result: Floats = predicted * np.exp(line(np.log(predicted)))
        for place, row in enumerate(np.ascontiguousarray(wanted)):
            if (measured := known.get(row.tobytes())) is not None:
                result[place] = measured
        return result

    return latency


@dataclass(frozen=True)
class FrontMeasurer:
    """Measures a front and corrects the objectives. What the store holds already is not measured again, so a resumed search
    goes by the same numbers.

    Args:
        problem: names the targets, and the functions before any correction.
        space: of the architectures, without precisions.
        extract: gives the network of an architecture, on the CPU.
        seed: of the order in which networks are measured.
        store: remembers.
        progress: is told about the work.
        settings: how long each network is measured.
    """

    problem: Problem
    space: SearchSpace
    extract: Callable[[Arch], Subnet]
    seed: int
    store: RunStore
    progress: Progress
    settings: MeasureSettings = FRONT

    def __call__(self, archive: Archive, number: int) -> Objectives | None:
        """The objectives with corrected latencies after a round; None if no target could be reached."""
        front = archive.genotypes[archive.front()]
        latencies = dict(self.problem.latencies)
        changed = False
        for name, target in self.problem.targets.items():
            meant = [row for row in front if archive.space.precision_of(row) in (None, target.precision)]
            measured = self.measured(name, number, [archive.space.decode(row) for row in meant], target)
            if measured:
                latencies[name] = corrected(self.problem.latencies[name], self.space, measured)
                changed = True
        cheap = {**archive.objectives.cheap, **by_objective(archive.space, latencies)}
        return replace(archive.objectives, cheap=cheap) if changed else None

    def measured(self, name: str, number: int, front: Sequence[Arch], target: Target) -> dict[Arch, float]:
        """Milliseconds of all architectures that this round and those before measured for an objective."""
        key = f"measured {name}"
        rounds: dict[str, dict[str, float]] = self.store.get(key) or {}
        before = {Arch.parse(text): ms for each, found in rounds.items() if int(each) < number for text, ms in found.items()}
        if str(number) not in rounds:
            new = [arch for arch in front if arch not in before]
            with timed("measuring the front"):
                rounds[str(number)] = {str(arch): ms for arch, ms in self._measure(name, new, target).items()}
            self.store.set(key, rounds)
        return before | {Arch.parse(text): ms for text, ms in rounds[str(number)].items()}

    def _measure(self, name: str, archs: Sequence[Arch], target: Target) -> dict[Arch, float]:
        """Milliseconds of each; none of any where the target is out of reach, for a search may outlive a phone's battery."""
        if not archs:
            return {}
        baseline = self.problem.baseline
        try:
            target.device.require_address()
            with tempfile.TemporaryDirectory() as folder:
                candidates = [self._candidate(arch, target, Path(folder)) for arch in archs]
                reference = self._candidate(baseline, target, Path(folder))
                result = measure(
                    candidates, reference, target, self.settings, seed=self.seed, progress=self.progress, keep_going=True
                )
        except DeviceError as error:
            self.progress.note(f"the front was not measured on {target}, and predictions stay as they are: {error}")
            return {}
        for failed, why in result.failures.items():
            self.progress.note(f"{failed} does not run on {target}, and its prediction stays as it is: {why}")
        by_id = {arch.id: arch for arch in archs}
        found = {by_id[each.id]: each.latency_ms for each in result.measurements}
        if not found:
            return {}
        predicted = self.problem.latencies[name](self.space.encode_all(list(found)))
        off = median(abs(math.log(ms / guess)) for ms, guess in zip(found.values(), predicted, strict=True))
        what = self.problem.label(name)
        self.progress.note(
            f"measured {len(found)} nets of the front on {target}: {what} was off by {100 * off:.1f} % in the median"
        )
        return found

    def _candidate(self, arch: Arch, target: Target, folder: Path) -> Candidate:
        runtime = get_runtime(target.runtime)
        path = folder / f"{arch.id}{runtime.SUFFIX}"
        shape = (1, 3, *self.space.input_size(arch.resolution))
        if not path.exists():
            runtime.convert(self.extract(arch), torch.zeros(shape), path, precision=target.precision, dynamic_size=False)
        return Candidate(arch.id, path, shape)
