"""The supernet: weights shared by all architectures of a space at one width."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from natdeploy.space import Arch, SearchSpace
from natdeploy.supernet.layers import ElasticConv, ElasticMBConv, Padding, crop
from natdeploy.supernet.subnet import Subnet


class Supernet(nn.Module):
    """All architectures of a space, of one width, in one set of weights.

    Args:
        space: which architectures exist.
        classes: outputs of the classifier.
        width: channel multiplier.
        padding: convention of the convolutions of stride 2.
        generator: source of chance for the initial weights; the same ones every time without it.
    """

    def __init__(
        self,
        space: SearchSpace,
        classes: int,
        *,
        width: float = 1.0,
        padding: Padding = "symmetric",
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.space = space.restrict(widths=(width,))
        self.classes, self.width, self.padding = classes, width, padding
        channels = space.stem_out(width)
        # Built without memory first: torch's own initialisation would draw from the global generator.
        with torch.device("meta"):
            self.stem = ElasticConv(3, channels, 3, space.stem_stride, padding=padding)
            self.stages = nn.ModuleList()
            for number, stage in enumerate(space.stages):
                out, layers = space.stage_out(number, width), nn.ModuleList()
                for place in range(stage.max_depth):
                    stride = stage.stride if place == 0 else 1
                    kernel, expansion = max(stage.kernels), max(stage.expansions)
                    layers.append(ElasticMBConv(channels, out, kernel, stride, expansion=expansion, padding=padding))
                    channels = out
                self.stages.append(layers)
            self.head = ElasticConv(channels, space.head_out(width))
            self.classifier = nn.Linear(space.head_out(width), classes)
        self.to_empty(device="cpu")
        self._initialise(generator or torch.Generator().manual_seed(0))

    def _initialise(self, generator: torch.Generator) -> None:
        """As torchvision's MobileNetV2: convolutions by He et al. (arXiv 1502.01852, fan out), the classifier from N(0, 0.01^2)."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", generator=generator)
            elif isinstance(module, nn.BatchNorm2d):
                module.reset_parameters()
        self.reset_classifier(self.classes, generator)

    def reset_classifier(self, classes: int, generator: torch.Generator) -> None:
        """Replaces the classifier by a fresh one for `classes` classes, on the device of the old one."""
        old = self.classifier.weight
        # Drawn on the processor, so that a seed gives the same weights on every device.
        weight = torch.empty(classes, old.shape[1]).normal_(0, 0.01, generator=generator)
        with torch.device("meta"):
            classifier = nn.Linear(old.shape[1], classes)
        classifier.load_state_dict({"weight": weight.to(old), "bias": old.new_zeros(classes)}, assign=True)
        self.classifier, self.classes = classifier, classes

    def forward(self, x: Tensor, arch: Arch) -> Tensor:
        """Logits (n, classes) of images x (n, 3, r, r) under an architecture; r need not be the architecture's resolution.

        The memory format of x stays to the end; channels_last is the fast one on processors.
        """
        x = self.stem(x, self.stem.conv.out_channels, 3)
        for stage, layers in zip(self.stages, arch.stages, strict=True):
            assert isinstance(stage, nn.ModuleList)
            for module, layer in zip(stage, layers, strict=False):
                x = module(x, layer)
        x = self.head(x, self.head.conv.out_channels, 1).mean((2, 3))
        return cast(Tensor, self.classifier(x))

    def extract(self, arch: Arch) -> Subnet:
        """The architecture as a network of its own, with copies of the weights, in evaluation mode.

        Raises:
            UsageError: the architecture is not of this supernet's space and width.
        """
        self.space.validate(arch)
        with torch.device("meta"):
            subnet = Subnet(self.space, arch, self.classes, self.padding)
        shared = self.state_dict()
        state = {name: crop(shared[name], value.shape).clone() for name, value in subnet.state_dict().items()}
        subnet.load_state_dict(state, assign=True)
        return subnet.eval()
