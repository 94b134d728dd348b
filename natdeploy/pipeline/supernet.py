"""Files of weights: what they hold, and supernets made of them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from natdeploy.errors import UsageError
from natdeploy.pipeline.setting import make_supernet, read_for
from natdeploy.space import Arch, get_space
from natdeploy.supernet import Padding, RemapReport, Seed, read_seed, save_supernet


@dataclass(frozen=True)
class Size:
    """What an architecture costs.

    Attributes:
        arch: its text.
        params: trainable parameters.
        macs: multiply-accumulates of one image.
    """

    arch: str
    params: int
    macs: int


@dataclass(frozen=True)
class WeightsInfo:
    """What a file of weights is.

    Attributes:
        file: its name.
        sha256: of its bytes.
        format: whose names it uses.
        holds: `network`, or `supernet` where all architectures of the space share the weights.
        space: that it is of.
        width: channel multiplier.
        channels: of the stem, every stage, the head, and the linear layer behind the pooling where there is one.
        classes: outputs of the classifier; 0 where there is none.
        tensors: how many were recognised; that is all of them but counters.
        smallest: architecture; the only one of a network.
        largest: architecture; the only one of a network.
        kernel_transforms: whether smaller kernels are learned maps of larger ones.
        norm_eps: added to the variance of batch normalisation.
        padding: at stride 2; None where the file does not say, it is recognised on photos then.
        input: how images are normalised, in the file's own words; None where it does not say.
    """

    file: str
    sha256: str
    format: str
    holds: str
    space: str
    width: float
    channels: tuple[int, ...]
    classes: int
    tensors: int
    smallest: Size
    largest: Size
    kernel_transforms: bool
    norm_eps: float
    padding: Padding | None
    input: str | None


@dataclass(frozen=True)
class ImportResult:
    """A supernet made of a file.

    Attributes:
        seed: what the file is.
        report: what of it went where.
        supernet: what was written.
        path: where.
    """

    seed: WeightsInfo
    report: RemapReport
    supernet: WeightsInfo
    path: Path


def supernet_info(path: Path, space: str | None = None) -> WeightsInfo:
    """What a file of weights is.

    Args:
        path: of the file, or torchvision's name for weights.
        space: name or file of the space it is of; recognised by default.

    Raises:
        WeightsError: the file cannot be read, or holds no network of a kind that is known, or not one of the space.
        UsageError: the space is unknown.
    """
    return describe(read_seed(path, None if space is None else get_space(space)))


def supernet_import(
    path: Path, out: Path, *, space: str | None = None, classes: int | None = None, padding: Padding | None = None, seed: int = 0
) -> ImportResult:
    """Makes a supernet of a file of weights, and writes it as safetensors.

    Args:
        path: of the file, or torchvision's name for weights.
        out: file to write.
        space: name or file of the supernet's space; by default that of the weights.
        classes: outputs of the classifier; by default those of the weights.
        padding: at stride 2, for weights that do not say it.
        seed: of the initial values of what is new.

    Raises:
        WeightsError: the file cannot be read, or its network has no place in the space.
        UsageError: the space is unknown, a number of classes is needed, or padding contradicts the file.
        NatdeployError: the supernet cannot be written.
    """
    found, chosen = read_for(path, get_space(space)) if space is not None else ((own := read_seed(path)), own.space)
    outputs = classes or found.classes
    if not outputs:
        raise UsageError(f"{path} has no classifier; give the number of classes")
    if padding is not None and found.padding not in (None, padding):
        raise UsageError(f"{path} states padding {found.padding}, not {padding}")
    if out.suffix != ".safetensors":
        raise UsageError(f"{out}: a supernet is written as .safetensors")
    generator = torch.Generator().manual_seed(seed)
    supernet, report = make_supernet(found, chosen, outputs, found.padding or padding or "symmetric", generator)
    about = {name: found.metadata[name] for name in ("input", "source", "licence") if name in found.metadata}
    save_supernet(supernet, out, {**about, "seed": found.source, "seed_sha256": found.sha256})
    return ImportResult(describe(found), report, describe(read_seed(out, chosen)), out)


def describe(seed: Seed) -> WeightsInfo:
    """What a seed is."""
    space, width, smallest = seed.space, seed.arch.width, seed.arch
    if seed.supernet:  # its largest architecture is the seed's
        smallest = Arch(seed.arch.resolution, width, space.decode(space.lower).stages)
    stages = range(len(space.stages))
    mix = space.mix_out(width)
    return WeightsInfo(
        file=seed.source,
        sha256=seed.sha256,
        format=seed.format,
        holds="supernet" if seed.supernet else "network",
        space=space.name,
        width=width,
        channels=(
            space.stem_out(width),
            *(space.stage_out(number, width) for number in stages),
            space.head_out(width),
            *([mix] if mix else []),
        ),
        classes=seed.classes,
        tensors=len(seed.state),
        smallest=_size(seed, smallest),
        largest=_size(seed, seed.arch),
        kernel_transforms=seed.kernel_transforms,
        norm_eps=seed.norm_eps,
        padding=seed.padding,
        input=seed.metadata.get("input"),
    )


def _size(seed: Seed, arch: Arch) -> Size:
    blocks = seed.space.blocks(arch, seed.classes)
    return Size(str(arch), sum(block.params for block in blocks), sum(block.macs for block in blocks))
