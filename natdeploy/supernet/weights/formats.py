"""Names that other code bases give to the tensors of these networks, as tables."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

from natdeploy.supernet.layers import NORM_EPS

COUNTER = "num_batches_tracked"
"""Tensors of batch normalisation that no network needs."""

_LEAVES: Mapping[str, tuple[str, ...]] = {
    "conv": ("weight",),
    "norm": ("weight", "bias", "running_mean", "running_var"),
    "reduce": ("weight", "bias"),
    "expand": ("weight", "bias"),
    "linear": ("weight", "bias"),
    "classifier": ("weight", "bias"),
}
"""Tensors of a module, by the last part of our name for it."""


@dataclass(frozen=True)
class Format:
    """How one kind of file names the tensors of a network.

    Attributes:
        name: what users call it.
        space: name of the shipped space that its networks are of; None where the file says so.
        fixed: our modules outside the layers -> theirs; `{after}` is one more than the number of the last layer.
        layer: what the names of a layer begin with. `{stage}` and `{place}` count as we do, `{slot}` counts all places that the
            space has for layers, filled or not, and `{layer}` counts the layers that exist, from 1 on.
        parts: the ways a layer may look, least first: our modules, or tensors, -> theirs.
        norm_eps: that its networks add to the variance of batch normalisation.
    """

    name: str
    space: str | None
    fixed: Mapping[str, str]
    layer: str
    parts: tuple[Mapping[str, str], ...]
    norm_eps: float = NORM_EPS

    @property
    def counts(self) -> tuple[str, ...]:
        """What the numbers in the name of a layer count."""
        return tuple(re.findall(r"\{(\w+)\}", self.layer))

    def numbers(self, name: str) -> tuple[int, ...] | None:
        """The numbers in the name of a layer's tensor; None for other tensors."""
        match = re.match(re.sub(r"\\\{\w+\\\}", r"(\\d+)", re.escape(self.layer)), name)
        return None if match is None else tuple(int(number) for number in match.groups())

    def prefix(self, numbers: Sequence[int]) -> str:
        """What the names of the layer with these numbers begin with."""
        return self.layer.format(**dict(zip(self.counts, numbers, strict=True)))

    def inside(self, names: Collection[str]) -> Mapping[str, str]:
        """Our tensors -> theirs in a layer that has these, without its prefix: the way that explains most of them."""
        ways = [dict(_tensors(part)) for part in self.parts]
        explained = [len({*names} & {*way.values()}) for way in ways]
        return ways[explained.index(max(explained))]

    def outside(self, after: int) -> Mapping[str, str]:
        """Our tensors -> theirs outside the layers, `after` one more than the number of the last layer."""
        return {ours: theirs.format(after=after) for ours, theirs in _tensors(self.fixed)}


