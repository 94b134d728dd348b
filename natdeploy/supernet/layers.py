"""Elastic parts of the supernet: every layer holds its largest weights and runs at any smaller size by slicing them.

What sharing means is defined once, by `crop`: a smaller convolution is the first channels and the centre of the kernel of a larger
one (once-for-all, arXiv 1908.09791); with its kernel transformation, a smaller depthwise kernel is a learned map of that centre.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from natdeploy.space import Block, Layer
from natdeploy.space.blocks import Activation
from natdeploy.space.space import mid_channels, squeeze_channels

Padding = Literal["symmetric", "same"]
"""`symmetric`: half the kernel on every side (torch). `same`: at stride 2 as TensorFlow does, see `pads`."""
PADDINGS: tuple[Padding, ...] = ("symmetric", "same")


NORM_EPS = 1e-5
"""What torch adds to the variance of batch normalisation unless told otherwise; networks from TensorFlow often have 1e-3."""


def pads(size: int, kernel: int, stride: int, padding: Padding) -> tuple[int, int]:
    """Zeros before and after each axis of a square input of `size` px; the output has ceil(size / stride) px.

    `kernel` is what a kernel spans: of k taps, dilated by d, d * (k - 1) + 1.

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


def activate(x: Tensor, activation: Activation) -> Tensor:
    """The activation of a layer; may overwrite x."""
    if activation == "relu6":
        return cast(Tensor, _ReLU6.apply(x))
    return F.relu(x, inplace=True) if activation == "relu" else F.hardswish(x)


