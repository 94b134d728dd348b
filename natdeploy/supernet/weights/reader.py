"""What a file holds is recognised from its tensors, down to width, depths, expansions and kernels."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from pathlib import Path

import torch
from torch import Tensor

from natdeploy.errors import UsageError, WeightsError
from natdeploy.space import Arch, Layer, SearchSpace, Stage, get_space, plain_space
from natdeploy.space.catalog import NAMES
from natdeploy.space.space import mid_channels
from natdeploy.supernet.layers import PADDINGS
from natdeploy.supernet.subnet import Subnet
from natdeploy.supernet.weights.files import WeightFile, read_file
from natdeploy.supernet.weights.formats import FORMATS, OURS, Format, layers, recognise
from natdeploy.supernet.weights.head import HEAD, StatedHead
from natdeploy.supernet.weights.seed import SUPERNET, Seed, without_counters


def read_seed(path: Path, space: SearchSpace | None = None) -> Seed:
    """Reads a network from a file in any of the formats of `FORMATS`, or torchvision's weights by their name.

    Its width need not be one of the space's: `seed.arch` is an architecture of `seed.space`, which has the seed's channels.

    Args:
        path: .safetensors, .pth or .pt; or a name such as `MobileNet_V3_Large_Weights.IMAGENET1K_V2`.
        space: that it must be a network of, apart from a dense head, which the file states if it has one; by default the space
            that the file states, or the shipped one of its format.

    Raises:
        WeightsError: the file cannot be read, or holds another network; names the tensors that do not fit.
    """
    file = read_file(path)
    state = {name: tensor.float() for name, tensor in without_counters(file.tensors).items()}
    format_ = OURS if HEAD in file.metadata else recognise(state)  # a head may have more tensors than all stages
    if format_ is None:
        raise WeightsError(
            f"{path} holds no network of a kind that is known ({', '.join(each.name for each in FORMATS)}); "
            f"its tensors are {_some(list(state))}"
        )
    name = file.metadata.get("space", format_.space)
    if space is None:
        if name not in NAMES:
            which = "of which space its network is" if name is None else f"where space {name} is described"
            raise WeightsError(f"{path} does not say {which}; give the space")
        space = get_space(name)
    elif name in NAMES:
        for theirs, ours in zip(_unseen(get_space(name)), _unseen(space), strict=True):
            if theirs != ours:
                raise WeightsError(
                    f"{path} is not a network of space {space.name} but one as of {name}: it has {theirs}, not {ours}"
                )
    return _Reader(path, file, format_, state, plain_space(space), _stated_head(path, file)).read()


def _stated_head(path: Path, file: WeightFile) -> StatedHead | None:
    text = file.metadata.get(HEAD)
    try:
        return None if text is None else StatedHead.parse(text)
    except UsageError as error:
        raise WeightsError(f"{path} states a dense head that cannot be read: {error}") from error


def _unseen(space: SearchSpace) -> tuple[str, ...]:
    """What networks of a space do with tensors that look the same."""
    stages = "/".join(dict.fromkeys(stage.activation for stage in space.stages))
    return (
        f"activations {space.stem_activation}/{stages}/{space.head_activation}",
        f"{'a' if space.first_residual else 'no'} residual in first layers of stages",
    )


@dataclass(frozen=True)
class _Shape:
    """What the tensors of one MBConv layer say about it."""

    in_channels: int
    mid_channels: int
    out_channels: int
    kernel: int

    def layer(self, stage: Stage) -> Layer | None:
        """The choice of a stage that has this kernel and expands to these channels."""
        choices = (
            choice
            for choice in stage.choices
            if choice.kernel == self.kernel and mid_channels(self.in_channels, choice.expansion) == self.mid_channels
        )
        return next(choices, None)


Numbers = tuple[int, ...]
Division = tuple[tuple[Numbers, ...], ...]
"""The layers of every stage, by their numbers in the file."""


@dataclass(frozen=True)
class _Reader:
    """One file on its way to a seed. Tensors go by the file's own names until it is known what they are."""

    path: Path
    file: WeightFile
    format: Format
    state: Mapping[str, Tensor]
    space: SearchSpace
    head: StatedHead | None

    def read(self) -> Seed:
        inside = layers(self.format, self.state)
        outside = self.format.outside(1 + max((numbers[0] for numbers in inside), default=0))
        shapes = self._shapes(inside, outside)
        claim = self._claim()
        division, space, width = self._fit(shapes, outside, claim)
        stages = tuple(
            tuple(self._layer(shapes[numbers], stage, inside[numbers]) for numbers in taken)
            for stage, taken in zip(space.stages, division, strict=True)
        )
        wanted = 224 if claim is None else claim.resolution
        arch = Arch(min(space.resolutions, key=lambda choice: abs(choice - wanted)), width, stages)
        if claim is not None and claim.stages != stages:
            raise WeightsError(f"{self.path} states the architecture {claim}, its tensors are of another one")

        names = dict(outside)
        for number, taken in enumerate(division):
            for place, numbers in enumerate(taken):
                names |= {f"stages.{number}.{place}.{ours}": theirs for ours, theirs in inside[numbers].items()}
        shared = self.file.metadata.get("holds") == SUPERNET or any(
            ".transforms." in ours and theirs in self.state for ours, theirs in names.items()
        )
        own = self._with_head(space.restrict(widths=(width,)))
        if shared and arch != replace(_largest(own), resolution=arch.resolution):
            raise WeightsError(
                f"{self.path} holds weights that architectures share, but not those of the largest one of {space.name}"
            )
        state, classes = self._state(names, own, arch, shared=shared)
        return Seed(
            arch=arch,
            space=own,
            classes=classes,
            state=state,
            norm_eps=self._norm_eps(),
            padding=next((each for each in PADDINGS if each == self.file.metadata.get("padding")), None),
            source=self.file.source,
            sha256=self.file.sha256,
            metadata=self.file.metadata,
            format=self.format.name,
            supernet=shared,
        )

    def _claim(self) -> Arch | None:
        """The architecture that the file states."""
        stated = self.file.metadata.get("arch")
        try:
            return None if stated is None else Arch.parse(stated)
        except UsageError as error:
            raise WeightsError(f"{self.path} states an architecture that cannot be read: {error}") from error

    def _with_head(self, space: SearchSpace) -> SearchSpace:
        try:
            return space if self.head is None else self.head.on(space)
        except UsageError as error:
            raise WeightsError(f"{self.path} states a dense head that does not fit space {space.name}: {error}") from error

    def _norm_eps(self) -> float:
        stated = self.file.metadata.get("norm_eps")
        try:
            value = self.format.norm_eps if stated is None else float(stated)
        except ValueError:
            value = 0.0
        if not 0 < value < 1:
            raise WeightsError(f"{self.path} states norm_eps {stated!r}; it must be a small positive number")
        return value

    # ---- what the tensors say

    def _shapes(self, inside: Mapping[Numbers, Mapping[str, str]], outside: Mapping[str, str]) -> dict[Numbers, _Shape]:
        """Of every layer. Stem, head and the convolutions of all layers must be there; a dense head has tensors of its own."""
        names = [outside["stem.conv.weight"], *([outside["head.conv.weight"]] if self.head is None else [])]
        for layer in inside.values():
            names += [name for ours, name in layer.items() if ours == "expand.conv.weight" and name in self.state]
            names += [layer["depthwise.conv.weight"], layer["project.conv.weight"]]
        missing = [name for name in names if name not in self.state or self.state[name].ndim != 4 or not self.state[name].numel()]
        if missing or not inside:
            raise self._misfit({"missing": missing, "instead it holds": [name for name in self.state if name not in names]})
        shapes = {}
        for numbers, layer in inside.items():
            depthwise, project = self.state[layer["depthwise.conv.weight"]], self.state[layer["project.conv.weight"]]
            expand = self.state.get(layer.get("expand.conv.weight", ""))
            before = len(depthwise) if expand is None else expand.shape[1]
            shapes[numbers] = _Shape(before, len(depthwise), len(project), depthwise.shape[-1])
        return shapes

    def _layer(self, shape: _Shape, stage: Stage, names: Mapping[str, str]) -> Layer:
        layer = shape.layer(stage)
        if layer is None:
            raise self._no_place([names])
        return layer

    def _fit(
        self, shapes: Mapping[Numbers, _Shape], outside: Mapping[str, str], claim: Arch | None
    ) -> tuple[Division, SearchSpace, float]:
        """Which layers are whose stages', and the space and width that have their channels."""
        stem = len(self.state[outside["stem.conv.weight"]])
        behind = self._behind(outside)
        widths = _widths(self.space) if claim is None else [claim.width]
        fitting = [
            width
            for width in widths
            if stem == self.space.stem_out(width) and behind in (None, (self.space.head_out(width), self.space.mix_out(width)))
        ]
        if self.format.counts == ("layer",):
            if not fitting:
                wide = (outside.get(f"{name}.weight", "") for name in ("stem.conv", "head.conv", "mix.linear"))
                raise self._misfit({"at no width": [_describe(self.state, name) for name in wide if name in self.state]})
            return self._divide(shapes, fitting, claim)

        division = self._stated_division(shapes)
        outs = [shapes[taken[0]].out_channels for taken in division]
        for width in fitting:
            if outs == [self.space.stage_out(number, width) for number in range(len(outs))]:
                return division, self.space, width
        try:
            head, mix = behind or (self.space.head_out(1.0), self.space.mix_out(1.0))
            return division, self.space.with_channels(stem, outs, head, mix), 1.0
        except UsageError as error:
            raise WeightsError(f"{self.path} is not a network of space {self.space.name}: {error}") from error

    def _behind(self, outside: Mapping[str, str]) -> tuple[int, int] | None:
        """Channels of the last convolution and of the linear layer behind the pooling; None where a dense head is instead."""
        if self.head is not None:
            return None
        linear = self.state.get(outside.get("mix.linear.weight", ""))
        return len(self.state[outside["head.conv.weight"]]), 0 if linear is None else linear.shape[:1].numel()

    def _stated_division(self, shapes: Mapping[Numbers, _Shape]) -> Division:
        """The stages of layers whose names tell them."""
        places = [(number, place) for number, stage in enumerate(self.space.stages) for place in range(stage.max_depth)]
        stages: list[list[Numbers]] = [[] for _ in self.space.stages]
        odd = []
        for numbers in shapes:
            if self.format.counts == ("slot",):
                number, place = places[numbers[0]] if numbers[0] < len(places) else (len(stages), 0)
            else:
                number, place = numbers
            if number < len(stages) and place == len(stages[number]) < self.space.stages[number].max_depth:
                stages[number].append(numbers)
            else:
                odd.append(numbers)
        if odd:
            raise self._no_place([layers(self.format, self.state)[numbers] for numbers in odd])
        empty = [number for number, taken in enumerate(stages) if len(taken) < self.space.stages[number].min_depth]
        if empty:
            raise WeightsError(
                f"{self.path} is not a network of space {self.space.name}: it has too few layers in stage {empty[0]}"
            )
        return tuple(map(tuple, stages))

    def _divide(
        self, shapes: Mapping[Numbers, _Shape], widths: Sequence[float], claim: Arch | None
    ) -> tuple[Division, SearchSpace, float]:
        """Stages of layers that are counted through: those whose channels the layers have at one of the widths."""
        numbers = list(shapes)
        for width in widths:
            depths = [
                way
                for way in _ways(list(shapes.values()), self.space, width)
                if claim is None or way == tuple(map(len, claim.stages))
            ]
            if len(depths) > 1:
                raise WeightsError(
                    f"{self.path} fits {len(depths)} networks of space {self.space.name}; name one in its metadata, as 'arch'"
                )
            if depths:
                starts = [sum(depths[0][:number]) for number in range(len(depths[0]) + 1)]
                division = tuple(tuple(numbers[start : start + depth]) for start, depth in zip(starts, depths[0], strict=False))
                return division, self.space, width
        if claim is not None:
            raise WeightsError(f"{self.path} states the architecture {claim}, its tensors are of another one")
        fitting = max(_fitting(list(shapes.values()), self.space, width) for width in widths)
        if fitting == len(shapes):
            raise WeightsError(
                f"{self.path} is not a network of space {self.space.name}: its {len(shapes)} layers are too few for its stages"
            )
        raise self._no_place([layers(self.format, self.state)[numbers[fitting]]])

    # ---- every tensor in its place

    def _state(self, names: Mapping[str, str], space: SearchSpace, arch: Arch, *, shared: bool) -> tuple[dict[str, Tensor], int]:
        """Our names -> tensors, and the classes of the classifier, or of a dense head."""
        weight = self.state.get(names["classifier.weight"])
        classes = self.head.classes if self.head is not None else 0 if weight is None else weight.shape[:1].numel()
        transforms = any(".transforms." in ours and theirs in self.state for ours, theirs in names.items())
        with torch.device("meta"):
            subnet = Subnet(space, arch, max(classes, 1))
        expected = {name: tensor.shape for name, tensor in without_counters(subnet.state_dict()).items()}
        if shared and transforms:
            expected |= _transform_shapes(space)
        if not classes:
            expected = {name: shape for name, shape in expected.items() if not name.startswith("classifier.")}
        theirs = {ours: names.get(ours, ours) for ours in expected}
        found = {
            ours: _flattened(self.state[theirs[ours]], shape) for ours, shape in expected.items() if theirs[ours] in self.state
        }
        missing = [theirs[ours] for ours in expected if ours not in found]
        unknown = [name for name in self.state if name not in {*theirs.values()}]
        misshapen = [_describe(self.state, theirs[ours]) for ours in found if found[ours].shape != expected[ours]]
        if missing or unknown or misshapen:
            raise self._misfit({"missing": missing, "unknown": unknown, "of another shape": misshapen})
        broken = [theirs[ours] for ours, tensor in found.items() if not tensor.isfinite().all()]
        if broken:
            raise WeightsError(f"{self.path} holds numbers that are not finite in {_some(broken)}; use an undamaged copy")
        return found, classes

    # ---- refusals

    def _no_place(self, layers_: Sequence[Mapping[str, str]]) -> WeightsError:
        names = [theirs for layer in layers_ for theirs in layer.values() if theirs in self.state and self.state[theirs].ndim == 4]
        return self._misfit({"no place for": [_describe(self.state, name) for name in names]})

    def _misfit(self, tensors: Mapping[str, Sequence[str]]) -> WeightsError:
        found = "; ".join(f"{what}: {_some(names)}" for what, names in tensors.items() if names)
        return WeightsError(
            f"{self.path}, a file with the names of {self.format.name}, is not a network of space {self.space.name} ({found})"
        )


