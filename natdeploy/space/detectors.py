"""Heads that find objects: which maps they answer on, and what their convolutions cost.

The published SSDLite reads the expanded features of the first block behind stride 16 (MobileNetV2, arXiv 1801.04381, section 6.2),
which ties the head's channels to that block's expansion: FNA has to take the smaller expansions out of its space. Here it reads the
output of the last stage of stride 16 instead. That has the same place and size whatever is chosen in the stages, so the space stays
whole and every architecture has the same head; it has a sixth of the channels, or a third.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, TypeGuard, get_args

DetectorKind = Literal["ssdlite", "retinanet"]
DETECTOR_KINDS: tuple[DetectorKind, ...] = get_args(DetectorKind)

DetectorPart = Literal["ssdlite", "ssdlite_low", "retinanet", "retinanet_level"]
DETECTOR_PARTS: tuple[DetectorPart, ...] = get_args(DetectorPart)
"""Of heads, as blocks. `ssdlite`: extra maps, and the answers on these and the last stage; `ssdlite_low`: the answers on the stage
before. `retinanet`: what the pyramid makes of the last stage, and the answers; `retinanet_level`: the same of one stage before."""

SSD_MAPS, SSD_ANCHORS = 6, 6
"""Feature maps that SSDLite answers on, two of the backbone and four that it makes, and anchors at a place of each."""
FPN_MAPS, FPN_ANCHORS = 5, 9
"""The same of RetinaNet's pyramid: three of the backbone, and two that it makes (arXiv 1708.02002)."""

READS: dict[DetectorKind, int] = {"ssdlite": 2, "retinanet": 3}
"""How many of the backbone's strides, the last ones, a head reads: of each the last stage."""


def finds(kind: str) -> TypeGuard[DetectorKind]:
    """Whether it is the kind of a head that finds objects."""
    return kind in DETECTOR_KINDS


def stages_read(kind: DetectorKind, strides: Sequence[int]) -> tuple[int, ...]:
    """Numbers of the stages that a head reads, of a space whose stages end at these strides; all of them, where they are fewer."""
    last = {stride: number for number, stride in enumerate(strides)}
    return tuple(last.values())[-READS[kind] :]


def cells(side: int, maps: int) -> list[int]:
    """Cells a side of every map, the largest of which has so many; each has half of those of the one before, rounded up."""
    return [-(-side // 2**number) for number in range(maps)]


def anchor_count(kind: DetectorKind, side: int) -> int:
    """Of a head whose largest map has so many cells a side."""
    maps, each = (SSD_MAPS, SSD_ANCHORS) if kind == "ssdlite" else (FPN_MAPS, FPN_ANCHORS)
    return each * sum(count**2 for count in cells(side, maps))


def extra_channels(channels: int) -> list[int]:
    """Of SSDLite's four extra maps (torchvision's 512, 256, 256, 128)."""
    return [max(16, channels // part) for part in (1, 2, 2, 4)]


@dataclass(frozen=True)
class Conv:
    """A convolution of a head.

    Attributes:
        inputs: channels.
        outputs: channels.
        positions: pixels of its output, of all maps that share it.
        kernel: height and width.
        depthwise: whether every channel is filtered alone.
        normed: whether batch normalisation follows, instead of a bias.
        shared: whether the weights are those of another part.
    """

    inputs: int
    outputs: int
    positions: int
    kernel: int = 1
    depthwise: bool = False
    normed: bool = False
    shared: bool = False

    @property
    def weights(self) -> int:
        return self.kernel**2 * self.outputs * (1 if self.depthwise else self.inputs)

    @property
    def params(self) -> int:
        return 0 if self.shared else self.weights + (2 if self.normed else 1) * self.outputs


def convs(part: DetectorPart, inputs: int, channels: int, classes: int, side: int) -> Iterator[Conv]:
    """The convolutions of a part of a head, on a map of so many cells a side."""
    if part in ("ssdlite", "ssdlite_low"):
        outs = extra_channels(channels) if part == "ssdlite" else []
        for number, (before, count) in enumerate(zip([inputs, *outs], cells(side, 1 + len(outs)), strict=True)):
            for columns in (4, classes + 1):
                yield Conv(before, before, count**2, 3, depthwise=True, normed=True)
                yield Conv(before, SSD_ANCHORS * columns, count**2)
            if number < len(outs):
                mid, smaller = outs[number] // 2, cells(count, 2)[1] ** 2
                yield Conv(before, mid, count**2, normed=True)
                yield Conv(mid, mid, smaller, 3, depthwise=True, normed=True)
                yield Conv(mid, outs[number], smaller, normed=True)
        return
    own = part == "retinanet"
    maps = [count**2 for count in cells(side, 3 if own else 1)]
    yield Conv(inputs, channels, maps[0])
    yield Conv(channels, channels, maps[0], 3)
    for positions in maps[1:]:
        yield Conv(channels, channels, positions, 3)
    for columns in (4, classes):
        for _ in range(4):
            yield Conv(channels, channels, sum(maps), 3, shared=not own)
        yield Conv(channels, FPN_ANCHORS * columns, sum(maps), 3, shared=not own)
