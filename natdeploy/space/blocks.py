"""Blocks: the units an architecture is made of, a latency table has rows for, and cost is summed over."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Kind = Literal["stem", "mbconv", "head", "classifier"]
KINDS: tuple[Kind, ...] = ("stem", "mbconv", "head", "classifier")


@dataclass(frozen=True, order=True)
class Block:
    """One block, described by shape alone, so that equal blocks at different places are one and the same.

    Attributes:
        kind: `stem` (convolution), `mbconv` (expand, depthwise, project), `head` (1x1 convolution and global pooling)
            or `classifier` (linear layer).
        size: height and width of the square input, px; 1 for the classifier.
        in_channels: channels that come in.
        mid_channels: channels of the depthwise convolution; equal to `in_channels` where nothing expands.
        out_channels: channels that go out.
        kernel: side of the (depthwise) kernel; 1 for head and classifier.
        stride: of that convolution.
    """

    kind: Kind
    size: int
    in_channels: int
    mid_channels: int
    out_channels: int
    kernel: int
    stride: int

    @property
    def out_size(self) -> int:
        """Height and width of the output before any global pooling, px."""
        return -(-self.size // self.stride)

    @property
    def expands(self) -> bool:
        return self.kind == "mbconv" and self.mid_channels != self.in_channels

    @property
    def residual(self) -> bool:
        return self.kind == "mbconv" and self.stride == 1 and self.in_channels == self.out_channels

    @property
    def macs(self) -> int:
        """Multiply-accumulates of one image; batch normalisation is not counted (it folds into the convolution)."""
        return self.expand_macs + self.depthwise_macs + self.project_macs

    @property
    def expand_macs(self) -> int:
        return self.size**2 * self.in_channels * self.mid_channels if self.expands else 0

    @property
    def depthwise_macs(self) -> int:
        """MACs of the depthwise convolution, or of the stem's full one."""
        if self.kind == "stem":
            return self.out_size**2 * self.kernel**2 * self.in_channels * self.out_channels
        return self.out_size**2 * self.kernel**2 * self.mid_channels if self.kind == "mbconv" else 0

    @property
    def project_macs(self) -> int:
        """MACs of the 1x1 convolution that projects, of the head, or of the classifier."""
        if self.kind == "stem":
            return 0
        return self.out_size**2 * self.mid_channels * self.out_channels

    @property
    def params(self) -> int:
        """Trainable parameters, scale and shift of batch normalisation included."""
        if self.kind == "stem":
            return self.kernel**2 * self.in_channels * self.out_channels + 2 * self.out_channels
        if self.kind == "head":
            return self.in_channels * self.out_channels + 2 * self.out_channels
        if self.kind == "classifier":
            return (self.in_channels + 1) * self.out_channels
        expand = (self.in_channels + 2) * self.mid_channels if self.expands else 0
        depthwise = (self.kernel**2 + 2) * self.mid_channels
        return expand + depthwise + (self.mid_channels + 2) * self.out_channels

    @property
    def activation_bytes(self) -> int:
        """Bytes of fp32 feature maps written by one image, the traffic that makes cheap layers slow."""
        if self.kind == "classifier":
            return 4 * self.out_channels
        out = self.out_size**2
        if self.kind == "stem":
            return 4 * out * self.out_channels
        if self.kind == "head":
            return 4 * (out + 1) * self.out_channels
        expand = self.size**2 * self.mid_channels if self.expands else 0
        return 4 * (expand + out * self.mid_channels + out * self.out_channels)
