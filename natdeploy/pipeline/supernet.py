"""Files of weights: what they hold, and supernets made of them."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from natdeploy.errors import UsageError
from natdeploy.pipeline.finished import load_supernet
from natdeploy.pipeline.search import read_config
from natdeploy.pipeline.setting import make_supernet, read_for, stored_convention
from natdeploy.space import Arch, get_space
from natdeploy.store import RunStore
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
        channels: of the stem, every stage, and what is behind them for classification: the last convolution, and the linear layer
            behind the pooling where there is one.
        head: kind of the dense head; None where there is none.
        head_channels: as in `HeadSpec`; None likewise.
        classes: outputs of the classifier or the dense head; 0 where there is none.
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
    head: str | None
    head_channels: int | None
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
    """Makes a supernet of a file of weights, and writes it as safetensors. A dense head stays.

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
    headed = found.space
    chosen = replace(chosen, dense=headed.dense, output_stride=headed.output_stride, aspect=headed.aspect)
    outputs = classes or found.classes
    if not outputs:
        raise UsageError(f"{path} has no classifier; give the number of classes")
    if padding is not None and found.padding not in (None, padding):
        raise UsageError(f"{path} states padding {found.padding}, not {padding}")
    _require_safetensors(out)
    generator = torch.Generator().manual_seed(seed)
    supernet, report = make_supernet(found, chosen, outputs, found.padding or padding or "symmetric", generator)
    kept = ("input", "source", "licence", *(["labels"] if outputs == found.classes else []))
    about = {name: found.metadata[name] for name in kept if name in found.metadata}
    save_supernet(supernet, out, {**about, "seed": found.source, "seed_sha256": found.sha256})
    return ImportResult(describe(found), report, describe(read_seed(out, chosen)), out)


def supernet_save(folder: Path, out: Path) -> WeightsInfo:
    """Writes the supernet of a finished run as safetensors: the weights that all its networks share, as adaptation left them.

    It is a seed for other searches, of other images or for other targets, and `export_weights` takes any architecture from it.

    Args:
        folder: of the run.
        out: file to write.

    Raises:
        UsageError: there is no run, or it is not finished.
        NatdeployError: the supernet cannot be written.
    """
    _require_safetensors(out)
    with RunStore.open(folder) as store:
        supernet, config = load_supernet(store), read_config(store)
        known: dict[str, str] = store.get("seed_metadata") or {}
        about: dict[str, str] = {name: known[name] for name in ("source", "licence") if name in known}
        labels = json.dumps(store.get("classes"), ensure_ascii=False)
        save_supernet(supernet, out, {**about, "input": stored_convention(store).stated, "labels": labels})
        return describe(read_seed(out, get_space(config.space)))


def _require_safetensors(out: Path) -> None:
    if out.suffix != ".safetensors":
        raise UsageError(f"{out}: a supernet is written as .safetensors")


def describe(seed: Seed) -> WeightsInfo:
    """What a seed is."""
    space, width, smallest = seed.space, seed.arch.width, seed.arch
    if seed.supernet:  # its largest architecture is the seed's
        smallest = Arch(seed.arch.resolution, width, space.decode(space.lower).stages)
    stages = range(len(space.stages))
    last = () if space.dense else (space.head_out(width), *([mix] if (mix := space.mix_out(width)) else []))
    return WeightsInfo(
        file=seed.source,
        sha256=seed.sha256,
        format=seed.format,
        holds="supernet" if seed.supernet else "network",
        space=space.name,
        width=width,
        channels=(space.stem_out(width), *(space.stage_out(number, width) for number in stages), *last),
        head=space.dense.kind if space.dense else None,
        head_channels=space.dense.channels if space.dense else None,
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
