"""Random views of images, drawn for a whole batch at once.

Images stay bytes, channels last, until the last step: torch resizes those four times as fast as planes of floats.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
import numpy.typing as npt
import torch
from pydantic import AfterValidator, BaseModel, ConfigDict, Field
from torch import Tensor
from torch.nn.functional import interpolate, one_hot

LUMA = (0.299, 0.587, 0.114)
"""Weights of red, green and blue in the grey of ITU-R BT.601."""

ERASED_AREA = (0.02, 0.33)
"""Share of an image that is erased (arXiv 1708.04896, as in torchvision's RandomErasing)."""

ERASED_RATIO = (0.3, 3.3)
"""Width of what is erased to its height."""

RANDAUGMENT = (2, 9)
"""Operations an image and their strength, of 30: torchvision's defaults, and the strength in a reproduction of NAT (ENCAS)."""

Floats = npt.NDArray[np.float64]


def _ascending(value: tuple[float, float]) -> tuple[float, float]:
    if not 0 < value[0] <= value[1]:
        raise ValueError("two numbers above 0 are needed, the smaller one first")
    return value


def _share(value: tuple[float, float]) -> tuple[float, float]:
    if value[1] > 1:
        raise ValueError("no more than all of an image, 1, can be kept")
    return value


Range = Annotated[tuple[float, float], AfterValidator(_ascending)]


class Augmentation(BaseModel):
    """How training images are changed, and their targets with them.

    Attributes:
        scale: share of the image's area that a crop keeps.
        ratio: width of a crop to its height.
        jitter: brightness, contrast and saturation are multiplied by 1 - jitter to 1 + jitter.
        policy: operations on colour and shape that are drawn for every image: RandAugment (arXiv 1909.13719), or ImageNet's
            AutoAugment (arXiv 1805.09501).
        erase: share of images of which a rectangle is erased (arXiv 1708.04896).
        mixup: parameter of the beta distribution that says how much of an image is mixed with another (arXiv 1710.09412); 0: none.
        cutmix: the same for rectangles of another image (arXiv 1905.04899). With both, either is equally likely.
        mix_probability: share of batches that are mixed.
        label_smoothing: probability that is spread evenly over all classes (arXiv 1512.00567).
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    scale: Annotated[Range, AfterValidator(_share)] = (0.35, 1.0)
    ratio: Range = (3 / 4, 4 / 3)
    jitter: float = Field(default=0.2, ge=0, lt=1)
    policy: Literal["none", "randaugment", "autoaugment"] = "none"
    erase: float = Field(default=0.0, ge=0, le=1)
    mixup: float = Field(default=0.0, ge=0)
    cutmix: float = Field(default=0.0, ge=0)
    mix_probability: float = Field(default=0.5, ge=0, le=1)
    label_smoothing: float = Field(default=0.1, ge=0, lt=1)

    @property
    def mixes(self) -> bool:
        """Whether targets are probabilities instead of labels."""
        return self.mixup > 0 or self.cutmix > 0


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


def draw_views(n: int, size: int, rng: np.random.Generator, augmentation: Augmentation, *, flip: bool) -> Views:
    """Views of `n` square images of side `size`, px.

    Crops are Inception's (arXiv 1409.4842), as in torchvision's RandomResizedCrop; one that would not fit is cut to the image
    instead of drawn again, so that every view costs the same draws.
    """
    area = size**2 * rng.uniform(*augmentation.scale, n)
    ratio = log_uniform(augmentation.ratio, n, rng)
    sides = np.stack([np.sqrt(area / ratio), np.sqrt(area * ratio)], axis=1)
    extent = np.clip(np.rint(sides), 1, size).astype(np.int64)
    corner = rng.integers(0, size - extent, endpoint=True)
    flips = rng.random(n) < 0.5
    factors = rng.uniform(1 - augmentation.jitter, 1 + augmentation.jitter, (3, n))
    return Views(np.concatenate([corner, extent], axis=1), flips & flip, *factors)


def log_uniform(bounds: tuple[float, float], n: int, rng: np.random.Generator) -> Floats:
    """(n,) numbers whose logarithms are evenly spread, as ratios should be."""
    return np.exp(rng.uniform(math.log(bounds[0]), math.log(bounds[1]), n))


def crop_resize(images: Tensor, views: Views, resolution: int) -> Tensor:
    """Bytes (b, 3, r, r) of images (b, 3, size, size), cropped, resized with antialiasing, and flipped."""
    out = torch.empty((len(images), resolution, resolution, 3), dtype=torch.uint8, device=images.device).permute(0, 3, 1, 2)
    for place, ((top, left, height, width), flip) in enumerate(zip(views.boxes, views.flips, strict=True)):
        view = resize(images[place : place + 1, :, top : top + height, left : left + width], resolution)
        out[place] = view[0].flip(-1) if flip else view[0]
    return out


def resize(images: Tensor, resolution: int) -> Tensor:
    """Bytes (n, 3, r, r) of whole images, bilinear with antialiasing.

    torch does so with bytes on the CPU alone; elsewhere it is done with floats, to the same grey level but for the last bit.
    """
    if images.shape[-2:] == (resolution, resolution):
        return images.to(torch.uint8)
    size = (resolution, resolution)
    if images.device.type == "cpu" and images.dtype == torch.uint8:
        return interpolate(images, size=size, mode="bilinear", antialias=True)
    return interpolate(images.float(), size=size, mode="bilinear", antialias=True).round_().to(torch.uint8)


def apply_policy(images: Tensor, policy: Literal["randaugment", "autoaugment"], seed: int) -> Tensor:
    """Bytes (n, 3, r, r), each changed by a policy of torchvision's. Which operations, depends on the seed alone."""
    from torchvision.transforms import v2  # slow, and few searches use a policy

    operations, strength = RANDAUGMENT
    transform = v2.RandAugment(operations, strength) if policy == "randaugment" else v2.AutoAugment()
    # torchvision draws from torch's own generator, which belongs to somebody else.
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        changed = torch.stack([transform(image) for image in images])
    return changed.contiguous(memory_format=torch.channels_last)


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
        torch.from_numpy(factor).float().reshape(n, 1, 1).to(images.device)
        for factor in (views.brightness, views.contrast, views.saturation)
    )
    luma = torch.tensor(LUMA, device=images.device)
    saturate = saturation * torch.eye(3, device=images.device) + (1 - saturation) * luma[:, None]
    # Neither brightness nor saturation changes which grey an image has on average, up to the factor: luma sums to one.
    grey = brightness * (colours.mean(dim=1, keepdim=True) @ luma[:, None])
    matrix = contrast * brightness * saturate / (255 * std)
    shift = ((1 - contrast) * grey / 255 - mean) / std
    return torch.bmm(colours, matrix).add_(shift).view(n, height, width, 3).permute(0, 3, 1, 2)


