"""Telling of every pixel what it shows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import fields
from math import prod
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import AfterValidator, BaseModel, ConfigDict, Field
from torch import Tensor
from torch.nn.functional import cross_entropy, interpolate

from natdeploy.space import input_size
from natdeploy.tasks.augment import Range, Views, jitter, log_uniform, normalise
from natdeploy.tasks.data import Bytes, Indices, Splits, evenly
from natdeploy.tasks.distill import distillation
from natdeploy.tasks.epochs import Epochs
from natdeploy.tasks.masks import IGNORE, Masked
from natdeploy.tasks.pixels import read_rgb
from natdeploy.tasks.task import METRICS, SplitName, TaskName

BATCH_PIXELS = 2**20
"""In a batch that nothing learns from, about: a network answers with a number for every class and pixel."""

_ORDER, _WINDOWS, _PART = range(3)
"""Streams of chance: the order of an epoch, windows and colours of a step, the order of a part."""


def _least(value: tuple[float, float]) -> tuple[float, float]:
    if value[0] < 0.1:
        raise ValueError("images smaller than a tenth leave little to see")
    return value


class MaskAugmentation(BaseModel):
    """How training images and their masks are changed.

    Attributes:
        scale: an image is enlarged by a factor between these before a window of the input's size is cut out of it; where the image
            is smaller than the window, the rest is grey and of no class. DeepLab's is 0.5 to 2 (arXiv 1706.05587, section 4.1).
        flip: whether half of the images are mirrored.
        jitter: brightness, contrast and saturation are multiplied by 1 - jitter to 1 + jitter.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    scale: Annotated[Range, AfterValidator(_least)] = (0.5, 2.0)
    flip: bool = True
    jitter: float = Field(default=0.2, ge=0, lt=1)


DEFAULT = MaskAugmentation()


