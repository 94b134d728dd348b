"""Photos of any size as a network's input: their middle or the whole, resized as the training images were, in numbers and in torch.

Bilinear resizing with antialiasing is a product with one matrix for the rows and one for the columns. Files hold these products and
not their runtimes' own resizing: ONNX Runtime's antialiased one is off by up to 9 grey levels of 255, OpenVINO's is slower, and
LiteRT's does not antialias (docs/export.md).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate

from natdeploy.export.check import Array
from natdeploy.export.facts import Preprocessing
from natdeploy.export.inputs import PhotoSize

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Window:
    """The part of a photo that a network sees, px."""

    top: int
    left: int
    height: int
    width: int

    def of(self, photo: Array) -> Array:
        """The part of a photo (height, width, 3)."""
        return photo[self.top : self.top + self.height, self.left : self.left + self.width]


def seen(size: PhotoSize, preprocessing: Preprocessing) -> Window:
    """The part that is seen of a photo: the largest one of the shape of training images, rounded down; of two that are equally
    central the one nearer to the origin. The whole photo where training images were warped.
    """
    height, width = size
    if preprocessing.whole:
        return Window(0, 0, height, width)
    tall, wide = preprocessing.cut
    inner = max(1, min(height, width * tall // wide)), max(1, min(width, height * wide // tall))
    return Window((height - inner[0]) // 2, (width - inner[1]) // 2, *inner)


def fitted(photo: Array, size: PhotoSize | None, preprocessing: Preprocessing) -> Array:
    """A photo of the one size (height, width) that a file takes, in which the network sees what it sees of this one: the rest is
    black.
    """
    if size is None or photo.shape[:2] == size:
        return photo
    image = Image.fromarray(seen((photo.shape[0], photo.shape[1]), preprocessing).of(photo))
    window = seen(size, preprocessing)
    canvas = np.zeros((*size, 3), dtype=np.uint8)
    window.of(canvas)[:] = np.asarray(image.resize((window.width, window.height), Image.Resampling.BILINEAR))
    return canvas


def prepared(photo: Array, preprocessing: Preprocessing) -> Tensor:
    """What torch makes of a photo (height, width, 3) of bytes for the network, (3, h, w) fp32.

    In one thing it is not what training saw: nothing is rounded to bytes on the way.
    """
    part = seen((photo.shape[0], photo.shape[1]), preprocessing).of(photo)
    image = torch.from_numpy(np.ascontiguousarray(part)).permute(2, 0, 1)[None].float()
    for size in (preprocessing.cut, preprocessing.size):
        image = interpolate(image, size=size, mode="bilinear", antialias=True)
    mean, std = (torch.tensor(each).view(3, 1, 1) for each in (preprocessing.mean, preprocessing.std))
    return (image[0] / 255 - mean) / std


def taps(side: int, cut: int, size: int) -> Array:
    """What lines of the input are made of, (size, side) fp32: weights of so many lines of a photo, by way of `cut` lines."""
    return (_taps(cut, size) @ _taps(side, cut)).astype(np.float32)


def centres(size: int) -> Floats:
    """Where pixels lie in an image of that size, px, (size) float64."""
    return np.arange(size, dtype=np.float64) + 0.5


def _taps(old: int, new: int) -> Floats:
    """Weights (new, old) float64 of a triangle as wide as two new pixels, or as two old ones where these are larger."""
    scale = old / new
    distance = np.abs(centres(old) - scale * centres(new)[:, None]) / max(scale, 1)
    weights = np.maximum(1 - distance, 0)
    found: Floats = weights / weights.sum(axis=1, keepdims=True)
    return found


def second_taps(cut: int, size: int) -> Array:
    """The later of the two steps alone, (size, cut) fp32: it does not depend on the photo."""
    return _taps(cut, size).astype(np.float32)
