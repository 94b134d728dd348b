"""Which images there are, of which classes, and which part each belongs to."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from natdeploy.errors import DataError

MIN_IMAGES = 5
"""Images a class needs beside its test images, so that training keeps at least two of them."""

TEST_SHARE = 0.20
VALIDATION_SHARE = 0.15
CALIBRATION_SHARE = 0.10

VALIDATION_IMAGES = 10_000
"""At most, about: as many as NSGANetV2 takes on ImageNet; accuracy has a standard error of half a point at most."""

CALIBRATION_IMAGES = 2_000
"""At most, about: as many as once-for-all (arXiv 1908.09791) takes; every network passes over them."""

LARGEST_VALIDATION = 1 / 3
"""Share of a class. With it, the smallest class still trains on two images."""

_TRAIN_FOLDERS = ("train", "val", "valid")
_TEST_FOLDER = "test"
_NAMED_AT_MOST = 3


Part = Literal["train", "validation", "test"]
"""Of a published split. What is for calibration is taken from `train`."""

Bytes = npt.NDArray[np.uint8]
Indices = npt.NDArray[np.int64]


@dataclass(frozen=True)
class ImageSet:
    """Images that are known by name, with their classes.

    Attributes:
        root: the folder.
        classes: names; a label is an index into them.
        paths: of the images (n), relative to `root`, with `/` between folders; where `arrays` is given, just names.
        labels: (n).
        is_test: (n), whether the image belongs to the test part that came with the set; all False where none did.
        skipped: damaged files that were left out, each with the reason.
        side: height and width of all images, px, where they have one size and it is known beforehand.
        arrays: (n, side, side, 3) RGB, where the set keeps its images in a few large files.
    """

    root: Path
    classes: tuple[str, ...]
    paths: tuple[str, ...]
    labels: tuple[int, ...]
    is_test: tuple[bool, ...]
    skipped: tuple[tuple[str, str], ...] = ()
    side: int | None = None
    arrays: Bytes | None = field(default=None, repr=False, compare=False)

    def __len__(self) -> int:
        return len(self.paths)

    def fingerprint(self) -> str:
        """SHA-256 that says whether this is the same data set: over the name and size of every file, without reading it; over
        names, labels and pixels where the images are in memory anyway.

        Raises:
            DataError: an image has gone since the folder was scanned.
        """
        digest = hashlib.sha256()
        if self.arrays is not None:
            for path, label in zip(self.paths, self.labels, strict=True):
                digest.update(f"{path}\0{label}\n".encode())
            digest.update(np.ascontiguousarray(self.arrays).data)
            return digest.hexdigest()
        root = f"{self.root}{os.sep}"
        for path in self.paths:
            try:
                digest.update(f"{path}\0{os.stat(root + path).st_size}\n".encode())  # noqa: PTH116 (a million of them)
            except OSError as error:
                raise DataError(
                    f"{self.root / path} cannot be read ({error.strerror}); leave the folder alone while it is used"
                ) from error
        return digest.hexdigest()


@dataclass(frozen=True)
class Splits:
    """Disjoint parts of a set of images, each a tuple of ascending indices into it.

    Attributes:
        train: the weights learn from these.
        validation: the search compares architectures by these.
        calibration: statistics of BatchNorm, and later ranges of quantisation, come from these.
        test: looked at once, at the end.
    """

    train: tuple[int, ...]
    validation: tuple[int, ...]
    calibration: tuple[int, ...]
    test: tuple[int, ...]

    def to_json(self, paths: Sequence[str]) -> dict[str, list[str]]:
        """Paths of the images of each part, relative to the data folder; `paths` (n) are those of the set."""
        return {part.name: [paths[index] for index in getattr(self, part.name)] for part in fields(self)}

    @classmethod
    def from_json(cls, values: Mapping[str, Sequence[str]], paths: Sequence[str], root: Path) -> Splits:
        """Reads what `to_json` wrote, for a set of images whose paths (n) below `root` are known.

        Raises:
            DataError: an image of the parts is not in the set any more.
        """
        index = {path: i for i, path in enumerate(paths)}
        gone = [path for part in fields(cls) for path in values[part.name] if path not in index]
        if gone:
            raise DataError(f"{root} has changed: {listed(gone)} missing or damaged; restore it or start a new run")
        return cls(**{part.name: tuple(sorted(index[path] for path in values[part.name])) for part in fields(cls)})


def scan_images(root: Path) -> ImageSet:
    """Finds the images of a classification data set, by torchvision's folder conventions.

    The folder holds one folder a class, or `train/` (and `val/` or `valid/`, which are added to it) and perhaps `test/`, each with
    one folder a class. Hidden folders, and files without an image's extension, are not looked at.

    Raises:
        DataError: nothing is there, there is one class only, the parts have different classes, or a class has too few images.
    """
    if not root.is_dir():
        raise DataError(f"there is no folder {root}; give a folder that holds one folder of images a class")
    parts = _parts(root)
    return collect(root, [part for part in parts if part != _TEST_FOLDER], _TEST_FOLDER if _TEST_FOLDER in parts else None)


def collect(root: Path, learned: Sequence[str], test: str | None, side: int | None = None) -> ImageSet:
    """The images of one folder a class, sorted by class and path.

    Args:
        root: of the set.
        learned: folders below it that hold the class folders; "" is `root` itself.
        test: folder of the test part.
        side: height and width of all images, px, if known.

    Raises:
        DataError: the folders have different classes, only one, or a class has too few images.
    """
    from torchvision.datasets.folder import IMG_EXTENSIONS, make_dataset  # slow to import, and not every process reads a folder

    parts = [*learned, *([] if test is None else [test])]
    classes = _class_names(root / parts[0])
    index = {name: label for label, name in enumerate(classes)}
    found: list[tuple[int, str, bool]] = []
    for part in parts:
        folder = root / part
        names = _class_names(folder)
        if names != classes:
            differ = sorted(set(names) ^ set(classes))
            raise DataError(f"{root / parts[0]} and {folder} have different classes: {listed(differ)} only in one of them")
        # Paths as text: objects would take a gigabyte for ImageNet.
        start, before = len(os.path.join(folder, "")), f"{part}/" if part else ""  # noqa: PTH118
        samples = make_dataset(folder, index, extensions=IMG_EXTENSIONS, allow_empty=True)
        found += [(label, before + path[start:].replace(os.sep, "/"), part == test) for path, label in samples]
    return image_set(root, classes, sorted(found), side)


def image_set(root: Path, classes: Sequence[str], samples: Sequence[tuple[int, str, bool]], side: int | None = None) -> ImageSet:
    """An ImageSet of samples: label, path below `root`, whether it is for the test.

    Raises:
        DataError: a class has too few images.
    """
    labels, paths, is_test = zip(*samples, strict=True) if samples else ((), (), ())
    images = ImageSet(root, tuple(classes), paths, labels, is_test, side=side)
    require_enough(images)
    return images


def _parts(root: Path) -> list[str]:
    """The folders below `root` that hold the class folders; "" is `root` itself."""
    folders = [name for name in (*_TRAIN_FOLDERS, _TEST_FOLDER) if (root / name).is_dir() and _folders(root / name)]
    if "train" in folders:
        return folders
    if _TEST_FOLDER in folders:
        raise DataError(
            f"{root} holds {_TEST_FOLDER}/ but no train/ with one folder a class; add it, or give one flat folder of classes"
        )
    return [""]


def _folders(folder: Path) -> list[str]:
    try:
        return sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    except OSError as error:
        raise DataError(f"{folder} cannot be read ({error.strerror}); make it readable or give another folder") from error


def _class_names(folder: Path) -> tuple[str, ...]:
    names = tuple(_folders(folder))
    if not names:
        raise DataError(f"{folder} holds no class folders; put the images of each class into a folder of its own")
    if len(names) == 1:
        raise DataError(f"{folder} holds one class only ({names[0]}); at least two are needed to tell apart")
    return names


def require_enough(images: ImageSet) -> None:
    """Every class must have an image for every split.

    Raises:
        DataError: one has not; it is named, with how many it has.
    """
    learned = Counter(label for label, is_test in zip(images.labels, images.is_test, strict=True) if not is_test)
    tested = Counter(label for label, is_test in zip(images.labels, images.is_test, strict=True) if is_test)
    for label, name in enumerate(images.classes):
        if learned[label] < MIN_IMAGES:
            from torchvision.datasets.folder import IMG_EXTENSIONS

            reason = f" ({len(images.skipped)} damaged files were left out)" if images.skipped else ""
            extensions = "" if learned[label] else f", with an extension of {', '.join(IMG_EXTENSIONS)}"
            raise DataError(
                f"class {name!r} in {images.root} has {learned[label]} images to learn from{reason}; "
                f"at least {MIN_IMAGES} are needed{extensions}"
            )
        if tested and not tested[label]:
            raise DataError(f"class {name!r} has no images in the test part of {images.root}; add some, or remove the class")


def split(images: ImageSet, seed: int, *, validation: int | None = None) -> Splits:
    """Splits class by class, by chance that depends on `seed` and the images alone.

    The test images are those that came as such, or 20 % of every class where none did. Of the rest 15 % are for validation and
    10 % for calibration, but not more than `VALIDATION_IMAGES` and `CALIBRATION_IMAGES`, at least one of each a class, and the
    others for training.

    Args:
        images: what to split.
        seed: of the choice.
        validation: images for validation in all, about; at most a third of every class.
    """
    has_test = any(images.is_test)
    test = [index for index, is_test in enumerate(images.is_test) if is_test]
    labels = np.array(images.labels)
    learned = ~np.array(images.is_test)
    orders: list[list[int]] = []
    for label in range(len(images.classes)):
        order = np.random.default_rng([seed, label]).permutation(np.flatnonzero((labels == label) & learned)).tolist()
        cut = 0 if has_test else _share(len(order), TEST_SHARE)
        test += order[:cut]
        orders.append(order[cut:])
    rest = sum(map(len, orders))
    validated = (
        min(VALIDATION_SHARE, VALIDATION_IMAGES / rest) if validation is None else min(validation / rest, LARGEST_VALIDATION)
    )
    calibrated = min(CALIBRATION_SHARE, CALIBRATION_IMAGES / rest)
    train: list[int] = []
    validating: list[int] = []
    calibration: list[int] = []
    for order in orders:
        first = _share(len(order), validated)
        second = first + _share(len(order), calibrated)
        validating += order[:first]
        calibration += order[first:second]
        train += order[second:]
    return Splits(tuple(sorted(train)), tuple(sorted(validating)), tuple(sorted(calibration)), tuple(sorted(test)))


def split_parts(parts: Sequence[Part], seed: int, root: Path) -> Splits:
    """Splits images that belong to parts (n) of a published split: those parts, and what they lack by chance that depends on `seed`
    and the number of images alone.

    A published part for validation is just that; without one, 15 % of what there is to learn from are. The test images are those
    that came as such, or 20 %. A tenth of the training images is for calibration. Frames of one video resemble each other, so
    chance is no substitute for a published split.

    Raises:
        DataError: there are too few images in `root`.
    """
    rest = np.random.default_rng(seed).permutation([i for i, part in enumerate(parts) if part == "train"]).tolist()
    found = {name: [i for i, part in enumerate(parts) if part == name] for name in ("validation", "test")}
    for name, share in (("test", TEST_SHARE), ("validation", VALIDATION_SHARE)):
        if not found[name]:
            cut = _share(len(rest), share)
            found[name], rest = rest[:cut], rest[cut:]
    cut = _share(len(rest), CALIBRATION_SHARE)
    splits = Splits(
        **{name: tuple(sorted(part)) for name, part in (("train", rest[cut:]), ("calibration", rest[:cut]), *found.items())}
    )
    for part in fields(splits):
        if len(getattr(splits, part.name)) < (2 if part.name == "train" else 1):
            raise DataError(f"{root} has {len(parts)} images, too few for a part {part.name}; add some")
    return splits


def balanced_order(indices: Indices, labels: Indices, seed: Sequence[int]) -> Indices:
    """The same indices in an order whose beginnings, however long, have equally many of every class, as far as they last.

    Args:
        indices: (n) into a set.
        labels: (n) of these images.
        seed: of the choice within a class; a class is ordered alike whatever the others hold.
    """
    turns = np.empty(len(indices), dtype=np.int64)
    for label in np.unique(labels):
        own = np.flatnonzero(labels == label)
        turns[own] = np.random.default_rng([*seed, int(label)]).permutation(len(own))
    return indices[np.lexsort((labels, turns))]


def evenly(indices: Indices, count: int) -> Indices:
    """At most `count` of the indices, evenly chosen."""
    return indices[:: max(1, len(indices) // count)][:count]


def _share(count: int, share: float) -> int:
    return max(1, round(count * share))


def listed(names: Iterable[str | os.PathLike[str]]) -> str:
    every = [str(name) for name in names]
    more = len(every) - _NAMED_AT_MOST
    return ", ".join(every[:_NAMED_AT_MOST]) + (f" and {more} more" if more > 0 else "")
