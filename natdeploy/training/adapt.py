"""Supernet adaptation (NAT, arXiv 2005.05859, section on supernet adaptation): every step trains a weight-sharing subnet.

Most steps train a leader, an architecture known to be good, at one of its resolutions; the others train a sampled one. The search
says who leads and hands in the sampler, and so decides where in the space the weights become good. One architecture a step, all
learning from the labels, goes further in a short budget than a teacher and its students in every step (docs/design.md); in-place
distillation (US-Nets, arXiv 1903.05134) is there for longer ones.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from natdeploy.space import Arch
from natdeploy.supernet import Supernet
from natdeploy.tasks import Task
from natdeploy.training.loop import Trainer, TrainSettings

ArchSampler = Callable[[int, np.random.Generator], Sequence[Arch]]


@dataclass(frozen=True)
class Lesson:
    """What is learned in a stretch of steps.

    Attributes:
        task: gives batches and the loss.
        leaders: one of them is drawn for a step that does not train a sampled architecture.
        sampler: draws the others, and students.
    """

    task: Task
    leaders: Sequence[Arch]
    sampler: ArchSampler


class AdaptSettings(BaseModel):
    """How a supernet is adapted.

    Attributes:
        train: how weights move.
        head_share: share of all steps in which only the classifier learns, so that a random one does not spoil the features.
        sampled_share: share of the other steps that train a sampled architecture instead of a leader.
        students: sampled subnets a step that learn, beside the labels, from the answer of the step's first subnet to the same crop.
        student_weight: of each student's loss, which has two terms; that of the first subnet has one and weighs 1.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    train: TrainSettings = TrainSettings()
    head_share: float = 0.08
    sampled_share: float = 0.3
    students: int = 0
    student_weight: float = 0.5


class Adapter:
    """Trains a supernet, in lessons.

    Args:
        supernet: trained in place; `trainer.average` holds what is evaluated.
        settings: how.
        total_steps: length of the whole schedule, head warm-up included.
        seed: of the architectures that are drawn.
    """

    def __init__(self, supernet: Supernet, settings: AdaptSettings, *, total_steps: int, seed: int) -> None:
        self.settings = settings
        self.head_steps = round(settings.head_share * total_steps)
        self.trainer = Trainer(supernet, settings.train, total_steps)
        self._supernet = supernet
        self._seed = seed

    def run(self, stop: int, lesson: Lesson, after_step: Callable[[], None]) -> None:
        """Adapts until `stop` steps are done."""
        self.trainer.run(stop, lambda step: self._losses(step, lesson), after_step)

    def _losses(self, step: int, lesson: Lesson) -> Iterator[Tensor]:
        head_only = step < self.head_steps
        for name, parameter in self._supernet.named_parameters():
            parameter.requires_grad_(not head_only or name.startswith("classifier."))
        rng = np.random.default_rng([self._seed, step])
        first = lesson.leaders[int(rng.integers(len(lesson.leaders)))]
        if not head_only and rng.random() < self.settings.sampled_share:
            [first] = lesson.sampler(1, rng)
        images, labels = self._batch(step, lesson, first.resolution)
        logits = self._supernet(images, first)
        yield lesson.task.loss(logits, labels)
        if head_only or not self.settings.students:
            return
        soft = logits.detach()
        for arch in lesson.sampler(self.settings.students, rng):
            images, labels = self._batch(step, lesson, arch.resolution)
            yield self.settings.student_weight * lesson.task.loss(self._supernet(images, arch), labels, soft)

    def _batch(self, step: int, lesson: Lesson, resolution: int) -> tuple[Tensor, Tensor]:
        """The step's images on the supernet's device; the same crops at every resolution."""
        images, labels = lesson.task.train_batch(step, resolution, self.settings.train.batch_size)
        device = self._supernet.classifier.weight.device
        return images.to(device), labels.to(device)
