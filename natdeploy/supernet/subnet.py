"""The static network of one architecture, in plain torch modules, so that every exporter and profiler understands it."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache, partial
from typing import cast

import torch
from torch import Tensor, nn

from natdeploy.space import Arch, Block, SearchSpace
from natdeploy.space.blocks import Activation
from natdeploy.supernet.detectors import Detector, answered
from natdeploy.supernet.heads import HeadPart, answers, build_head
from natdeploy.supernet.layers import NORM_EPS, Padding, pads
from natdeploy.supernet.mould import Mould


def build_block(block: Block, padding: Padding = "symmetric", norm_eps: float = NORM_EPS) -> nn.Module:
    """The torch module of one block, with torch's default initial weights.

    Its input is (n, in_channels, size, size), or (n, in_channels) behind the pooling, or the features that enter a dense head. With
    padding `same` a module of stride 2 is right only for sizes of the same parity as the block's.
    """
    if block.dense:
        return HeadPart(block)
    if block.kind == "mbconv":
        return MBConv(block, padding, norm_eps)
    if block.kind in {"stem", "head"}:
        module = _conv_norm(
            block.in_channels,
            block.out_channels,
            block.kernel,
            block.stride,
            size=block.size,
            padding=padding,
            norm_eps=norm_eps,
            activation=block.activation,
        )
        if block.kind == "head":
            module.add_module("pool", nn.AdaptiveAvgPool2d(1))
            module.add_module("flatten", nn.Flatten())
        return module
    linear = nn.Linear(block.in_channels, block.out_channels, bias=block.bias)
    if block.kind == "classifier":
        return linear
    return nn.Sequential(OrderedDict(linear=linear, act=_ACTIVATIONS[block.activation]()))


_ACTIVATIONS: dict[Activation, Callable[[], nn.Module]] = {
    "relu": partial(nn.ReLU, inplace=True),
    "relu6": partial(nn.ReLU6, inplace=True),
    "hswish": nn.Hardswish,
}


def _conv_norm(
    in_channels: int,
    out_channels: int,
    kernel: int = 1,
    stride: int = 1,
    *,
    size: int = 1,
    padding: Padding = "symmetric",
    norm_eps: float,
    groups: int = 1,
    dilation: int = 1,
    activation: Activation | None,
) -> nn.Sequential:
    before, after = pads(size, dilation * (kernel - 1) + 1, stride, padding)
    parts: OrderedDict[str, nn.Module] = OrderedDict()
    if before != after:
        parts["pad"], before = nn.ZeroPad2d((before, after, before, after)), 0
    parts["conv"] = nn.Conv2d(in_channels, out_channels, kernel, stride, before, dilation, groups, bias=False)
    parts["norm"] = nn.BatchNorm2d(out_channels, eps=norm_eps)
    if activation is not None:
        parts["act"] = _ACTIVATIONS[activation]()
    return nn.Sequential(parts)


class SqueezeExcite(nn.Module):
    """Squeeze-and-excitation (arXiv 1709.01507) with MobileNetV3's hard sigmoid."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.reduce = nn.Conv2d(channels, hidden, 1)
        self.act = nn.ReLU(inplace=True)
        self.expand = nn.Conv2d(hidden, channels, 1)
        self.gate = nn.Hardsigmoid()

    def forward(self, x: Tensor) -> Tensor:
        return x * cast(Tensor, self.gate(self.expand(self.act(self.reduce(self.pool(x))))))


class MBConv(nn.Module):
    """Inverted residual of MobileNetV2 (arXiv 1801.04381) and MobileNetV3 (arXiv 1905.02244) of one size."""

    def __init__(self, block: Block, padding: Padding, norm_eps: float) -> None:
        super().__init__()
        mid, activation = block.mid_channels, block.activation
        self.expand = _conv_norm(block.in_channels, mid, norm_eps=norm_eps, activation=activation) if block.expands else None
        self.depthwise = _conv_norm(
            mid,
            mid,
            block.kernel,
            block.stride,
            size=block.size,
            padding=padding,
            norm_eps=norm_eps,
            groups=mid,
            dilation=block.dilation,
            activation=activation,
        )
        self.squeeze = SqueezeExcite(mid, block.squeeze) if block.squeeze else None
        self.project = _conv_norm(mid, block.out_channels, norm_eps=norm_eps, activation=None)
        self.residual = block.residual

    def forward(self, x: Tensor) -> Tensor:
        y = x if self.expand is None else self.expand(x)
        y = self.depthwise(y)
        if self.squeeze is not None:
            y = self.squeeze(y)
        y = cast(Tensor, self.project(y))
        return x + y if self.residual else y


