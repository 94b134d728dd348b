"""Heads for dense tasks: what reads the features of the stages, where classification has pooling and a linear layer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

from torch import Tensor, nn
from torch.nn.functional import interpolate

from natdeploy.space import Block, SearchSpace
from natdeploy.space.detectors import finds
from natdeploy.supernet.detectors import Detector, RetinaNet, SSDLite, build_detector


def build_head(space: SearchSpace, width: float, classes: int) -> nn.Module:
    """The dense head of a space on the features of its stages, with torch's default initial weights.

    It takes the outputs of all stages, first to last, (n, c, h, w) each, and gives logits (n, classes, h', w') at the size of the
    largest of those it reads; `upsample` brings them to the image's. Heads that find objects answer otherwise (`detectors.py`).
    """
    spec = space.dense
    assert spec is not None, "a space without a dense head has pooling and a linear layer"
    if finds(spec.kind):
        return build_detector(spec.kind, space, width, spec.channels, classes)
    outs = [space.stage_out(number, width) for number in range(len(space.stages))]
    if spec.kind == "lraspp":
        low = space.low_stage()
        return LRASPP(low, outs[low], outs[-1], spec.channels, classes)
    return DeepLabV3(outs[-1], spec.channels, spec.rates_at(space.reached_stride), classes)


def answers(head: nn.Module, features: Sequence[Tensor], size: Sequence[int]) -> Tensor:
    """What a dense head answers to an image of a size (height, width): logits (n, classes, *size), or a detector's answers."""
    logits = cast(Tensor, head(features))
    return logits if isinstance(head, Detector) else upsample(logits, size)


def upsample(logits: Tensor, size: Sequence[int]) -> Tensor:
    """Logits (n, classes, h, w) -> (n, classes, *size), bilinear, edges aligned with edges."""
    return interpolate(logits, size=tuple(size), mode="bilinear", align_corners=False)


class DeepLabV3(nn.Module):
    """DeepLabV3's head with separable convolutions, as Google's MobileNetV2 for segmentation has it.

    torchvision's ASPP, whose 3x3 branches become depthwise and 1x1 convolutions, each with its normalisation, and which loses its
    dropout: that draws from torch's own generator, so a step would depend on what came before.
    """

    def __init__(self, in_channels: int, channels: int, rates: Sequence[int], classes: int) -> None:
        from torchvision.models.segmentation.deeplabv3 import ASPP  # slow to import, and classification does without

        super().__init__()
        self.aspp = ASPP(in_channels, rates, channels)
        for place, rate in enumerate(rates, start=1):
            self.aspp.convs[place] = nn.Sequential(
                *(nn.Conv2d(in_channels, in_channels, 3, 1, rate, rate, groups=in_channels, bias=False),),
                *(nn.BatchNorm2d(in_channels), nn.ReLU(inplace=True)),
                *(nn.Conv2d(in_channels, channels, 1, bias=False), nn.BatchNorm2d(channels), nn.ReLU(inplace=True)),
            )
        del self.aspp.project[-1]
        self.logits = nn.Conv2d(channels, classes, 1)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Logits (n, classes, h, w) at the size of the last features."""
        return cast(Tensor, self.logits(self.aspp(features[-1])))


class LRASPP(nn.Module):
    """torchvision's LR-ASPP on the features of two stages: the last one takes the place of MobileNetV3's last 1x1 convolution."""

    def __init__(self, low: int, low_channels: int, high_channels: int, channels: int, classes: int) -> None:
        from torchvision.models.segmentation.lraspp import LRASPPHead  # slow to import, and classification does without

        super().__init__()
        self.lraspp = LRASPPHead(low_channels, high_channels, classes, channels)
        self.low = low

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Logits (n, classes, h, w) at the size of the low features."""
        return cast(Tensor, self.lraspp({"low": features[self.low], "high": features[-1]}))


class HeadPart(nn.Module):
    """A part of a dense head as a latency table has it: on the one feature map that enters it, with what becomes of its answers.

    LR-ASPP is two parts; a network adds what they answer.
    """

    def __init__(self, block: Block) -> None:
        super().__init__()
        inputs, mid, classes = block.in_channels, block.mid_channels, block.out_channels
        self.size = block.size, block.wide or block.size
        self.low = tuple(-(-side // block.low_stride) for side in self.size) if block.kind == "lraspp" else ()
        self.part: nn.Module
        if block.kind == "deeplabv3":
            self.part = DeepLabV3(inputs, mid, block.rates, classes)
        elif block.kind == "lraspp":
            self.part = LRASPP(0, 1, inputs, mid, classes).lraspp
        elif block.kind in ("ssdlite", "ssdlite_low"):
            self.part = SSDLite((0,), (inputs,), mid, classes, extra=block.kind == "ssdlite")
        elif block.kind in ("retinanet", "retinanet_level"):
            self.part = RetinaNet((0,), (inputs,), mid, classes, extra=block.kind == "retinanet")
        else:
            self.part = nn.Conv2d(inputs, classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (1, classes, h, w): of the image's size, or of the low features'; or a detector's answers, not decoded."""
        if isinstance(self.part, Detector):
            return self.part.answers([x])
        if isinstance(self.part, nn.Conv2d):
            return cast(Tensor, self.part(x))
        if isinstance(self.part, DeepLabV3):
            return upsample(self.part([x]), self.size)
        head = cast(Any, self.part)
        return upsample(head.high_classifier(upsample(head.cbr(x) * head.scale(x), self.low)), self.size)
