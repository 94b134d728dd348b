"""A search space as data: stages of MBConv layers with choices of depth, kernel and expansion, and of input resolution and width.

Genotype (NAT's form): `[resolution index, width index, one code a slot]`. A slot is a place for a layer; code 0 skips it, and
`1 + kernel index + (number of kernels) * (expansion index)` fills it. Stages without any choice have no slots. Where a search also
chooses in which precision a network is deployed, the index of the precision is the last variable. Arrays of genotypes are
(n, variables), int64.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate, pairwise
from math import prod
from operator import mul

import numpy as np
import numpy.typing as npt

from natdeploy.errors import UsageError
from natdeploy.space.arch import Arch, Layer
from natdeploy.space.blocks import ACTIVATIONS, Activation, Block, Kind
from natdeploy.space.dense import LOW_STRIDE, HeadSpec, input_size
from natdeploy.space.detectors import DetectorKind, finds, stages_read

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


def _smaller(size: tuple[int, int], stride: int) -> tuple[int, int]:
    """Height of what is so many times smaller, and its width where it is another one, else 0: `Block.size` and `Block.wide`."""
    height, width = (-(-side // stride) for side in size)
    return height, 0 if width == height else width


_NAME = re.compile(r"[a-z0-9][a-z0-9_]*")


def _require(holds: bool, name: str, value: object, rule: str) -> None:
    if not holds:
        shown = list(value) if isinstance(value, tuple) else value
        raise UsageError(f"{name} {rule}, not {shown!r}")


def _require_positive(owner: object, *names: str) -> None:
    for name in names:
        value = getattr(owner, name)
        _require(value >= 1, name, value, "must be 1 or more")


def _require_ascending(owner: object, *names: str) -> None:
    for name in names:
        value = getattr(owner, name)
        rule = "must be positive, ascending and without repetition, at least one of them"
        _require(bool(value) and value[0] > 0 and all(one < two for one, two in pairwise(value)), name, value, rule)


def _require_activation(owner: object, *names: str) -> None:
    for name in names:
        value = getattr(owner, name)
        _require(value in ACTIVATIONS, name, value, f"must be one of {', '.join(ACTIVATIONS)}")


@dataclass(frozen=True)
class Stage:
    """Layers at one feature-map size.

    Raises:
        UsageError: a value is impossible; the message begins with its name.

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
        _require_positive(self, "out_channels", "min_depth")
        _require(self.stride in {1, 2}, "stride", self.stride, "must be 1 or 2")
        _require(self.max_depth >= self.min_depth, "max_depth", self.max_depth, f"must be min_depth ({self.min_depth}) or more")
        _require_ascending(self, "kernels", "expansions")
        _require(all(kernel % 2 for kernel in self.kernels), "kernels", self.kernels, "must be odd")
        # Channels are rounded to multiples of 8, which loses a tenth at most: 1.25 always expands.
        expands = all(each == 1 or each >= 1.25 for each in self.expansions)
        _require(expands, "expansions", self.expansions, "must be 1, or 1.25 or more")
        _require_activation(self, "activation")

    @property
    def fixed(self) -> bool:
        """Whether there is nothing to choose."""
        return self.min_depth == self.max_depth and len(self.choices) == 1

    @cached_property
    def choices(self) -> tuple[Layer, ...]:
        """What a slot may hold; the code of a choice is its index plus one."""
        return tuple(Layer(kernel, expansion) for expansion in self.expansions for kernel in self.kernels)

    @cached_property
    def codes(self) -> dict[Layer, int]:
        """Code of every choice."""
        return {layer: code for code, layer in enumerate(self.choices, start=1)}

    @property
    def depths(self) -> range:
        return range(self.min_depth, self.max_depth + 1)


