"""Where pixels come from: decoded once into memory, or decoded again whenever they are asked for. Both give the same bytes."""

from __future__ import annotations

import os
import sys
import warnings
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from natdeploy.errors import DataError
from natdeploy.progress import Progress, Silent
from natdeploy.tasks.data import Bytes, ImageSet, Indices, listed, require_enough

MEMORY_SHARE = 0.5
"""Of the memory that is free; images that need no more are decoded once and held."""

DEVICE_SHARE = 0.25
"""Of an accelerator's free memory; training needs the rest."""

DECODED_BYTES = 2**28
"""Held of images that are decoded on demand: those asked for last, and those that will be next."""

DECODERS = 16
"""At most this many threads decode; an accelerator is rarely faster than so many."""


class PixelSource(Protocol):
    """Images of one size, by index."""

    @property
    def source(self) -> ImageSet:
        """The set they come from."""

    @property
    def labels(self) -> Tensor:
        """(n,) int64."""

    @property
    def size(self) -> int:
        """Height and width, px."""

    def take(self, index: Indices) -> tuple[Tensor, Indices]:
        """Bytes (b, 3, size, size), RGB, channels last in memory, and the index of each: those asked for, without damaged ones."""

    def expect(self, index: Indices) -> None:
        """Says which images will be asked for soon."""


@dataclass(frozen=True)
class Pixels:
    """Decoded images in memory.

    Attributes:
        source: the set they come from, without the damaged ones.
        images: (n, 3, size, size) uint8, RGB; channels last in memory, which makes cropping and resizing twice as fast.
        labels: (n,) int64.
    """

    source: ImageSet
    images: Tensor
    labels: Tensor

    @property
    def size(self) -> int:
        return self.images.shape[-1]

    def take(self, index: Indices) -> tuple[Tensor, Indices]:
        rows = torch.from_numpy(index).to(self.images.device)
        return self.images.permute(0, 2, 3, 1)[rows].permute(0, 3, 1, 2), index

    def expect(self, index: Indices) -> None:
        pass

    def to(self, device: torch.device) -> Pixels:
        """The same pixels in a device's memory."""
        return replace(self, images=self.images.to(device))


class OnDemand:
    """Images that are decoded whenever they are asked for, by a few threads, those that will be asked for next ahead of time.

    A damaged image is left out of the batch it would be in, and noted once. Not for use by several threads.

    Args:
        source: the set.
        size: height and width, px.
        strict: a damaged image is an error.
        progress: is told about damaged images.
    """

    def __init__(self, source: ImageSet, size: int, *, strict: bool = False, progress: Progress | None = None) -> None:
        self.source = source
        self.labels = torch.tensor(source.labels)
        self.size = size
        # Pillow warns of what it can read all the same. What Python offers to silence a block is not for threads.
        warnings.filterwarnings("ignore", module=r"PIL\.")
        self._strict = strict
        self._progress = progress or Silent()
        self._decoders = ThreadPoolExecutor(decoders(), thread_name_prefix="decode")
        self._room = DECODED_BYTES // (3 * size * size)
        self._images: OrderedDict[int, Future[Bytes | str]] = OrderedDict()
        self._damaged: set[int] = set()

    def __reduce__(self) -> tuple[Callable[..., OnDemand], tuple[ImageSet, int]]:
        """Another process decodes by threads of its own, and tells nobody of damage."""
        return partial(OnDemand, strict=self._strict), (self.source, self.size)

    def take(self, index: Indices) -> tuple[Tensor, Indices]:
        """As of PixelSource.

        Raises:
            DataError: an image is damaged and `strict` is set, or all of them are.
        """
        waiting = self._request(index)
        rows: list[Bytes] = []
        kept: list[int] = []
        for place, future in zip(index.tolist(), waiting, strict=True):
            image = future.result()
            if isinstance(image, str):
                self._note(place, image)
            else:
                rows.append(image)
                kept.append(place)
        if not rows:
            raise DataError(f"none of {len(index)} images of {self.source.root} can be decoded; mend or remove them")
        return torch.from_numpy(np.stack(rows)).permute(0, 3, 1, 2), np.array(kept)

    def expect(self, index: Indices) -> None:
        self._request(index)

    def _request(self, index: Indices) -> list[Future[Bytes | str]]:
        """What decodes or has decoded each image; those that were not asked for the longest are forgotten."""
        self._room = max(self._room, 4 * len(index))
        found = []
        for place in index.tolist():
            if place not in self._images:
                self._images[place] = self._decoders.submit(read, self.source, place, self.size)
            self._images.move_to_end(place)
            found.append(self._images[place])
        while len(self._images) > self._room:
            self._images.popitem(last=False)[1].cancel()
        return found

    def _note(self, place: int, reason: str) -> None:
        path = self.source.root / self.source.paths[place]
        if self._strict:
            raise DataError(f"{path} cannot be decoded: {reason}; mend it, or start a new run without it")
        if place not in self._damaged:
            self._damaged.add(place)
            self._progress.note(f"skipped {self.source.paths[place]}: {reason}")


