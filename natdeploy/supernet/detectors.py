"""Heads that find objects: SSDLite and RetinaNet on the features of a searched backbone, and what their answers mean.

A head answers for anchors, boxes that lie in a fixed pattern over the image: how each is to be moved and stretched, and what it
shows. All boxes are left, top, right, bottom as shares of the image's sides, so nothing depends on its size in pixels.

The published SSDLite reads the expanded features of the first block behind stride 16 (MobileNetV2, arXiv 1801.04381, section 6.2),
which ties the head's channels to that block's expansion: FNA has to take the smaller expansions out of its space. Here it reads the
output of the last stage of stride 16 instead. That has the same place and size whatever is chosen in the stages, so the space stays
whole and every architecture of a supernet has the same head; it has a sixth of the channels, or a third.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Sequence
from functools import lru_cache, partial
from typing import Literal, cast, get_args

import torch
from torch import Tensor, nn

DetectorKind = Literal["ssdlite", "retinanet"]
DETECTOR_KINDS: tuple[DetectorKind, ...] = get_args(DetectorKind)

SSD_MAPS = 6
"""Feature maps that SSDLite answers on: two of the backbone and four that it makes, each half as large as the one before."""
SSD_RATIOS = (2, 3)
"""Of anchors, besides squares, lying and standing (torchvision's SSDLite)."""
SSD_SCALES = (0.2, 0.95)
"""Sides of the smallest map's anchors and the largest's, as a share of the image's (MobileNetV3, arXiv 1905.02244)."""
_SSD_SPREAD = 0.03
_SSD_EPS = 1e-3

FPN_MAPS = 5
"""Feature maps of the pyramid: three of the backbone, and two that it makes (arXiv 1708.02002)."""
_FPN_CELLS = (4, 4 * 2 ** (1 / 3), 4 * 2 ** (2 / 3))
"""Sides of anchors, in cells of their map."""
_FPN_RATIOS = (0.5, 1.0, 2.0)
_PRIOR = 0.01
"""Probability that every anchor begins with, so that the many empty ones do not drown the others (section 4.1)."""

WEIGHTS: dict[DetectorKind, tuple[float, float, float, float]] = {"ssdlite": (10, 10, 5, 5), "retinanet": (1, 1, 1, 1)}
"""By which offsets are multiplied before they are learned, as in torchvision."""
_LARGEST = math.log(1000 / 16)
"""No anchor is stretched by more than e to this; torchvision's bound."""

CANDIDATES, OVERLAP, LEAST, MOST = 400, 0.5, 0.01, 100
"""Of an image: the best so many of all scores, from `LEAST` on, are looked at (SSD); of those of a class that overlap by more than
`OVERLAP`, the best is kept; and in all at most `MOST`, as COCO's metric does."""


class SSDLite(nn.Module):
    """torchvision's SSDLite head (depthwise convolutions) on two stages of the backbone, and its four extra maps.

    Args:
        stages: the last one of half the final size, and the last.
        inputs: channels of both.
        channels: of the first extra map; the others have a half, a half and a quarter. Published is 512.
        classes: that are told apart, background not counted.
    """

    def __init__(self, stages: Sequence[int], inputs: Sequence[int], channels: int, classes: int) -> None:
        from torchvision.models.detection.ssdlite import SSDLiteClassificationHead, SSDLiteRegressionHead  # slow to import

        super().__init__()
        self.reads = tuple(stages)
        norm = partial(nn.BatchNorm2d, eps=_SSD_EPS)
        outs = [max(16, channels // part) for part in (1, 2, 2, 4)]
        self.extra = nn.ModuleList(_extra(before, out, norm) for before, out in zip((inputs[-1], *outs), outs, strict=False))
        maps, anchors = [*inputs, *outs], [2 + 2 * len(SSD_RATIOS)] * SSD_MAPS
        self.boxes = SSDLiteRegressionHead(maps, anchors, norm)
        self.scores = SSDLiteClassificationHead(maps, anchors, classes + 1, norm)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Offsets and logits of every anchor (n, a, 4 + 1 + classes); the first logit is the background's."""
        maps = [features[number] for number in self.reads]
        for block in self.extra:
            maps.append(block(maps[-1]))
        heads = ((self.boxes.module_list, 4), (self.scores.module_list, self.scores.num_columns))
        return torch.cat(
            [torch.cat([_rows(part(x), columns) for part, x in zip(head, maps, strict=True)], 1) for head, columns in heads], 2
        )

    def initialise(self, generator: torch.Generator) -> None:
        """As torchvision's: all convolutions of the head from N(0, 0.03^2)."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, 0, _SSD_SPREAD, generator=generator)


def _extra(before: int, out: int, norm: partial[nn.BatchNorm2d]) -> nn.Sequential:
    """SSDLite's extra map: a 1x1 convolution, a depthwise one of stride 2, and a 1x1 convolution (torchvision's `_extra_block`)."""
    from torchvision.ops.misc import Conv2dNormActivation

    layer = partial(Conv2dNormActivation, norm_layer=norm, activation_layer=nn.ReLU6)
    mid = out // 2
    return nn.Sequential(
        layer(before, mid, kernel_size=1),
        layer(mid, mid, kernel_size=3, stride=2, groups=mid),
        layer(mid, out, kernel_size=1),
    )


class RetinaNet(nn.Module):
    """torchvision's feature pyramid and RetinaNet head on three stages of the backbone (arXiv 1708.02002).

    Args:
        stages: the last one of four times the final size, of twice, and the last.
        inputs: channels of each.
        channels: of the pyramid. Published is 256.
        classes: that are told apart.
    """

    def __init__(self, stages: Sequence[int], inputs: Sequence[int], channels: int, classes: int) -> None:
        from torchvision.models.detection.retinanet import RetinaNetHead  # slow to import
        from torchvision.ops.feature_pyramid_network import FeaturePyramidNetwork, LastLevelP6P7

        super().__init__()
        self.reads = tuple(stages)
        self.fpn = FeaturePyramidNetwork(list(inputs), channels, LastLevelP6P7(channels, channels))
        self.head = RetinaNetHead(channels, len(_FPN_CELLS) * len(_FPN_RATIOS), classes)
        self.classes = classes

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Offsets and logits of every anchor (n, a, 4 + classes)."""
        maps = self.fpn(OrderedDict((str(number), features[number]) for number in self.reads)).values()
        boxes, scores = self.head.regression_head, self.head.classification_head
        parts = ((boxes.conv, boxes.bbox_reg, 4), (scores.conv, scores.cls_logits, self.classes))
        return torch.cat([torch.cat([_rows(last(conv(x)), columns) for x in maps], 1) for conv, last, columns in parts], 2)

    def initialise(self, generator: torch.Generator) -> None:
        """As torchvision's: the pyramid by He et al. (uniform), the head from N(0, 0.01^2), and few objects expected."""
        for module in self.fpn.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_uniform_(module.weight, a=1, generator=generator)
        for module in self.head.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, 0, 0.01, generator=generator)
        nn.init.constant_(self.head.classification_head.cls_logits.bias, -math.log((1 - _PRIOR) / _PRIOR))


def _rows(x: Tensor, columns: int) -> Tensor:
    """(n, anchors * columns, h, w) -> (n, h * w * anchors, columns): the order of the anchors."""
    return x.permute(0, 2, 3, 1).reshape(len(x), -1, columns)


Detector = SSDLite | RetinaNet


# ---- anchors


def anchor_count(kind: DetectorKind, side: int) -> int:
    """Of a head whose largest map has so many cells a side."""
    if kind == "ssdlite":
        return (2 + 2 * len(SSD_RATIOS)) * sum(cells**2 for cells in _cells(side, SSD_MAPS))
    return len(_FPN_CELLS) * len(_FPN_RATIOS) * sum(cells**2 for cells in _cells(side, FPN_MAPS))


def _cells(side: int, maps: int) -> list[int]:
    """Cells a side of every map; each has half of those of the one before, rounded up."""
    return [-(-side // 2**number) for number in range(maps)]


@lru_cache(maxsize=64)
def anchors(kind: DetectorKind, count: int) -> Tensor:
    """The anchors (count, 4) of a head that answers for so many; the number says which maps it has.

    Raises:
        ValueError: no square input leads to so many.
    """
    side = next((side for side in range(1, count + 1) if anchor_count(kind, side) >= count), 0)
    if not side or anchor_count(kind, side) != count:
        raise ValueError(f"{kind} has {count} anchors for no square input")
    with torch.inference_mode(False):  # what is kept may be asked for again when something is trained
        return _ssd_anchors(side) if kind == "ssdlite" else _fpn_anchors(side)


def _ssd_anchors(side: int) -> Tensor:
    from torchvision.models.detection.anchor_utils import DefaultBoxGenerator

    maps = [torch.empty(1, 1, cells, cells) for cells in _cells(side, SSD_MAPS)]
    make = DefaultBoxGenerator([list(SSD_RATIOS)] * SSD_MAPS, *SSD_SCALES)
    return cast(Tensor, make(_image(1), maps)[0])


def _fpn_anchors(side: int) -> Tensor:
    from torchvision.models.detection.anchor_utils import AnchorGenerator

    cells = _cells(side, FPN_MAPS)
    # Drawn for an image of 8 px a cell, as at stride 8: the generator counts and rounds in pixels.
    pixels = 8 * side
    sizes = tuple(tuple(int(8 * 2**number * each) for each in _FPN_CELLS) for number in range(FPN_MAPS))
    make = AnchorGenerator(sizes, (_FPN_RATIOS,) * FPN_MAPS)
    return cast(Tensor, make(_image(pixels), [torch.empty(1, 1, each, each) for each in cells])[0]) / pixels


def _image(pixels: int) -> object:
    """A square image, as torchvision's generators want to be told of one."""
    from torchvision.models.detection.image_list import ImageList

    return ImageList(torch.empty(1, 3, pixels, pixels), [(pixels, pixels)])


# ---- answers


class Decode(nn.Module):
    """What a head's answers mean: (n, a, columns) -> (n, a, 4 + classes), boxes within the image and scores 0..1.

    Args:
        kind: of the head.
        count: a, of its anchors.
    """

    places: Tensor
    scale: Tensor

    def __init__(self, kind: DetectorKind, count: int) -> None:
        super().__init__()
        known = anchors(kind, count)
        self.kind = kind
        extent = known[:, 2:] - known[:, :2]
        self.register_buffer("places", torch.cat([known[:, :2] + extent / 2, extent], dim=1)[None], persistent=False)
        self.register_buffer("scale", 1 / torch.tensor(WEIGHTS[kind]), persistent=False)

    def forward(self, answers: Tensor) -> Tensor:
        offsets, logits = (answers[..., :4] * self.scale), answers[..., 4:]
        extent = self.places[..., 2:]
        centre = offsets[..., :2] * extent + self.places[..., :2]
        half = offsets[..., 2:].clamp(max=_LARGEST).exp() * (extent / 2)
        boxes = torch.cat([centre - half, centre + half], dim=2).clamp(0, 1)
        scores = logits.softmax(2)[..., 1:] if self.kind == "ssdlite" else logits.sigmoid()
        return torch.cat([boxes, scores], dim=2)


@lru_cache(maxsize=64)
def decoder(kind: DetectorKind, count: int) -> Decode:
    """The one for so many anchors, on the processor; kept, for it is asked for with every batch."""
    with torch.inference_mode(False):
        return Decode(kind, count)


def select(decoded: Tensor) -> Tensor:
    """The objects (d, 6) found in one image, best first: box, label, score.

    Non-maximum suppression, class by class, of the best candidates. It is made of what ONNX has, so it can be exported.

    Args:
        decoded: (a, 4 + classes), of `Decode`.
    """
    from torchvision.ops import nms

    classes = decoded.shape[1] - 4
    every = decoded[:, 4:].flatten()
    scores, at = every.topk(min(CANDIDATES, every.shape[0]))
    labels = (at % classes).to(decoded.dtype)
    boxes = decoded[:, :4][torch.div(at, classes, rounding_mode="floor")]
    # Boxes of different classes are moved apart, so one pass serves all.
    kept = nms(boxes + 2 * labels[:, None], scores, OVERLAP)[:MOST]
    found = torch.cat([boxes, labels[:, None], scores[:, None]], dim=1)[kept]
    return found[found[:, 5] >= LEAST]