@dataclass(frozen=True)
class SearchSpace:
    """Which architectures exist.

    Raises:
        UsageError: a value is impossible; the message begins with its name.

    Attributes:
        name: what users call it; lower-case letters, digits and _.
        resolutions: heights of the input, px, ascending; it is a square but for `aspect`.
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
        precisions: that a search chooses among, a variable beside the architecture's own; none where the target decides.
        output_stride: at most by this much the stages make the image smaller; from there on they dilate their kernels instead
            (`strides`). A dense task sets it; None where every stage takes its own stride.
        dense: head of a dense task, in place of all behind the stages.
        aspect: width of the images to their height, which inputs follow (`input_size`); 1 is a square.
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
    precisions: tuple[str, ...] = ()
    output_stride: int | None = None
    dense: HeadSpec | None = None
    aspect: float = 1.0

    def __post_init__(self) -> None:
        _require(_NAME.fullmatch(self.name) is not None, "name", self.name, "must be lower-case letters, digits and _")
        _require_ascending(self, "resolutions", "widths")
        _require_positive(self, "stem_channels", "head_channels")
        _require(self.stem_stride in {1, 2}, "stem_stride", self.stem_stride, "must be 1 or 2")
        _require(self.mix_channels >= 0, "mix_channels", self.mix_channels, "must not be negative")
        _require(len(self.stages) > 0, "stages", list(self.stages), "must not be empty")
        _require_activation(self, "stem_activation", "head_activation")
        if self.output_stride is not None:
            possible = sorted(
                {self.stem_stride, *accumulate((stage.stride for stage in self.stages), mul, initial=self.stem_stride)}
            )
            rule = f"must be one of {', '.join(map(str, possible))}, where a stage of space {self.name} ends"
            _require(self.output_stride in possible, "output_stride", self.output_stride, rule)
        _require(self.aspect > 0, "aspect", self.aspect, "must be positive")

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
    def arch_variables(self) -> int:
        """Those that an architecture is made of; they come first."""
        return FIRST_SLOT + len(self.slots)

    @property
    def variables(self) -> int:
        return self.arch_variables + bool(self.precisions)

    @property
    def options(self) -> int:
        """Ways to deploy one architecture: as many as there are precisions to choose among."""
        return max(1, len(self.precisions))

    @cached_property
    def archs_only(self) -> SearchSpace:
        """The same architectures without a choice of precision."""
        return replace(self, precisions=()) if self.precisions else self

    @cached_property
    def lower(self) -> Genotypes:
        """Smallest value of every variable, (variables,)."""
        required = [int(place < self.stages[stage].min_depth) for stage, place in self.slots]
        return np.array([0, 0, *required, *([0] if self.precisions else [])], dtype=np.int64)

    @cached_property
    def upper(self) -> Genotypes:
        """Largest value of every variable, (variables,)."""
        codes = [len(self.stages[stage].choices) for stage, _ in self.slots]
        precision = [len(self.precisions) - 1] if self.precisions else []
        return np.array([len(self.resolutions) - 1, len(self.widths) - 1, *codes, *precision], dtype=np.int64)

    @property
    def size(self) -> int:
        """How many different architectures there are, whatever their precision."""
        total = len(self.resolutions) * len(self.widths)
        for stage in self.stages:  # a fixed one counts once
            total *= sum(len(stage.choices) ** depth for depth in stage.depths)
        return total

    def restrict(self, *, resolutions: Iterable[int] | None = None, widths: Iterable[float] | None = None) -> SearchSpace:
        """The same space with other resolutions or widths."""
        return replace(
            self,
            resolutions=self.resolutions if resolutions is None else tuple(sorted(set(resolutions))),
            widths=self.widths if widths is None else tuple(sorted(set(widths))),
        )

    def with_channels(self, stem: int, stages: Sequence[int], head: int, mix: int = 0) -> SearchSpace:
        """The same space with channel counts that follow no multiplier, at width 1 alone. Its name tells them.

        Raises:
            UsageError: a count is no multiple of 8, or there are not as many as stages.
        """
        counts = (stem, *stages, head, *([mix] if mix else []))
        _require(all(make_divisible(count) == count for count in counts), "channels", counts, "must be multiples of 8")
        _require(len(stages) == len(self.stages), "stages", tuple(stages), f"must have {len(self.stages)} channel counts")
        return replace(
            self,
            name=f"{self.name}_c{'_'.join(map(str, counts))}",
            widths=(1.0,),
            stem_channels=stem,
            stages=tuple(replace(stage, out_channels=out) for stage, out in zip(self.stages, stages, strict=True)),
            head_channels=head,
            mix_channels=mix,
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

    @property
    def total_stride(self) -> int:
        """By how much stem and stages make the image smaller where no output stride is set."""
        return self.stem_stride * prod(stage.stride for stage in self.stages)

    @cached_property
    def strides(self) -> tuple[tuple[int, int, int], ...]:
        """Of every stage: stride and dilation of its first layer, dilation of the others.

        DeepLab's rule (arXiv 1706.05587; TensorFlow's slim): once the output stride is reached, a stage's stride becomes 1 and the
        kernels of all layers behind the one that had it are dilated by as much more, so that they see what they saw before.
        """
        result, reached, dilation = [], self.stem_stride, 1
        for stage in self.stages:
            first, stride = dilation, stage.stride
            if self.output_stride is not None and reached * stride > self.output_stride:
                stride, dilation = 1, dilation * stride
            reached *= stride
            result.append((stride, first, dilation))
        return tuple(result)

    def input_size(self, resolution: int) -> tuple[int, int]:
        """Height and width of the input at a resolution, px."""
        return input_size(resolution, self.aspect)

    def stage_size(self, stage: int, resolution: int) -> tuple[int, int]:
        """Height of the feature map that enters a stage, px, and its width where it is another one, 0 of a square."""
        return _smaller(self.input_size(resolution), self.stem_stride * prod(stride for stride, _, _ in self.strides[:stage]))

    def low_stage(self) -> int:
        """The last stage that makes the image at most `LOW_STRIDE` times smaller, whatever the output stride."""
        reached = accumulate((stage.stride for stage in self.stages), mul, initial=self.stem_stride)
        return max(0, sum(stride <= LOW_STRIDE for stride in list(reached)[1:]) - 1)

    @property
    def strides_reached(self) -> tuple[int, ...]:
        """By how much stem and stages make the image smaller, up to each stage's end."""
        return tuple(accumulate((stride for stride, _, _ in self.strides), mul, initial=self.stem_stride))[1:]

    @property
    def reached_stride(self) -> int:
        """By how much stem and stages make the image smaller."""
        return self.stem_stride * prod(stride for stride, _, _ in self.strides)

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
            if len(layers) not in stage.depths:
                raise UsageError(
                    f"stage {number} has {len(layers)} layers; space {self.name} allows {stage.min_depth} to {stage.max_depth}"
                )
            for layer in layers:
                if layer not in stage.codes:
                    raise UsageError(
                        f"stage {number} holds kernel {layer.kernel} with expansion {layer.expansion}; space {self.name} allows "
                        f"kernels {list(stage.kernels)} and expansions {list(stage.expansions)}"
                    )

    def blocks(self, arch: Arch, classes: int) -> tuple[Block, ...]:
        """The blocks of an architecture, in the order data flows; those of a dense head last."""
        return (*self.backbone(arch), *self._tail(arch.resolution, arch.width, classes))

    def backbone(self, arch: Arch) -> tuple[Block, ...]:
        """Those of stem and stages."""
        result = [self._stem(arch.resolution, arch.width)]
        for number, layers in enumerate(arch.stages):
            result += [self.layer_block(number, place, layer, arch.resolution, arch.width) for place, layer in enumerate(layers)]
        return tuple(result)

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
        height, wide = _smaller(self.input_size(resolution), 1)
        return Block("stem", height, 3, channels, channels, 3, self.stem_stride, self.stem_activation, wide=wide)

    def layer_block(self, number: int, place: int, layer: Layer, resolution: int, width: float) -> Block:
        """The block of a layer at a place of stage `number`."""
        stage = self.stages[number]
        before, out = self.stage_in(number, width), self.stage_out(number, width)
        (size, wide), (stride, dilation, following) = self.stage_size(number, resolution), self.strides[number]
        if place > 0:
            before, stride, dilation = out, 1, following
            size, wide = self.stage_size(number + 1, resolution)
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
            # Where a stride was taken away no shortcut appears: the weights are those of a layer that had none.
            residual=(place > 0 or (stage.stride == 1 and self.first_residual)) and before == out,
            dilation=dilation if layer.kernel > 1 else 1,
            wide=wide,
        )

    def _tail(self, resolution: int, width: float, classes: int) -> tuple[Block, ...]:
        if self.dense is not None:
            return self._dense_tail(self.dense, resolution, width, classes)
        channels, head, mix = self.stage_out(len(self.stages) - 1, width), self.head_out(width), self.mix_out(width)
        size, wide = self.stage_size(len(self.stages), resolution)
        tail = [Block("head", size, channels, channels, head, 1, 1, self.head_activation, wide=wide)]
        if mix:
            tail.append(Block("mix", 1, head, head, mix, 1, 1, self.head_activation, bias=self.mix_bias))
        features = self.features(width)
        return (*tail, Block("classifier", 1, features, features, classes, 1, 1, bias=True))

    def _dense_tail(self, spec: HeadSpec, resolution: int, width: float, classes: int) -> tuple[Block, ...]:
        channels, reached = self.stage_out(len(self.stages) - 1, width), self.reached_stride
        size, wide = _smaller(self.input_size(resolution), 1)
        if spec.kind == "deeplabv3":
            rates = spec.rates_at(reached)
            return (Block(spec.kind, size, channels, spec.channels, classes, 3, reached, "relu", wide=wide, rates=rates),)
        if finds(spec.kind):
            return self._detector_tail(spec.kind, spec.channels, size, width, classes)
        low = self.low_stage()
        stride = self.stem_stride * prod(stride for stride, _, _ in self.strides[: low + 1])
        height, low_wide = self.stage_size(low + 1, resolution)
        inputs = self.stage_out(low, width)
        return (
            Block(spec.kind, size, channels, spec.channels, classes, 1, reached, "relu", wide=wide, low_stride=stride),
            Block("lraspp_low", height, inputs, inputs, classes, 1, 1, "relu", wide=low_wide),
        )

    def _detector_tail(self, kind: DetectorKind, channels: int, size: int, width: float, classes: int) -> tuple[Block, ...]:
        *others, last = self.detector_stages(kind)
        other: Kind = "ssdlite_low" if kind == "ssdlite" else "retinanet_level"
        parts = ((kind, last), *((other, number) for number in others))
        return tuple(
            Block(part, size, self.stage_out(number, width), channels, classes, 3, self.strides_reached[number], "relu6")
            for part, number in parts
        )

    def detector_stages(self, kind: DetectorKind) -> tuple[int, ...]:
        """Numbers of the stages that a head reads which finds objects."""
        return stages_read(kind, self.strides_reached)

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
        """Genotype (variables,) of an architecture, in the first precision.

        Raises:
            UsageError: it is not of this space.
        """
        self.validate(arch)
        codes: list[int] = []
        for number, _ in self.elastic:
            layers, stage = arch.stages[number], self.stages[number]
            codes += [stage.codes[layer] for layer in layers] + [0] * (stage.max_depth - len(layers))
        head = [self.resolutions.index(arch.resolution), self.widths.index(arch.width)]
        return np.array([*head, *codes, *([0] if self.precisions else [])], dtype=np.int64)

    def decode(self, genotype: npt.ArrayLike) -> Arch:
        """Architecture of a genotype (variables,), repaired first."""
        return self._arch(self.repair(genotype).tolist())

    def _arch(self, genotype: Sequence[int]) -> Arch:
        """Architecture of a canonical genotype."""
        stages = [stage.choices * stage.max_depth for stage in self.stages]  # right for those without choice
        for number, part in self.elastic:
            choices = self.stages[number].choices
            stages[number] = tuple([choices[code - 1] for code in genotype[part] if code])
        return Arch(self.resolutions[genotype[0]], self.widths[genotype[1]], tuple(stages))

    def encode_all(self, archs: Sequence[Arch]) -> Genotypes:
        """Genotypes (n, variables)."""
        return np.stack([self.encode(arch) for arch in archs]) if archs else np.empty((0, self.variables), dtype=np.int64)

    def decode_all(self, genotypes: npt.ArrayLike) -> list[Arch]:
        """Architectures of genotypes (n, variables), repaired first."""
        return [self._arch(genotype) for genotype in self.repair(genotypes).tolist()]

    def neighbours(self, genotype: Genotypes) -> Genotypes:
        """All architectures (k, variables) that differ from a canonical genotype (variables,) in exactly one variable.

        So another resolution, another width, another choice in one layer, the last layer of a stage left out, or any layer put
        behind it. They are canonical and distinct, and the relation is symmetric.
        """
        variables = np.repeat(np.arange(self.variables), self.upper - self.lower + 1)
        values = np.concatenate([np.arange(low, high + 1) for low, high in zip(self.lower, self.upper, strict=True)])
        rows = np.tile(genotype, (len(values), 1))
        rows[np.arange(len(values)), variables] = values
        canonical = (self.repair(rows) == rows).all(axis=1)
        found: Genotypes = rows[canonical & (values != genotype[variables])]
        return found

    # ---- precisions

    def in_every_precision(self, genotypes: Genotypes) -> Genotypes:
        """Every architecture of (n, arch_variables or more) once in each precision, (n * options, variables), those of one
        architecture in a row, the first precision first. Architectures that come twice are taken once.

        Without precisions to choose among, the genotypes as they are.
        """
        if not self.precisions:
            return genotypes
        archs = genotypes[:, : self.arch_variables]
        archs = archs[np.sort(np.unique(archs, axis=0, return_index=True)[1])]
        codes = np.tile(np.arange(self.options), len(archs))
        return np.column_stack([np.repeat(archs, self.options, axis=0), codes])

    def in_precision(self, genotypes: Genotypes, precision: str) -> Genotypes:
        """Genotypes (n, variables) of the architectures of (n, arch_variables or more) in one of the precisions."""
        codes = np.full(len(genotypes), self.precisions.index(precision))
        return np.column_stack([genotypes[:, : self.arch_variables], codes])

    def precision_of(self, genotype: Genotypes) -> str | None:
        """The precision that a genotype (variables,) asks for; None where the target decides."""
        return self.precisions[genotype[-1]] if self.precisions else None

    # ---- chance

    def sample(self, n: int, rng: np.random.Generator, *, balanced: bool = True) -> Genotypes:
        """Random canonical genotypes (n, variables).

        Args:
            n: how many.
            rng: source of chance.
            balanced: every depth of a stage is as likely as any other; False makes every architecture of the space as likely as
                any other, and since there are so many more of them, most are deep. (Drawing every variable uniformly, as
                NAT does, is neither: two codes of a genotype with a gap may mean the same network.)
        """
        first = self.lower.copy()
        first[FIRST_SLOT : self.arch_variables] = 1
        genotypes = rng.integers(first, self.upper, (n, self.variables), endpoint=True)
        for number, part in self.elastic:
            stage = self.stages[number]
            ways = np.array([1.0 if balanced else float(len(stage.choices)) ** depth for depth in stage.depths])
            depth = rng.choice(stage.depths, n, p=ways / ways.sum())
            genotypes[:, part] *= np.arange(stage.max_depth) < depth[:, None]
        return genotypes

    def mutate(self, genotypes: Genotypes, rng: np.random.Generator, probability: float) -> Genotypes:
        """Every variable is drawn anew with `probability`; the result is in the space."""
        drawn = rng.integers(self.lower, self.upper, genotypes.shape, endpoint=True)
        return self.repair(np.where(rng.random(genotypes.shape) < probability, drawn, genotypes))

    def crossover(self, first: Genotypes, second: Genotypes, rng: np.random.Generator) -> Genotypes:
        """Uniform crossover: every variable comes from either parent; the result is in the space."""
        return self.repair(np.where(rng.random(first.shape) < 0.5, first, second))
