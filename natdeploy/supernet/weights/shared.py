"""Supernets as files: our own, and once-for-all's checkpoints."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from natdeploy.errors import WeightsError
from natdeploy.space import SearchSpace
from natdeploy.supernet.layers import Padding
from natdeploy.supernet.network import Supernet
from natdeploy.supernet.weights.files import write_file
from natdeploy.supernet.weights.reader import read_seed
from natdeploy.supernet.weights.seed import SUPERNET, Seed, stated, without_counters


def save_supernet(supernet: Supernet, path: Path, metadata: Mapping[str, str] | None = None) -> None:
    """Writes a supernet as safetensors; `load_supernet` and `read_seed` give it back.

    The file states space, dense head, padding and epsilon itself; `metadata` adds to that, for example how images are normalised.

    Raises:
        NatdeployError: the file cannot be written.
    """
    known = stated(supernet.space, supernet.classes, supernet.padding, supernet.norm_eps) | {"holds": SUPERNET}
    write_file(path, without_counters(supernet.state_dict()), {**(metadata or {}), **known})


def load_supernet(path: Path, space: SearchSpace | None = None) -> Supernet:
    """Reads a supernet, in evaluation mode: what `save_supernet` wrote, or a checkpoint of once-for-all in either style of names.

    Args:
        path: of the file.
        space: whose architectures share the weights; by default the one that the file states, or once-for-all's.

    Raises:
        WeightsError: the file cannot be read, or holds no supernet of the space.
    """
    seed = read_seed(path, space)
    if not seed.supernet:
        raise WeightsError(
            f"{path} holds one network, {seed.arch}, and no supernet; make one of it with `natdeploy supernet import`"
        )
    return supernet_of(seed)


def supernet_of(seed: Seed) -> Supernet:
    """The supernet whose weights a seed holds."""
    assert seed.supernet
    padding = seed.padding or "symmetric"
    classes = seed.classes if seed.space.dense else None
    return restore(seed.state, seed.space, width=seed.arch.width, padding=padding, norm_eps=seed.norm_eps, classes=classes)


def restore(
    state: Mapping[str, Tensor],
    space: SearchSpace,
    *,
    width: float,
    padding: Padding,
    norm_eps: float,
    classes: int | None = None,
) -> Supernet:
    """The supernet that has this state, in evaluation mode; own channels and kernel transformations are read from it.

    Args:
        state: name in a supernet -> tensor; counters of batches may be missing.
        space: that it is of, its channels apart.
        width: of the supernet.
        padding: of the convolutions of stride 2.
        norm_eps: added to the variance of batch normalisation.
        classes: of a dense head; those of a linear layer are read.
    """
    supernet = Supernet(
        with_channels_of(state, space, width),
        classes or (len(state["classifier.weight"]) if "classifier.weight" in state else 1),
        width=width,
        padding=padding,
        norm_eps=norm_eps,
        kernel_transforms=any(".transforms." in name for name in state),
    )
    supernet.load_state_dict({**supernet.state_dict(), **state})
    return supernet.eval()


def with_channels_of(state: Mapping[str, Tensor], space: SearchSpace, width: float) -> SearchSpace:
    """The space with the channels of a state, which need not follow from the width."""
    stem = len(state["stem.conv.weight"])
    head = len(state["head.conv.weight"]) if "head.conv.weight" in state else space.head_out(width)  # a dense one has others
    outs = [len(state[f"stages.{number}.0.project.conv.weight"]) for number in range(len(space.stages))]
    mix = len(state["mix.linear.weight"]) if "mix.linear.weight" in state else 0
    known = [space.stem_out(width), *(space.stage_out(number, width) for number in range(len(outs))), space.head_out(width)]
    return space if known == [stem, *outs, head] else space.with_channels(stem, outs, head, mix)
