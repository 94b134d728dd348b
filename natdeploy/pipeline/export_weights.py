"""Networks of a file of weights as files that can be handed on, without a run."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import torch

from natdeploy._version import __version__
from natdeploy.errors import UsageError, WeightsError
from natdeploy.export import Description, InputKind, PhotoSize
from natdeploy.pipeline.bundles import MAX_DROP, Bundle, wanted
from natdeploy.pipeline.config import HeadSettings, SearchConfig
from natdeploy.pipeline.export import preprocessing
from natdeploy.pipeline.setting import CONVENTION_IMAGES, make_supernet
from natdeploy.pipeline.suppressed import write_suppressed
from natdeploy.pipeline.tasks import open_task
from natdeploy.progress import Progress, Silent
from natdeploy.space import Arch, SearchSpace, get_space
from natdeploy.space.detectors import finds
from natdeploy.store import FileRecord
from natdeploy.supernet import InputConvention, Seed, Subnet, calibrate, choose_input, read_seed, stated_input
from natdeploy.tasks import METRICS, Task, TaskName, palette
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
    nms: bool = False,
    settings: SearchConfig | None = None,
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
        data: images as a search for the network's task has them: a folder a class, or with masks or boxes. If the classes are the
            network's, in the order of its outputs, files are judged by them; others show how the network wants its images, and what
            ranges there are.
        space: name or file of the space the weights are of; recognised by default.
        max_drop: points of validation accuracy that a file may lose to torch in fp32.
        input: as in `export`.
        photo_size: as in `export`.
        nms: as in `export`; takes images.
        settings: of a search; what they say of reading images counts here, too (`masks`, `boxes`, `data_root`).
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
    task, convention = _images(seed, chosen, data, settings, progress)
    labels, labelled = _labels(seed, task, progress)
    network = _Network(seed, chosen, task, convention)
    description = network.describe(labels)
    if nms:
        _check_suppressible(description, task)
    bundle = Bundle(
        out / chosen.id,
        description,
        lambda: network.subnet,
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
    if nms and task is not None:
        path = write_suppressed(out / chosen.id, description, network.subnet, task)
        progress.note(f"{path}: with non-maximum suppression inside, as good as torch on validation")
    return files


def _check_suppressible(description: Description, task: Task | None) -> None:
    if description.task != "detection":
        raise UsageError(f"there is nothing to suppress in answers of {description.task}; leave out --nms")
    if task is None:
        raise UsageError("what --nms writes is judged by images, and none are given; give some with --data")


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


def _images(
    seed: Seed, arch: Arch, data: Path | None, settings: SearchConfig | None, progress: Progress
) -> tuple[Task | None, InputConvention]:
    """The task of the images, and how the network wants them."""
    if data is None:
        convention = stated_input(seed)
        if convention is None:
            raise UsageError(
                f"{seed.source} does not say how it wants its images; give some with --data, any photos, by which it is recognised"
            )
        return None, convention
    name, spec = _task_name(seed.space), seed.space.dense
    given = settings or SearchConfig(data=data, out=Path())
    config = given.model_copy(update={"data": data, "task": name, "head": spec and HeadSettings(kind=spec.kind)})
    task = open_task(config, seed.space.restrict(resolutions=[arch.resolution]), progress, torch.device("cpu"), None)
    convention = choose_input(seed, task.photos(CONVENTION_IMAGES, arch.resolution))
    return task.with_input(convention.mean, convention.std), convention


def _task_name(space: SearchSpace) -> TaskName:
    """What networks of a space learn."""
    if space.dense is None:
        return "classification"
    return "detection" if finds(space.dense.kind) else "segmentation"


def _labels(seed: Seed, task: Task | None, progress: Progress) -> tuple[tuple[str, ...], bool]:
    """Names of the outputs, and whether the images are of these classes."""
    stated = _stated_labels(seed)
    if task is None:
        return stated or tuple(map(str, range(seed.classes))), False
    if len(task.classes) == seed.classes and stated in (None, task.classes):
        return task.classes, True
    differ = "others" if len(task.classes) == seed.classes else f"{seed.classes}"
    progress.note(
        f"the images have {len(task.classes)} classes and {seed.source} tells {differ} apart: files are compared with torch on "
        "them, but have no accuracy"
    )
    return stated or tuple(map(str, range(seed.classes))), False


def _stated_labels(seed: Seed) -> tuple[str, ...] | None:
    """Names of the outputs that the file states."""
    text = seed.metadata.get("labels")
    if text is None:
        return None
    try:
        names = json.loads(text)
    except ValueError:
        names = None
    if not isinstance(names, list) or len(names) != seed.classes or not all(isinstance(name, str) for name in names):
        raise WeightsError(f"{seed.source} states labels that are no list of {seed.classes} names: {text[:80]}")
    return tuple(names)


@dataclass(frozen=True)
class _Network:
    """The network that is asked for: an architecture of a file of weights, with images or without."""

    seed: Seed
    arch: Arch
    task: Task | None
    convention: InputConvention

    @property
    def space(self) -> SearchSpace:
        """Whose inputs have the shape of the images, or of those that the network learned from."""
        aspect = self.seed.space.aspect if self.task is None else self.task.aspect
        return replace(self.seed.space, resolutions=(self.arch.resolution,), aspect=aspect)

    @cached_property
    def subnet(self) -> Subnet:
        """In evaluation mode; with statistics of its own where it comes from a supernet, and there are images."""
        generator = torch.Generator().manual_seed(0)
        supernet, _ = make_supernet(self.seed, self.space, self.seed.classes, self.convention.padding, generator)
        subnet = supernet.extract(self.arch).eval()
        if self.seed.supernet and self.task is not None:
            calibrate(subnet, (images for images, _ in self.task.batches("calibration", self.arch.resolution, BATCH)))
        return subnet

    def describe(self, labels: tuple[str, ...]) -> Description:
        seed, space, task = self.seed, self.space, self.task
        blocks = space.blocks(self.arch, seed.classes)
        name, size = _task_name(space), space.input_size(self.arch.resolution)
        return Description(
            arch=str(self.arch),
            id=self.arch.id,
            space=space.name,
            params=sum(block.params for block in blocks),
            macs=sum(block.macs for block in blocks),
            labels=labels,
            preprocessing=preprocessing(name, size if task is None else task.image_size, size, self.convention),
            seed=seed.source,
            seed_sha256=seed.sha256,
            licence=seed.metadata.get("licence") or seed.metadata.get("source"),
            data_fingerprint=None if task is None else task.fingerprint(),
            versions={"natdeploy": __version__, "torch": torch.__version__},
            task=name,
            metric=METRICS[name],
            palette=palette(seed.classes) if name == "segmentation" else None,
        )
