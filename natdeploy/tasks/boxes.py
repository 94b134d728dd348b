"""Images with boxes around the objects that they show: checked and decoded. `box_files` finds them."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from natdeploy.errors import DataError
from natdeploy.progress import Progress, Silent
from natdeploy.tasks.data import Bytes, Indices, Part, Splits, listed, split_parts
from natdeploy.tasks.pixels import MEMORY_SHARE, available_bytes

TARGET_COLUMNS = 6
"""Of a target: left, top, right, bottom as shares of the image's sides; label; 1 for a crowd. A row of label -1 is no object."""

_ROUNDING_PX = 1.0
"""Boxes may end so far outside: programs round, and count from 0 or from 1."""


@dataclass(frozen=True)
class Objects:
    """What one image shows.

    Attributes:
        boxes: (m, 4) float64: left, top, right, bottom, px.
        labels: (m,).
        crowd: (m,) bool: several objects in one box (COCO's crowds), or one that is hard to see (VOC's difficult ones). The metric
            neither asks for them nor punishes who finds them, and nothing is learned from them.
    """

    boxes: npt.NDArray[np.float64]
    labels: Indices
    crowd: npt.NDArray[np.bool_]

    @classmethod
    def of(cls, rows: Sequence[tuple[Sequence[float], int, bool]]) -> Objects:
        """Of a box, a label and whether it is a crowd, each."""
        return cls(
            np.array([box for box, _, _ in rows], dtype=np.float64).reshape(-1, 4),
            np.array([label for _, label, _ in rows], dtype=np.int64),
            np.array([crowd for _, _, crowd in rows], dtype=np.bool_),
        )

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class BoxSet:
    """Images with boxes, known by name.

    Attributes:
        root: the folder.
        classes: names; a label is an index into them.
        images: paths (n), relative to `root` where they lie below it.
        parts: (n), the part of the published split that an image belongs to.
        sizes: (n) height and width of the image as the annotations say, px; None where they do not.
        objects: (n), of the same images.
        skipped: images that were left out, each with the reason.
        faults: boxes that were left out or cut off, each with the image or file that has it and the reason.
    """

    root: Path
    classes: tuple[str, ...]
    images: tuple[str, ...]
    parts: tuple[Part, ...]
    sizes: tuple[tuple[int, int] | None, ...]
    objects: tuple[Objects, ...] = field(repr=False)
    skipped: tuple[tuple[str, str], ...] = ()
    faults: tuple[tuple[str, str], ...] = ()

    def __len__(self) -> int:
        return len(self.images)

    def fingerprint(self) -> str:
        """SHA-256 that says whether this is the same data set: over name and size of every image, its boxes, and the classes.

        Raises:
            DataError: a file has gone since the folder was scanned.
        """
        digest = hashlib.sha256("\n".join(self.classes).encode())
        for path, objects in zip(self.images, self.objects, strict=True):
            try:
                digest.update(f"{path}\0{(self.root / path).stat().st_size}\n".encode())
            except OSError as error:
                raise DataError(
                    f"{self.root / path} cannot be read ({error.strerror}); leave the folder alone while it is used"
                ) from error
            for array in (objects.boxes, objects.labels, objects.crowd):
                digest.update(np.ascontiguousarray(array).data)
        return digest.hexdigest()

    @property
    def negatives(self) -> int:
        """Images that show no object: valid, and all of them background."""
        return sum(not len(each) for each in self.objects)


@dataclass(frozen=True)
class Boxed:
    """Decoded images and boxes in memory.

    Attributes:
        source: the set they come from, without what was left out.
        images: (n, 3, side, side) uint8, RGB, channels last in memory; all are warped to a square, as SSD's are (arXiv 1512.02325).
        targets: (n) of (m, TARGET_COLUMNS) fp32.
    """

    source: BoxSet
    images: Tensor
    targets: tuple[Tensor, ...] = field(repr=False)

    @property
    def side(self) -> int:
        """Height and width, px."""
        return self.images.shape[-1]


