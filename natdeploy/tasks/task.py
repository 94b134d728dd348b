"""What training and evaluation ask of a task; they know nothing else about it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, Protocol

from torch import Tensor

SplitName = Literal["train", "validation", "calibration", "test"]


class Task(Protocol):
    """Data, loss and metric of one thing to learn: classes of whole images, or of every pixel."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the outputs, in order."""

    def train_batch(self, step: int, resolution: int, batch_size: int) -> tuple[Tensor, Tensor]:
        """Augmented inputs (b, 3, h, w) of one training step, h = `resolution`, and what `loss` learns from, (b, ...): labels (b,)
        int64 or probabilities (b, classes) fp32 of whole images, or labels (b, h, w) of pixels.

        The same for the same step, whatever came before.
        """

    def batches(
        self, split: SplitName, resolution: int, batch_size: int, limit: int | None = None
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Every image of a split once, as it is deployed, in a fixed order; with a limit, only a fixed part of so many."""

    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Mean loss () over a batch."""

    def tally(self, logits: Tensor, targets: Tensor) -> Tensor:
        """What the metric needs to know of a batch: int64 counts that add up over batches."""

    def metric(self, tally: Tensor) -> float:
        """What is judged by, 0..1, the more the better, of the sum of all tallies."""
