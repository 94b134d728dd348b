"""Random views of images, drawn for a whole batch at once.

Images stay bytes, channels last, until the last step: torch resizes those four times as fast as planes of floats.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn.functional import interpolate

SCALE = (0.35, 1.0)
"""Share of the image's area that a crop keeps."""

RATIO = (3 / 4, 4 / 3)
"""Width of a crop to its height."""

JITTER = 0.2
"""Brightness, contrast and saturation are multiplied by 1 - JITTER to 1 + JITTER."""

LUMA = (0.299, 0.587, 0.114)
"""Weights of red, green and blue in the grey of ITU-R BT.601."""

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Views:
    """How each image of a batch is to be seen. It does not depend on the resolution: every size shows the same crops.

    Attributes:
        boxes: (b, 4) int64: top, left, height, width, px.
        flips: (b,) bool, mirrored left to right.
        brightness: (b,) factors.
        contrast: (b,) factors.
        saturation: (b,) factors.
    """

    boxes: npt.NDArray[np.int64]
    flips: npt.NDArray[np.bool_]
    brightness: Floats
    contrast: Floats
    saturation: Floats


def draw_views(n: int, size: int, rng: np.random.Generator, *, flip: bool) -> Views:
    """Views of `n` square images of side `size`, px.

    Crops are Inception's (arXiv 1409.4842), as in torchvision's RandomResizedCrop; one that would not fit is cut to the image
    instead of drawn again, so that every view costs the same draws.
    """
    area = size**2 * rng.uniform(*SCALE, n)
    ratio = np.exp(rng.uniform(math.log(RATIO[0]), math.log(RATIO[1]), n))
    sides = np.stack([np.sqrt(area / ratio), np.sqrt(area * ratio)], axis=1)
    extent = np.clip(np.rint(sides), 1, size).astype(np.int64)
    corner = rng.integers(0, size - extent, endpoint=True)
    flips = rng.random(n) < 0.5
    factors = rng.uniform(1 - JITTER, 1 + JITTER, (3, n))
    return Views(np.concatenate([corner, extent], axis=1), flips & flip, *factors)


def crop_resize(images: Tensor, index: npt.NDArray[np.int64], views: Views, resolution: int) -> Tensor:
    """Bytes (b, 3, r, r) of the images at `index`, cropped, resized with antialiasing, and flipped."""
    out = torch.empty((len(index), resolution, resolution, 3), dtype=torch.uint8).permute(0, 3, 1, 2)
    for place, (image, (top, left, height, width), flip) in enumerate(zip(index, views.boxes, views.flips, strict=True)):
        view = resize(images[image : image + 1, :, top : top + height, left : left + width], resolution)
        out[place] = view[0].flip(-1) if flip else view[0]
    return out


def resize(images: Tensor, resolution: int) -> Tensor:
    """Bytes (n, 3, r, r) of whole images, bilinear with antialiasing."""
    if images.shape[-2:] == (resolution, resolution):
        return images
    return interpolate(images, size=(resolution, resolution), mode="bilinear", antialias=True)


def normalise(images: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Bytes (n, 3, r, r) -> floats, channels last: (x / 255 - mean) / std, with mean and std (3,)."""
    scaled = images.permute(0, 2, 3, 1).float().mul_(1 / (255 * std)).sub_(mean / std)
    return scaled.permute(0, 3, 1, 2)


def jitter(images: Tensor, views: Views, mean: Tensor, std: Tensor) -> Tensor:
    """Bytes (n, 3, r, r) -> floats, channels last, with brightness, saturation and contrast changed in this order, then normalised.

    Each of the four is affine in a pixel's colours, so all together are one matrix and one shift an image. Values are not clipped
    to the range of a byte in between, as torchvision's ColorJitter does.
    """
    n, _, height, width = images.shape
    colours = images.permute(0, 2, 3, 1).float().flatten(1, 2)
    brightness, contrast, saturation = (
        torch.from_numpy(factor).float().reshape(n, 1, 1) for factor in (views.brightness, views.contrast, views.saturation)
    )
    luma = torch.tensor(LUMA)
    saturate = saturation * torch.eye(3) + (1 - saturation) * luma[:, None]
    # Neither brightness nor saturation changes which grey an image has on average, up to the factor: luma sums to one.
    grey = brightness * (colours.mean(dim=1, keepdim=True) @ luma[:, None])
    matrix = contrast * brightness * saturate / (255 * std)
    shift = ((1 - contrast) * grey / 255 - mean) / std
    return torch.bmm(colours, matrix).add_(shift).view(n, height, width, 3).permute(0, 3, 1, 2)
