"""What an architecture is worth to a search: its ranking error, remembered in the run."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from natdeploy.distributed.engine import Engine
from natdeploy.progress import Progress
from natdeploy.search import Scores
from natdeploy.space import Arch
from natdeploy.stopwatch import take, timed
from natdeploy.store import Evaluation, RunStore
from natdeploy.supernet import Supernet
from natdeploy.tasks import Task

PART_IMAGES = 256
"""Fewer would leave accuracies in steps of more than 0.4 points."""


def ranking_error(evaluation: Evaluation) -> float:
    """What the search minimises, 0..1: the mean of the validation error and of one minus the geometric mean likelihood.

    A hundred validation images tell accuracies apart in steps of a point, and chance decides which of nearly equal nets is left on
    the front; the loss of the same images is far steadier (docs/design.md).
    """
    return (1 - evaluation.accuracy + 1 - math.exp(-evaluation.loss)) / 2


def ranking_noise(evaluation: Evaluation) -> float:
    """What chance does to the ranking error: half of the accuracy's standard error (Laplace's rule of succession).

    Of other metrics than a share of images it is at least that: nothing between 0 and 1 varies more from image to image.
    """
    accuracy = (evaluation.correct + 1) / (evaluation.total + 2)
    return math.sqrt(accuracy * (1 - accuracy) / evaluation.total) / 2


def part_of(images: int) -> int | None:
    """Images, of so many for validation, by which a whole archive is judged first; None where all of them cost little enough.

    With an eighth of them chance is not three times as great, and those whose rank it may decide are judged by all.
    """
    return None if images <= 2 * PART_IMAGES else max(PART_IMAGES, images // 8)


class Evaluator:
    """Ranking errors of architectures; what the store knows already is not computed again, so a resumed search replays quickly.

    Args:
        store: remembers.
        engine: computes.
        supernet: whose weights are judged; they must be those of the version asked for.
        task: gives the images.
        progress: is told about every architecture.
    """

    def __init__(self, store: RunStore, engine: Engine, supernet: Supernet, task: Task, progress: Progress) -> None:
        self._store = store
        self._engine = engine
        self._supernet = supernet
        self._task = task
        self._progress = progress
        self._part = part_of(len(task.splits.validation))

    def __call__(self, archs: Sequence[Arch], version: int, whole: bool) -> Scores:
        """Errors and noise (n,) of architectures with the supernet's weights of a version.

        Args:
            archs: the n architectures.
            version: of the weights.
            whole: by all validation images; otherwise by a part of them, if there are many.
        """
        whole = whole or self._part is None
        missing = [arch for arch in archs if not self._known(arch, version, whole)]
        if missing:
            self._evaluate(missing, version, whole)
        found = [self._store.evaluation(version, str(arch), whole=whole) for arch in archs]
        return Scores(
            errors=np.array([math.nan if each is None else ranking_error(each) for each in found]),
            noise=np.array([0.0 if each is None else ranking_noise(each) for each in found]),
        )

    def _known(self, arch: Arch, version: int, whole: bool) -> bool:
        text = str(arch)
        known = self._store.evaluation(version, text, whole=whole) or self._store.failure(version, text, whole=whole)
        return known is not None

    def _evaluate(self, archs: Sequence[Arch], version: int, whole: bool) -> None:
        limit = None if whole else self._part
        images = "" if whole else f" on {limit} images"
        with self._progress.task(f"evaluating, weights {version}{images}", len(archs), "nets") as advance, timed("judging: other"):
            for arch, verdict in self._engine.judge(self._supernet, archs, self._task, "validation", limit):
                if isinstance(verdict, str):
                    self._store.record_failure(version, str(arch), verdict, whole=whole)
                    self._progress.note(f"{arch.id} could not be evaluated and is left out: {verdict}")
                else:
                    self._store.record(
                        Evaluation(
                            version,
                            str(arch),
                            verdict.correct,
                            verdict.total,
                            verdict.loss,
                            verdict.seconds,
                            whole,
                            verdict.metric,
                        )
                    )
                self._store.add_seconds(take())
                advance(1)
