"""Judging one architecture with the supernet's weights: extract, recalibrate BatchNorm, run the images."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

from natdeploy.progress import Progress
from natdeploy.space import Arch
from natdeploy.store import Evaluation, RunStore
from natdeploy.supernet import Subnet, Supernet, calibrate
from natdeploy.tasks import SplitName, Task

BATCH = 64
"""Images at once when nothing is trained."""


def calibrated_subnet(supernet: Supernet, arch: Arch, task: Task) -> Subnet:
    """The network of an architecture with BatchNorm statistics of its own, from the calibration images, in evaluation mode."""
    device = next(supernet.parameters()).device
    subnet = supernet.extract(arch).to(memory_format=torch.channels_last)
    calibrate(subnet, (images.to(device) for images, _ in task.batches("calibration", arch.resolution, BATCH)))
    return subnet


@torch.inference_mode()
def judge(subnet: Subnet, task: Task, split: SplitName) -> tuple[int, int, float]:
    """Images of a split that a network gets right, images in all, and its mean loss."""
    device = next(subnet.parameters()).device
    correct, total, loss = 0, 0, 0.0
    for images, labels in task.batches(split, subnet.arch.resolution, BATCH):
        logits = subnet(images.to(device)).cpu()
        correct += task.correct(logits, labels)
        loss += float(task.loss(logits, labels)) * len(labels)
        total += len(labels)
    return correct, total, loss / total


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
        correct, total, loss = judge(calibrated_subnet(self._supernet, arch, self._task), self._task, "validation")
        seconds = time.perf_counter() - start
        evaluation = Evaluation(version, str(arch), correct, total, loss, seconds)
        self._store.record(evaluation)
        self._store.add_seconds("evaluation", seconds)
        return evaluation