class _WideDepthwise(torch.autograd.Function):
    """Depthwise convolution of stride 1 by a kernel wider than 3, whose weight gradient comes in strips of at most three columns.

    oneDNN's fast gradient of depthwise weights takes kernels of any height, but of three columns at most, and maps no lower than
    the kernel. What it falls back to takes two to five times as long.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return F.conv2d(x, weight, padding=weight.shape[-1] // 2, groups=len(weight))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        kernel, to_input, to_weight = weight.shape[-1], None, None
        half = kernel // 2
        if ctx.needs_input_grad[0]:
            to_input = _depthwise_backward(gradient, x, weight, (half, half), (True, False, False))[0]
        if ctx.needs_input_grad[1]:
            rows = half if x.shape[2] < kernel else 0
            count = -(-kernel // 3)
            bounds = [round(part * kernel / count) for part in range(count + 1)]
            strips = []
            for first, end in pairwise(bounds):
                before, after = half - first, end - 1 - half  # columns of zeros, or to leave out, on either side
                even = before if before == after else 0
                margins = (before - even, after - even, rows, rows)
                padded = F.pad(x, margins) if any(margins) else x
                strip = weight[..., first:end]
                strips.append(_depthwise_backward(gradient, padded, strip, (half - rows, even), (False, True, False))[1])
            to_weight = torch.cat(strips, -1)
        return to_input, to_weight


def _depthwise_backward(
    gradient: Tensor, x: Tensor, weight: Tensor, padding: tuple[int, int], wanted: tuple[bool, bool, bool]
) -> Sequence[Tensor]:
    """Gradients to input, weight and bias, those that are wanted, of a depthwise convolution of stride 1."""
    return cast(
        Sequence[Tensor],
        torch.ops.aten.convolution_backward(gradient, x, weight, None, (1, 1), padding, (1, 1), False, (0, 0), len(weight), wanted),
    )


class ElasticConv(nn.Module):
    """Convolution, batch normalisation and activation at any channel count and kernel up to its own.

    One set of statistics serves all sizes and so is right for none: training normalises by the batch and leaves the stored ones
    alone, evaluation uses them as they are. An architecture gets its own by `calibrate`, after extraction.

    Args:
        in_channels: largest count.
        out_channels: largest count.
        kernel: largest side.
        stride: of the convolution.
        padding: convention at stride 2.
        norm_eps: added to the variance of batch normalisation.
        depthwise: one filter a channel.
        dilation: step between the taps of the kernel.
        activation: what follows; nothing if None.
        transformed: smaller kernels, each a learned map of the centre of the next larger one (once-for-all's kernel
            transformation), the identity at first.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int = 1,
        stride: int = 1,
        *,
        padding: Padding = "symmetric",
        norm_eps: float = NORM_EPS,
        depthwise: bool = False,
        dilation: int = 1,
        activation: Activation | None = "relu6",
        transformed: Sequence[int] = (),
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, kernel, stride, groups=in_channels if depthwise else 1, bias=False)
        self.norm = nn.BatchNorm2d(out_channels, eps=norm_eps)
        self.transformed = tuple(sorted(transformed, reverse=True))
        self.transforms = nn.ParameterDict({str(side): nn.Parameter(torch.eye(side * side)) for side in self.transformed})
        self.stride, self.padding, self.depthwise, self.activation = stride, padding, depthwise, activation
        self.dilation = dilation

    def weight(self, channels: int, in_channels: int, kernel: int) -> Tensor:
        """The filters of a smaller layer, (channels, in_channels of a filter, kernel, kernel)."""
        weight = self.conv.weight
        for side in self.transformed:
            if side >= kernel:
                centre = crop(weight, (channels, in_channels, side, side)).reshape(channels, -1)
                weight = F.linear(centre, self.transforms[str(side)]).view(channels, in_channels, side, side)
        return crop(weight, (channels, in_channels, kernel, kernel))

    def forward(self, x: Tensor, channels: int, kernel: int) -> Tensor:
        """x (n, c, s, s) -> (n, channels, ceil(s / stride), ceil(s / stride)); c is the number of input channels that exist.

        Height and width may differ where both are even or both are odd, or padding is symmetric.
        """
        groups = channels if self.depthwise else 1
        weight = self.weight(channels, x.shape[1] // groups, kernel)
        x = self._normalise(self._convolve(x, weight, groups), channels)
        return x if self.activation is None else activate(x, self.activation)

    def _convolve(self, x: Tensor, weight: Tensor, groups: int) -> Tensor:
        kernel = weight.shape[-1]
        if x.device.type == "cpu" and self.stride == 1:
            if kernel == 1 and groups == 1:
                # In channels_last this is one matrix product; its gradients are up to twice as fast as those of the convolution.
                return F.linear(x.permute(0, 2, 3, 1), weight.flatten(1)).permute(0, 3, 1, 2)
            if (
                kernel > 3 and self.depthwise and self.dilation == 1 and x.shape[-1] >= kernel // 2 - 1
            ):  # no strip leaves out more columns than there are
                return cast(Tensor, _WideDepthwise.apply(x, weight.to(x.dtype)))
        before, after = pads(x.shape[-1], self.dilation * (kernel - 1) + 1, self.stride, self.padding)
        if before != after:
            x, before = F.pad(x, (before, after, before, after)), 0
        return F.conv2d(x, weight, None, self.stride, before, self.dilation, groups)

    def _normalise(self, x: Tensor, channels: int) -> Tensor:
        scale, shift = self.norm.weight[:channels], self.norm.bias[:channels]
        if self.training:
            return F.batch_norm(x, None, None, scale, shift, training=True, eps=self.norm.eps)
        mean, variance = self.norm.running_mean, self.norm.running_var
        assert mean is not None and variance is not None
        return F.batch_norm(x, mean[:channels], variance[:channels], scale, shift, eps=self.norm.eps)


class ElasticSqueezeExcite(nn.Module):
    """Squeeze-and-excitation (arXiv 1709.01507) as MobileNetV3 has it, at any channel count up to its own.

    Mean of every channel, two 1x1 convolutions with a ReLU between, hard sigmoid; the channels are multiplied by the result.
    """

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.reduce = nn.Conv2d(channels, hidden, 1)
        self.expand = nn.Conv2d(hidden, channels, 1)

    def forward(self, x: Tensor, hidden: int) -> Tensor:
        """x (n, c, s, s) -> the same shape."""
        channels = x.shape[1]
        assert self.reduce.bias is not None and self.expand.bias is not None
        gate = x.mean((2, 3), keepdim=True)
        gate = F.conv2d(gate, crop(self.reduce.weight, (hidden, channels)), self.reduce.bias[:hidden]).relu_()
        gate = F.conv2d(gate, crop(self.expand.weight, (channels, hidden)), self.expand.bias[:channels])
        return x * F.hardsigmoid(gate)


class ElasticMBConv(nn.Module):
    """Inverted residual of MobileNetV2 (arXiv 1801.04381) and MobileNetV3 (arXiv 1905.02244) with a choice of kernel and expansion.

    Expand (1x1, absent at expansion 1), depthwise, squeeze-and-excitation where the block has one, project (1x1, linear), and a
    residual where the block has one.

    Args:
        block: the largest choice.
        padding: convention at stride 2.
        norm_eps: added to the variance of batch normalisation.
        transformed: smaller kernels that are learned maps of larger ones.
    """

    def __init__(
        self, block: Block, *, padding: Padding = "symmetric", norm_eps: float = NORM_EPS, transformed: Sequence[int] = ()
    ) -> None:
        super().__init__()
        mid = block.mid_channels
        self.expand = ElasticConv(block.in_channels, mid, norm_eps=norm_eps, activation=block.activation) if block.expands else None
        self.depthwise = ElasticConv(
            mid,
            mid,
            block.kernel,
            block.stride,
            padding=padding,
            norm_eps=norm_eps,
            depthwise=True,
            dilation=block.dilation,
            activation=block.activation,
            transformed=transformed,
        )
        self.squeeze = ElasticSqueezeExcite(mid, block.squeeze) if block.squeeze else None
        self.project = ElasticConv(mid, block.out_channels, norm_eps=norm_eps, activation=None)
        self.out_channels = block.out_channels
        self.residual = block.residual

    def forward(self, x: Tensor, layer: Layer) -> Tensor:
        """x (n, in, s, s) -> (n, out, ceil(s / stride), ceil(s / stride)), with the kernel and expansion of `layer`."""
        mid = mid_channels(x.shape[1], layer.expansion)
        y = x
        if layer.expansion > 1:
            assert self.expand is not None, f"this layer was built without an expansion, {layer} asks for one"
            y = self.expand(x, mid, 1)
        y = self.depthwise(y, mid, layer.kernel)
        if self.squeeze is not None:
            y = self.squeeze(y, squeeze_channels(mid))
        y = cast(Tensor, self.project(y, self.out_channels, 1))
        return x + y if self.residual else y

    def mix(self, x: Tensor, layers: Sequence[Layer], shares: Sequence[Tensor]) -> Tensor:
        """Sum of `forward` over layers (k), each times its share (), which add up to 1. Batch statistics only.

        What layers have in common is computed once: normalised by the batch, the channels of a narrower one are the first of those
        of a wider one, up to where they are mixed; so there is one expansion for all, and one depthwise convolution a kernel.
        """
        assert self.training, "stored statistics are not those of mixtures"
        mids = [mid_channels(x.shape[1], layer.expansion) for layer in layers]
        inputs: dict[bool, Tensor] = {False: x}
        if widest := max((mid for mid, layer in zip(mids, layers, strict=True) if layer.expansion > 1), default=0):
            assert self.expand is not None, f"this layer was built without an expansion, {layers} ask for one"
            inputs[True] = self.expand(x, widest, 1)
        filtered: dict[tuple[bool, int], Tensor] = {}
        total: Tensor | None = None
        for layer, mid, share in zip(layers, mids, shares, strict=True):
            key = (layer.expansion > 1, layer.kernel)
            if key not in filtered:
                filtered[key] = self.depthwise(inputs[key[0]], inputs[key[0]].shape[1], layer.kernel)
            y = filtered[key][:, :mid]
            if self.squeeze is not None:
                y = self.squeeze(y, squeeze_channels(mid))
            part = share.to(y.dtype) * self.project(y, self.out_channels, 1)
            total = part if total is None else total + part
        assert total is not None, "a mixture has one layer at least"
        return x + total if self.residual else total
