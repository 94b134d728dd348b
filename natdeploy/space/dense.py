"""Dense tasks, which answer for places of an image: the shape of their input, their heads, and what those cost."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

from natdeploy.errors import UsageError
from natdeploy.space.detectors import DETECTOR_KINDS, DETECTOR_PARTS, Conv, DetectorKind, DetectorPart, convs

if TYPE_CHECKING:
    from natdeploy.space.blocks import Block

PixelKind = Literal["deeplabv3", "lraspp"]
PIXEL_KINDS: tuple[PixelKind, ...] = get_args(PixelKind)
HeadKind = PixelKind | DetectorKind
HEAD_KINDS: tuple[HeadKind, ...] = (*PIXEL_KINDS, *DETECTOR_KINDS)

PixelPart = Literal["deeplabv3", "lraspp", "lraspp_low"]
DenseKind = PixelPart | DetectorPart
DENSE_KINDS: tuple[DenseKind, ...] = (*get_args(PixelPart), *DETECTOR_PARTS)
"""Parts of heads as blocks: DeepLabV3's whole; of LR-ASPP what reads the last features and the 1x1 convolution on the low ones;
those of detectors."""

STEP = 32
"""Px in which widths of inputs differ from heights. At every stage down to a thirty-second, both are then even, or both odd."""

LOW_STRIDE = 8
"""Of the features that LR-ASPP takes besides the last (MobileNetV3, arXiv 1905.02244, section 6.4)."""

ASPP_STRIDE = 16
"""Output stride that `HeadSpec.rates` are meant for; at 8 they are twice as large (arXiv 1706.05587, section 3.3)."""


@dataclass(frozen=True)
class HeadSpec:
    """Which head, and how large. It is not searched: every architecture of a space has the same one.

    Attributes:
        kind: `deeplabv3`: separable ASPP on the last stage (arXiv 1706.05587, 1802.02611); `lraspp`: MobileNetV3's, on the last
            stage and the last one of stride 8; `ssdlite` and `retinanet`: they find objects (`detectors.py`).
        channels: of every branch; published are 256 for DeepLabV3 and 128 for LR-ASPP. Of SSDLite's first extra map, 512; of
            RetinaNet's pyramid, 256.
        rates: dilations of ASPP's 3x3 branches at output stride 16.
    """

    kind: HeadKind
    channels: int = 256
    rates: tuple[int, ...] = (6, 12, 18)

    def __post_init__(self) -> None:
        if self.kind not in HEAD_KINDS:
            raise UsageError(f"there is no head {self.kind!r}; choose one of {', '.join(HEAD_KINDS)}")
        if self.channels < 1 or min(self.rates, default=0) < 1:
            raise UsageError(f"a head needs channels and rates of 1 or more, not {self.channels} and {list(self.rates)}")

    def rates_at(self, output_stride: int) -> tuple[int, ...]:
        """The dilations that see as far at another output stride."""
        return tuple(max(1, rate * ASPP_STRIDE // output_stride) for rate in self.rates)


def input_size(resolution: int, aspect: float) -> tuple[int, int]:
    """Height and width of the input at a resolution, px: images of an aspect (width to height), as nearly as steps of `STEP` px
    allow.
    """
    steps = round(resolution * (aspect - 1) / STEP)
    least = -((resolution - 1) // STEP)  # leaves a column at least
    return resolution, resolution + STEP * max(steps, least)


@dataclass(frozen=True)
class DenseCost:
    """Of one image, in a part of a dense head.

    Attributes:
        depthwise_macs: multiply-accumulates of depthwise convolutions.
        pointwise_macs: of all others; interpolation is not counted.
        weights: of all convolutions.
        params: trainable ones; scale and shift of batch normalisation, and biases, included.
        elements: of the feature maps that are written.
        resized: those of them that are interpolated.
    """

    depthwise_macs: int
    pointwise_macs: int
    weights: int
    params: int
    elements: int
    resized: int

    @property
    def macs(self) -> int:
        return self.depthwise_macs + self.pointwise_macs


def dense_cost(block: Block) -> DenseCost:
    """What a part of a dense head costs."""
    inputs, mid, classes = block.in_channels, block.mid_channels, block.out_channels
    if block.kind in DETECTOR_PARTS:
        return _detector_cost(convs(block.kind, inputs, mid, classes, block.out_size))
    if block.kind == "lraspp_low":
        at = block.in_positions
        return DenseCost(0, at * inputs * classes, inputs * classes, (inputs + 1) * classes, 2 * at * classes, 0)
    at, answers = block.positions(block.stride), block.in_positions * classes
    if block.kind == "lraspp":
        low = block.positions(block.low_stride)
        weights = 2 * inputs * mid + mid * classes
        return DenseCost(
            depthwise_macs=0,
            pointwise_macs=(at + 1) * inputs * mid + low * mid * classes,
            weights=weights,
            params=weights + 2 * mid + classes,
            elements=2 * at * mid + mid + low * (mid + classes) + answers,
            resized=low * mid + answers,
        )
    branches = len(block.rates)
    depthwise, pointwise = 9 * inputs * branches, (1 + branches) * inputs * mid + (2 + branches) * mid**2 + mid * classes
    weights = depthwise + pointwise + inputs * mid
    return DenseCost(
        depthwise_macs=at * depthwise,
        pointwise_macs=at * pointwise + inputs * mid,
        weights=weights,
        params=weights + 2 * (inputs * branches + (3 + branches) * mid) + classes,
        elements=at * (inputs * branches + (3 + branches) * mid + classes) + mid + answers,
        resized=at * mid + answers,
    )


def _detector_cost(layers: Iterable[Conv]) -> DenseCost:
    every = list(layers)
    return DenseCost(
        depthwise_macs=sum(each.positions * each.weights for each in every if each.depthwise),
        pointwise_macs=sum(each.positions * each.weights for each in every if not each.depthwise),
        weights=sum(each.weights for each in every),
        params=sum(each.params for each in every),
        elements=sum(each.positions * each.outputs for each in every),
        resized=0,
    )