class Segmentation:
    """The task of one data set. Images may be rectangular: an architecture's resolution is the height of its input.

    Args:
        data: images and masks.
        splits: indices into them.
        mean: of each colour, in a range of colours from 0 to 1; subtracted from the input.
        std: of each colour; the input is divided by it.
        seed: of the order and the augmentation of training images.
        augmentation: of training images.
        device: where batches are put together.
    """

    def __init__(
        self,
        data: Masked,
        splits: Splits,
        mean: Sequence[float],
        std: Sequence[float],
        seed: int,
        *,
        augmentation: MaskAugmentation = DEFAULT,
        device: torch.device | str = "cpu",
    ) -> None:
        self.data = data
        self.splits = splits
        self.mean = tuple(mean)
        self.std = tuple(std)
        self.seed = seed
        self.augmentation = augmentation
        self.device = torch.device(device)
        self._mean = torch.tensor(mean, dtype=torch.float32, device=self.device)
        self._std = torch.tensor(std, dtype=torch.float32, device=self.device)
        self._indices = {part.name: np.array(getattr(splits, part.name)) for part in fields(splits)}
        self._order = Epochs(self._indices["train"], [seed, _ORDER])

    name: TaskName = "segmentation"
    metric_name = METRICS[name]

    @property
    def classes(self) -> tuple[str, ...]:
        return self.data.source.classes

    @property
    def image_size(self) -> tuple[int, int]:
        return self.data.size

    @property
    def aspect(self) -> float:
        height, width = self.data.size
        return width / height

    def input_size(self, resolution: int) -> tuple[int, int]:
        return input_size(resolution, self.aspect)

    def fingerprint(self) -> str:
        return self.data.source.fingerprint()

    def facts(self) -> dict[str, Any]:
        return {
            "fingerprint": self.fingerprint(),
            "splits": self.splits.to_json(self.data.source.images),
            "image_size": list(self.image_size),
            "classes": list(self.classes),
        }

    def with_splits(self, splits: Splits) -> Segmentation:
        return self._with(splits, self.mean, self.std)

    def with_input(self, mean: Sequence[float], std: Sequence[float]) -> Segmentation:
        return self._with(self.splits, mean, std)

    def _with(self, splits: Splits, mean: Sequence[float], std: Sequence[float]) -> Segmentation:
        return Segmentation(self.data, splits, mean, std, self.seed, augmentation=self.augmentation, device=self.device)

    def photos(self, count: int, size: int) -> Tensor:
        """The middles of images, squares."""
        images = self.data.images[torch.from_numpy(evenly(self._indices["train"], count))]
        side = min(self.image_size)
        top, left = ((extent - side) // 2 for extent in self.image_size)
        side_out = max(size, side)
        return resize_images(images[:, :, top : top + side, left : left + side], (side_out, side_out)).float() / 255

    def train_batch(self, step: int, resolution: int, batch_size: int) -> tuple[Tensor, Tensor]:
        """Augmented training images (b, 3, h, w) fp32 channels last, and labels (b, h, w) int64, `IGNORE` where there are none.

        What is drawn depends on the seed and the step alone; every resolution shows the same windows.
        """
        index = self._order(step * batch_size, batch_size)
        views = draw_windows(len(index), self.data.size, np.random.default_rng([self.seed, _WINDOWS, step]), self.augmentation)
        grey = (255 * self._mean.cpu()).round().to(torch.uint8)
        size = self.input_size(resolution)
        images = torch.empty((len(index), *size, 3), dtype=torch.uint8).permute(0, 3, 1, 2)
        masks = torch.empty((len(index), 1, *size), dtype=torch.uint8)
        for row, (place, box, flip) in enumerate(zip(index.tolist(), views.boxes, views.flips, strict=True)):
            image = window(self.data.images[place : place + 1], box, grey)
            mask = window(self.data.masks[place : place + 1, None], box, torch.tensor([IGNORE], dtype=torch.uint8))
            image, mask = resize_images(image, size), interpolate(mask, size, mode="nearest-exact")
            images[row], masks[row] = (each[0].flip(-1) if flip else each[0] for each in (image, mask))
        return jitter(images.to(self.device), views, self._mean, self._std), masks[:, 0].to(self.device).long()

    def batches(
        self, split: SplitName, resolution: int, batch_size: int, limit: int | None = None
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """The images of a split, resized: (b, 3, h, w) fp32 channels last; labels (b, H, W) int64 at the data's own size.

        So networks of different resolutions are compared by the same pixels. Batches of large images are smaller than `batch_size`.
        """
        for part in self._parts(self._part(split, limit), batch_size):
            index = torch.from_numpy(part)
            images = resize_images(self.data.images[index], self.input_size(resolution)).to(self.device)
            yield normalise(images, self._mean, self._std), self.data.masks[index].to(self.device).long()

    def whole(self, split: SplitName, batch_size: int) -> Iterator[tuple[list[Bytes], Tensor]]:
        """The same images as their files have them, (height, width, 3) RGB; labels at the data's own size.

        Raises:
            DataError: a file cannot be read any more.
        """
        source = self.data.source
        for part in self._parts(self._indices[split], batch_size):
            yield [read_rgb(source.root / source.images[place]) for place in part], self.data.masks[torch.from_numpy(part)].long()

    def _parts(self, indices: Indices, batch_size: int) -> Iterator[Indices]:
        rows = min(batch_size, max(1, BATCH_PIXELS // prod(self.data.size)))
        return (indices[start : start + rows] for start in range(0, len(indices), rows))

    def _part(self, split: SplitName, limit: int | None) -> Indices:
        indices = self._indices[split]
        return indices if limit is None else np.random.default_rng([self.seed, _PART]).permutation(indices)[:limit]

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Mean cross-entropy over the pixels that have a class, 0 where none has; logits are resized to the targets."""
        targets = targets.to(outputs.device)
        total = cross_entropy(_at(outputs, targets), targets, ignore_index=IGNORE, reduction="sum")
        return total / (targets != IGNORE).sum().clamp(min=1)

    def distillation(self, outputs: Tensor, teacher: Tensor, temperature: float) -> Tensor:
        """Of every pixel; the teacher's answer is resized to the student's."""
        return distillation(outputs, _at(teacher.detach(), outputs), temperature)

    def tally(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Pixels by class and answer, (classes, classes) int64."""
        targets = targets.to(outputs.device)
        return confusion(_at(outputs, targets).argmax(1), targets, len(self.classes))

    def metric(self, tally: Tensor) -> float:
        """Mean intersection over union, 0..1."""
        return mean_iou(tally)


def draw_windows(n: int, size: tuple[int, int], rng: np.random.Generator, augmentation: MaskAugmentation) -> Views:
    """Windows on `n` images of a size (height, width); one larger than the image lies around it, so its corner may be negative."""
    scale = log_uniform(augmentation.scale, n, rng)
    extent = np.maximum(np.rint(np.array(size) / scale[:, None]), 1).astype(np.int64)
    room = np.array(size) - extent
    corner = rng.integers(np.minimum(room, 0), np.maximum(room, 0), endpoint=True)
    flips = rng.random(n) < 0.5
    factors = rng.uniform(1 - augmentation.jitter, 1 + augmentation.jitter, (3, n))
    return Views(np.concatenate([corner, extent], axis=1), flips & augmentation.flip, *factors)


def window(images: Tensor, box: Indices, fill: Tensor) -> Tensor:
    """The part (n, c, height, width) of images (n, c, H, W) in a box (top, left, height, width); `fill` (c) around the image."""
    top, left, height, width = box.tolist()
    above, before = max(-top, 0), max(-left, 0)
    inside = images[:, :, max(top, 0) : top + height, max(left, 0) : left + width]
    if inside.shape[-2:] == (height, width):
        return inside
    canvas = fill.expand(len(images), height, width, -1).clone().permute(0, 3, 1, 2)
    canvas[:, :, above : above + inside.shape[-2], before : before + inside.shape[-1]] = inside
    return canvas


def resize_images(images: Tensor, size: tuple[int, int]) -> Tensor:
    """Bytes (n, 3, *size), on the CPU, bilinear with antialiasing."""
    return images if images.shape[-2:] == size else interpolate(images, size, mode="bilinear", antialias=True)


def _at(logits: Tensor, targets: Tensor) -> Tensor:
    """Logits (n, classes, h, w) at the size of targets (..., H, W)."""
    if logits.shape[-2:] == targets.shape[-2:]:
        return logits
    return interpolate(logits, targets.shape[-2:], mode="bilinear", align_corners=False)


def confusion(predicted: Tensor, targets: Tensor, classes: int) -> Tensor:
    """Counts (classes, classes) int64 of pixels of a class (row) that were taken for another (column); `IGNORE` is left out."""
    beyond = classes**2  # one bin more for what does not count: cheaper than picking the pixels that do
    bins = torch.where(targets == IGNORE, beyond, classes * targets + predicted)
    return torch.bincount(bins.flatten(), minlength=beyond + 1)[:beyond].view(classes, classes)


def mean_iou(counts: Tensor) -> float:
    """Mean over the classes that occur, among targets or answers, of intersection over union; 0 where none does."""
    hits = counts.diagonal().double()
    union = counts.sum(0) + counts.sum(1) - hits
    occurs = union > 0
    return float((hits[occurs] / union[occurs]).mean()) if occurs.any() else 0.0
