"""Supernet adaptation (NAT, arXiv 2005.05859, section on supernet adaptation): every step trains a few weight-sharing subnets.

A step is a sandwich (US-Nets, arXiv 1903.05134): the teacher learns from the labels; the smallest subnet and a few sampled ones
learn from the labels and from the teacher's answer to the same crop (in-place distillation, BigNAS, arXiv 2003.11142), each at its
own resolution. The archs sampled decide where in the space the weights become good; the search hands in the sampler.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from natdeploy.space import Arch
from natdeploy.supernet import Supernet
from natdeploy.tasks import Task
from natdeploy.training.loop import Trainer, TrainSettings

ArchSampler = Callable[[int, np.random.Generator], Sequence[Arch]]


class AdaptSettings(BaseModel):
    """How a supernet is adapted.

    Attributes:
        train: how weights move.
        head_share: share of all steps in which only the classifier learns, so that a random one does not spoil the features.
        students: sampled subnets a step, beside teacher and smallest.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    train: TrainSettings = TrainSettings()
    head_share: float = 0.08
    students: int = 2


class Adapter:
    """Trains a supernet on a task.

    Args:
        supernet: trained in place; `trainer.average` holds what is evaluated.
        task: gives batches and the loss.
        settings: how.
        teacher: the subnet the others learn from: the seed's own architecture, whose weights start out good.
        smallest: the smallest subnet that may be chosen.
        total_steps: length of the whole schedule, head warm-up included.
        seed: of the architectures that are drawn.
    """

    def __init__(
        self,
        supernet: Supernet,
        task: Task,
        settings: AdaptSettings,
        *,
        teacher: Arch,
        smallest: Arch,
        total_steps: int,
        seed: int,
    ) -> None:
        self.task = task
        self.settings = settings
        self.teacher = teacher
        self.smallest = smallest
        self.head_steps = round(settings.head_share * total_steps)
        self.trainer = Trainer(supernet, settings.train, total_steps)
        self._supernet = supernet
        self._seed = seed

    def run(self, stop: int, sampler: ArchSampler, after_step: Callable[[], None]) -> None:
        """Adapts until `stop` steps are done, with architectures from `sampler`."""
        self.trainer.run(stop, lambda step: self._losses(step, sampler), after_step)

    def _losses(self, step: int, sampler: ArchSampler) -> Iterator[Tensor]:
        head_only = step < self.head_steps
        for name, parameter in self._supernet.named_parameters():
            parameter.requires_grad_(not head_only or name.startswith("classifier."))
        images, labels = self._batch(step, self.teacher.resolution)
        logits = self._supernet(images, self.teacher)
        yield self.task.loss(logits, labels, None)
        if head_only:
            return
        soft = logits.detach()
        drawn = sampler(self.settings.students, np.random.default_rng([self._seed, step]))
        for arch in (self.smallest, *drawn):
            images, labels = self._batch(step, arch.resolution)
            yield self.task.loss(self._supernet(images, arch), labels, soft)

    def _batch(self, step: int, resolution: int) -> tuple[Tensor, Tensor]:
        """The step's images on the supernet's device; the same crops at every resolution."""
        images, labels = self.task.train_batch(step, resolution, self.settings.train.batch_size)
        device = self._supernet.classifier.weight.device
        return images.to(device), labels.to(device)
