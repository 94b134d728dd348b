"""What a precision costs in accuracy: a few networks of a search are converted, judged in their runtime, and a line goes through.

The search itself judges networks in torch, once for all precisions. Converting and judging one takes about a second on a processor,
as long as judging it in torch, so that doing it for the whole archive would halve what is left for training.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from natdeploy.export import plain_input
from natdeploy.hardware.device import Target
from natdeploy.hardware.runtimes import get_runtime, installed_version
from natdeploy.pipeline.correct import fit_line
from natdeploy.pipeline.evaluate import ranking_error
from natdeploy.pipeline.outputs import calibration_images, file_outputs
from natdeploy.progress import Progress
from natdeploy.search import Evaluate, by_precision
from natdeploy.search.objectives import CheapObjective, Floats
from natdeploy.space import Arch, Genotypes, SearchSpace, cost
from natdeploy.stopwatch import timed
from natdeploy.store import Evaluation, RunStore
from natdeploy.supernet import Subnet
from natdeploy.tasks import SplitName, Task
from natdeploy.training.judge import BATCH, verdict_of

NATIVE = "fp32"
"""What torch computes in: nothing is lost."""
SAMPLES = 4
"""Networks that are quantised whenever the loss is learned."""
CALIBRATION = 32
"""Images that quantisation learns its ranges from; with 8 and 32 of them int8 MobileNets on flowers12 were alike within a point."""

_LEVEL, _SLOPE, _NOISE = 0.03, 0.01, 0.01
"""Standard deviations in the ranking error: of the line's level and of its slope over the logarithm of MACs before anything is
quantised, and of one network around the line."""


def judge_in_runtime(subnet: Subnet, target: Target, task: Task, split: SplitName) -> Evaluation:
    """A network as a file of a target's runtime and precision, on the images of a split, one by one and here.

    Args:
        subnet: on the CPU, in evaluation mode.
        target: whose runtime and precision count; it runs on one thread of this machine's processor.
        task: gives the images.
        split: which.

    Raises:
        DeviceError: the runtime is not installed here.
    """
    start = time.perf_counter()
    runtime, resolution = get_runtime(target.runtime), subnet.arch.resolution
    installed_version(runtime)
    calibration = calibration_images(task, resolution, CALIBRATION)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, f"{subnet.arch.id}{runtime.SUFFIX}")
        runtime.convert(subnet, calibration[0], path, precision=target.precision, dynamic_size=False, calibration=calibration)
        batches = task.batches(split, resolution, BATCH)
        answers = file_outputs(path, runtime, target.precision, batches, shape=subnet.input_shape, prepare=plain_input)
        verdict = verdict_of(task, answers)
    seconds = time.perf_counter() - start
    return Evaluation(0, str(subnet.arch), verdict.correct, verdict.total, verdict.loss, seconds, metric=verdict.metric)


@dataclass(frozen=True)
class PrecisionLoss:
    """Learns what precisions cost. What the store holds already is not done again, so a resumed search goes by the same numbers.

    Attributes:
        space: of the search, with its precisions.
        targets: of each precision, one of the same device and runtime.
        network: of an architecture with the weights of now, BatchNorm calibrated, on the CPU.
        evaluate: architectures in torch at a version of the weights, on all validation images.
        task: gives the images.
        store: remembers.
        progress: is told about the work.
    """

    space: SearchSpace
    targets: Mapping[str, Target]
    network: Callable[[Arch], Subnet]
    evaluate: Evaluate
    task: Task
    store: RunStore
    progress: Progress

    def learn(self, archs: Sequence[Arch], version: int) -> CheapObjective:
        """The loss in ranking error of genotypes (n, variables), from a few of `archs`, given in ascending order of size."""
        places = np.unique(np.linspace(0, len(archs) - 1, SAMPLES).round().astype(int))
        sample = [archs[place] for place in places]
        lines = [self._line(sample, precision, version) for precision in self.space.precisions]
        return by_precision(lines)

    def _line(self, sample: Sequence[Arch], precision: str, version: int) -> CheapObjective:
        if precision == NATIVE:
            return lambda genotypes: np.zeros(len(genotypes))
        space = self.space.archs_only
        found = np.array([ranking_error(each) for each in self.verdicts(sample, precision, version)])
        lost = found - self.evaluate(sample, version, True).errors
        line = fit_line(_log_macs(space, space.encode_all(sample)), lost, level=_LEVEL, slope=_SLOPE, noise=_NOISE)
        self.progress.note(
            f"{precision} costs {100 * lost.mean():+.1f} points of ranking error on the mean of {len(sample)} nets "
            f"({100 * lost.min():+.1f} to {100 * lost.max():+.1f})"
        )
        return lambda genotypes: line(_log_macs(space, genotypes))

    def verdicts(self, archs: Sequence[Arch], precision: str, version: int) -> list[Evaluation]:
        """Of architectures as files of a precision, with the weights of a version, on all validation images."""
        key = f"judged in {precision}"
        known: dict[str, dict[str, dict[str, Any]]] = self.store.get(key) or {}
        found = known.setdefault(str(version), {})
        missing = [arch for arch in dict.fromkeys(archs) if str(arch) not in found]
        if missing:
            with self.progress.task(f"judging in {precision}", len(missing), "nets") as advance, timed("judging files"):
                for arch in missing:
                    each = judge_in_runtime(self.network(arch), self.targets[precision], self.task, "validation")
                    found[str(arch)] = asdict(replace(each, step=version))
                    advance(1)
            self.store.set(key, known)
        return [Evaluation(**found[str(arch)]) for arch in archs]


def _log_macs(space: SearchSpace, genotypes: Genotypes) -> Floats:
    logs: Floats = np.log(cost(space, genotypes).macs)
    return logs
