"""The one place that opens a task: the images that a configuration names, read, checked and split, as what is to be learned."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from platformdirs import user_data_path

from natdeploy.errors import DataError
from natdeploy.pipeline.config import SearchConfig
from natdeploy.progress import Progress
from natdeploy.space import SearchSpace
from natdeploy.space.detectors import finds
from natdeploy.store import RunStore
from natdeploy.tasks import (
    NAMED,
    Classification,
    Detection,
    Segmentation,
    Splits,
    Task,
    TaskName,
    decode_boxes,
    decode_masks,
    first_size,
    named_set,
    open_named,
    open_pixels,
    scan_boxes,
    scan_images,
    scan_masks,
    split,
    split_boxes,
    split_masks,
)

_AS_THEY_ARE = (0.0,) * 3, (1.0,) * 3
"""Mean and standard deviation of an input whose network is not known yet."""


def open_task(config: SearchConfig, space: SearchSpace, progress: Progress, device: torch.device, store: RunStore | None) -> Task:
    """The task of a configuration, for networks that take colours in 0..1 as they are (`Task.with_input`).

    Args:
        config: what the user asks for.
        space: that is searched; its largest resolution says how large images are kept.
        progress: is told about the work, and what is left out.
        device: where batches are put together.
        store: a run that has been here before; its splits are taken.

    Raises:
        DataError: the images do not do, or are not those the run began with.
    """
    return _OPENERS[config.task](config, space, progress, device, store)


def _classification(
    config: SearchConfig, space: SearchSpace, progress: Progress, device: torch.device, store: RunStore | None
) -> Task:
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
    on_demand = None if store is None else store.get("on_demand") or None
    pixels = open_pixels(
        images, max(space.resolutions), strict=config.strict, progress=progress, on_demand=on_demand, device=device
    )
    skipped = pixels.source.skipped
    for path, reason in skipped:
        progress.note(f"skipped {path}: {reason}")
    if skipped:
        progress.note(f"{len(skipped)} damaged image{'s were' if len(skipped) > 1 else ' was'} skipped; --strict refuses them")
    if store is None:
        splits = split(pixels.source, config.seed, validation=validation)
    else:
        _require_same(config, store, pixels.source.fingerprint())
        splits = Splits.from_json(store.get("splits"), pixels.source.paths, pixels.source.root)
    return Classification(
        pixels, splits, *_AS_THEY_ARE, config.seed, flip=config.flip, augmentation=config.augmentation, device=device
    )


def _segmentation(
    config: SearchConfig, space: SearchSpace, progress: Progress, device: torch.device, store: RunStore | None
) -> Task:
    found = scan_masks(config.data, config.masks.classes, void=config.masks.void)
    height, width = first_size(found)
    if config.masks.height is not None:
        height, width = config.masks.height, round(width * config.masks.height / height)
    if store is not None:
        height, width = store.get("image_size")
    data = decode_masks(found, (height, width), strict=config.strict, progress=progress)
    if store is None:
        splits = split_masks(data, config.seed)
    else:
        _require_same(config, store, data.source.fingerprint())
        splits = Splits.from_json(store.get("splits"), data.source.images, data.source.root)
    augmentation = config.masks.augmentation
    return Segmentation(
        data,
        splits,
        *_AS_THEY_ARE,
        config.seed,
        augmentation=augmentation.model_copy(update={"flip": augmentation.flip and config.flip}),
        device=device,
    )


def _detection(config: SearchConfig, space: SearchSpace, progress: Progress, device: torch.device, store: RunStore | None) -> Task:
    side = config.boxes.side or 3 * max(space.resolutions) // 2
    found = scan_boxes(config.data, config.boxes.images)
    data = decode_boxes(found, side if store is None else store.get("image_size")[0], strict=config.strict, progress=progress)
    if store is None:
        splits = split_boxes(data, config.seed)
    else:
        _require_same(config, store, data.source.fingerprint())
        splits = Splits.from_json(store.get("splits"), data.source.images, data.source.root)
    augmentation = config.boxes.augmentation
    assert config.head is not None and finds(config.head.kind), "which a configuration of this task makes sure of"
    return Detection(
        data,
        splits,
        *_AS_THEY_ARE,
        config.seed,
        head=config.head.kind,
        augmentation=augmentation.model_copy(update={"flip": augmentation.flip and config.flip}),
        device=device,
    )


_Opener = Callable[[SearchConfig, SearchSpace, Progress, torch.device, RunStore | None], Task]
_OPENERS: Mapping[TaskName, _Opener] = {"classification": _classification, "segmentation": _segmentation, "detection": _detection}


def _require_same(config: SearchConfig, store: RunStore, fingerprint: str) -> None:
    if store.get("fingerprint") != fingerprint:
        raise DataError(f"the images in {config.data} are not those this run began with; restore them or start a new run")


def data_folder(config: SearchConfig) -> Path:
    """Where the files of data sets lie that are known by name."""
    return config.data_root or user_data_path("natdeploy") / "data"
