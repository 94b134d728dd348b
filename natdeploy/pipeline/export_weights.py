"""Networks of a file of weights as files that can be handed on, without a run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from natdeploy._version import __version__
from natdeploy.errors import UsageError
from natdeploy.export import Description, InputKind, PhotoSize, Preprocessing
from natdeploy.pipeline.bundles import MAX_DROP, Bundle, wanted
from natdeploy.pipeline.setting import CONVENTION_IMAGES, make_supernet
from natdeploy.progress import Progress, Silent
from natdeploy.space import Arch, get_space
from natdeploy.store import FileRecord
from natdeploy.supernet import InputConvention, Seed, Subnet, calibrate, choose_input, read_seed, stated_input
from natdeploy.tasks import Classification, open_pixels, scan_images, split
from natdeploy.training.judge import BATCH

ROLE = "weights"


def export_weights(
    weights: Path,
    out: Path,
    arch: str | None = None,
    formats: Sequence[str] = ("onnx",),
    precisions: Sequence[str] = (),
    *,
    data: Path | None = None,
    space: str | None = None,
    max_drop: float = MAX_DROP,
    input: InputKind = "nchw",
    photo_size: PhotoSize | None = None,
    progress: Progress | None = None,
) -> list[FileRecord]:
    """Writes a network of a file of weights as files, each compared with torch in its own runtime before it is handed out.

    With images, a supernet's network gets BatchNorm statistics of its own, int8 its ranges, and every file an accuracy. Without,
    files are compared with torch on noise.

    Args:
        weights: file of a supernet or of a network, or torchvision's name for weights.
        out: folder; files go to a folder in it, named by the architecture's id.
        arch: text of the architecture; that of the file by default, if it holds one network.
        formats: as in `export`.
        precisions: as in `export`.
        data: folder of images, one folder a class. If the classes are the network's, in the order of its outputs, files are judged
            by them; others show how the network wants its images, and what ranges there are.
        space: name or file of the space the weights are of; recognised by default.
        max_drop: points of validation accuracy that a file may lose to torch in fp32.
        input: as in `export`.
        photo_size: as in `export`.
        progress: is told about every file.

    Raises:
        UsageError: an architecture is needed, or not of the space; int8 without images; what `export` raises.
        WeightsError: the file is damaged, or of no space that is known.
        DataError: there are too few images.
    """
    progress = progress or Silent()
    asked = wanted(formats, precisions, max_drop=max_drop, input=input, photo_size=photo_size)
    seed = read_seed(weights, None if space is None else get_space(space))
    chosen = _chosen(seed, arch)
    if not seed.classes:
        raise UsageError(f"{seed.source} has no classifier, so it tells no classes apart; adapt it with `natdeploy search` first")
    task, convention = _images(seed, chosen, data, progress)
    labelled = task is not None and len(task.classes) == seed.classes
    if task is not None and not labelled:
        progress.note(
            f"{data} has {len(task.classes)} classes and {seed.source} tells {seed.classes} apart: files are compared with torch "
            "on its images, but have no accuracy"
        )
    bundle = Bundle(
        out / chosen.id,
        _describe(seed, chosen, task, convention, labelled=labelled),
        lambda: _subnet(seed, chosen, task, convention),
        task,
        wanted=asked,
        progress=progress,
        labelled=labelled,
    )
    if seed.supernet and task is None and chosen.stages != seed.arch.stages:
        progress.note(
            f"BatchNorm statistics are the supernet's, which do not fit {chosen.id} well; it gets its own from images, with --data"
        )
    files = []
    count = len(asked.formats) * len(asked.precisions_of(None))
    with progress.task("exporting", count, "files") as advance:
        for format in asked.formats:
            for precision in asked.precisions_of(None):
                files.append(bundle.add(format, precision, role=ROLE, path=str(out / chosen.id)))
                advance(1)
    return files


def _chosen(seed: Seed, arch: str | None) -> Arch:
    if arch is None:
        if seed.supernet:
            raise UsageError(
                f"{seed.source} is a supernet of many architectures; say which with --arch, for instance --arch {seed.arch}"
            )
        return seed.arch
    chosen = Arch.parse(arch)
    # Weights do not depend on the resolution, so that any will do.
    seed.space.restrict(resolutions=seed.space.resolutions[:1]).validate(
        Arch(seed.space.resolutions[0], chosen.width, chosen.stages)
    )
    if not seed.supernet and chosen.stages != seed.arch.stages:
        raise UsageError(f"{seed.source} holds one network, {seed.arch}; another one of it takes a supernet")
    return chosen


def _images(seed: Seed, arch: Arch, data: Path | None, progress: Progress) -> tuple[Classification | None, InputConvention]:
    """The task of the images, and how the network wants them."""
    if data is None:
        convention = stated_input(seed)
        if convention is None:
            raise UsageError(
                f"{seed.source} does not say how it wants its images; give some with --data, any photos, by which it is recognised"
            )
        return None, convention
    pixels = open_pixels(scan_images(data), arch.resolution, progress=progress)
    parts = split(pixels.source, 0)
    task = Classification(pixels, parts, (0.0,) * 3, (1.0,) * 3, 0)
    convention = choose_input(seed, task.photos(CONVENTION_IMAGES, arch.resolution))
    return task.with_input(convention.mean, convention.std), convention


def _subnet(seed: Seed, arch: Arch, task: Classification | None, convention: InputConvention) -> Subnet:
    """A network of the weights, in evaluation mode."""
    generator = torch.Generator().manual_seed(0)
    supernet, _ = make_supernet(seed, seed.space, seed.classes, convention.padding, generator)
    subnet = supernet.extract(arch).eval()
    if seed.supernet and task is not None:
        calibrate(subnet, (images for images, _ in task.batches("calibration", arch.resolution, BATCH)))
    return subnet


def _describe(seed: Seed, arch: Arch, task: Classification | None, convention: InputConvention, *, labelled: bool) -> Description:
    blocks = seed.space.blocks(arch, seed.classes)
    return Description(
        arch=str(arch),
        id=arch.id,
        space=seed.space.name,
        params=sum(block.params for block in blocks),
        macs=sum(block.macs for block in blocks),
        labels=task.classes if task and labelled else tuple(map(str, range(seed.classes))),
        preprocessing=Preprocessing(
            square_px=arch.resolution if task is None else task.image_size[0],
            size_px=arch.resolution,
            mean=convention.mean,
            std=convention.std,
        ),
        seed=seed.source,
        seed_sha256=seed.sha256,
        licence=seed.metadata.get("licence") or seed.metadata.get("source"),
        data_fingerprint=None if task is None else task.fingerprint(),
        versions={"natdeploy": __version__, "torch": torch.__version__},
    )
