"""What training, evaluation and export ask of a task; they know nothing else about it."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import reduce
from typing import Any, Literal, Protocol, Self, TypeVar

import torch
from torch import Tensor

from natdeploy.tasks.data import Bytes, Splits

TaskName = Literal["classification", "segmentation", "detection"]

METRICS: Mapping[TaskName, str] = {"classification": "accuracy", "segmentation": "mean IoU", "detection": "mean AP"}
"""What networks of a task are judged by, before people."""

SplitName = Literal["train", "validation", "calibration", "test"]

Targets = Any
"""What a batch is compared with: a tensor (b, ...), or a list of what belongs to each image, whose tensors `moved` finds.
A slice of it belongs to the same slice of the images.
"""


class Tally(Protocol):
    """What the metric needs to know of some images. Tallies of disjoint images add up, in any order."""

    def __add__(self, other: Any, /) -> Any:
        """That of both together."""


class Task(Protocol):
    """Data, loss and metric of one thing to learn: classes of images, or of every pixel, or what objects there are, and where."""

    @property
    def name(self) -> TaskName:
        """Which kind of task it is."""

    @property
    def metric_name(self) -> str:
        """What `metric` is, before people: `accuracy`, `mean IoU`."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the outputs, in order."""

    @property
    def splits(self) -> Splits:
        """Which images are for what."""

    @property
    def aspect(self) -> float:
        """Width of the inputs to their height, as nearly as `input_size` allows; 1 where all are squares."""

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width at which photos are cut, px, before they are resized to an input."""

    def input_size(self, resolution: int) -> tuple[int, int]:
        """Height and width of the input of an architecture of a resolution, px."""

    def fingerprint(self) -> str:
        """SHA-256 that says whether these are the same images."""

    def facts(self) -> dict[str, Any]:
        """JSON values by which a later process sets up the same task: `fingerprint`, `splits`, `classes` and the task's own."""

    def with_splits(self, splits: Splits) -> Self:
        """The same task with other parts of the same images."""

    def with_input(self, mean: Sequence[float], std: Sequence[float]) -> Self:
        """The same task for networks that want each colour, in a range from 0 to 1, minus `mean` and divided by `std`."""

    def photos(self, count: int, size: int) -> Tensor:
        """At most `count` evenly chosen training images (n, 3, s, s) in 0..1, s = `size` or more, by which a seed's input
        convention is recognised."""

    def train_batch(self, step: int, resolution: int, batch_size: int) -> tuple[Tensor, Targets]:
        """Augmented inputs (b, 3, *input_size) of one training step, and what `loss` learns from: labels (b,) int64 or
        probabilities (b, classes) fp32 of whole images, labels (b, h, w) of pixels, or a list of what is in each image.

        The same for the same step, whatever came before.
        """

    def batches(
        self, split: SplitName, resolution: int, batch_size: int, limit: int | None = None
    ) -> Iterator[tuple[Tensor, Targets]]:
        """Every image of a split once, as it is deployed, in a fixed order; with a limit, only a fixed part of so many."""

    def whole(self, split: SplitName, batch_size: int) -> Iterator[tuple[list[Bytes], Targets]]:
        """The same images as their files have them, (height, width, 3) RGB, in the same batches."""

    def loss(self, outputs: Tensor, targets: Targets) -> Tensor:
        """Mean loss () over a batch, of what a network answers."""

    def distillation(self, outputs: Tensor, teacher: Tensor, temperature: float) -> Tensor:
        """Mean loss () of learning from another network's answer to the same crops, maybe at another resolution; no gradient flows
        into that answer."""

    def tally(self, outputs: Tensor, targets: Targets) -> Tally:
        """What the metric needs to know of a batch."""

    def metric(self, tally: Any) -> float:
        """What networks are judged by, 0..1, the more the better, of the sum of all tallies of a split."""


_Tally = TypeVar("_Tally", bound=Tally)


def total(tallies: Iterable[_Tally]) -> _Tally:
    """The sum of one tally or more."""
    return reduce(operator.add, tallies)


def moved(targets: Targets, device: torch.device | str) -> Targets:
    """The same targets with all their tensors on a device."""
    if isinstance(targets, Tensor):
        return targets.to(device)
    if isinstance(targets, dict):
        return {key: moved(value, device) for key, value in targets.items()}
    return [moved(each, device) for each in targets] if isinstance(targets, (list, tuple)) else targets
