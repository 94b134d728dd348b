"""Whether an exported file does what the network does that it was made from."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

Batch = tuple[Tensor, Any]
"""Images (b, 3, h, w) fp32, as the network takes them, or its logits, (b, classes) or (b, classes, h, w); and what these are
compared with: labels (b,) of images, or whatever else a task has."""

PARITY_LIMIT = 1e-4
"""In fp32, relative to the largest logit of an image. Other orders of summation come to 1e-6 or 1e-5; more is a fault."""

Array = np.ndarray[tuple[int, ...], np.dtype[np.generic]]
_Image = TypeVar("_Image")
Run = Callable[[list[Array]], list[Array]]
"""A loaded file: inputs of one image to outputs."""


@dataclass(frozen=True)
class Parity:
    """How far a file is from torch on real images.

    Attributes:
        max_abs: largest absolute difference of any logit.
        max_rel: largest difference of any logit, relative to the largest absolute logit of its image.
        top1_agreement: share of the images, or of their pixels or anchors, that both put into the same class, 0..1.
        n: images.
    """

    max_abs: float
    max_rel: float
    top1_agreement: float
    n: int


def run_images(run: Run, batches: Iterable[tuple[Iterable[_Image], Any]], prepare: Callable[[_Image], Array]) -> Iterator[Batch]:
    """Logits fp32 and labels of batches, image by image, as on a device.

    Args:
        run: of a loaded file.
        batches: of images, prepared ones (3, h, w) or photos.
        prepare: makes the file's input of an image.
    """
    for images, labels in batches:
        logits = np.concatenate([run([prepare(image)])[0] for image in images])
        yield torch.from_numpy(logits.astype(np.float32, copy=False)), labels


def plain_input(image: Tensor) -> Array:
    """An image (3, h, w) as the input of a file that takes what the network takes, (1, 3, h, w)."""
    return np.ascontiguousarray(image.cpu().numpy()[None])


def compare(actual: Tensor, expected: Tensor) -> Parity:
    """Compares logits (n, classes, ...) of the same images; a difference from what is no number is infinite.

    Raises:
        ValueError: there are no images.
    """
    if not len(expected):
        raise ValueError("parity needs images")
    difference = torch.nan_to_num((actual - expected).abs(), nan=torch.inf).flatten(1).amax(dim=1)
    relative = torch.nan_to_num(difference / expected.abs().flatten(1).amax(dim=1), nan=torch.inf, posinf=torch.inf)
    agreement = (_classes(actual) == _classes(expected)).double().mean()
    return Parity(float(difference.max()), float(relative.max()), float(agreement), len(expected))


def _classes(outputs: Tensor) -> Tensor:
    """Which class is highest: of images, of their pixels, or of each anchor (n, a, 4 + classes), whose box comes first."""
    return outputs[..., 4:].argmax(dim=2) if outputs.dim() == 3 else outputs.argmax(dim=1)


def together(parities: Sequence[Parity]) -> Parity:
    """That of all images, from those of one part of them each.

    Raises:
        ValueError: there is none.
    """
    if not parities:
        raise ValueError("parity needs images")
    count = sum(each.n for each in parities)
    agreement = sum(each.n * each.top1_agreement for each in parities) / count
    return Parity(max(each.max_abs for each in parities), max(each.max_rel for each in parities), agreement, count)