def decode_boxes(found: BoxSet, side: int, *, strict: bool = False, progress: Progress | None = None) -> Boxed:
    """Reads every image.

    An image that is damaged, or has another size than its annotation says, is left out. So is a box of no area or outside of its
    image; one that lies partly outside is cut off at the border. An image that shows nothing is kept.

    Args:
        found: what to read.
        side: height and width of the result, px.
        strict: anything to leave out or to cut off is an error; otherwise it is counted and named in the result's source and notes.
        progress: is told about every image.

    Raises:
        DataError: there is a fault and `strict` is set, nothing is left, or it does not fit into memory.
    """
    progress = progress or Silent()
    needed, available = 3 * len(found) * side**2, available_bytes()
    if available is not None and needed > MEMORY_SHARE * available:
        raise DataError(
            f"{len(found)} images of {side} x {side} px take {needed / 2**30:.1f} GB, more than half of the "
            f"{available / 2**30:.1f} GB that are free; ask for a smaller size"
        )
    images = torch.empty((len(found), side, side, 3), dtype=torch.uint8)
    targets: list[Tensor] = []
    kept: list[int] = []
    objects: list[Objects] = []
    skipped, faults = list(found.skipped), list(found.faults)
    with progress.task("decoding images", len(found), "images") as advance:
        for index, path in enumerate(found.images):
            read = _read(found.root / path, found.sizes[index], side)
            if isinstance(read, str):
                skipped.append((path, read))
            else:
                pixels, size = read
                inside, reasons = _inside(found.objects[index], size)
                faults += [(path, reason) for reason in reasons]
                images[len(kept)] = torch.from_numpy(pixels)
                targets.append(_target(inside, size))
                objects.append(inside)
                kept.append(index)
            advance(1)
    source = replace(
        found,
        images=tuple(found.images[index] for index in kept),
        parts=tuple(found.parts[index] for index in kept),
        sizes=tuple(found.sizes[index] for index in kept),
        objects=tuple(objects),
        skipped=tuple(skipped),
        faults=tuple(faults),
    )
    notes = _notes(source)
    if notes and strict:
        raise DataError(f"{'; '.join(notes)}; mend or remove them")
    if not kept:
        raise DataError(f"none of the images in {found.root} can be used; {'; '.join(notes)}")
    for note in notes:
        progress.note(note)
    if source.negatives:
        progress.note(f"{source.negatives} of {len(source)} images in {found.root} show no object, and are background")
    return Boxed(source, images[: len(kept)].permute(0, 3, 1, 2), tuple(targets))


def _notes(source: BoxSet) -> list[str]:
    """What is at fault, a sentence a kind."""
    notes = []
    for what, reasons in (("images of {} cannot be used", source.skipped), ("boxes of {} are at fault", source.faults)):
        if reasons:
            notes.append(f"{len(reasons)} {what.format(source.root)}: {listed([f'{path} ({why})' for path, why in reasons])}")
    return notes


def _read(path: Path, stated: tuple[int, int] | None, side: int) -> tuple[Bytes, tuple[int, int]] | str:
    """Pixels (side, side, 3) of one image and its own height and width, or why it cannot be used."""
    try:
        with Image.open(path) as file:
            size = file.height, file.width
            file.draft("RGB", (2 * side, 2 * side))  # a large JPEG is read at half its size, or less, where that is enough
            image = file.convert("RGB")
    except Exception as error:  # Pillow's readers raise nearly anything on damaged bytes
        return " ".join(str(error).split()) or type(error).__name__
    if stated is not None and stated != size:
        return f"has {size[1]} x {size[0]} px, its annotation speaks of {stated[1]} x {stated[0]}"
    return np.array(image.resize((side, side), Image.Resampling.BILINEAR)), size


def _inside(objects: Objects, size: tuple[int, int]) -> tuple[Objects, list[str]]:
    """The objects of an image (height, width), cut off at its border, and what was wrong with any."""
    height, width = size
    limit = np.array([width, height, width, height])
    cut = np.clip(objects.boxes, 0, limit)
    empty = (objects.boxes[:, 2:] <= objects.boxes[:, :2]).any(axis=1)
    outside = ~empty & (cut[:, 2:] <= cut[:, :2]).any(axis=1)
    partly = ~empty & ~outside & (abs(cut - objects.boxes) > _ROUNDING_PX).any(axis=1)
    reasons = []
    for which, what in ((empty, "has no area"), (outside, "lies outside of the image"), (partly, "is cut off at the border")):
        reasons += [f"the box {' '.join(f'{value:g}' for value in box)} {what}" for box in objects.boxes[which]]
    kept = ~empty & ~outside
    return Objects(cut[kept], objects.labels[kept], objects.crowd[kept]), reasons


def _target(objects: Objects, size: tuple[int, int]) -> Tensor:
    height, width = size
    shares = objects.boxes / np.array([width, height, width, height])
    rows = np.concatenate([shares, objects.labels[:, None], objects.crowd[:, None]], axis=1)
    return torch.from_numpy(rows.astype(np.float32))


def split_boxes(decoded: Boxed, seed: int) -> Splits:
    """Disjoint parts: the published ones, and what they lack by chance, as `split_parts` does.

    Raises:
        DataError: there are too few images, or a class is nowhere in the training images.
    """
    source = decoded.source
    splits = split_parts(source.parts, seed, source.root)
    seen = {int(label) for index in splits.train for label in source.objects[index].labels[~source.objects[index].crowd]}
    if unseen := [name for label, name in enumerate(source.classes) if label not in seen]:
        raise DataError(
            f"no box of the {len(splits.train)} training images in {source.root} is of class {listed(unseen)}; add images of it, "
            f"or remove the class"
        )
    return splits
