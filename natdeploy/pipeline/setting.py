"""Everything a search works on, put together from a configuration: images, seed, supernet, task."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from platformdirs import user_data_path

from natdeploy.errors import DataError, UsageError, WeightsError
from natdeploy.pipeline.config import SearchConfig
from natdeploy.progress import Progress, Silent
from natdeploy.space import Arch, Layer, SearchSpace, get_space, space_toml
from natdeploy.store import RunStore
from natdeploy.supernet import (
    InputConvention,
    Padding,
    RemapReport,
    RemapRules,
    Seed,
    Supernet,
    choose_input,
    read_seed,
    remap,
    supernet_of,
)
from natdeploy.tasks import NAMED, Classification, PixelSource, Splits, named_set, open_named, open_pixels, scan_images, split
from natdeploy.tasks.augment import resize
from natdeploy.tasks.pixels import OnDemand
from natdeploy.training.memory import keep_freed_memory

CONVENTION_IMAGES = 32
"""Photos by which the seed's input convention is recognised."""

FINAL_CALIBRATION = 240
"""Images, about, by which the final nets' BatchNorm statistics are taken: a few dozen cost a point of accuracy on flowers12."""

_CPU = torch.device("cpu")


@dataclass(frozen=True)
class Setting:
    """What a search works on.

    Attributes:
        space: restricted to the seed's width and to resolutions the images can fill.
        seed: the pretrained network.
        convention: how the seed wants its images.
        report: what of the seed went where.
        supernet: with the seed's weights.
        task: the user's images.
        device: where weights are trained.
    """

    space: SearchSpace
    seed: Seed
    convention: InputConvention
    report: RemapReport
    supernet: Supernet
    task: Classification
    device: torch.device

    @property
    def classes(self) -> tuple[str, ...]:
        return self.task.classes

    def final_task(self) -> Classification:
        """The task once the architectures are chosen: all images but the test ones to learn from, and to calibrate by."""
        splits = self.task.splits
        learned = tuple(sorted(splits.train + splits.validation + splits.calibration))
        calibration = learned[:: max(1, len(learned) // FINAL_CALIBRATION)]
        return self.task.with_splits(Splits(learned, splits.validation, calibration, splits.test))

    def facts(self) -> dict[str, Any]:
        """JSON values that a resumed run needs to be set up alike."""
        source = self.task.pixels.source
        return {
            "fingerprint": source.fingerprint(),
            "splits": self.task.splits.to_json(source),
            "on_demand": isinstance(self.task.pixels, OnDemand),
            "classes": list(self.classes),
            "convention": asdict(self.convention),
            "seed_sha256": self.seed.sha256,
            "seed_metadata": dict(self.seed.metadata),
            "norm_eps": self.seed.norm_eps,
        }

    def seed_arch(self, resolution: int) -> Arch:
        """The seed's own architecture at a resolution; of another space, the one that is nearest to it."""
        return nearest(self.space, Arch(resolution, self.seed.arch.width, self.seed.arch.stages))


def choose_device(accelerator: str) -> torch.device:
    """The device a user means by `auto`, `cpu` or `cuda`.

    Raises:
        UsageError: CUDA is asked for and is not there.
    """
    available = torch.cuda.is_available()
    if accelerator == "cuda" and not available:
        raise UsageError("--accelerator cuda: torch sees no CUDA device here; use --accelerator cpu, or see `natdeploy doctor`")
    return torch.device("cuda" if available and accelerator != "cpu" else "cpu")


def prepare(config: SearchConfig, progress: Progress, store: RunStore | None = None) -> Setting:
    """Reads images and seed and builds the supernet.

    Args:
        config: what the user asks for.
        progress: is told about the work.
        store: a run that has been here before; its splits and input convention are taken.

    Raises:
        DataError: the images do not do, or are not those the run began with.
        WeightsError: the seed is damaged, of another network, or not the one the run began with.
        UsageError: no seed is given, or the space is unknown.
    """
    torch.set_num_threads(config.threads)
    keep_freed_memory()
    device = choose_device(config.accelerator)
    if config.seed_weights is None:
        raise UsageError(
            "a pretrained network is needed: give --seed-weights FILE (`natdeploy supernet info` shows what a file is)"
        )
    asked = get_space(config.space) if store is None else stored_space(config, store)
    seed, space = read_for(config.seed_weights, asked)
    space = narrowed(space, config)
    if store is not None:
        if seed.sha256 != store.get("seed_sha256"):
            raise WeightsError(f"{config.seed_weights} is not the file this run began with; restore it or start a new run")
        task, convention = stored_task(config, store, progress, device), stored_convention(store)
    else:
        pixels, validation = _pixels(config, progress, device)
        splits = split(pixels.source, config.seed, validation=validation)
        convention = choose_input(seed, photos(pixels, splits.train, max(space.resolutions)))
        task = _task(config, pixels, splits, convention, device)
    generator = torch.Generator().manual_seed(config.seed)
    supernet, report = make_supernet(seed, space, len(task.classes), convention.padding, generator, rules=config.remap)
    supernet = supernet.to(device).to(memory_format=torch.channels_last)
    return Setting(space, seed, convention, report, supernet, task, device)


def read_for(path: Path, space: SearchSpace) -> tuple[Seed, SearchSpace]:
    """A seed, and the space for its supernet: the one given, at the seed's width, and with the seed's own channels if it is of it.

    Raises:
        WeightsError: the file is damaged, or holds no network of any space that is known.
    """
    try:
        seed = read_seed(path, space)
    except WeightsError as error:
        try:
            seed = read_seed(path)
        except WeightsError:
            raise error from None
        return seed, space.restrict(widths=(seed.arch.width,))
    return seed, seed.space


def narrowed(space: SearchSpace, config: SearchConfig) -> SearchSpace:
    """A space with those of the asked-for resolutions that it has.

    Raises:
        UsageError: it has none of them.
    """
    if config.resolutions is None:
        return space
    kept = [each for each in space.resolutions if each in config.resolutions]
    if not kept:
        raise UsageError(
            f"space {space.name} has none of the resolutions {list(config.resolutions)}; it has {list(space.resolutions)}"
        )
    return space.restrict(resolutions=kept)


def as_tabled(space: SearchSpace, config: SearchConfig) -> SearchSpace:
    """A search's space as latency tables have it, whose networks have any resolution."""
    return space if config.resolutions is None else space.restrict(resolutions=get_space(config.space).resolutions)


def make_supernet(
    seed: Seed,
    space: SearchSpace,
    classes: int,
    padding: Padding,
    generator: torch.Generator,
    *,
    rules: RemapRules | None = None,
) -> tuple[Supernet, RemapReport]:
    """The supernet of a space with a seed's weights: those of a supernet of the space as they are, those of a network remapped.

    Raises:
        WeightsError: the seed does not fit the space.
    """
    if not (seed.supernet and space == seed.space.restrict(resolutions=space.resolutions)):
        supernet = Supernet(space, classes, width=seed.arch.width, padding=padding, norm_eps=seed.norm_eps, generator=generator)
        return supernet, remap(seed, supernet, rules)
    supernet = supernet_of(replace(seed, padding=padding))
    kept = {name: name for name in seed.state}
    new: tuple[str, ...] = ()
    unused: tuple[str, ...] = ()
    if classes != seed.classes:
        supernet.reset_classifier(classes, generator)
        new = ("classifier.bias", "classifier.weight")
        unused = tuple(name for name in new if kept.pop(name, None))
    return supernet, RemapReport(kept, (), new, unused)


def nearest(space: SearchSpace, arch: Arch) -> Arch:
    """The smallest architecture of a space that is nowhere smaller than another one; where it ends, the largest that it has."""
    stages = []
    for stage, layers in zip(space.stages, arch.stages, strict=True):
        depth = min(max(len(layers), stage.min_depth), stage.max_depth)
        wanted = [layers[min(place, len(layers) - 1)] for place in range(depth)]
        stages.append(tuple(Layer(_least(stage.kernels, each.kernel), _least(stage.expansions, each.expansion)) for each in wanted))
    return Arch(arch.resolution, arch.width, tuple(stages))


_Number = TypeVar("_Number", int, float)


def _least(choices: Sequence[_Number], wanted: _Number) -> _Number:
    """The first of ascending choices that is no less, or the last."""
    return next((choice for choice in choices if choice >= wanted), choices[-1])


def stored_space(config: SearchConfig, store: RunStore) -> SearchSpace:
    """The space of a run, as it was asked for.

    Raises:
        UsageError: its file is another one by now.
    """
    space = get_space(config.space)
    if space_toml(space) != store.get("space"):
        raise UsageError(f"space {config.space} is not the one this run began with; restore it or start a new run")
    return space


def stored_convention(store: RunStore) -> InputConvention:
    """How the seed of a run wants its images."""
    stored = store.get("convention")
    return InputConvention(**{**stored, "mean": tuple(stored["mean"]), "std": tuple(stored["std"])})


def stored_task(
    config: SearchConfig, store: RunStore, progress: Progress | None = None, device: torch.device = _CPU
) -> Classification:
    """The task of a run, with the splits it began with.

    Raises:
        DataError: the images are not those any more.
    """
    pixels, _ = _pixels(config, progress or Silent(), device, on_demand=store.get("on_demand") or None)
    if store.get("fingerprint") != pixels.source.fingerprint():
        raise DataError(f"the images in {config.data} are not those this run began with; restore them or start a new run")
    return _task(config, pixels, Splits.from_json(store.get("splits"), pixels.source), stored_convention(store), device)


def data_folder(config: SearchConfig) -> Path:
    """Where the files of data sets lie that are known by name."""
    return config.data_root or user_data_path("natdeploy") / "data"


def _pixels(
    config: SearchConfig, progress: Progress, device: torch.device, *, on_demand: bool | None = None
) -> tuple[PixelSource, int | None]:
    """The user's images, and how many of them a published recipe validates on."""
    named, validation = named_set(config.data), None
    if named is None:
        if str(config.data) in NAMED:
            progress.note(
                f"data: the folder {config.data}, not the data set of that name; call the folder otherwise to get the set"
            )
        images = scan_images(config.data)
    else:
        images = open_named(named, data_folder(config), download=config.download, progress=progress)
        validation = named.recipe.validation
    size = max(narrowed(get_space(config.space), config).resolutions)
    pixels = open_pixels(images, size, strict=config.strict, progress=progress, on_demand=on_demand, device=device)
    skipped = pixels.source.skipped
    for path, reason in skipped:
        progress.note(f"skipped {path}: {reason}")
    if skipped:
        progress.note(f"{len(skipped)} damaged image{'s were' if len(skipped) > 1 else ' was'} skipped; --strict refuses them")
    return pixels, validation


def _task(
    config: SearchConfig, pixels: PixelSource, splits: Splits, convention: InputConvention, device: torch.device
) -> Classification:
    return Classification(
        pixels,
        splits,
        convention.mean,
        convention.std,
        config.seed,
        flip=config.flip,
        augmentation=config.augmentation,
        device=device,
    )


def photos(pixels: PixelSource, indices: Sequence[int], resolution: int) -> torch.Tensor:
    """Evenly chosen images (n, 3, r, r) in 0..1."""
    stride = max(1, len(indices) // CONVENTION_IMAGES)
    photos, _ = pixels.take(np.array(indices[::stride][:CONVENTION_IMAGES]))
    return (resize(photos, max(resolution, pixels.size)).float() / 255).cpu()
