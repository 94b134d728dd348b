"""The supernet: weights shared by all architectures of a space at one width."""

from __future__ import annotations

import copy
import gc
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import cast

import torch
from torch import Tensor, nn

from natdeploy.space import Arch, Block, Layer, SearchSpace
from natdeploy.supernet.detectors import Detector
from natdeploy.supernet.heads import answers, build_head
from natdeploy.supernet.layers import NORM_EPS, ElasticConv, ElasticMBConv, Padding, activate
from natdeploy.supernet.subnet import Subnet, cropped_block


@contextmanager
def _no_collection() -> Iterator[None]:
    """Modules are thousands of small dictionaries; made at once, they would set off Python's garbage collector again and again."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


class Supernet(nn.Module):
    """All architectures of a space, of one width, in one set of weights.

    Args:
        space: which architectures exist.
        classes: outputs of the classifier.
        width: channel multiplier.
        padding: convention of the convolutions of stride 2.
        norm_eps: added to the variance of batch normalisation.
        kernel_transforms: smaller kernels are learned maps of larger ones, as in once-for-all, instead of their centres.
        generator: source of chance for the initial weights; the same ones every time without it.
    """

    def __init__(
        self,
        space: SearchSpace,
        classes: int,
        *,
        width: float = 1.0,
        padding: Padding = "symmetric",
        norm_eps: float = NORM_EPS,
        kernel_transforms: bool = False,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.space = space.restrict(widths=(width,))
        self.classes, self.width, self.padding, self.norm_eps = classes, width, padding, norm_eps
        # Built without memory first: torch's own initialisation would draw from the global generator.
        with torch.device("meta"):
            channels = space.stem_out(width)
            self.stem = ElasticConv(
                3, channels, 3, space.stem_stride, padding=padding, norm_eps=norm_eps, activation=space.stem_activation
            )
            self.stages = nn.ModuleList()
            for number, stage in enumerate(space.stages):
                largest = Layer(max(stage.kernels), max(stage.expansions))
                transformed = stage.kernels[:-1] if kernel_transforms else ()
                blocks = (
                    space.layer_block(number, place, largest, space.resolutions[0], width) for place in range(stage.max_depth)
                )
                self.stages.append(
                    nn.ModuleList(
                        ElasticMBConv(block, padding=padding, norm_eps=norm_eps, transformed=transformed) for block in blocks
                    )
                )
            self._build_head()
        self.to_empty(device="cpu")
        _initialise(self, generator or torch.Generator().manual_seed(0))

    def _build_head(self) -> None:
        """Pooling and a linear layer, or the dense head of the space, which every architecture has as it is."""
        space, width = self.space, self.width
        self.dense = space.dense is not None
        self.head: ElasticConv | None = None
        self.mix: nn.Sequential | None = None
        self.classifier: nn.Module
        if self.dense:
            self.classifier = build_head(space, width, self.classes)
            return
        inputs, channels = space.stage_out(len(space.stages) - 1, width), space.head_out(width)
        self.head = ElasticConv(inputs, channels, norm_eps=self.norm_eps, activation=space.head_activation)
        if space.mix_channels:
            self.mix = nn.Sequential(OrderedDict(linear=nn.Linear(channels, space.mix_out(width), bias=space.mix_bias)))
        self.classifier = nn.Linear(space.features(width), self.classes)

    def reset_classifier(self, classes: int, generator: torch.Generator) -> None:
        """Replaces the classifier, or the whole of a dense head, by a fresh one for `classes` classes, on the device of the old."""
        old = next(self.classifier.parameters())
        with torch.device("meta"):
            classifier = (
                build_head(self.space, self.width, classes) if self.dense else nn.Linear(self.space.features(self.width), classes)
            )
        # Drawn on the processor, so that a seed gives the same weights on every device.
        _initialise(classifier.to_empty(device="cpu"), generator)
        self.classifier, self.classes = classifier.to(old).train(self.classifier.training), classes

    def forward(self, x: Tensor, arch: Arch) -> Tensor:
        """Logits (n, classes) of images x (n, 3, r, r) under an architecture; r need not be the architecture's resolution.

        With a dense head logits (n, classes, h, w) of images (n, 3, h, w). The memory format of x stays to the end; channels_last
        is the fast one on processors.
        """

        def run(number: int, modules: Sequence[ElasticMBConv], x: Tensor) -> Tensor:
            for module, layer in zip(modules, arch.stages[number], strict=False):
                x = module(x, layer)
            return x

        return self.through(x, run)

    def through(self, x: Tensor, run: Callable[[int, Sequence[ElasticMBConv], Tensor], Tensor]) -> Tensor:
        """As `forward`, of what `run` does with the number of a stage, the modules of its layers and what enters it."""
        size, features = x.shape[-2:], list[Tensor]()
        x = self.stem(x, self.stem.conv.out_channels, 3)
        for number, stage in enumerate(self.stages):
            x = run(number, cast(Sequence[ElasticMBConv], stage), x)
            if self.dense:  # what nobody will read should not be held
                features.append(x)
        if self.head is None:
            return answers(self.classifier, features, size)
        x = self.head(x, self.head.conv.out_channels, 1).mean((2, 3))
        if self.mix is not None:
            x = activate(self.mix(x), self.space.head_activation)
        return cast(Tensor, self.classifier(x))

    def extract(self, arch: Arch) -> Subnet:
        """The architecture as a network of its own, with copies of the weights, in evaluation mode.

        Raises:
            UsageError: the architecture is not of this supernet's space and width.
        """
        self.space.validate(arch)
        with _no_collection(), torch.no_grad():
            return self._extract(arch)

    def _extract(self, arch: Arch) -> Subnet:
        sources = self._modules_of(arch)

        def build(block: Block, padding: Padding, norm_eps: float) -> nn.Module:
            return cropped_block(block, padding, norm_eps, next(sources))

        head = copy.deepcopy(self.classifier).eval().requires_grad_(True) if self.dense else None
        subnet = Subnet(self.space, arch, self.classes, self.padding, self.norm_eps, build=build, head=head)
        for module in (subnet, subnet.stages, *subnet.stages):  # blocks are built for evaluation
            module.training = False
        return subnet

    def _modules_of(self, arch: Arch) -> Iterator[nn.Module]:
        """The modules that an architecture uses, in the order data flows."""
        yield self.stem
        for stage, layers in zip(self.stages, arch.stages, strict=True):
            yield from islice(cast(nn.ModuleList, stage), len(layers))
        if self.head is None:
            return
        yield self.head
        if self.mix is not None:
            yield self.mix
        yield self.classifier


def _initialise(network: nn.Module, generator: torch.Generator) -> None:
    """As torchvision's MobileNetV2: convolutions by He et al. (arXiv 1502.01852, fan out), the classifier from N(0, 0.01^2)."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", generator=generator)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.BatchNorm2d):
            module.reset_parameters()
        elif isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, 0, 0.01, generator=generator)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.ParameterDict):
            for matrix in module.values():
                nn.init.eye_(matrix)
    for module in network.modules():
        if isinstance(module, Detector):  # its parts are ordinary layers, but begin otherwise
            module.initialise(generator)
