"""What an architecture is worth to a search: its ranking error, remembered in the run."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from natdeploy.progress import Progress
from natdeploy.space import Arch
from natdeploy.store import Evaluation, RunStore
from natdeploy.supernet import Supernet
from natdeploy.tasks import Task
from natdeploy.training.judge import calibrated_subnet, judge


def ranking_error(evaluation: Evaluation) -> float:
    """What the search minimises, 0..1: the mean of the validation error and of one minus the geometric mean likelihood.

    A hundred validation images tell accuracies apart in steps of a point, and chance decides which of nearly equal nets is left on
    the front; the loss of the same images is far steadier (docs/design.md).
    """
    return (1 - evaluation.accuracy + 1 - math.exp(-evaluation.loss)) / 2


def ranking_noise(evaluation: Evaluation) -> float:
    """What chance does to the ranking error: half of the accuracy's standard error (Laplace's rule of succession)."""
    accuracy = (evaluation.correct + 1) / (evaluation.total + 2)
    return math.sqrt(accuracy * (1 - accuracy) / evaluation.total) / 2


class Evaluator:
    """Ranking error of architectures; what the store knows already is not computed again, so a resumed search replays quickly.

    Args:
        store: remembers.
        supernet: whose weights are judged; they must be those of the version asked for.
        task: gives the images.
        progress: is told about every architecture.
    """

    def __init__(self, store: RunStore, supernet: Supernet, task: Task, progress: Progress) -> None:
        self._store = store
        self._supernet = supernet
        self._task = task
        self._progress = progress

    def __call__(self, archs: Sequence[Arch], version: int) -> npt.NDArray[np.float64]:
        """Errors (n,) in 0..1, with the supernet's weights of a version."""
        known = {arch: self._store.evaluation(version, str(arch)) for arch in archs}
        missing = [arch for arch, evaluation in known.items() if evaluation is None]
        if missing:
            with self._progress.task(f"evaluating, weights {version}", len(missing), "nets") as advance:
                for arch in missing:
                    known[arch] = self._evaluate(arch, version)
                    advance(1)
        return np.array([ranking_error(evaluation) for arch in archs if (evaluation := known[arch]) is not None])

    def _evaluate(self, arch: Arch, version: int) -> Evaluation:
        start = time.perf_counter()
        verdict = judge(calibrated_subnet(self._supernet, arch, self._task), self._task, "validation")
        seconds = time.perf_counter() - start
        evaluation = Evaluation(version, str(arch), verdict.correct, verdict.total, verdict.loss, seconds)
        self._store.record(evaluation)
        self._store.add_seconds("evaluation", seconds)
        return evaluation
