"""Finding objects: a box around each, and what it shows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import fields
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
import torch
from pydantic import AfterValidator, BaseModel, ConfigDict, Field
from torch import Tensor

from natdeploy.space.detectors import DetectorKind
from natdeploy.supernet.detectors import Decode, select
from natdeploy.tasks.augment import Floats, Range, Views, jitter, log_uniform, normalise, resize
from natdeploy.tasks.boxes import Boxed
from natdeploy.tasks.data import Bytes, Indices, Splits, evenly
from natdeploy.tasks.detection_loss import detection_loss
from natdeploy.tasks.epochs import Epochs
from natdeploy.tasks.mean_ap import Found, mean_precision
from natdeploy.tasks.pixels import read_rgb
from natdeploy.tasks.segmentation import window
from natdeploy.tasks.task import METRICS, SplitName, TaskName

_ORDER, _WINDOWS, _PART = range(3)
"""Streams of chance: the order of an epoch, windows and colours of a step, the order of a part."""

_SURE = 0.5
"""Score from which on what a teacher finds is learned."""

_TRIES = 40
"""Of a crop that would show an object as wanted; then the image stays whole (torchvision's RandomIoUCrop)."""

_OVERLAPS = (None, 0.0, 0.1, 0.3, 0.5, 0.7, 0.9)
"""Of a crop with the object that it shows best, at least; None leaves the image whole (SSD, arXiv 1512.02325, section 2.2)."""


def _share(value: tuple[float, float]) -> tuple[float, float]:
    if value[0] < 0.1 or value[1] > 1:
        raise ValueError("a crop's sides are a tenth of the image's at least, and all of them at most")
    return value


class BoxAugmentation(BaseModel):
    """How training images and their boxes are changed.

    Attributes:
        crop: sides of a crop, as a share of the image's. Crops are SSD's: how much of some object one must show is drawn, too, and
            an object stays if its middle is inside.
        ratio: width of a crop to its height.
        shrink: half of the images that are not cropped become smaller by a factor up to this, on grey. SSD's is 4; 1 is none, as in
            torchvision's SSDLite, whose objects are small enough.
        flip: whether half of the images are mirrored.
        jitter: brightness, contrast and saturation are multiplied by 1 - jitter to 1 + jitter.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    crop: Annotated[Range, AfterValidator(_share)] = (0.3, 1.0)
    ratio: Range = (0.5, 2.0)
    shrink: float = Field(default=1.0, ge=1, le=10)
    flip: bool = True
    jitter: float = Field(default=0.2, ge=0, lt=1)


DEFAULT = BoxAugmentation()


class Detection:
    """The task of one data set. Images are warped to squares, as SSD's are, and boxes are shares of their sides.

    Args:
        data: images and boxes.
        splits: indices into them.
        mean: of each colour, in a range of colours from 0 to 1; subtracted from the input.
        std: of each colour; the input is divided by it.
        seed: of the order and the augmentation of training images.
        head: of the networks that learn it: it says what their answers mean, and what they learn from.
        augmentation: of training images.
        device: where batches are put together.
    """

    name: TaskName = "detection"
    metric_name = METRICS[name]

    def __init__(
        self,
        data: Boxed,
        splits: Splits,
        mean: Sequence[float],
        std: Sequence[float],
        seed: int,
        *,
        head: DetectorKind = "ssdlite",
        augmentation: BoxAugmentation = DEFAULT,
        device: torch.device | str = "cpu",
    ) -> None:
        self.data = data
        self.splits = splits
        self.mean = tuple(mean)
        self.std = tuple(std)
        self.seed = seed
        self.head = head
        self.augmentation = augmentation
        self.device = torch.device(device)
        self._mean = torch.tensor(mean, dtype=torch.float32, device=self.device)
        self._std = torch.tensor(std, dtype=torch.float32, device=self.device)
        self._indices = {part.name: np.array(getattr(splits, part.name)) for part in fields(splits)}
        self._order = Epochs(self._indices["train"], [seed, _ORDER])

    @property
    def classes(self) -> tuple[str, ...]:
        return self.data.source.classes

    @property
    def image_size(self) -> tuple[int, int]:
        return self.data.side, self.data.side

    @property
    def aspect(self) -> float:
        return 1.0

    def input_size(self, resolution: int) -> tuple[int, int]:
        return resolution, resolution

    def fingerprint(self) -> str:
        return self.data.source.fingerprint()

    def facts(self) -> dict[str, Any]:
        return {
            "fingerprint": self.fingerprint(),
            "splits": self.splits.to_json(self.data.source.images),
            "image_size": list(self.image_size),
            "classes": list(self.classes),
        }

    def with_splits(self, splits: Splits) -> Detection:
        return self._with(splits, self.mean, self.std)

    def with_input(self, mean: Sequence[float], std: Sequence[float]) -> Detection:
        return self._with(self.splits, mean, std)

    def _with(self, splits: Splits, mean: Sequence[float], std: Sequence[float]) -> Detection:
        kept = {"head": self.head, "augmentation": self.augmentation, "device": self.device}
        return Detection(self.data, splits, mean, std, self.seed, **kept)  # type: ignore[arg-type]

    def photos(self, count: int, size: int) -> Tensor:
        """Whole images, warped to squares."""
        images = self.data.images[torch.from_numpy(evenly(self._indices["train"], count))]
        return resize(images, max(size, self.data.side)).float() / 255

    def train_batch(self, step: int, resolution: int, batch_size: int) -> tuple[Tensor, list[Tensor]]:
        """Augmented training images (b, 3, r, r) fp32 channels last, and what each shows, (m, TARGET_COLUMNS).

        What is drawn depends on the seed and the step alone; every resolution shows the same windows.
        """
        index = self._order(step * batch_size, batch_size).tolist()
        known = [self.data.targets[place].numpy() for place in index]
        rng = np.random.default_rng([self.seed, _WINDOWS, step])
        views = draw_views(known, self.data.side, rng, self.augmentation)
        grey = (255 * self._mean.cpu()).round().to(torch.uint8)
        images = torch.empty((len(index), resolution, resolution, 3), dtype=torch.uint8).permute(0, 3, 1, 2)
        targets = []
        for row, (place, box, flip) in enumerate(zip(index, views.boxes, views.flips, strict=True)):
            image = resize(window(self.data.images[place : place + 1], box, grey), resolution)[0]
            images[row] = image.flip(-1) if flip else image
            targets.append(torch.from_numpy(seen(known[row], box / self.data.side, flip=bool(flip))).to(self.device))
        return jitter(images.to(self.device), views, self._mean, self._std), targets

    def batches(
        self, split: SplitName, resolution: int, batch_size: int, limit: int | None = None
    ) -> Iterator[tuple[Tensor, list[Tensor]]]:
        """The images of a split, resized: (b, 3, r, r) fp32 channels last; what each shows, (m, TARGET_COLUMNS)."""
        indices = self._part(split, limit)
        for start in range(0, len(indices), batch_size):
            index = indices[start : start + batch_size]
            images = resize(self.data.images[torch.from_numpy(index)], resolution).to(self.device)
            yield normalise(images, self._mean, self._std), [self.data.targets[place].to(self.device) for place in index.tolist()]

    def whole(self, split: SplitName, batch_size: int) -> Iterator[tuple[list[Bytes], list[Tensor]]]:
        """The same images as their files have them, (height, width, 3) RGB, and what each shows, as shares of its sides.

        Raises:
            DataError: a file cannot be read any more.
        """
        indices, source = self._indices[split], self.data.source
        for start in range(0, len(indices), batch_size):
            places = indices[start : start + batch_size].tolist()
            yield [read_rgb(source.root / source.images[place]) for place in places], [self.data.targets[place] for place in places]

    def _part(self, split: SplitName, limit: int | None) -> Indices:
        indices = self._indices[split]
        return indices if limit is None else np.random.default_rng([self.seed, _PART]).permutation(indices)[:limit]

    def loss(self, outputs: Tensor, targets: Sequence[Tensor]) -> Tensor:
        """SSD's or RetinaNet's, of a head's answers in training; or, to judge by, in evaluation."""
        return detection_loss(self.head, outputs, targets, len(self.classes))

    def distillation(self, outputs: Tensor, teacher: Tensor, temperature: float) -> Tensor:
        """What the teacher is sure to have found is learned as if it were there, so it may see the crops at another resolution.

        There are no probabilities to soften: the temperature is of no use.
        """
        answers = teacher.detach().float()
        if answers.shape[2] != 4 + len(self.classes):
            answers = Decode(self.head)(answers)
        found = [select(each) for each in answers]
        targets = [torch.cat([each[:, :5], torch.zeros_like(each[:, :1])], dim=1)[each[:, 5] >= _SURE] for each in found]
        return detection_loss(self.head, outputs, targets, len(self.classes))

    def tally(self, outputs: Tensor, targets: Sequence[Tensor]) -> Found:
        """What is found by answers in evaluation (n, a, 4 + classes), and what there is."""
        return Found(tuple((select(each), target.cpu()) for each, target in zip(outputs.cpu(), targets, strict=True)))

    def metric(self, tally: Found) -> float:
        """COCO's mean average precision, 0..1."""
        return mean_precision(tally, len(self.classes)).ap


def draw_views(targets: Sequence[Floats], side: int, rng: np.random.Generator, augmentation: BoxAugmentation) -> Views:
    """How images of a side, px, with targets (m, TARGET_COLUMNS) are to be seen; a window may lie around its image."""
    boxes = np.array([_window(target, side, rng, augmentation) for target in targets])
    flips = rng.random(len(targets)) < 0.5
    factors = rng.uniform(1 - augmentation.jitter, 1 + augmentation.jitter, (3, len(targets)))
    return Views(boxes, flips & augmentation.flip, *factors)


def _window(target: Floats, side: int, rng: np.random.Generator, augmentation: BoxAugmentation) -> Indices:
    """Top, left, height and width, px."""
    wanted = _OVERLAPS[rng.integers(len(_OVERLAPS))]
    objects = target[target[:, 5] == 0, :4]
    if wanted is not None and len(objects):
        for _ in range(_TRIES):
            extent = side * rng.uniform(*augmentation.crop, 2)
            corner = rng.uniform(0, side - extent)
            box = np.concatenate([corner, extent])
            low, high = augmentation.ratio
            if low <= extent[1] / extent[0] <= high and _shows(objects, box / side, wanted):
                rounded = np.rint(box).astype(np.int64)
                rounded[2:] = np.clip(rounded[2:], 1, side - rounded[:2].clip(max=side - 1))
                return np.concatenate([rounded[:2].clip(max=side - 1), rounded[2:]])
    if augmentation.shrink > 1 and rng.random() < 0.5:
        larger = round(side * float(log_uniform((1.0, augmentation.shrink), 1, rng)[0]))
        return np.array([*-rng.integers(0, larger - side, 2, endpoint=True), larger, larger])
    return np.array([0, 0, side, side])


def _shows(objects: Floats, box: Floats, wanted: float) -> bool:
    """Whether a crop (top, left, height, width) has an object's middle in it, and overlaps that far with one of those."""
    top, left, height, width = box
    edges = np.array([left, top, left + width, top + height])
    own = objects[_middles_inside(objects, edges)]
    if not len(own):
        return False
    common = np.minimum(own[:, 2:], edges[2:]) - np.maximum(own[:, :2], edges[:2])
    inside = common.clip(min=0).prod(axis=1)
    union = (own[:, 2:] - own[:, :2]).prod(axis=1) + height * width - inside
    return bool((inside / union).max() >= wanted)


def _middles_inside(boxes: Floats, edges: Floats) -> npt.NDArray[np.bool_]:
    middles = (boxes[:, :2] + boxes[:, 2:]) / 2
    return np.asarray(((middles > edges[:2]) & (middles < edges[2:])).all(axis=1))


def seen(target: Floats, box: Floats, *, flip: bool) -> Floats:
    """What a window (top, left, height, width, as shares of the image) shows of a target (m, TARGET_COLUMNS).

    An object stays if its middle is inside, cut off at the window's border; a crowd stays as far as it is inside.
    """
    top, left, height, width = box
    edges, extent = np.array([left, top, left + width, top + height]), np.array([width, height, width, height])
    shares = (target[:, :4] - np.array([left, top, left, top])) / extent
    cut = shares.clip(0, 1)
    stays = _middles_inside(target[:, :4], edges) | (target[:, 5] == 1)
    stays &= (cut[:, 2:] > cut[:, :2]).all(axis=1)
    if flip:
        cut = cut[:, [2, 1, 0, 3]] * [-1, 1, -1, 1] + [1, 0, 1, 0]
    rows: Floats = np.concatenate([cut, target[:, 4:]], axis=1)[stays].astype(np.float32)
    return rows
