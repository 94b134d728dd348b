"""The static network of one architecture, in plain torch modules, so that every exporter and profiler understands it."""

from __future__ import annotations

from collections import OrderedDict
from typing import cast

from torch import Tensor, nn

from natdeploy.space import Arch, Block, SearchSpace
from natdeploy.supernet.layers import Padding, pads


def build_block(block: Block, padding: Padding = "symmetric") -> nn.Module:
    """The torch module of one block, with torch's default initial weights.

    Its input is (n, in_channels, size, size), or (n, in_channels) for a classifier. With padding `same` a module of stride 2 is
    right only for sizes of the same parity as the block's.
    """
    if block.kind == "stem":
        return _conv_norm(block.in_channels, block.out_channels, block.kernel, block.stride, size=block.size, padding=padding)
    if block.kind == "mbconv":
        return MBConv(block, padding)
    if block.kind == "head":
        head = _conv_norm(block.in_channels, block.out_channels)
        head.add_module("pool", nn.AdaptiveAvgPool2d(1))
        head.add_module("flatten", nn.Flatten())
        return head
    return nn.Linear(block.in_channels, block.out_channels)


def _conv_norm(
    in_channels: int,
    out_channels: int,
    kernel: int = 1,
    stride: int = 1,
    *,
    size: int = 1,
    padding: Padding = "symmetric",
    groups: int = 1,
    activation: bool = True,
) -> nn.Sequential:
    before, after = pads(size, kernel, stride, padding)
    parts: OrderedDict[str, nn.Module] = OrderedDict()
    if before != after:
        parts["pad"], before = nn.ZeroPad2d((before, after, before, after)), 0
    parts["conv"] = nn.Conv2d(in_channels, out_channels, kernel, stride, before, groups=groups, bias=False)
    parts["norm"] = nn.BatchNorm2d(out_channels)
    if activation:
        parts["act"] = nn.ReLU6(inplace=True)
    return nn.Sequential(parts)


class MBConv(nn.Module):
    """Inverted residual of MobileNetV2 (arXiv 1801.04381) of one size."""

    def __init__(self, block: Block, padding: Padding) -> None:
        super().__init__()
        mid = block.mid_channels
        self.expand = _conv_norm(block.in_channels, mid) if block.expands else None
        self.depthwise = _conv_norm(mid, mid, block.kernel, block.stride, size=block.size, padding=padding, groups=mid)
        self.project = _conv_norm(mid, block.out_channels, activation=False)
        self.residual = block.residual

    def forward(self, x: Tensor) -> Tensor:
        y = x if self.expand is None else self.expand(x)
        y = cast(Tensor, self.project(self.depthwise(y)))
        return x + y if self.residual else y


class Subnet(nn.Module):
    """One architecture as a network: images (n, 3, r, r) -> logits (n, classes), r the architecture's resolution.

    Parameters and buffers have the same names as the supernet's, so a subnet's state is the supernet's, cropped.
    """

    def __init__(self, space: SearchSpace, arch: Arch, classes: int, padding: Padding = "symmetric") -> None:
        super().__init__()
        self.arch, self.classes, self.padding = arch, classes, padding
        stem, *layers, head, classifier = (build_block(block, padding) for block in space.blocks(arch, classes))
        modules = iter(layers)
        self.stem = stem
        self.stages = nn.ModuleList(nn.Sequential(*(next(modules) for _ in stage)) for stage in arch.stages)
        self.head = head
        self.classifier = classifier

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for stage in self.stages:
            x = stage(x)
        return cast(Tensor, self.classifier(self.head(x)))
