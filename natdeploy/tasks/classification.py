"""Telling images of different classes apart."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import fields
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from natdeploy.tasks.augment import (
    Augmentation,
    apply_policy,
    crop_resize,
    draw_erased,
    draw_mixing,
    draw_views,
    erase,
    jitter,
    mix,
    normalise,
    probabilities,
    resize,
)
from natdeploy.tasks.data import Bytes, Indices, Splits, balanced_order, evenly
from natdeploy.tasks.distill import distillation
from natdeploy.tasks.epochs import Epochs
from natdeploy.tasks.pixels import OnDemand, PixelSource, read_whole
from natdeploy.tasks.task import METRICS, SplitName, TaskName

CACHE_BYTES = 2**28
"""For resized images: a search asks for the same ones for every architecture of a resolution."""

DEFAULT = Augmentation()

AHEAD = 2
"""Training batches that are decoded while one is learned from."""

_ORDER, _VIEWS, _POLICY, _ERASED, _MIXING, _PART = range(6)
"""Streams of chance: the order of an epoch; crops and colours, policy, erasing, and mixing of a step; the order of a part."""


class Classification:
    """The task of one data set.

    Args:
        pixels: where images come from.
        splits: indices into them.
        mean: of each colour, in a range of colours from 0 to 1; subtracted from the input.
        std: of each colour; the input is divided by it.
        seed: of the order and the augmentation of training images.
        flip: whether an image and its mirror image belong to the same class; not so for digits.
        augmentation: of training images.
        device: where batches are put together.
    """

    def __init__(
        self,
        pixels: PixelSource,
        splits: Splits,
        mean: Sequence[float],
        std: Sequence[float],
        seed: int,
        *,
        flip: bool = True,
        augmentation: Augmentation = DEFAULT,
        device: torch.device | str = "cpu",
    ) -> None:
        self.pixels = pixels
        self.splits = splits
        self.mean = tuple(mean)
        self.std = tuple(std)
        self.seed = seed
        self.flip = flip
        self.augmentation = augmentation
        self.device = torch.device(device)
        self._mean = torch.tensor(mean, dtype=torch.float32, device=self.device)
        self._std = torch.tensor(std, dtype=torch.float32, device=self.device)
        self._indices = {part.name: np.array(getattr(splits, part.name)) for part in fields(splits)}
        self._order = Epochs(self._indices["train"], [seed, _ORDER])
        self._resized: dict[tuple[SplitName, int, int, int, int | None], tuple[Tensor, Indices]] = {}

    name: TaskName = "classification"
    metric_name = METRICS[name]
    aspect = 1.0

    @property
    def classes(self) -> tuple[str, ...]:
        return self.pixels.source.classes

    @property
    def image_size(self) -> tuple[int, int]:
        return self.pixels.size, self.pixels.size

    def input_size(self, resolution: int) -> tuple[int, int]:
        return resolution, resolution

    def fingerprint(self) -> str:
        return self.pixels.source.fingerprint()

    def facts(self) -> dict[str, Any]:
        return {
            "fingerprint": self.fingerprint(),
            "splits": self.splits.to_json(self.pixels.source.paths),
            "on_demand": isinstance(self.pixels, OnDemand),
            "classes": list(self.classes),
        }

    def with_splits(self, splits: Splits) -> Classification:
        """The same task with other parts of the same images."""
        return self._with(splits, self.mean, self.std)

    def with_input(self, mean: Sequence[float], std: Sequence[float]) -> Classification:
        """The same task for networks that want their input with another mean and standard deviation."""
        return self._with(self.splits, mean, std)

    def _with(self, splits: Splits, mean: Sequence[float], std: Sequence[float]) -> Classification:
        return Classification(
            self.pixels, splits, mean, std, self.seed, flip=self.flip, augmentation=self.augmentation, device=self.device
        )

    def photos(self, count: int, size: int) -> Tensor:
        photos, _ = self.pixels.take(evenly(self._indices["train"], count))
        return (resize(photos, max(size, self.pixels.size)).float() / 255).cpu()

    def train_batch(self, step: int, resolution: int, batch_size: int) -> tuple[Tensor, Tensor]:
        """Augmented training images: (b, 3, r, r) fp32 channels last, and labels (b,), or where images are mixed, probabilities
        (b, classes) fp32.

        Steps of one batch size walk through one permutation of the training images after the other, and every one of them can be
        had without those before it. What is drawn does not depend on the resolution: every size shows the same crops.
        """
        index = self._order(step * batch_size, batch_size)
        images, index = self.pixels.take(index)
        self.pixels.expect(self._order((step + 1) * batch_size, AHEAD * batch_size))
        views = draw_views(len(index), self.pixels.size, self._rng(_VIEWS, step), self.augmentation, flip=self.flip)
        images = crop_resize(images.to(self.device), views, resolution)
        if self.augmentation.policy != "none":
            images = apply_policy(images, self.augmentation.policy, int(self._rng(_POLICY, step).integers(2**63)))
        images = jitter(images, views, self._mean, self._std)
        if self.augmentation.erase:
            images = erase(images, draw_erased(len(index), self._rng(_ERASED, step), self.augmentation.erase))
        labels = self._labels(index)
        if not self.augmentation.mixes:
            return images, labels
        targets = probabilities(labels, len(self.classes))
        mixing = draw_mixing(len(index), self._rng(_MIXING, step), self.augmentation)
        return (images, targets) if mixing is None else mix(images, targets, mixing)

    def _rng(self, stream: int, place: int) -> np.random.Generator:
        return np.random.default_rng([self.seed, stream, place])

    def _labels(self, index: Indices) -> Tensor:
        return self.pixels.labels[torch.from_numpy(index)].to(self.device)

    def batches(
        self, split: SplitName, resolution: int, batch_size: int, limit: int | None = None
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """The images of a split, resized: (b, 3, r, r) fp32 channels last, labels (b,); the last batch may be smaller.

        Args:
            split: which.
            resolution: r, px.
            batch_size: b.
            limit: take only the first so many of an order that is fixed and has equally many of every class.
        """
        indices = self._part(split, limit)
        starts = range(0, len(indices), batch_size)
        for start in starts:
            key = (split, resolution, start, batch_size, limit)
            if (known := self._resized.get(key)) is None:
                images, index = self.pixels.take(indices[start : start + batch_size])
                self.pixels.expect(indices[start + batch_size : start + 2 * batch_size])
                known = resize(images.to(self.device), resolution), index
                if sum(held.numel() for held, _ in self._resized.values()) + known[0].numel() <= CACHE_BYTES:
                    self._resized[key] = known
            yield normalise(known[0], self._mean, self._std), self._labels(known[1])

    def whole(self, split: SplitName, batch_size: int) -> Iterator[tuple[list[Bytes], Tensor]]:
        """The images of a split as they are, (height, width, 3) RGB, with their labels, in the order of `batches`.

        Damaged ones are left out there and here.
        """
        read = ((read_whole(self.pixels.source, int(index)), index) for index in self._indices[split])
        known = ((image, int(self.pixels.labels[index])) for image, index in read if not isinstance(image, str))
        while some := list(islice(known, batch_size)):
            yield [image for image, _ in some], torch.tensor([label for _, label in some])

    def _part(self, split: SplitName, limit: int | None) -> Indices:
        indices = self._indices[split]
        if limit is None:
            return indices
        return balanced_order(indices, self.pixels.labels[torch.from_numpy(indices)].numpy(), [self.seed, _PART])[:limit]

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Cross-entropy with label smoothing against labels (b,) or probabilities (b, classes)."""
        return cross_entropy(outputs, targets.to(outputs.device), label_smoothing=self.augmentation.label_smoothing)

    def distillation(self, outputs: Tensor, teacher: Tensor, temperature: float) -> Tensor:
        return distillation(outputs, teacher, temperature)

    def tally(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """How many images have their highest logit at their own class, and how many there are, (2,)."""
        return torch.tensor([int((outputs.argmax(dim=1) == targets.to(outputs.device)).sum()), len(targets)])

    def metric(self, tally: Tensor) -> float:
        """Accuracy, 0..1."""
        return float(tally[0]) / float(tally[1])
