"""The batch of a step, made once however many architectures and shards learn from it."""

from __future__ import annotations

import torch
from torch import Tensor

from natdeploy.stopwatch import timed
from natdeploy.tasks import Targets, Task, moved


class StepBatches:
    """A step's images at every resolution that is asked for, on one device; those of the step before are let go.

    Args:
        batch_size: images a step.
        device: where they go.
    """

    def __init__(self, batch_size: int, device: torch.device) -> None:
        self._batch_size, self._device = batch_size, device
        self._of: tuple[Task, int] | None = None
        self._held: dict[int, tuple[Tensor, Targets]] = {}

    def get(self, task: Task, step: int, resolution: int, rows: slice) -> tuple[Tensor, Targets]:
        """Images (rows, 3, r, r) of a step, the same crops at every resolution, and their targets."""
        if self._of is None or self._of[0] is not task or self._of[1] != step:
            self._of = (task, step)
            self._held.clear()
        if resolution not in self._held:
            with timed("images"):
                images, targets = task.train_batch(step, resolution, self._batch_size)
                self._held[resolution] = images.to(self._device), moved(targets, self._device)
        images, targets = self._held[resolution]
        return images[rows], targets[rows]
