"""Heads for dense tasks: what reads the features of the stages, where classification has pooling and a linear layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from operator import mul
from typing import Literal, cast

from torch import Tensor, nn
from torch.nn.functional import interpolate

from natdeploy.errors import UsageError
from natdeploy.space import SearchSpace

HeadKind = Literal["deeplabv3", "lraspp"]
HEAD_KINDS: tuple[HeadKind, ...] = ("deeplabv3", "lraspp")

LOW_STRIDE = 8
"""Of the features that LR-ASPP takes besides the last (MobileNetV3, arXiv 1905.02244, section 6.4)."""

_ASPP_STRIDE = 16
"""Output stride that `HeadSpec.rates` are meant for; at 8 they are twice as large (arXiv 1706.05587, section 3.3)."""


@dataclass(frozen=True)
class HeadSpec:
    """Which head, and how large. It is not searched: every architecture of a supernet has the same one.

    Attributes:
        kind: `deeplabv3`: separable ASPP on the last stage (arXiv 1706.05587, 1802.02611); `lraspp`: MobileNetV3's, on the last
            stage and the last one of stride 8.
        channels: of every branch; published are 256 for DeepLabV3 and 128 for LR-ASPP.
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


def build_head(spec: HeadSpec, space: SearchSpace, width: float, classes: int) -> nn.Module:
    """The head on the features of a space's stages, with torch's default initial weights.

    It takes the outputs of all stages, first to last, (n, c, h, w) each, and gives logits (n, classes, h', w') at the size of the
    largest of those it reads; `upsample` brings them to the image's.
    """
    outs = [space.stage_out(number, width) for number in range(len(space.stages))]
    if spec.kind == "lraspp":
        low = _low_stage(space)
        return LRASPP(low, outs[low], outs[-1], spec.channels, classes)
    reached = space.output_stride or space.total_stride
    return DeepLabV3(outs[-1], spec.channels, [max(1, rate * _ASPP_STRIDE // reached) for rate in spec.rates], classes)


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


def _low_stage(space: SearchSpace) -> int:
    """The last stage that makes the image at most `LOW_STRIDE` times smaller, whatever the output stride."""
    reached = accumulate((stage.stride for stage in space.stages), mul, initial=space.stem_stride)
    return max(0, sum(stride <= LOW_STRIDE for stride in list(reached)[1:]) - 1)
