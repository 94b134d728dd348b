"""Elastic parts of the supernet: every layer holds its largest weights and runs at any smaller size by slicing them.

What sharing means is defined once, by `crop`: a smaller convolution is the first channels and the centre of the kernel of a larger
one (once-for-all, arXiv 1908.09791, without its kernel transformation).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from natdeploy.space import Layer

Padding = Literal["symmetric", "same"]
"""`symmetric`: half the kernel on every side (torch). `same`: at stride 2 as TensorFlow does, see `pads`."""


def pads(size: int, kernel: int, stride: int, padding: Padding) -> tuple[int, int]:
    """Zeros before and after each axis of a square input of `size` px; the output has ceil(size / stride) px.

    TensorFlow's "SAME" puts the odd pixel behind, so an even input is padded (0, 1) by a 3x3 convolution of stride 2. Seeds trained
    there see their feature maps shifted by a pixel a stage when padded (1, 1). At stride 1 the two agree.
    """
    if padding == "symmetric" or stride == 1:
        return kernel // 2, kernel // 2
    total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
    return total // 2, total - total // 2


def crop(tensor: Tensor, shape: Sequence[int]) -> Tensor:
    """View of the part of `tensor` that a smaller layer uses: first channels (axes 0 and 1), centre of the kernel (axes 2 and 3).

    Raises:
        RuntimeError: `shape` is larger than the tensor along an axis.
    """
    for axis, length in enumerate(shape):
        if tensor.shape[axis] != length:
            start = (tensor.shape[axis] - length) // 2 if axis >= 2 else 0
            tensor = tensor.narrow(axis, start, length)
    return tensor


class _ReLU6(torch.autograd.Function):
    """ReLU6 in place. On processors torch's own clamps into new memory and copies back, which takes a tenth of a training step."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.mark_dirty(x.clamp_(0, 6))
        ctx.save_for_backward(x)
        return x

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (y,) = ctx.saved_tensors
        return cast(Tensor, torch.ops.aten.hardtanh_backward(gradient, y, 0, 6))


class ElasticConv(nn.Module):
    """Convolution, batch normalisation and ReLU6 at any channel count and kernel up to its own.

    One set of statistics serves all sizes and so is right for none: training normalises by the batch and leaves the stored ones
    alone, evaluation uses them as they are. An architecture gets its own by `calibrate`, after extraction.

    Args:
        in_channels: largest count.
        out_channels: largest count.
        kernel: largest side.
        stride: of the convolution.
        padding: convention at stride 2.
        depthwise: one filter a channel.
        activation: whether ReLU6 follows.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int = 1,
        stride: int = 1,
        *,
        padding: Padding = "symmetric",
        depthwise: bool = False,
        activation: bool = True,
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, kernel, stride, groups=in_channels if depthwise else 1, bias=False)
        self.norm = nn.BatchNorm2d(out_channels)
        self.stride, self.padding, self.depthwise, self.activation = stride, padding, depthwise, activation

    def forward(self, x: Tensor, channels: int, kernel: int) -> Tensor:
        """x (n, c, s, s) -> (n, channels, ceil(s / stride), ceil(s / stride)); c is the number of input channels that exist."""
        groups = channels if self.depthwise else 1
        weight = crop(self.conv.weight, (channels, x.shape[1] // groups, kernel, kernel))
        before, after = pads(x.shape[-1], kernel, self.stride, self.padding)
        if before != after:
            x, before = F.pad(x, (before, after, before, after)), 0
        x = self._normalise(F.conv2d(x, weight, None, self.stride, before, 1, groups), channels)
        return cast(Tensor, _ReLU6.apply(x)) if self.activation else x

    def _normalise(self, x: Tensor, channels: int) -> Tensor:
        scale, shift = self.norm.weight[:channels], self.norm.bias[:channels]
        if self.training:
            return F.batch_norm(x, None, None, scale, shift, training=True, eps=self.norm.eps)
        mean, variance = self.norm.running_mean, self.norm.running_var
        assert mean is not None and variance is not None
        return F.batch_norm(x, mean[:channels], variance[:channels], scale, shift, eps=self.norm.eps)


class ElasticMBConv(nn.Module):
    """Inverted residual of MobileNetV2 (arXiv 1801.04381) with a choice of kernel and expansion.

    Expand (1x1, absent at expansion 1), depthwise, project (1x1, linear), and a residual where the shape allows.
    """

    def __init__(
        self, in_channels: int, out_channels: int, kernel: int, stride: int, *, expansion: int, padding: Padding = "symmetric"
    ) -> None:
        super().__init__()
        mid = in_channels * expansion
        self.expand = ElasticConv(in_channels, mid) if expansion > 1 else None
        self.depthwise = ElasticConv(mid, mid, kernel, stride, padding=padding, depthwise=True)
        self.project = ElasticConv(mid, out_channels, activation=False)
        self.out_channels = out_channels
        self.residual = stride == 1 and in_channels == out_channels

    def forward(self, x: Tensor, layer: Layer) -> Tensor:
        """x (n, in, s, s) -> (n, out, ceil(s / stride), ceil(s / stride)), with the kernel and expansion of `layer`."""
        mid = x.shape[1] * layer.expansion
        y = x
        if layer.expansion > 1:
            assert self.expand is not None, f"this layer was built without an expansion, {layer} asks for one"
            y = self.expand(x, mid, 1)
        y = self.depthwise(y, mid, layer.kernel)
        y = cast(Tensor, self.project(y, self.out_channels, 1))
        return x + y if self.residual else y
