"""Photos of any size as a network's input: the centre square, resized as the training images were, in numbers and in torch.

Bilinear resizing with antialiasing is a product with one matrix for the rows and one for the columns. Files hold these products and
not their runtimes' own resizing: ONNX Runtime's antialiased one is off by up to 9 grey levels of 255, OpenVINO's is slower, and
LiteRT's does not antialias (docs/export.md).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torch.nn.functional import interpolate

from natdeploy.export.check import Array
from natdeploy.export.facts import Preprocessing
from natdeploy.export.inputs import PhotoSize

Floats = npt.NDArray[np.float64]


def centre_square(height: int, width: int) -> tuple[int, int, int]:
    """Top, left and side of the centre square of a photo, px; of two that are equally central the one nearer to the origin."""
    side = min(height, width)
    return (height - side) // 2, (width - side) // 2, side


def fitted(photo: Array, size: PhotoSize | None) -> Array:
    """A photo as an application hands it to a file that takes one size only: cut out and resized to that (height, width)."""
    if size is None or photo.shape[:2] == size:
        return photo
    return np.array(ImageOps.fit(Image.fromarray(photo), size[::-1], Image.Resampling.BILINEAR))


def prepared(photo: Array, preprocessing: Preprocessing) -> Tensor:
    """What torch makes of a photo (height, width, 3) of bytes for the network, (3, r, r) fp32.

    In one thing it is not what training saw: nothing is rounded to bytes on the way.
    """
    top, left, side = centre_square(*photo.shape[:2])
    square = torch.from_numpy(np.ascontiguousarray(photo[top : top + side, left : left + side])).permute(2, 0, 1)[None].float()
    for size in (preprocessing.cut, preprocessing.size):
        square = interpolate(square, size=size, mode="bilinear", antialias=True)
    mean, std = (torch.tensor(each).view(3, 1, 1) for each in (preprocessing.mean, preprocessing.std))
    return (square[0] / 255 - mean) / std


def taps(side: int, preprocessing: Preprocessing) -> Array:
    """What rows of the input are made of, (r, side) fp32: weights of the rows of a centre square of that side."""
    first = _taps(side, preprocessing.cut[0])
    return (_taps(preprocessing.cut[0], preprocessing.size[0]) @ first).astype(np.float32)


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


def second_taps(preprocessing: Preprocessing) -> Array:
    """The later of the two steps alone, (r, square) fp32: it does not depend on the photo."""
    return _taps(preprocessing.cut[0], preprocessing.size[0]).astype(np.float32)
