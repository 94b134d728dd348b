"""Blocks: the units an architecture is made of, a latency table has rows for, and cost is summed over."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from natdeploy.space.dense import DENSE_KINDS, DenseKind, dense_cost

Kind = Literal["stem", "mbconv", "head", "mix", "classifier"] | DenseKind
KINDS: tuple[Kind, ...] = ("stem", "mbconv", "head", "mix", "classifier", *DENSE_KINDS)

Activation = Literal["relu", "relu6", "hswish"]
ACTIVATIONS: tuple[Activation, ...] = ("relu", "relu6", "hswish")
"""`hswish` is x * relu6(x + 3) / 6 (MobileNetV3, arXiv 1905.02244)."""


@dataclass(frozen=True, order=True)
class Block:
    """One block, described by shape alone, so that equal blocks at different places are one and the same.

    Attributes:
        kind: `stem` (convolution), `mbconv` (expand, depthwise, project), `head` (1x1 convolution and global pooling), `mix`
            (linear layer with an activation on the pooled features, MobileNetV3's last but one), `classifier` (linear layer), or a
            part of a dense task's head (`dense.py`).
        size: height of the input, px; 1 behind the pooling. Of the parts of a dense head that answer for every pixel, that of the
            image: their own input is `stride` times smaller.
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
        wide: width of what `size` is the height of, px, where it is another one; 0 of a square.
        low_stride: of the features that `lraspp` is brought to the size of; 0 of other kinds.
        rates: dilations of `deeplabv3`'s 3x3 convolutions.
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
    wide: int = 0
    low_stride: int = 0
    rates: tuple[int, ...] = ()

    @property
    def in_positions(self) -> int:
        """Pixels of a square or rectangle of `size`."""
        return self.size * (self.wide or self.size)

    @property
    def out_size(self) -> int:
        """Height of the output before any global pooling, px; of a dense head, of the features that enter it."""
        return -(-self.size // self.stride)

    @property
    def out_positions(self) -> int:
        """Pixels of the same."""
        return self.positions(self.stride)

    def positions(self, stride: int) -> int:
        """Pixels of what is so many times smaller than `size`."""
        return -(-self.size // stride) * -(-(self.wide or self.size) // stride)

    @property
    def dense(self) -> bool:
        """Whether it is a part of a dense head."""
        return self.kind in DENSE_KINDS

    @property
    def expands(self) -> bool:
        return self.kind == "mbconv" and self.mid_channels != self.in_channels

    @property
    def macs(self) -> int:
        """Multiply-accumulates of one image; batch normalisation is not counted (it folds into the convolution)."""
        if self.dense:
            return dense_cost(self).macs
        return self.expand_macs + self.depthwise_macs + self.squeeze_macs + self.project_macs

    @property
    def expand_macs(self) -> int:
        return self.in_positions * self.in_channels * self.mid_channels if self.expands else 0

    @property
    def depthwise_macs(self) -> int:
        """MACs of the depthwise convolution, or of the stem's full one."""
        if self.kind == "stem":
            return self.out_positions * self.kernel**2 * self.in_channels * self.out_channels
        return self.out_positions * self.kernel**2 * self.mid_channels if self.kind == "mbconv" else 0

    @property
    def squeeze_macs(self) -> int:
        """MACs of the two layers of squeeze-and-excitation, which see one position."""
        return 2 * self.mid_channels * self.squeeze

    @property
    def project_macs(self) -> int:
        """MACs of the 1x1 convolution that projects, of the head, or of a linear layer."""
        if self.kind == "stem":
            return 0
        return self.out_positions * self.mid_channels * self.out_channels

    @property
    def params(self) -> int:
        """Trainable parameters, scale and shift of batch normalisation included."""
        if self.dense:
            return dense_cost(self).params
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
        if self.dense:
            return 4 * dense_cost(self).elements
        if self.kind in {"mix", "classifier"}:
            return 4 * self.out_channels
        out = self.out_positions
        if self.kind == "stem":
            return 4 * out * self.out_channels
        if self.kind == "head":
            return 4 * (out + 1) * self.out_channels
        expand = self.in_positions * self.mid_channels if self.expands else 0
        squeeze = (out + 2) * self.mid_channels + self.squeeze if self.squeeze else 0
        return 4 * (expand + out * self.mid_channels + squeeze + out * self.out_channels)
