"""Telling images of different classes apart."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import fields

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from natdeploy.tasks.augment import crop_resize, draw_views, jitter, normalise, resize
from natdeploy.tasks.data import Pixels, Splits
from natdeploy.tasks.task import SplitName

LABEL_SMOOTHING = 0.1

CACHE_BYTES = 2**28
"""For resized images: a search asks for the same ones for every architecture of a resolution."""

_ORDER, _VIEWS = 0, 1
"""Streams of chance: the order of an epoch, and the crops and colours of a step."""


class Classification:
    """The task of one data set.

    Args:
        pixels: decoded images.
        splits: indices into them.
        mean: of each colour, in a range of colours from 0 to 1; subtracted from the input.
        std: of each colour; the input is divided by it.
        seed: of the order and the augmentation of training images.
        flip: whether an image and its mirror image belong to the same class; not so for digits.
    """

    def __init__(
        self, pixels: Pixels, splits: Splits, mean: Sequence[float], std: Sequence[float], seed: int, *, flip: bool = True
    ) -> None:
        self.pixels = pixels
        self.splits = splits
        self.seed = seed
        self.flip = flip
        self._mean = torch.tensor(mean, dtype=torch.float32)
        self._std = torch.tensor(std, dtype=torch.float32)
        self._indices = {part.name: np.array(getattr(splits, part.name)) for part in fields(splits)}
        self._resized: dict[tuple[SplitName, int, int, int], Tensor] = {}

    @property
    def classes(self) -> tuple[str, ...]:
        return self.pixels.source.classes

    def train_batch(self, step: int, resolution: int, batch_size: int) -> tuple[Tensor, Tensor]:
        """Randomly cropped, flipped and coloured training images: (b, 3, r, r) fp32 channels last, labels (b,).

        Steps of one batch size walk through one permutation of the training images after the other, and every one of them can be
        had without those before it.
        """
        index = self._order(step * batch_size, batch_size)
        rng = np.random.default_rng([self.seed, _VIEWS, step])
        views = draw_views(batch_size, self.pixels.size, rng, flip=self.flip)
        images = crop_resize(self.pixels.images, index, views, resolution)
        return jitter(images, views, self._mean, self._std), self.pixels.labels[index]

    def _order(self, start: int, count: int) -> npt.NDArray[np.int64]:
        """Images `start` to `start + count` of the endless sequence of epochs, each a permutation of its own."""
        train = self._indices["train"]
        epochs = range(start // len(train), (start + count - 1) // len(train) + 1)
        sequence = np.concatenate([np.random.default_rng([self.seed, _ORDER, epoch]).permutation(train) for epoch in epochs])
        first = start - epochs[0] * len(train)
        return sequence[first : first + count]

    def batches(self, split: SplitName, resolution: int, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """The images of a split, resized: (b, 3, r, r) fp32 channels last, labels (b,); the last batch may be smaller."""
        indices = self._indices[split]
        for start in range(0, len(indices), batch_size):
            index = torch.from_numpy(indices[start : start + batch_size])
            key = (split, resolution, start, batch_size)
            if (images := self._resized.get(key)) is None:
                images = resize(self.pixels.images.permute(0, 2, 3, 1)[index].permute(0, 3, 1, 2), resolution)
                if sum(map(torch.Tensor.numel, self._resized.values())) + images.numel() <= CACHE_BYTES:
                    self._resized[key] = images
            yield normalise(images, self._mean, self._std), self.pixels.labels[index]

    def loss(self, logits: Tensor, targets: Tensor, teacher: Tensor | None = None) -> Tensor:
        """Cross-entropy with label smoothing, plus, with a teacher's logits, cross-entropy against its probabilities.

        The second term has temperature 1 and weight 1, as in once-for-all's progressive shrinking (arXiv 1908.09791), after
        Hinton et al. (arXiv 1503.02531).
        """
        loss = cross_entropy(logits, targets, label_smoothing=LABEL_SMOOTHING)
        if teacher is None:
            return loss
        return loss + cross_entropy(logits, teacher.detach().softmax(dim=1))

    def correct(self, logits: Tensor, targets: Tensor) -> int:
        """How many images have their highest logit at their own class."""
        return int((logits.argmax(dim=1) == targets).sum())
