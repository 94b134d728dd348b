"""What training and evaluation ask of a task; they know nothing else about it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, Protocol

from torch import Tensor

SplitName = Literal["train", "validation", "calibration", "test"]


class Task(Protocol):
    """Data, loss and metric of one thing to learn."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the outputs, in order."""

    def train_batch(self, step: int, resolution: int, batch_size: int) -> tuple[Tensor, Tensor]:
        """Augmented inputs (b, 3, r, r) of one training step, and labels (b,) int64 or probabilities (b, classes) fp32.

        The same for the same step, whatever came before.
        """

    def batches(
        self, split: SplitName, resolution: int, batch_size: int, limit: int | None = None
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Every image of a split once, as it is deployed, in a fixed order; with a limit, only a fixed part of so many."""

    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Mean loss () over a batch."""

    def correct(self, logits: Tensor, targets: Tensor) -> int:
        """How many of a batch are right."""