def open_pixels(
    images: ImageSet,
    size: int,
    *,
    strict: bool = False,
    progress: Progress | None = None,
    on_demand: bool | None = None,
    device: torch.device | None = None,
) -> PixelSource:
    """The pixels of a set: decoded once if they fit into half of the memory that is free, otherwise on demand.

    Args:
        images: the set.
        size: height and width, px; a set whose images are known to be smaller is kept as small as it is.
        strict: a damaged file is an error.
        progress: is told about the work, and which of the two it is.
        on_demand: which of the two, where it is known already.
        device: an accelerator, into whose memory decoded images are put if they take at most a quarter of what is free there.

    Raises:
        DataError: a file is damaged and `strict` is set, or so many are damaged that a class has too few images left.
    """
    progress = progress or Silent()
    size = min(size, images.side or size)
    needed, available = len(images) * 3 * size * size, available_bytes()
    if on_demand or (on_demand is None and available is not None and needed > MEMORY_SHARE * available):
        free = "" if available is None else f", of {available / 2**30:.1f} GB free"
        progress.note(
            f"images: {len(images)} would take {needed / 2**30:.1f} GB in memory{free}; "
            f"decoded again whenever they are needed, by {decoders()} threads"
        )
        return OnDemand(images, size, strict=strict, progress=progress)
    pixels = decode(images, size, strict=strict, progress=progress)
    held = "memory"
    if device is not None and device.type == "cuda" and needed <= DEVICE_SHARE * torch.cuda.mem_get_info(device)[0]:
        pixels, held = pixels.to(device), "the accelerator's memory"
    progress.note(f"images: {len(pixels.source)} decoded once, {needed / 2**30:.1f} GB in {held}")
    return pixels


def decode(images: ImageSet, size: int, *, strict: bool = False, progress: Progress | None = None) -> Pixels:
    """Reads every image: upright (EXIF), RGB, shorter side resized to `size`, centre square.

    Args:
        images: what to read.
        size: height and width of the result, px.
        strict: a damaged file is an error; otherwise it is left out, and named in `Pixels.source.skipped`.
        progress: is told about every image.

    Raises:
        DataError: a file is damaged and `strict` is set, or so many files are damaged that a class has too few images left.
    """
    progress = progress or Silent()
    if images.arrays is not None and images.side == size:
        return Pixels(images, torch.from_numpy(images.arrays).permute(0, 3, 1, 2), torch.tensor(images.labels))
    pixels = torch.empty((len(images), size, size, 3), dtype=torch.uint8)
    kept: list[int] = []
    skipped: list[tuple[str, str]] = []
    # Pillow warns of what it can read all the same; what it cannot read is reported below.
    with warnings.catch_warnings(action="ignore"), progress.task("decoding images", len(images), "images") as advance:
        for index, path in enumerate(images.paths):
            image = read(images, index, size)
            if isinstance(image, str):
                skipped.append((path, image))
            else:
                pixels[len(kept)] = torch.from_numpy(image)
                kept.append(index)
            advance(1)
    if skipped and strict:
        named = listed([f"{images.root / path} ({reason})" for path, reason in skipped])
        raise DataError(f"{len(skipped)} of {len(images)} images cannot be decoded: {named}; mend or remove them")
    source = _without(images, kept, skipped) if skipped else images
    require_enough(source)
    return Pixels(source, pixels[: len(kept)].permute(0, 3, 1, 2), torch.tensor(source.labels))


def _without(images: ImageSet, kept: Sequence[int], skipped: Sequence[tuple[str, str]]) -> ImageSet:
    return replace(
        images,
        paths=tuple(images.paths[index] for index in kept),
        labels=tuple(images.labels[index] for index in kept),
        is_test=tuple(images.is_test[index] for index in kept),
        skipped=images.skipped + tuple(skipped),
    )


def read(images: ImageSet, index: int, size: int) -> Bytes | str:
    """One image (size, size, 3), or why it cannot be read."""
    image = _opened(images, index, size)
    return image if isinstance(image, str) else np.array(ImageOps.fit(image, (size, size), Image.Resampling.BILINEAR))


def read_whole(images: ImageSet, index: int) -> Bytes | str:
    """One image as it is, upright, (height, width, 3) RGB, or why it cannot be read."""
    image = _opened(images, index, None)
    return image if isinstance(image, str) else np.array(image)


def read_rgb(path: Path) -> Bytes:
    """One image as its file has it, (height, width, 3) RGB: boxes and masks are about that, not about an upright one.

    Raises:
        DataError: it cannot be read.
    """
    try:
        with Image.open(path) as file:
            return np.array(file.convert("RGB"))
    except Exception as error:  # Pillow's readers raise nearly anything on damaged bytes
        raise DataError(f"{path} cannot be read ({error}); leave the folder alone while it is used") from error


def _opened(images: ImageSet, index: int, size: int | None) -> Image.Image | str:
    """One image, upright and RGB, or why it cannot be read; with a size, as little detail as a square of that size needs."""
    if images.arrays is not None:
        return Image.fromarray(images.arrays[index]).convert("RGB")
    path = images.root / images.paths[index]
    try:
        with Image.open(path) as file:
            if size is not None:
                # Lets the JPEG decoder leave out detail that resizing would drop: three times as fast on a camera's photos.
                file.draft("RGB", (2 * size, 2 * size))
            image = ImageOps.exif_transpose(file)
    except Exception as error:  # Pillow's readers raise nearly anything on damaged bytes
        return " ".join(str(error).replace(str(path), path.name).split()) or type(error).__name__
    if image.mode.startswith("I;16"):
        # Pillow's own conversion clips 16 bits to 8, which leaves a white image.
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    elif image.mode in ("I", "F"):
        return f"pixels of 32 bits (mode {image.mode}) have no known range"
    return image.convert("RGB")


def decoders() -> int:
    """Threads that decode: one a core that this process may use."""
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    return min(DECODERS, cores)


def available_bytes() -> int | None:
    """Memory that can be had without swapping; None on systems that do not say."""
    if sys.platform != "linux":
        return None
    facts = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    available = int(facts["MemAvailable"].split()[0]) * 1024
    limit, used = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")
    if limit.is_file() and limit.read_text().strip() != "max":
        available = min(available, int(limit.read_text()) - int(used.read_text()))
    return available