def _largest(space: SearchSpace) -> Arch:
    """The architecture that uses all the weights of a supernet of the space's greatest width."""
    return space.decode(space.upper)


def _transform_shapes(space: SearchSpace) -> dict[str, torch.Size]:
    """Name -> shape of every kernel transformation of a supernet that has them."""
    return {
        f"stages.{number}.{place}.depthwise.transforms.{side}": torch.Size((side * side,) * 2)
        for number, stage in enumerate(space.stages)
        for place in range(stage.max_depth)
        for side in stage.kernels[:-1]
    }


def _flattened(tensor: Tensor, shape: torch.Size) -> Tensor:
    """A 1x1 convolution behind the pooling is a linear layer."""
    return tensor.flatten(1) if tensor.ndim == 4 and len(shape) == 2 and tensor.shape[2:] == (1, 1) else tensor


def _widths(space: SearchSpace) -> list[float]:
    """Widths to try: the space's own, then the roundest hundredths, since rounded channels may fit several."""
    hundredths = sorted(range(5, 201), key=lambda number: [number % step != 0 for step in (25, 10, 5)])
    return [*space.widths, *(number / 100 for number in hundredths)]


def _fits(shape: _Shape, space: SearchSpace, number: int, width: float) -> bool:
    return shape.out_channels == space.stage_out(number, width) and shape.layer(space.stages[number]) is not None


def _ways(shapes: Sequence[_Shape], space: SearchSpace, width: float, number: int = 0) -> Iterator[tuple[int, ...]]:
    """Every way to divide these layers among the stages from `number` on, as depths."""
    if number == len(space.stages):
        if not shapes:
            yield ()
        return
    stage = space.stages[number]
    for depth in range(stage.min_depth, min(stage.max_depth, len(shapes)) + 1):
        if all(_fits(shape, space, number, width) for shape in shapes[:depth]):
            yield from ((depth, *rest) for rest in _ways(shapes[depth:], space, width, number + 1))


def _fitting(shapes: Sequence[_Shape], space: SearchSpace, width: float) -> int:
    """How many layers, from the first on, find a place when every stage takes all it can."""
    start = 0
    for number, stage in enumerate(space.stages):
        places = shapes[start : start + stage.max_depth]
        depth = len(list(takewhile(lambda shape: _fits(shape, space, number, width), places)))  # noqa: B023
        start += depth
        if depth < stage.min_depth:
            break
    return start


def _describe(state: Mapping[str, Tensor], name: str) -> str:
    return f"{name} {tuple(state[name].shape)}"


def _some(names: Sequence[str], most: int = 4) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