BlockBuilder = Callable[[Block, Padding, float], nn.Module]


def cropped_block(block: Block, padding: Padding, norm_eps: float, source: nn.Module) -> nn.Module:
    """As `build_block`, in evaluation mode, with copies of the weights of the supernet's module. Call it without gradients."""
    return block_mould(block, padding, norm_eps).cast(source)


@lru_cache(maxsize=8192)
def block_mould(block: Block, padding: Padding, norm_eps: float) -> Mould:
    """The form of a block in evaluation mode."""
    # Of the size, padding sees only whether it is even, of height and width alike: one form (40 KB) is kept for all resolutions.
    return _mould_of_parity(replace(block, size=2 - block.size % 2, wide=0), padding, norm_eps)


@lru_cache(maxsize=512)
def _mould_of_parity(block: Block, padding: Padding, norm_eps: float) -> Mould:
    with torch.device("meta"):
        return Mould.of(build_block(block, padding, norm_eps).eval())


class Subnet(nn.Module):
    """One architecture as a network: images (n, 3, r, r) -> logits (n, classes), r the architecture's resolution.

    With a dense head: images (n, 3, h, w) -> logits (n, classes, h, w); one that finds objects answers otherwise (`detectors.py`).
    Parameters and buffers have the same names as the supernet's, so a subnet's state is the supernet's, cropped.

    Args:
        space: of the architecture.
        arch: which.
        classes: outputs of the classifier.
        padding: convention of the convolutions of stride 2.
        norm_eps: added to the variance of batch normalisation, a dense head's apart.
        build: makes the blocks.
        head: of `build_head`, for these classes, where the space has a dense head; with torch's initial weights by default.
    """

    def __init__(
        self,
        space: SearchSpace,
        arch: Arch,
        classes: int,
        padding: Padding = "symmetric",
        norm_eps: float = NORM_EPS,
        *,
        build: BlockBuilder = build_block,
        head: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.space, self.arch, self.classes, self.padding, self.norm_eps = space, arch, classes, padding, norm_eps
        self.dense = space.dense is not None
        blocks = space.backbone(arch) if self.dense else space.blocks(arch, classes)
        modules = (build(block, padding, norm_eps) for block in blocks)
        self.stem = next(modules)
        self.stages = nn.ModuleList(nn.Sequential(*(next(modules) for _ in stage)) for stage in arch.stages)
        self.head = None if self.dense else next(modules)
        self.mix = next(modules) if space.mix_channels and not self.dense else None
        if head is None:
            head = build_head(space, arch.width, classes) if self.dense else next(modules)
        self.classifier = head
        self.anchors = answered(space, arch.resolution)
        if isinstance(head, Detector):
            head.decode.keep(self.anchors)

    @property
    def input_shape(self) -> tuple[int, int, int, int]:
        """Of one image."""
        return 1, 3, *self.space.input_size(self.arch.resolution)

    @property
    def output_shape(self) -> tuple[int, ...]:
        """Of its answer to one image, in evaluation mode."""
        if self.anchors:
            return 1, self.anchors, 4 + self.classes
        return (1, self.classes, *self.input_shape[2:]) if self.dense else (1, self.classes)

    def forward(self, x: Tensor) -> Tensor:
        images, features = x, list[Tensor]()
        x = self.stem(x)
        for stage in self.stages:
            x = stage(x)
            if self.dense:  # what nobody will read should not be held
                features.append(x)
        if self.head is None:
            return answers(self.classifier, features, images.shape[-2:])
        x = self.head(x)
        if self.mix is not None:
            x = self.mix(x)
        return cast(Tensor, self.classifier(x))