def draw_erased(n: int, rng: np.random.Generator, share: float) -> Floats:
    """(n, 4): top, left, height and width of what is erased, as shares of an image's side; 0 for what stays whole."""
    area = rng.uniform(*ERASED_AREA, n)
    ratio = log_uniform(ERASED_RATIO, n, rng)
    extent = np.minimum(np.stack([np.sqrt(area / ratio), np.sqrt(area * ratio)], axis=1), 1)
    boxes = np.concatenate([rng.random((n, 2)) * (1 - extent), extent], axis=1)
    return boxes * (rng.random((n, 1)) < share)


def erase(images: Tensor, boxes: Floats) -> Tensor:
    """Normalised images (n, 3, r, r), changed in place: boxes become the mean colour, which is zero."""
    for image, box in zip(images, boxes, strict=True):
        top, left, bottom, right = _pixels(box, images.shape[-1])
        image[:, top:bottom, left:right] = 0
    return images


@dataclass(frozen=True)
class Mixing:
    """How each image of a batch is mixed with another one.

    Attributes:
        partners: (b,) int64, which image of the batch is the other one.
        share: of the image itself.
        box: None where images are blended; else what comes from the other one instead: top, left, height, width, as shares of the
            side, before it is cut off at the border.
    """

    partners: npt.NDArray[np.int64]
    share: float
    box: Floats | None = None


def draw_mixing(n: int, rng: np.random.Generator, augmentation: Augmentation) -> Mixing | None:
    """How a batch of `n` images is mixed; None where it is not."""
    mixed, boxed = rng.random(2)
    if mixed >= augmentation.mix_probability:
        return None
    by_boxes = augmentation.cutmix > 0 and (not augmentation.mixup or boxed < 0.5)
    alpha = augmentation.cutmix if by_boxes else augmentation.mixup
    share, centre, partners = rng.beta(alpha, alpha), rng.random(2), rng.permutation(n)
    side = np.full(2, math.sqrt(1 - share))
    return Mixing(partners, share, np.concatenate([centre - side / 2, side]) if by_boxes else None)


def mix(images: Tensor, targets: Tensor, mixing: Mixing) -> tuple[Tensor, Tensor]:
    """Images (b, 3, r, r) and probabilities (b, classes), mixed. A box weighs by the pixels that it has in the end."""
    partners = torch.from_numpy(mixing.partners).to(images.device)
    share = mixing.share
    if mixing.box is None:
        images = images[partners].lerp_(images, share)
    else:
        top, left, bottom, right = _pixels(mixing.box, images.shape[-1])
        own, images = images, images.clone()
        images[:, :, top:bottom, left:right] = own[partners, :, top:bottom, left:right]
        share = 1 - (bottom - top) * (right - left) / images.shape[-1] ** 2
    return images, targets[partners].lerp_(targets, share)


def probabilities(labels: Tensor, classes: int) -> Tensor:
    """Labels (n,) as probabilities (n, classes) fp32."""
    return one_hot(labels, classes).float()


def _pixels(box: Floats, resolution: int) -> tuple[int, int, int, int]:
    """Top, left, bottom and right, px, within the image."""
    top, left, height, width = box
    edges = np.clip([top, left, top + height, left + width], 0, 1)
    top, left, bottom, right = np.rint(resolution * edges).astype(int).tolist()
    return top, left, bottom, right
