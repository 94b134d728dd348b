"""What networks answer to the images of a split: in torch, and as a file in its runtime."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from natdeploy.export import Array, Batch, run_images
from natdeploy.hardware.runtimes import Runtime
from natdeploy.supernet import Subnet
from natdeploy.tasks import SplitName, Task
from natdeploy.training.judge import BATCH

HELD_BYTES = 2**28
"""Of torch's answers to the images of a split, which every file of a network is compared with."""

_Image = TypeVar("_Image")


def calibration_images(task: Task, resolution: int, count: int) -> list[Tensor]:
    """At most `count` images (1, 3, h, w) fp32 to learn ranges from: a fixed part of the calibration split, all classes alike."""
    return [image[None] for images, _ in task.batches("calibration", resolution, BATCH, count) for image in images]


class Reference:
    """What a network answers in torch to the images of a split, batch by batch; remembered where that takes little memory.

    Args:
        subnet: on the CPU, in evaluation mode.
        batches: of a split.
    """

    def __init__(self, subnet: Subnet, batches: Callable[[SplitName], Iterable[Batch]]) -> None:
        self._subnet, self._batches = subnet, batches
        self._held: dict[SplitName, list[Batch]] = {}

    def __call__(self, split: SplitName) -> Iterator[Batch]:
        """Logits and labels."""
        if split in self._held:
            yield from self._held[split]
            return
        held: list[Batch] = []
        room = HELD_BYTES
        for images, labels in self._batches(split):
            with torch.inference_mode():
                outputs = self._subnet(images)
            room -= outputs.nbytes
            if room >= 0:
                held.append((outputs, labels))
            else:
                held.clear()
            yield outputs, labels
        if room >= 0:
            self._held[split] = held


def file_outputs(
    path: Path,
    runtime: Runtime,
    precision: str,
    batches: Iterable[tuple[Iterable[_Image], Any]],
    *,
    shape: tuple[int, ...] | None,
    prepare: Callable[[_Image], Array],
) -> Iterator[Batch]:
    """Logits and labels of batches, of a file in a runtime, image by image on one thread of this machine.

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
    return run_images(lambda inputs: runtime.run(session, inputs), batches, prepare)


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
