"""Blocks: the units an architecture is made of, a latency table has rows for, and cost is summed over."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Kind = Literal["stem", "mbconv", "head", "mix", "classifier"]
KINDS: tuple[Kind, ...] = ("stem", "mbconv", "head", "mix", "classifier")

Activation = Literal["relu", "relu6", "hswish"]
ACTIVATIONS: tuple[Activation, ...] = ("relu", "relu6", "hswish")
"""`hswish` is x * relu6(x + 3) / 6 (MobileNetV3, arXiv 1905.02244)."""


@dataclass(frozen=True, order=True)
class Block:
    """One block, described by shape alone, so that equal blocks at different places are one and the same.

    Attributes:
        kind: `stem` (convolution), `mbconv` (expand, depthwise, project), `head` (1x1 convolution and global pooling), `mix`
            (linear layer with an activation on the pooled features, MobileNetV3's last but one) or `classifier` (linear layer).
        size: height and width of the square input, px; 1 behind the pooling.
        in_channels: channels that come in.
        mid_channels: channels of the depthwise convolution; equal to `in_channels` where nothing expands.
        out_channels: channels that go out.
        kernel: side of the (depthwise) kernel; 1 behind the stages.
        stride: of that convolution.
        activation: after every layer but those that project and classify.
        squeeze: hidden channels of the squeeze-and-excitation between depthwise and project; 0 without one.
        residual: whether the input is added to the output.
        bias: of the linear layer.
        dilation: step between the taps of the depthwise kernel; above 1 where a dense task keeps a feature map large.
    """

    kind: Kind
    size: int
    in_channels: int
    mid_channels: int
    out_channels: int
    kernel: int
    stride: int
    activation: Activation = "relu6"
    squeeze: int = 0
    residual: bool = False
    bias: bool = False
    dilation: int = 1

    @property
    def out_size(self) -> int:
        """Height and width of the output before any global pooling, px."""
        return -(-self.size // self.stride)

    @property
    def expands(self) -> bool:
        return self.kind == "mbconv" and self.mid_channels != self.in_channels

    @property
    def macs(self) -> int:
        """Multiply-accumulates of one image; batch normalisation is not counted (it folds into the convolution)."""
        return self.expand_macs + self.depthwise_macs + self.squeeze_macs + self.project_macs

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
    def squeeze_macs(self) -> int:
        """MACs of the two layers of squeeze-and-excitation, which see one position."""
        return 2 * self.mid_channels * self.squeeze

    @property
    def project_macs(self) -> int:
        """MACs of the 1x1 convolution that projects, of the head, or of a linear layer."""
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
        if self.kind in {"mix", "classifier"}:
            return (self.in_channels + self.bias) * self.out_channels
        expand = (self.in_channels + 2) * self.mid_channels if self.expands else 0
        depthwise = (self.kernel**2 + 2) * self.mid_channels
        squeeze = 2 * self.mid_channels * self.squeeze + self.squeeze + self.mid_channels if self.squeeze else 0
        return expand + depthwise + squeeze + (self.mid_channels + 2) * self.out_channels

    @property
    def activation_bytes(self) -> int:
        """Bytes of fp32 feature maps written by one image, the traffic that makes cheap layers slow."""
        if self.kind in {"mix", "classifier"}:
            return 4 * self.out_channels
        out = self.out_size**2
        if self.kind == "stem":
            return 4 * out * self.out_channels
        if self.kind == "head":
            return 4 * (out + 1) * self.out_channels
        expand = self.size**2 * self.mid_channels if self.expands else 0
        squeeze = (out + 2) * self.mid_channels + self.squeeze if self.squeeze else 0
        return 4 * (expand + out * self.mid_channels + squeeze + out * self.out_channels)
