"""A search space as data: stages of MBConv layers with choices of depth, kernel and expansion, and of input resolution and width.

Genotype (NAT's form): `[resolution index, width index, one code a slot]`. A slot is a place for a layer; code 0 skips it, and
`1 + kernel index + (number of kernels) * (expansion index)` fills it. Stages without any choice have no slots. Arrays of genotypes
are (n, variables), int64.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import numpy.typing as npt

from natdeploy.errors import UsageError
from natdeploy.space.arch import Arch, Layer
from natdeploy.space.blocks import ACTIVATIONS, Activation, Block

Genotypes = npt.NDArray[np.int64]

FIRST_SLOT = 2
"""Variables before the first slot: resolution and width."""


def make_divisible(channels: float, divisor: int = 8) -> int:
    """Channel count rounded to a multiple of `divisor`, never more than 10 % below the request (MobileNetV2, arXiv 1801.04381)."""
    rounded = max(divisor, int(channels + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < 0.9 * channels else rounded


def mid_channels(in_channels: int, expansion: float) -> int:
    """Channels that an expansion gives (once-for-all's rounding; torchvision's MobileNetV3 agrees)."""
    return make_divisible(round(in_channels * expansion))


def squeeze_channels(mid: int) -> int:
    """Hidden channels of squeeze-and-excitation: a quarter (MobileNetV3, arXiv 1905.02244)."""
    return make_divisible(mid // 4)


@dataclass(frozen=True)
class Stage:
    """Layers at one feature-map size.

    Attributes:
        out_channels: of every layer, at width 1.
        stride: of the first layer.
        min_depth: layers that always exist.
        max_depth: slots.
        kernels: choices, ascending.
        expansions: choices, ascending.
        activation: of its layers.
        squeeze: whether they have squeeze-and-excitation.
    """

    out_channels: int
    stride: int
    min_depth: int
    max_depth: int
    kernels: tuple[int, ...] = (3, 5, 7)
    expansions: tuple[float, ...] = (3, 6)
    activation: Activation = "relu6"
    squeeze: bool = False

    def __post_init__(self) -> None:
        if not (1 <= self.min_depth <= self.max_depth and self.kernels and self.expansions):
            raise UsageError(f"a stage needs 1 <= min_depth <= max_depth, kernels and expansions; this one is {self}")
        if self.activation not in ACTIVATIONS:
            raise UsageError(f"there is no activation {self.activation!r}; choose one of {', '.join(ACTIVATIONS)}")

    @property
    def fixed(self) -> bool:
        """Whether there is nothing to choose."""
        return self.min_depth == self.max_depth and len(self.choices) == 1

    @property
    def choices(self) -> tuple[Layer, ...]:
        """What a slot may hold; the code of a choice is its index plus one."""
        return tuple(Layer(kernel, expansion) for expansion in self.expansions for kernel in self.kernels)


@dataclass(frozen=True)
class SearchSpace:
    """Which architectures exist.

    Attributes:
        name: what users call it.
        resolutions: sides of the square input, px, ascending.
        widths: channel multipliers, ascending.
        stem_channels: of the first convolution, at width 1.
        stem_stride: of the first convolution.
        stages: first to last.
        head_channels: of the last 1x1 convolution, at width 1.
        stem_activation: of the first convolution.
        head_activation: of the last 1x1 convolution, and of the linear layer behind the pooling.
        narrow_head: whether widths below 1 make the head narrower; MobileNetV2 leaves it as it is.
        mix_channels: of a linear layer between pooling and classifier, at width 1; 0 without one (MobileNetV3 has one).
        mix_bias: whether that layer has a bias.
        first_residual: whether the first layer of a stage adds its input where the shapes allow it.
    """

    name: str
    resolutions: tuple[int, ...]
    widths: tuple[float, ...]
    stem_channels: int
    stem_stride: int
    stages: tuple[Stage, ...]
    head_channels: int
    stem_activation: Activation = "relu6"
    head_activation: Activation = "relu6"
    narrow_head: bool = False
    mix_channels: int = 0
    mix_bias: bool = False
    first_residual: bool = True

    # ---- shape

    @cached_property
    def elastic(self) -> tuple[tuple[int, slice], ...]:
        """(stage, its columns in a genotype) of every stage that leaves a choice."""
        result, start = [], FIRST_SLOT
        for number, stage in enumerate(self.stages):
            if not stage.fixed:
                result.append((number, slice(start, start + stage.max_depth)))
                start += stage.max_depth
        return tuple(result)

    @cached_property
    def slots(self) -> tuple[tuple[int, int], ...]:
        """(stage, place in the stage) of every slot."""
        return tuple((number, place) for number, _ in self.elastic for place in range(self.stages[number].max_depth))

    @property
    def variables(self) -> int:
        return FIRST_SLOT + len(self.slots)

    @cached_property
    def lower(self) -> Genotypes:
        """Smallest value of every variable, (variables,)."""
        required = [int(place < self.stages[stage].min_depth) for stage, place in self.slots]
        return np.array([0, 0, *required], dtype=np.int64)

    @cached_property
    def upper(self) -> Genotypes:
        """Largest value of every variable, (variables,)."""
        codes = [len(self.stages[stage].choices) for stage, _ in self.slots]
        return np.array([len(self.resolutions) - 1, len(self.widths) - 1, *codes], dtype=np.int64)

    @property
    def size(self) -> int:
        """How many different architectures there are."""
        total = len(self.resolutions) * len(self.widths)
        for stage in self.stages:  # a fixed one counts once
            total *= sum(len(stage.choices) ** depth for depth in range(stage.min_depth, stage.max_depth + 1))
        return total

    def restrict(self, *, resolutions: Iterable[int] | None = None, widths: Iterable[float] | None = None) -> SearchSpace:
        """The same space with other resolutions or widths."""
        return replace(
            self,
            resolutions=self.resolutions if resolutions is None else tuple(sorted(set(resolutions))),
            widths=self.widths if widths is None else tuple(sorted(set(widths))),
        )

    def stem_out(self, width: float) -> int:
        return make_divisible(self.stem_channels * width)

    def stage_in(self, stage: int, width: float) -> int:
        """Channels that enter a stage."""
        return self.stage_out(stage - 1, width) if stage else self.stem_out(width)

    def stage_out(self, stage: int, width: float) -> int:
        return make_divisible(self.stages[stage].out_channels * width)

    def head_out(self, width: float) -> int:
        return make_divisible(self.head_channels * (width if self.narrow_head else max(1.0, width)))

    def mix_out(self, width: float) -> int:
        """Channels of the linear layer between pooling and classifier, 0 without one."""
        return make_divisible(self.mix_channels * width) if self.mix_channels else 0

    def features(self, width: float) -> int:
        """Channels that enter the classifier."""
        return self.mix_out(width) or self.head_out(width)

    def stage_size(self, stage: int, resolution: int) -> int:
        """Side of the feature map that enters a stage, px."""
        size = -(-resolution // self.stem_stride)
        for before in self.stages[:stage]:
            size = -(-size // before.stride)
        return size

    # ---- architectures

    def validate(self, arch: Arch) -> None:
        """Raises UsageError, naming the first thing that is not of this space."""
        if arch.resolution not in self.resolutions:
            raise UsageError(f"resolution {arch.resolution} is not in space {self.name}; it has {list(self.resolutions)}")
        if arch.width not in self.widths:
            raise UsageError(f"width {arch.width:g} is not in space {self.name}; it has {list(self.widths)}")
        if len(arch.stages) != len(self.stages):
            raise UsageError(f"the architecture has {len(arch.stages)} stages, space {self.name} has {len(self.stages)}")
        for number, (layers, stage) in enumerate(zip(arch.stages, self.stages, strict=True)):
            if not stage.min_depth <= len(layers) <= stage.max_depth:
                raise UsageError(
                    f"stage {number} has {len(layers)} layers; space {self.name} allows {stage.min_depth} to {stage.max_depth}"
                )
            for layer in layers:
                if layer not in stage.choices:
                    raise UsageError(
                        f"stage {number} holds kernel {layer.kernel} with expansion {layer.expansion}; space {self.name} allows "
                        f"kernels {list(stage.kernels)} and expansions {list(stage.expansions)}"
                    )

    def blocks(self, arch: Arch, classes: int) -> tuple[Block, ...]:
        """The blocks of an architecture, in the order data flows."""
        result = [self._stem(arch.resolution, arch.width)]
        for number, layers in enumerate(arch.stages):
            result += [self.layer_block(number, place, layer, arch.resolution, arch.width) for place, layer in enumerate(layers)]
        return (*result, *self._tail(arch.resolution, arch.width, classes))

    def fixed_blocks(self, resolution: int, width: float, classes: int) -> tuple[Block, ...]:
        """The blocks that every architecture of one resolution and width shares: stem, stages without choice, and all behind."""
        stages = [
            self.layer_block(number, place, stage.choices[0], resolution, width)
            for number, stage in enumerate(self.stages)
            if stage.fixed
            for place in range(stage.max_depth)
        ]
        return (self._stem(resolution, width), *stages, *self._tail(resolution, width, classes))

    def slot_block(self, slot: int, code: int, resolution: int, width: float) -> Block:
        """The block that a code (1 or more) puts into a slot. It depends on nothing else, so costs add up slot by slot."""
        stage, place = self.slots[slot]
        return self.layer_block(stage, place, self.stages[stage].choices[code - 1], resolution, width)

    def _stem(self, resolution: int, width: float) -> Block:
        channels = self.stem_out(width)
        return Block("stem", resolution, 3, channels, channels, 3, self.stem_stride, self.stem_activation)

    def layer_block(self, number: int, place: int, layer: Layer, resolution: int, width: float) -> Block:
        """The block of a layer at a place of stage `number`."""
        stage = self.stages[number]
        before, out = self.stage_in(number, width), self.stage_out(number, width)
        size, stride = self.stage_size(number, resolution), stage.stride
        if place > 0:
            before, size, stride = out, -(-size // stage.stride), 1
        mid = mid_channels(before, layer.expansion)
        return Block(
            kind="mbconv",
            size=size,
            in_channels=before,
            mid_channels=mid,
            out_channels=out,
            kernel=layer.kernel,
            stride=stride,
            activation=stage.activation,
            squeeze=squeeze_channels(mid) if stage.squeeze else 0,
            residual=stride == 1 and before == out and (place > 0 or self.first_residual),
        )

    def _tail(self, resolution: int, width: float, classes: int) -> tuple[Block, ...]:
        channels, head, mix = self.stage_out(len(self.stages) - 1, width), self.head_out(width), self.mix_out(width)
        size = self.stage_size(len(self.stages), resolution)
        tail = [Block("head", size, channels, channels, head, 1, 1, self.head_activation)]
        if mix:
            tail.append(Block("mix", 1, head, head, mix, 1, 1, self.head_activation, bias=self.mix_bias))
        features = self.features(width)
        return (*tail, Block("classifier", 1, features, features, classes, 1, 1, bias=True))

    # ---- genotypes

    def repair(self, genotypes: npt.ArrayLike) -> Genotypes:
        """The one place where codes are made valid: clipped to their bounds, and layers after a skipped slot move forward.

        Args:
            genotypes: (n, variables) or (variables,), any numbers.

        Returns:
            Canonical genotypes of the same shape: two of them are equal exactly when their networks are.
        """
        given = np.asarray(genotypes)
        fixed: Genotypes = np.clip(np.rint(np.atleast_2d(given)), self.lower, self.upper).astype(np.int64)
        for _, part in self.elastic:
            order = np.argsort(fixed[:, part] == 0, axis=1, kind="stable")
            fixed[:, part] = np.take_along_axis(fixed[:, part], order, axis=1)
        return fixed.reshape(given.shape)

    def encode(self, arch: Arch) -> Genotypes:
        """Genotype (variables,) of an architecture.

        Raises:
            UsageError: it is not of this space.
        """
        self.validate(arch)
        codes: list[int] = []
        for number, _ in self.elastic:
            layers, stage = arch.stages[number], self.stages[number]
            codes += [1 + stage.choices.index(layer) for layer in layers] + [0] * (stage.max_depth - len(layers))
        head = [self.resolutions.index(arch.resolution), self.widths.index(arch.width)]
        return np.array(head + codes, dtype=np.int64)

    def decode(self, genotype: npt.ArrayLike) -> Arch:
        """Architecture of a genotype (variables,), repaired first."""
        fixed = self.repair(genotype)
        stages = [list(stage.choices) * stage.max_depth if stage.fixed else [] for stage in self.stages]
        for (stage, _), code in zip(self.slots, fixed[FIRST_SLOT:], strict=True):
            if code:
                stages[stage].append(self.stages[stage].choices[code - 1])
        return Arch(self.resolutions[fixed[0]], self.widths[fixed[1]], tuple(map(tuple, stages)))

    def encode_all(self, archs: Sequence[Arch]) -> Genotypes:
        """Genotypes (n, variables)."""
        return np.stack([self.encode(arch) for arch in archs]) if archs else np.empty((0, self.variables), dtype=np.int64)

    def decode_all(self, genotypes: npt.ArrayLike) -> list[Arch]:
        return [self.decode(genotype) for genotype in np.asarray(genotypes)]

    # ---- chance

    def sample(self, n: int, rng: np.random.Generator, *, balanced: bool = True) -> Genotypes:
        """Random genotypes (n, variables).

        Args:
            n: how many.
            rng: source of chance.
            balanced: draw the depth of each stage first, so shallow stages are as likely as deep ones; False draws every
                variable uniformly, which skips a slot only once in (choices + 1) times.
        """
        genotypes = rng.integers(np.maximum(self.lower, self._first_code), self.upper, (n, self.variables), endpoint=True)
        if not balanced:
            genotypes = rng.integers(self.lower, self.upper, (n, self.variables), endpoint=True)
            return self.repair(genotypes)
        for number, part in self.elastic:
            stage = self.stages[number]
            depth = rng.integers(stage.min_depth, stage.max_depth, n, endpoint=True)
            genotypes[:, part] *= np.arange(stage.max_depth) < depth[:, None]
        return self.repair(genotypes)

    @cached_property
    def _first_code(self) -> Genotypes:
        return np.array([0, 0] + [1] * len(self.slots), dtype=np.int64)

    def mutate(self, genotypes: Genotypes, rng: np.random.Generator, probability: float) -> Genotypes:
        """Every variable is drawn anew with `probability`; the result is in the space."""
        drawn = rng.integers(self.lower, self.upper, genotypes.shape, endpoint=True)
        return self.repair(np.where(rng.random(genotypes.shape) < probability, drawn, genotypes))

    def crossover(self, first: Genotypes, second: Genotypes, rng: np.random.Generator) -> Genotypes:
        """Uniform crossover: every variable comes from either parent; the result is in the space."""
        return self.repair(np.where(rng.random(first.shape) < 0.5, first, second))
