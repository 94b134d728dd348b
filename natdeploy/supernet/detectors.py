"""Heads that find objects: SSDLite and RetinaNet on the features of a searched backbone, and what their answers mean.

A head answers for anchors, boxes that lie in a fixed pattern over the image: how each is to be moved and stretched, and what it
shows. All boxes are left, top, right, bottom as shares of the image's sides, so nothing depends on its size in pixels. Which stages
a head reads, and why: `space/detectors.py`.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Sequence
from functools import lru_cache, partial
from typing import cast

import torch
from torch import Tensor, nn

from natdeploy.space import SearchSpace
from natdeploy.space.detectors import (
    FPN_ANCHORS,
    FPN_MAPS,
    SSD_ANCHORS,
    SSD_MAPS,
    DetectorKind,
    anchor_count,
    cells,
    extra_channels,
    finds,
)

_SSD_RATIOS = (2, 3)
"""Of anchors, besides squares, lying and standing (torchvision's SSDLite)."""
_SSD_SCALES = (0.2, 0.95)
"""Sides of the largest map's anchors and the smallest's, as a share of the image's (MobileNetV3, arXiv 1905.02244)."""
_SSD_SPREAD = 0.03
_SSD_EPS = 1e-3

_FPN_CELLS = (4, 4 * 2 ** (1 / 3), 4 * 2 ** (2 / 3))
"""Sides of anchors, in cells of their map (arXiv 1708.02002)."""
_FPN_RATIOS = (0.5, 1.0, 2.0)
_PRIOR = 0.01
"""Probability that every anchor begins with, so that the many empty ones do not drown the others (section 4.1)."""

WEIGHTS: dict[DetectorKind, tuple[float, float, float, float]] = {"ssdlite": (10, 10, 5, 5), "retinanet": (1, 1, 1, 1)}
"""By which offsets are multiplied before they are learned, as in torchvision: how far to move, and how far to stretch."""
_LARGEST = math.log(1000 / 16)
"""No anchor is stretched by more than e to this; torchvision's bound."""

CANDIDATES, OVERLAP, LEAST, MOST = 400, 0.5, 0.01, 100
"""Of an image: the best so many of all scores, from `LEAST` on, are looked at (SSD); of those of a class that overlap by more than
`OVERLAP`, the best is kept; and in all at most `MOST`, as COCO's metric does."""

_CERTAIN = 1e-6
"""Nothing is more certain, nor less: fp32 tells no more of a score near 1."""

BACKGROUND = 1
"""Columns of an answer before those of the classes: the background's logit, which is 0 where classes are judged each by itself."""


class SSDLite(nn.Module):
    """torchvision's SSDLite head (depthwise convolutions) on two stages of the backbone, and its four extra maps.

    Args:
        stages: the last one of half the final size, and the last.
        inputs: channels of both.
        channels: of the first extra map; the others have a half, a half and a quarter. Published is 512.
        classes: that are told apart, background not counted.
        extra: whether there are extra maps.
    """

    def __init__(self, stages: Sequence[int], inputs: Sequence[int], channels: int, classes: int, *, extra: bool = True) -> None:
        from torchvision.models.detection.ssdlite import SSDLiteClassificationHead, SSDLiteRegressionHead  # slow to import

        super().__init__()
        self.reads = tuple(stages)
        self.decode = Decode("ssdlite")
        norm = partial(nn.BatchNorm2d, eps=_SSD_EPS)
        outs = extra_channels(channels) if extra else []
        self.extra = nn.ModuleList(_extra(before, out, norm) for before, out in zip((inputs[-1], *outs), outs, strict=False))
        maps, anchors = [*inputs, *outs], [SSD_ANCHORS] * (len(inputs) + len(outs))
        self.boxes = SSDLiteRegressionHead(maps, anchors, norm)
        self.scores = SSDLiteClassificationHead(maps, anchors, classes + 1, norm)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Answers (n, a, 4 + BACKGROUND + classes) in training, decoded ones (n, a, 4 + classes) in evaluation."""
        answers = self.answers([features[number] for number in self.reads])
        return answers if self.training else cast(Tensor, self.decode(answers))

    def answers(self, maps: Sequence[Tensor]) -> Tensor:
        """Offsets and logits of every anchor, from the maps of the backbone."""
        maps = [*maps]
        for block in self.extra:
            maps.append(block(maps[-1]))
        columns = []
        for head in (self.boxes, self.scores):
            parts = zip(head.module_list, maps, strict=True)
            columns.append(torch.cat([_rows(part(x), head.num_columns) for part, x in parts], dim=1))
        return torch.cat(columns, dim=2)

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
        extra: whether there are the two maps that it makes.
    """

    def __init__(self, stages: Sequence[int], inputs: Sequence[int], channels: int, classes: int, *, extra: bool = True) -> None:
        from torchvision.models.detection.retinanet import RetinaNetHead  # slow to import
        from torchvision.ops.feature_pyramid_network import FeaturePyramidNetwork, LastLevelP6P7

        super().__init__()
        self.reads = tuple(stages)
        self.decode = Decode("retinanet")
        self.fpn = FeaturePyramidNetwork(list(inputs), channels, LastLevelP6P7(channels, channels) if extra else None)
        self.head = RetinaNetHead(channels, FPN_ANCHORS, classes)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Answers (n, a, 4 + BACKGROUND + classes) in training, decoded ones (n, a, 4 + classes) in evaluation."""
        answers = self.answers([features[number] for number in self.reads])
        return answers if self.training else cast(Tensor, self.decode(answers))

    def answers(self, maps: Sequence[Tensor]) -> Tensor:
        """Offsets and logits of every anchor, from the maps of the backbone."""
        pyramid = self.fpn(OrderedDict((str(number), x) for number, x in enumerate(maps))).values()
        boxes, scores = self.head.regression_head, self.head.classification_head
        offsets = torch.cat([_rows(boxes.bbox_reg(boxes.conv(x)), 4) for x in pyramid], dim=1)
        logits = torch.cat([_rows(scores.cls_logits(scores.conv(x)), scores.num_classes) for x in pyramid], dim=1)
        return torch.cat([offsets, torch.zeros_like(logits[..., :BACKGROUND]), logits], dim=2)

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
    return x.permute(0, 2, 3, 1).reshape(x.shape[0], -1, columns)


Detector = SSDLite | RetinaNet


def build_detector(kind: DetectorKind, space: SearchSpace, width: float, channels: int, classes: int) -> Detector:
    """The head on the features of a space's stages, with torchvision's initial weights."""
    stages = space.detector_stages(kind)
    inputs = [space.stage_out(number, width) for number in stages]
    return (SSDLite if kind == "ssdlite" else RetinaNet)(stages, inputs, channels, classes)


def answered(space: SearchSpace, resolution: int) -> int:
    """Anchors that the head of a space answers for, of images of a resolution; 0 where it finds no objects."""
    if space.dense is None or not finds(space.dense.kind):
        return 0
    kind = space.dense.kind
    return anchor_count(kind, space.stage_size(space.detector_stages(kind)[0] + 1, resolution)[0])


# ---- anchors


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

    maps = [torch.empty(1, 1, count, count) for count in cells(side, SSD_MAPS)]
    make = DefaultBoxGenerator([list(_SSD_RATIOS)] * SSD_MAPS, *_SSD_SCALES)
    return cast(Tensor, make(_image(1), maps)[0])


def _fpn_anchors(side: int) -> Tensor:
    from torchvision.models.detection.anchor_utils import AnchorGenerator

    # Drawn for an image of 8 px a cell, as at stride 8: the generator counts and rounds in pixels.
    pixels = 8 * side
    sizes = tuple(tuple(int(8 * 2**number * each) for each in _FPN_CELLS) for number in range(FPN_MAPS))
    make = AnchorGenerator(sizes, (_FPN_RATIOS,) * FPN_MAPS)
    return cast(Tensor, make(_image(pixels), [torch.empty(1, 1, count, count) for count in cells(side, FPN_MAPS)])[0]) / pixels


def _image(pixels: int) -> object:
    """A square image, as torchvision's generators want to be told of one."""
    from torchvision.models.detection.image_list import ImageList

    return ImageList(torch.empty(1, 3, pixels, pixels), [(pixels, pixels)])


# ---- answers


class Decode(nn.Module):
    """What a head's answers mean: (n, a, 4 + BACKGROUND + classes) -> (n, a, 4 + classes), boxes within the image and scores 0..1.

    Args:
        kind: of the head.
    """

    def __init__(self, kind: DetectorKind) -> None:
        super().__init__()
        self.kind = kind
        self.places: Tensor | None = None

    def keep(self, count: int) -> None:
        """Holds the anchors of a head that has so many: an exporter cannot follow how they are made."""
        with torch.device("cpu"):  # also of a head that has no memory yet
            self.places = anchors(self.kind, count)

    def forward(self, answers: Tensor) -> Tensor:
        places = (anchors(self.kind, answers.shape[1]) if self.places is None else self.places).to(answers.device)
        extent = places[:, 2:] - places[:, :2]
        move, _, stretch, _ = WEIGHTS[self.kind]
        centre = answers[..., :2] * (extent / move) + (places[:, :2] + extent / 2)
        half = (answers[..., 2:4] / stretch).clamp(max=_LARGEST).exp() * (extent / 2)
        logits = answers[..., 4:]
        boxes = torch.cat([centre - half, centre + half], dim=2).clamp(0, 1)
        scores = logits.softmax(2)[..., BACKGROUND:] if self.kind == "ssdlite" else logits[..., BACKGROUND:].sigmoid()
        return torch.cat([boxes, scores], dim=2)


def encode(kind: DetectorKind, decoded: Tensor) -> Tensor:
    """Answers (n, a, 4 + BACKGROUND + classes) that mean decoded ones (n, a, 4 + classes), as far as these tell: to judge by."""
    places = anchors(kind, decoded.shape[1]).to(decoded.device)
    corner, far = decoded[..., :2], decoded[..., 2:4]
    boxes = torch.cat([corner, far.maximum(corner + _CERTAIN)], dim=2)  # what was moved out of the image has no size any more
    scores = decoded[..., 4:]
    if kind == "ssdlite":
        logits = torch.cat([1 - scores.sum(dim=2, keepdim=True), scores], dim=2).clamp(min=_CERTAIN).log()
    else:
        logits = torch.cat([torch.zeros_like(scores[..., :BACKGROUND]), scores.logit(_CERTAIN)], dim=2)
    return torch.cat([offsets_of(kind, boxes, places.expand(len(decoded), -1, -1)), logits], dim=2)


def offsets_of(kind: DetectorKind, boxes: Tensor, places: Tensor) -> Tensor:
    """What anchors (..., 4) have to answer to become boxes (..., 4)."""
    from torchvision.models.detection._utils import BoxCoder  # slow to import

    result: Tensor = BoxCoder(WEIGHTS[kind]).encode_single(boxes.reshape(-1, 4), places.reshape(-1, 4))
    return result.view_as(boxes)


def select(decoded: Tensor) -> Tensor:
    """The objects (d, 6) found in one image, best first: box, label, score.

    Args:
        decoded: (a, 4 + classes), of `Decode`.
    """
    count, columns = decoded.shape
    return _select(decoded, columns - 4, min(CANDIDATES, count * (columns - 4)))


class Select(nn.Module):
    """`select` of (1, a, 4 + classes), as a part of a network that is exported: it is made of what ONNX has."""

    def __init__(self, count: int, classes: int) -> None:
        super().__init__()
        self.classes, self.candidates = classes, min(CANDIDATES, count * classes)

    def forward(self, decoded: Tensor) -> Tensor:
        return _select(decoded[0], self.classes, self.candidates)


def _select(decoded: Tensor, classes: int, candidates: int) -> Tensor:
    """Non-maximum suppression, class by class, of the best candidates."""
    from torchvision.ops import nms  # slow to import

    scores, at = decoded[:, 4:].flatten().topk(candidates)
    labels = (at % classes).to(decoded.dtype)
    boxes = decoded[:, :4][torch.div(at, classes, rounding_mode="floor")]
    # Boxes of different classes are moved apart, so one pass serves all.
    kept = nms(boxes + 2 * labels[:, None], scores, OVERLAP)[:MOST]
    found = torch.cat([boxes, labels[:, None], scores[:, None]], dim=1)[kept]
    return found[found[:, 5] >= LEAST]
