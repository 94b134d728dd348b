"""A task that a small net learns in seconds: random images that carry their class in a colour."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from natdeploy.space import Arch, get_space
from natdeploy.space.catalog import plain_arch
from natdeploy.tasks import SplitName, Task
from natdeploy.tasks.distill import distillation
from natdeploy.training.adapt import Lesson

SPACE = get_space("demo")
SEED_ARCH = plain_arch(16, 1.0, (1, 1, 2, 1))
SMALLEST, LARGEST = SPACE.decode(SPACE.lower), SPACE.decode(SPACE.upper)


class Colours:
    """Two classes of noise, one of them brighter.

    Args:
        mixed: every image is a blend of two, and the target their shares of the classes.
    """

    classes = ("dark", "bright")

    def __init__(self, *, mixed: bool = False) -> None:
        self.mixed = mixed

    def train_batch(self, step: int, resolution: int, batch_size: int) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(step)
        labels = torch.randint(0, 2, (batch_size,), generator=generator)
        noise = torch.randn(batch_size, 3, 1, 1, generator=generator).expand(-1, -1, resolution, resolution)
        images = noise * 0.1 + labels[:, None, None, None] * 2.0 - 1.0
        if not self.mixed:
            return images, labels
        shares = nn.functional.one_hot(labels, 2).float()
        return 0.7 * images + 0.3 * images.flip(0), 0.7 * shares + 0.3 * shares.flip(0)

    def batches(self, split: SplitName, resolution: int, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        yield self.train_batch(10**6, resolution, batch_size)

    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        return nn.functional.cross_entropy(logits, targets)

    def distillation(self, outputs: Tensor, teacher: Tensor, temperature: float) -> Tensor:
        return distillation(outputs, teacher, temperature)

    def tally(self, logits: Tensor, targets: Tensor) -> Tensor:
        return torch.stack([(logits.argmax(1) == targets).sum(), torch.tensor(len(targets))])

    def metric(self, tally: Tensor) -> float:
        return float(tally[0] / tally[1])


TASK: Task = Colours()


def sampler(count: int, rng: np.random.Generator) -> Sequence[Arch]:
    return SPACE.decode_all(SPACE.sample(count, rng))


def lesson_of(*leaders: Arch, task: Task = TASK) -> Lesson:
    return Lesson(task, leaders, sampler, largest=LARGEST, smallest=SMALLEST)
