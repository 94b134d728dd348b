"""One network's weights into another of other kernels, expansions and depths: parameter remapping (FNA, arXiv 2001.02525).

The target is a supernet or the network of one architecture, and may be larger or smaller than the source, layer by layer. FNA takes
the first channels and copies whole layers; its rules are options. The defaults are what costs a real MobileNetV2 least
(docs/remap.md), and leave the function as it is wherever nothing shrinks.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from natdeploy.errors import WeightsError
from natdeploy.space import Block, Layer, SearchSpace
from natdeploy.supernet.layers import crop
from natdeploy.supernet.network import Supernet
from natdeploy.supernet.sorting import by_importance
from natdeploy.supernet.subnet import Subnet
from natdeploy.supernet.weights import Seed

WidthRule = Literal["first", "expand_scale", "depthwise_scale", "expand_l1", "expand_std", "project_l1"]
KernelRule = Literal["centre", "dilated"]
DepthRule = Literal["identity", "copy"]

_NAMED = 12
"""Of more tensors, a summary names the parts alone: a head that finds objects has a hundred."""


class RemapRules(BaseModel):
    """How a layer becomes a larger or smaller one.

    Attributes:
        width: which channels between expansion and projection count most: smaller expansions keep them, supernets have them first.
            `first`: those that come first (FNA). `expand_scale`, `depthwise_scale`: by |scale| of the normalisation after the
            expansion or the depthwise convolution (FNA's Width-BN). `expand_l1`, `project_l1`: by the L1 norm of the weights that
            make a channel (FNA's Width-L1), or read it (once-for-all). `expand_std`: by the standard deviation of the weights that
            make it (FNA's Width-Std).
        kernel: where the weights of a smaller kernel go in a larger one, zeros elsewhere: its centre, or spread to its edges
            (FNA's Kernel-Dilate). A larger kernel gives its centre to a smaller one.
        depth: what layers beyond the last of a stage begin as: a `copy` of it (FNA), or an `identity`, which is the copy with scale
            and shift of its last normalisation at zero, so that the residual passes everything on.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    width: WidthRule = "project_l1"
    kernel: KernelRule = "centre"
    depth: DepthRule = "identity"


@dataclass(frozen=True)
class LayerMove:
    """What became of one layer.

    Attributes:
        target: the layer that was filled, such as `stages.2.3`.
        source: the layer its weights come from.
        added: whether it lies beyond the source's last layer of the stage.
        kernel: sides of the depthwise kernel, (source, target).
        mid_channels: channels between expansion and projection, (source, target).
    """

    target: str
    source: str
    added: bool
    kernel: tuple[int, int]
    mid_channels: tuple[int, int]


@dataclass(frozen=True)
class RemapReport:
    """What came from where; counters of batches and kernel transformations, which begin as identities, are left out.

    Attributes:
        sources: tensor of the target -> tensor of the source that it holds values of.
        layers: what became of every layer that was filled.
        unmapped: tensors of the target that keep their initial values.
        unused: tensors of the source that have no place.
    """

    sources: Mapping[str, str]
    layers: tuple[LayerMove, ...]
    unmapped: tuple[str, ...]
    unused: tuple[str, ...]

    @property
    def mapped(self) -> int:
        """Tensors of the target that hold the source's values."""
        return len(self.sources)

    @property
    def copied_layers(self) -> int:
        """Layers beyond the source's depth."""
        return sum(layer.added for layer in self.layers)

    @property
    def dropped_layers(self) -> int:
        """Layers of the source beyond the target's depth."""
        return len({".".join(name.split(".")[:3]) for name in self.unused if name.startswith("stages.")})

    @property
    def grown_kernels(self) -> int:
        return sum(layer.kernel[0] < layer.kernel[1] for layer in self.layers)

    @property
    def shrunk_kernels(self) -> int:
        return sum(layer.kernel[0] > layer.kernel[1] for layer in self.layers)

    @property
    def widened_layers(self) -> int:
        return sum(layer.mid_channels[0] < layer.mid_channels[1] for layer in self.layers)

    @property
    def narrowed_layers(self) -> int:
        return sum(layer.mid_channels[0] > layer.mid_channels[1] for layer in self.layers)

    def summary(self) -> str:
        """One line for a person."""
        changes = {
            "layers were added as copies": self.copied_layers,
            "layers were dropped": self.dropped_layers,
            "kernels grew": self.grown_kernels,
            "kernels shrank": self.shrunk_kernels,
            "layers were widened": self.widened_layers,
            "layers were narrowed": self.narrowed_layers,
        }
        counts = [f"{self.mapped} tensors take the seed's values", *(f"{n} {what}" for what, n in changes.items() if n)]
        new = f"; new: {_told(self.unmapped)}" if self.unmapped else ""
        unused = f"; not used: {_told(self.unused)}" if self.unused else ""
        return ", ".join(counts) + new + unused


def _told(names: Sequence[str]) -> str:
    """A few names as they are; of more, the parts of the network that they belong to, and how many each has."""
    if len(names) <= _NAMED:
        return ", ".join(names)
    return ", ".join(f"{part} ({count} tensors)" for part, count in Counter(name.partition(".")[0] for name in names).items())


def remap(source: Seed | Subnet, target: Supernet | Subnet, rules: RemapRules | None = None) -> RemapReport:
    """Fills a network with the weights of another, in place; what the source cannot fill keeps its values.

    Layers go to their places in their stages; a deeper target gets more of the stage's last one, a shallower one does without the
    last. Kernels and channels follow `rules`. Whatever reads a new channel is zero, so it contributes nothing until it has learned
    to. By the default rules a target that is nowhere smaller, or a supernet at such an architecture, computes what the source
    computes. The classifier is taken where the classes agree, and of the same dense head what does not depend on them.
    Another dense head has no use for pooling, classifier and head; what is computed in front of them is taken over.

    Args:
        source: a pretrained network, or any network of an architecture.
        target: of a space with the same stages, apart from the choices of kernel, expansion and depth, and of the same width.
        rules: how layers grow and shrink.

    Raises:
        WeightsError: the two are not of compatible spaces or widths; names the tensors that do not fit. The target is as before.
    """
    rules = rules or RemapRules()
    given, taken = _net(source), _net(target)
    _check(given, taken)
    sources = {name: name for name in given.fixed() if name in taken.tensors}
    classifier = {name for name in given.tensors.keys() | taken.tensors.keys() if name.startswith("classifier.")}
    other = {name for name in classifier if given.shape(name) != taken.shape(name)}
    if other:
        lost = other if same_head(given.space, taken.space) else classifier
        sources = {name: origin for name, origin in sources.items() if name not in lost}
    for name, origin in sources.items():
        taken.tensors[name].copy_(given.tensors[origin])

    moves = {move.target: move for move in _moves(given, taken)}
    for slot, move in moves.items():
        layer = _sorted(given.layer(move.source), rules.width)
        _place(layer, taken.layer(slot), rules.kernel)
        sources |= {f"{slot}.{leaf}": f"{move.source}.{leaf}" for leaf in layer}
    for slot in taken.slots():
        # Where there was nothing to copy, weights are chance, so the layer is an identity by either rule.
        if slot not in moves or (moves[slot].added and rules.depth == "identity"):
            taken.tensors[f"{slot}.project.norm.weight"].zero_()
            taken.tensors[f"{slot}.project.norm.bias"].zero_()
    own = taken.tensors.keys() - sources.keys()
    for name in (transforms := {name for name in own if ".transforms." in name}):
        taken.tensors[name].copy_(torch.eye(len(taken.tensors[name])))
    unused = given.tensors.keys() - sources.values()
    return RemapReport(sources, tuple(moves.values()), tuple(sorted(own - transforms)), tuple(sorted(unused)))


def same_head(one: SearchSpace, other: SearchSpace) -> bool:
    """Whether both have a dense head and it is the same one, its classes apart."""
    return one.dense is not None and one.dense == other.dense


# ---- either side


@dataclass(frozen=True)
class _Net:
    """What remapping has to know of either side.

    Attributes:
        label: how messages call it.
        space: its space.
        width: channel multiplier.
        stages: blocks of its layers, at the largest of a supernet.
        norm_eps: of its normalisations.
        tensors: name -> tensor, without counters of batches; those of a network are its own, not copies.
    """

    label: str
    space: SearchSpace
    width: float
    stages: tuple[tuple[Block, ...], ...]
    norm_eps: float
    tensors: Mapping[str, Tensor]

    @property
    def dense(self) -> bool:
        """Whether its stages are followed by a dense head."""
        return "head.conv.weight" not in self.tensors

    def fixed(self) -> list[str]:
        """Tensors outside the stages."""
        return [name for name in self.tensors if not name.startswith("stages.")]

    def slots(self) -> list[str]:
        """Names of the layers."""
        return [f"stages.{number}.{place}" for number, blocks in enumerate(self.stages) for place in range(len(blocks))]

    def layer(self, slot: str) -> dict[str, Tensor]:
        """Tensors of one layer, by what follows its place in their names."""
        start = f"{slot}."
        return {name.removeprefix(start): tensor for name, tensor in self.tensors.items() if name.startswith(start)}

    def shape(self, name: str) -> tuple[int, ...] | None:
        """None if there is no such tensor."""
        return tuple(self.tensors[name].shape) if name in self.tensors else None


def _net(network: Seed | Subnet | Supernet) -> _Net:
    space = network.space
    if isinstance(network, Supernet):
        width, label = network.width, f"the supernet of space {space.name} at width {network.width:g}"
        stages = tuple((Layer(max(stage.kernels), max(stage.expansions)),) * stage.max_depth for stage in space.stages)
    else:
        width, stages = network.arch.width, network.arch.stages
        label = network.source if isinstance(network, Seed) else f"the network {network.arch} of space {space.name}"
    blocks = tuple(
        tuple(space.layer_block(number, place, layer, space.resolutions[0], width) for place, layer in enumerate(layers))
        for number, layers in enumerate(stages)
    )
    state = network.state if isinstance(network, Seed) else network.state_dict()
    tensors = {name: tensor for name, tensor in state.items() if not name.endswith("num_batches_tracked")}
    return _Net(label, space, width, blocks, network.norm_eps, tensors)


def _moves(given: _Net, taken: _Net) -> Iterator[LayerMove]:
    """Which layer goes where. A first layer with other input channels than the rest cannot be copied."""
    for number, (theirs, ours) in enumerate(zip(given.stages, taken.stages, strict=True)):
        for place, block in enumerate(ours):
            origin = min(place, len(theirs) - 1)
            other = theirs[origin]
            if place == origin or (other.in_channels, other.expands) == (block.in_channels, block.expands):
                yield LayerMove(
                    f"stages.{number}.{place}",
                    f"stages.{number}.{origin}",
                    place > origin,
                    (other.kernel, block.kernel),
                    (other.mid_channels, block.mid_channels),
                )


# ---- one layer

_DEPTHWISE = "depthwise.conv.weight"

_IMPORTANCE: Mapping[WidthRule, Callable[[Mapping[str, Tensor]], Tensor]] = {
    "expand_scale": lambda layer: layer["expand.norm.weight"].abs(),
    "depthwise_scale": lambda layer: layer["depthwise.norm.weight"].abs(),
    "expand_l1": lambda layer: layer["expand.conv.weight"].abs().sum((1, 2, 3)),
    "expand_std": lambda layer: layer["expand.conv.weight"].flatten(1).std(1),
    "project_l1": lambda layer: layer["project.conv.weight"].abs().sum((0, 2, 3)),
}


def _sorted(layer: Mapping[str, Tensor], rule: WidthRule) -> Mapping[str, Tensor]:
    """The same function with its channels in descending order of importance."""
    if rule == "first" or "expand.conv.weight" not in layer:
        return layer  # without expansion its mid channels are the channels that come in, whose order is not its own
    importance = _IMPORTANCE[rule](layer)
    return by_importance(layer, [0, len(importance)], importance)


def _place(layer: Mapping[str, Tensor], slot: Mapping[str, Tensor], rule: KernelRule) -> None:
    """Puts what there is room for into a slot. Where the slot is larger it computes the same, apart from dilated kernels."""
    for leaf, tensor in layer.items():
        place = slot[leaf]
        if leaf == _DEPTHWISE:
            tensor = _dilate(tensor, place.shape[-1]) if rule == "dilated" else tensor  # noqa: PLW2901
            place[: len(tensor)].zero_()
        elif tensor.ndim > 1:
            place[:, tensor.shape[1] :].zero_()  # reads channels that are new
        shape = [min(sides) for sides in zip(tensor.shape, place.shape, strict=True)]
        crop(place, shape).copy_(crop(tensor, shape))


def _dilate(kernel: Tensor, side: int) -> Tensor:
    """(c, 1, k, k) -> (c, 1, side, side): the weights spread evenly from edge to edge; as it is if it is not smaller."""
    small = kernel.shape[-1]
    if small >= side or small == 1:
        return kernel
    middle = small // 2
    at = torch.tensor([side // 2 + round((place - middle) * (side - 1) / (small - 1)) for place in range(small)])
    result = kernel.new_zeros(*kernel.shape[:2], side, side)
    result[:, :, at[:, None], at] = kernel
    return result


# ---- what does not fit


def _check(given: _Net, taken: _Net) -> None:
    """Raises WeightsError unless both differ in kernels, expansions and depths alone."""
    if len(given.stages) != len(taken.stages):
        raise WeightsError(
            f"{given.label} has {len(given.stages)} stages, space {taken.space.name} has {len(taken.stages)}; "
            "choose the space it was read for"
        )
    dense = given.dense or taken.dense
    apart = ("head.", "mix.", "classifier.") if dense else ("classifier.",)
    misfits = [name for name in given.fixed() if not name.startswith(apart) and given.shape(name) != taken.shape(name)]
    for move in _moves(given, taken):
        theirs, ours = given.layer(move.source), taken.layer(move.target)
        misfits += [
            f"{move.source}.{leaf}"
            for leaf, tensor in theirs.items()
            if leaf not in ours or _bound(leaf, tensor) != _bound(leaf, ours[leaf])
        ]
    if misfits:
        named = [f"{name} {given.shape(name)}" for name in dict.fromkeys(misfits)]
        more = f" and {len(named) - 4} more" if len(named) > 4 else ""
        raise WeightsError(f"{given.label} does not fit {taken.label}: no place for {', '.join(named[:4])}{more}")
    for (what, there), (_, here) in zip(_frame(given, dense=dense), _frame(taken, dense=dense), strict=True):
        if there != here:
            raise WeightsError(f"{given.label} does not fit {taken.label}: {what} has {there} in the one and {here} in the other")
    if given.norm_eps != taken.norm_eps:
        raise WeightsError(
            f"{given.label} adds {given.norm_eps:g} to the variances of its normalisations, {taken.label} {taken.norm_eps:g}; "
            "build it with the same norm_eps"
        )


def _bound(leaf: str, tensor: Tensor) -> tuple[int, ...]:
    """The part of a shape that remapping must not change: channels that come into a layer and go out of it."""
    if leaf == "expand.conv.weight":
        return tuple(tensor.shape[1:2])
    return tuple(tensor.shape[:1]) if leaf.startswith("project.") else ()


def _frame(net: _Net, *, dense: bool) -> Iterator[tuple[str, str]]:
    """What tensors do not show, by part of the network."""
    space = net.space
    yield "the stem", f"stride {space.stem_stride} and {space.stem_activation}"
    for number, stage in enumerate(space.stages):
        first = net.stages[number][0]
        parts = [f"stride {stage.stride}", stage.activation]
        parts += ["squeeze-and-excitation"] * stage.squeeze + ["a residual around its first layer"] * first.residual
        yield f"stage {number}", " and ".join(parts)
    if dense:
        return
    mix = f"a linear layer {'with' if space.mix_bias else 'without'} bias" if space.mix_channels else "no linear layer"
    yield "the head", f"{space.head_activation} and {mix} before the classifier"
