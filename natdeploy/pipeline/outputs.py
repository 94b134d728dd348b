"""What networks answer to the images of a split: in torch, and as a file in its runtime."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from natdeploy.export import Array, Batch, run_images
from natdeploy.hardware.runtimes import Runtime
from natdeploy.supernet import Subnet
from natdeploy.tasks import Classification
from natdeploy.training.judge import BATCH

_Image = TypeVar("_Image")


def calibration_images(task: Classification, resolution: int, count: int) -> list[Tensor]:
    """At most `count` images (1, 3, r, r) fp32 to learn ranges from: a fixed part of the calibration split, all classes alike."""
    return [image[None] for images, _ in task.batches("calibration", resolution, BATCH, count) for image in images]


@torch.inference_mode()
def torch_outputs(subnet: Subnet, batches: Iterable[Batch]) -> Batch:
    """Logits (n, classes) and labels (n,) of batches, of a network on the CPU in evaluation mode."""
    return _joined((subnet(images), labels) for images, labels in batches)


def file_outputs(
    path: Path,
    runtime: Runtime,
    precision: str,
    batches: Iterable[tuple[Iterable[_Image], Tensor]],
    *,
    shape: tuple[int, ...] | None,
    prepare: Callable[[_Image], Array],
) -> Batch:
    """Logits (n, classes) and labels (n,) of batches, of a file in a runtime, image by image on one thread of this machine.

    Args:
        path: of the file.
        runtime: that reads it.
        precision: of the file.
        batches: images, as the network takes them or photos, and labels.
        shape: of the file's input; None where it is fixed in the file, or differs from image to image.
        prepare: makes that input of an image.
    """
    with _quiet():
        session = runtime.load(path, shape, 1, precision, runtime.DELEGATES[0])
    return _joined(run_images(lambda inputs: runtime.run(session, inputs), batches, prepare))


@contextmanager
def _quiet() -> Iterator[None]:
    """Keeps off standard error what LiteRT's own code says there whenever it loads a file; its errors are raised as well."""
    kept = os.dup(2)
    try:
        with Path(os.devnull).open("wb") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def _joined(batches: Iterable[Batch]) -> Batch:
    logits, labels = zip(*batches, strict=True)
    return torch.cat([each.cpu() for each in logits]), torch.cat([each.cpu() for each in labels])


def accuracy(task: Classification, outputs: Batch) -> float:
    """Share of images that are right, 0..1."""
    return task.metric(task.tally(*outputs))
