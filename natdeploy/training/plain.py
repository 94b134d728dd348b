"""Conventional training of one network: what a supernet is measured against, and how a seed comes to be where there is none."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from torch import Tensor

from natdeploy.supernet import Subnet
from natdeploy.tasks import Task
from natdeploy.training.loop import Trainer, TrainSettings


def train_subnet(
    subnet: Subnet, task: Task, settings: TrainSettings, steps: int, after_step: Callable[[], None], *, head_steps: int = 0
) -> Subnet:
    """Trains a network on a task.

    Args:
        subnet: trained in place; pretrained or not.
        task: gives batches and the loss.
        settings: how weights move.
        steps: length of the schedule.
        after_step: called after each step.
        head_steps: steps at the start in which only the classifier learns, for pretrained networks with a new one.

    Returns:
        The network with averaged weights; its BatchNorm statistics are to be calibrated.
    """
    trainer = Trainer(subnet, settings, steps)

    def losses(step: int) -> Iterator[Tensor]:
        for name, parameter in subnet.named_parameters():
            parameter.requires_grad_(step >= head_steps or name.startswith("classifier."))
        images, targets = task.train_batch(step, subnet.arch.resolution, settings.batch_size)
        device = next(subnet.parameters()).device
        yield task.loss(subnet(images.to(device)), targets.to(device))

    trainer.run(steps, losses, after_step)
    average = trainer.average
    assert isinstance(average, Subnet)
    return average
