"""Conventional training of one network: what a supernet is measured against, how a seed comes to be where there is none, and how a
chosen network is trained on, with a better one as its teacher."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from natdeploy.supernet import Subnet
from natdeploy.tasks import Task
from natdeploy.training.batches import StepBatches
from natdeploy.training.group import ShardGroup
from natdeploy.training.loop import Trainer, TrainSettings, freeze_features


class Finetuner:
    """Trains one network on a task, from the labels and, if there is a teacher, from its answer to the same crops.

    `trainer.average` holds what is to be judged, once its BatchNorm statistics are calibrated: those it holds are the network's of
    before. Those of the trained network itself follow its batches, one shard after the other, and are used by nothing.

    Args:
        subnet: trained in place; pretrained or not.
        task: gives batches and the loss.
        settings: how weights move.
        steps: length of the schedule.
        head_steps: steps at the start in which only the classifier learns, for pretrained networks with a new one.
        teacher: a better network of the same classes, which sees the crops at its own resolution; put into evaluation mode, and
            never changed.
        teacher_weight: of the cross-entropy against the teacher's answer; the task's loss weighs 1.
        temperature: the logits of teacher and network are divided by it.
        group: processes that share each step's shards.
    """

    def __init__(
        self,
        subnet: Subnet,
        task: Task,
        settings: TrainSettings,
        steps: int,
        *,
        head_steps: int = 0,
        teacher: Subnet | None = None,
        teacher_weight: float = 1.0,
        temperature: float = 1.0,
        group: ShardGroup | None = None,
    ) -> None:
        self.trainer = Trainer(subnet, settings, steps, group)
        self._subnet, self._task, self._head_steps = subnet, task, head_steps
        self._teacher = None if teacher is None else teacher.eval()
        self._teacher_weight, self._temperature = teacher_weight, temperature
        self._batches = StepBatches(settings.batch_size, next(subnet.parameters()).device)

    @property
    def average(self) -> Subnet:
        """The network with averaged weights; its BatchNorm statistics are to be calibrated."""
        average = self.trainer.average
        assert isinstance(average, Subnet)
        return average

    def run(self, stop: int, after_step: Callable[[], None]) -> None:
        """Trains until `stop` steps are done.

        Raises:
            DivergedError: a loss or a gradient is not finite; `trainer.load_tensors` goes back to an earlier state.
        """
        self.trainer.run(stop, self._losses, after_step)

    def _losses(self, step: int, rows: slice) -> Iterator[Tensor]:
        freeze_features(self._subnet, step < self._head_steps)
        images, targets = self._batches.get(self._task, step, self._subnet.arch.resolution, rows)
        logits = self._subnet(images)
        loss = self._task.loss(logits, targets)
        if self._teacher is not None:
            images, _ = self._batches.get(self._task, step, self._teacher.arch.resolution, rows)
            with torch.no_grad():
                answer = self._teacher(images)
            loss = loss + self._teacher_weight * self._task.distillation(logits, answer, self._temperature)
        yield loss


def train_subnet(
    subnet: Subnet,
    task: Task,
    settings: TrainSettings,
    steps: int,
    after_step: Callable[[], None],
    *,
    head_steps: int = 0,
    teacher: Subnet | None = None,
    teacher_weight: float = 1.0,
    temperature: float = 1.0,
) -> Subnet:
    """Trains a network for a whole schedule in one go; arguments as of `Finetuner`, and `after_step`, called after each step.

    Returns:
        The network with averaged weights; its BatchNorm statistics are to be calibrated.
    """
    tuner = Finetuner(
        subnet,
        task,
        settings,
        steps,
        head_steps=head_steps,
        teacher=teacher,
        teacher_weight=teacher_weight,
        temperature=temperature,
    )
    tuner.run(steps, after_step)
    return tuner.average