def _tensors(table: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    for ours, theirs in table.items():
        leaves = _LEAVES.get(ours.rpartition(".")[2])
        yield from ((f"{ours}.{leaf}", f"{theirs}.{leaf}") for leaf in leaves) if leaves else ((ours, theirs),)


def _modules(**theirs: str) -> dict[str, str]:
    """A table of parts, each given as its modules' names: convolution and normalisation, or squeeze's two layers, or one."""
    table: dict[str, str] = {}
    for ours, names in theirs.items():
        first, _, second = names.partition(" ")
        if ours == "squeeze":
            table |= {"squeeze.reduce": first, "squeeze.expand": second}
        elif ours == "classifier":
            table["classifier"] = first
        elif ours == "mix":
            table["mix.linear"] = first
        else:
            table |= {f"{ours}.conv": first, f"{ours}.norm": second}
    return table


TORCHVISION_V2 = Format(
    name="torchvision MobileNetV2",
    space="mbv2",
    fixed=_modules(stem="features.0.0 features.0.1", head="features.{after}.0 features.{after}.1", classifier="classifier.1"),
    layer="features.{layer}.conv.",
    parts=(
        _modules(depthwise="0.0 0.1", project="1 2"),
        _modules(expand="0.0 0.1", depthwise="1.0 1.1", project="2 3"),
    ),
)

TORCHVISION_V3 = Format(
    name="torchvision MobileNetV3",
    space="mbv3_large",
    fixed=_modules(
        stem="features.0.0 features.0.1",
        head="features.{after}.0 features.{after}.1",
        mix="classifier.0",
        classifier="classifier.3",
    ),
    layer="features.{layer}.block.",
    parts=(
        _modules(depthwise="0.0 0.1", project="1.0 1.1"),
        _modules(depthwise="0.0 0.1", squeeze="1.fc1 1.fc2", project="2.0 2.1"),
        _modules(expand="0.0 0.1", depthwise="1.0 1.1", project="2.0 2.1"),
        _modules(expand="0.0 0.1", depthwise="1.0 1.1", squeeze="2.fc1 2.fc2", project="3.0 3.1"),
    ),
    norm_eps=1e-3,
)

TIMM_V3 = Format(
    name="timm MobileNetV3",
    space="mbv3_large",
    fixed=_modules(stem="conv_stem bn1", head="blocks.6.0.conv blocks.6.0.bn1", mix="conv_head", classifier="classifier"),
    layer="blocks.{stage}.{place}.",
    parts=(
        _modules(depthwise="conv_dw bn1", squeeze="se.conv_reduce se.conv_expand", project="conv_pw bn2"),
        _modules(expand="conv_pw bn1", depthwise="conv_dw bn2", squeeze="se.conv_reduce se.conv_expand", project="conv_pwl bn3"),
    ),
)

_OFA_STATIC = _modules(
    expand="inverted_bottleneck.conv inverted_bottleneck.bn",
    depthwise="depth_conv.conv depth_conv.bn",
    squeeze="depth_conv.se.fc.reduce depth_conv.se.fc.expand",
    project="point_linear.conv point_linear.bn",
)
_OFA_TRANSFORMS = {
    "depthwise.transforms.5": "depth_conv.conv.7to5_matrix",
    "depthwise.transforms.3": "depth_conv.conv.5to3_matrix",
}
_OFA_FIXED = _modules(
    stem="first_conv.conv first_conv.bn",
    head="final_expand_layer.conv final_expand_layer.bn",
    mix="feature_mix_layer.conv",
    classifier="classifier.linear",
)

OFA = Format(
    name="once-for-all MobileNetV3",
    space="ofa_mbv3",
    fixed=_OFA_FIXED,
    layer="blocks.{slot}.mobile_inverted_conv.",
    parts=({**_OFA_STATIC, **_OFA_TRANSFORMS},),
)
"""The released checkpoints."""

OFA_NESTED = Format(
    name="once-for-all MobileNetV3, nested names",
    space="ofa_mbv3",
    fixed=_OFA_FIXED,
    layer="blocks.{slot}.conv.",
    parts=(
        _OFA_STATIC,
        _modules(
            expand="inverted_bottleneck.conv.conv inverted_bottleneck.bn.bn",
            depthwise="depth_conv.conv.conv depth_conv.bn.bn",
            squeeze="depth_conv.se.fc.reduce depth_conv.se.fc.expand",
            project="point_linear.conv.conv point_linear.bn.bn",
        )
        | _OFA_TRANSFORMS,
    ),
)
"""What its later code writes: elastic layers lie one module deeper than plain ones."""

PROXYLESS = Format(
    name="ProxylessNAS",
    space="proxyless",
    fixed=_modules(
        stem="first_conv.conv first_conv.bn",
        head="feature_mix_layer.conv feature_mix_layer.bn",
        classifier="classifier.linear",
    ),
    layer="blocks.{slot}.mobile_inverted_conv.",
    parts=(_OFA_STATIC,),
    norm_eps=1e-3,
)

_LAYER = ("expand", "depthwise", "squeeze", "project")
OURS = Format(
    name="natdeploy",
    space=None,
    fixed=_modules(stem="stem.conv stem.norm", head="head.conv head.norm", mix="mix.linear", classifier="classifier"),
    layer="stages.{stage}.{place}.",
    parts=(
        _modules(
            expand="expand.conv expand.norm",
            depthwise="depthwise.conv depthwise.norm",
            squeeze="squeeze.reduce squeeze.expand",
            project="project.conv project.norm",
        )
        | {f"depthwise.transforms.{side}": f"depthwise.transforms.{side}" for side in (5, 3)},
    ),
)
"""The names of the supernet and its subnets."""

FORMATS = (TORCHVISION_V2, TORCHVISION_V3, TIMM_V3, OFA, OFA_NESTED, PROXYLESS, OURS)


def recognise(names: Collection[str]) -> Format | None:
    """The format in which most of these names mean something; None where fewer than half of them do in any."""
    explained = [len({*names} & {*named(format_, names).values()}) for format_ in FORMATS]
    best = max(explained)
    return FORMATS[explained.index(best)] if 2 * best >= len(names) > 0 else None


def layers(format_: Format, names: Collection[str]) -> dict[tuple[int, ...], Mapping[str, str]]:
    """For every layer of a file, by its numbers, in their order: our tensors in the layer -> theirs."""
    found: dict[tuple[int, ...], list[str]] = {}
    for name in {*names} - {*format_.outside(0).values()}:
        if (numbers := format_.numbers(name)) is not None:
            found.setdefault(numbers, []).append(name.removeprefix(format_.prefix(numbers)))
    return {
        numbers: {ours: format_.prefix(numbers) + theirs for ours, theirs in format_.inside(found[numbers]).items()}
        for numbers in sorted(found)
    }


def named(format_: Format, names: Collection[str]) -> dict[str, str]:
    """Our tensors -> theirs for a file, as far as that can be known before its stages are; layers go by their numbers."""
    inside = layers(format_, names)
    table = dict(format_.outside(1 + max((numbers[0] for numbers in inside), default=0)))
    for numbers, layer in inside.items():
        table |= {f"{'.'.join(map(str, numbers))}.{ours}": theirs for ours, theirs in layer.items()}
    return table
