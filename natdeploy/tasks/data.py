"""Image folders: found, split, and decoded once into memory."""

from __future__ import annotations

import hashlib
import os
import sys
import warnings
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torchvision.datasets.folder import IMG_EXTENSIONS, make_dataset

from natdeploy.errors import DataError
from natdeploy.progress import Progress, Silent

MIN_IMAGES = 5
"""Images a class needs beside its test images, so that training keeps at least two of them."""

TEST_SHARE = 0.20
VALIDATION_SHARE = 0.15
CALIBRATION_SHARE = 0.10

_TRAIN_FOLDERS = ("train", "val", "valid")
_TEST_FOLDER = "test"
_NAMED_AT_MOST = 3


@dataclass(frozen=True)
class ImageSet:
    """The images of a folder, sorted by class and path.

    Attributes:
        root: the folder.
        classes: names, sorted; a label is an index into them.
        paths: of the images (n), relative to `root`.
        labels: (n).
        is_test: (n), whether the image lies in the test folder; all False where there is none.
        skipped: damaged files that were left out, each with the reason.
    """

    root: Path
    classes: tuple[str, ...]
    paths: tuple[Path, ...]
    labels: tuple[int, ...]
    is_test: tuple[bool, ...]
    skipped: tuple[tuple[Path, str], ...] = ()

    def __len__(self) -> int:
        return len(self.paths)

    def fingerprint(self) -> str:
        """SHA-256 over the names and sizes of all images: another value means another data set.

        Raises:
            DataError: an image has gone since the folder was scanned.
        """
        digest = hashlib.sha256()
        for path in self.paths:
            try:
                digest.update(f"{path.as_posix()}\0{(self.root / path).stat().st_size}\n".encode())
            except OSError as error:
                raise DataError(
                    f"{self.root / path} cannot be read ({error.strerror}); leave the folder alone while it is used"
                ) from error
        return digest.hexdigest()


@dataclass(frozen=True)
class Splits:
    """Disjoint parts of an ImageSet, each a tuple of ascending indices into it.

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

    def to_json(self, images: ImageSet) -> dict[str, list[str]]:
        """Paths of the images of each part, relative to the data folder."""
        return {part.name: [images.paths[index].as_posix() for index in getattr(self, part.name)] for part in fields(self)}

    @classmethod
    def from_json(cls, values: Mapping[str, Sequence[str]], images: ImageSet) -> Splits:
        """Reads what `to_json` wrote.

        Raises:
            DataError: an image of the parts is not in the set any more.
        """
        index = {path.as_posix(): i for i, path in enumerate(images.paths)}
        gone = [path for part in fields(cls) for path in values[part.name] if path not in index]
        if gone:
            raise DataError(f"{images.root} has changed: {_listed(gone)} missing or damaged; restore it or start a new run")
        return cls(**{part.name: tuple(sorted(index[path] for path in values[part.name])) for part in fields(cls)})


@dataclass(frozen=True)
class Pixels:
    """Decoded images.

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
        """Height and width, px."""
        return self.images.shape[-1]


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
    classes = _class_names(root / parts[0])
    index = {name: label for label, name in enumerate(classes)}
    found: list[tuple[int, Path, bool]] = []
    for part in parts:
        names = _class_names(root / part)
        if names != classes:
            differ = sorted(set(names) ^ set(classes))
            raise DataError(f"{root / parts[0]} and {root / part} have different classes: {_listed(differ)} only in one of them")
        samples = make_dataset(root / part, index, extensions=IMG_EXTENSIONS, allow_empty=True)
        found += [(label, Path(path).relative_to(root), part == _TEST_FOLDER) for path, label in samples]
    found.sort(key=lambda sample: (sample[0], sample[1].as_posix()))
    labels, paths, is_test = zip(*found, strict=True) if found else ((), (), ())
    images = ImageSet(root, classes, paths, labels, is_test)
    _require_enough(images)
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


def _require_enough(images: ImageSet) -> None:
    """Every class must have an image for every split."""
    learned = Counter(label for label, is_test in zip(images.labels, images.is_test, strict=True) if not is_test)
    tested = Counter(label for label, is_test in zip(images.labels, images.is_test, strict=True) if is_test)
    for label, name in enumerate(images.classes):
        if learned[label] < MIN_IMAGES:
            reason = f" ({len(images.skipped)} damaged files were left out)" if images.skipped else ""
            raise DataError(
                f"class {name!r} in {images.root} has {learned[label]} images to learn from{reason}; "
                f"at least {MIN_IMAGES} are needed, with an extension of {', '.join(IMG_EXTENSIONS)}"
            )
        if tested and not tested[label]:
            raise DataError(f"class {name!r} has no images in {images.root / _TEST_FOLDER}; add some, or remove the class")


def split(images: ImageSet, seed: int) -> Splits:
    """Splits class by class, by chance that depends on `seed` and the images alone.

    The test images are those of the test folder, or 20 % of every class where there is none. Of the rest 15 % are for validation,
    10 % for calibration, at least one of each a class, and the others for training.
    """
    has_test = any(images.is_test)
    test = [index for index, is_test in enumerate(images.is_test) if is_test]
    train: list[int] = []
    validation: list[int] = []
    calibration: list[int] = []
    labels = np.array(images.labels)
    learned = ~np.array(images.is_test)
    for label in range(len(images.classes)):
        order = np.random.default_rng([seed, label]).permutation(np.flatnonzero((labels == label) & learned)).tolist()
        if not has_test:
            cut = _share(len(order), TEST_SHARE)
            test += order[:cut]
            order = order[cut:]
        first = _share(len(order), VALIDATION_SHARE)
        second = first + _share(len(order), CALIBRATION_SHARE)
        validation += order[:first]
        calibration += order[first:second]
        train += order[second:]
    return Splits(tuple(sorted(train)), tuple(sorted(validation)), tuple(sorted(calibration)), tuple(sorted(test)))


def _share(count: int, share: float) -> int:
    return max(1, round(count * share))


def decode(images: ImageSet, size: int, *, strict: bool = False, progress: Progress | None = None) -> Pixels:
    """Reads every image: upright (EXIF), RGB, shorter side resized to `size`, centre square.

    Args:
        images: what to read.
        size: height and width of the result, px.
        strict: a damaged file is an error; otherwise it is left out, and named in `Pixels.source.skipped`.
        progress: is told about every image.

    Raises:
        DataError: the result would not fit into half of the memory that is free, a file is damaged and `strict` is set, or so many
            files are damaged that a class has too few images left.
    """
    progress = progress or Silent()
    _require_memory(len(images) * 3 * size * size)
    pixels = torch.empty((len(images), size, size, 3), dtype=torch.uint8)
    kept: list[int] = []
    skipped: list[tuple[Path, str]] = []
    with progress.task("decoding images", len(images), "images") as advance:
        for index, path in enumerate(images.paths):
            image = _read(images.root / path, size)
            if isinstance(image, str):
                skipped.append((path, image))
            else:
                pixels[len(kept)] = torch.from_numpy(image)
                kept.append(index)
            advance(1)
    if skipped and strict:
        named = _listed([f"{images.root / path} ({reason})" for path, reason in skipped])
        raise DataError(f"{len(skipped)} of {len(images)} images cannot be decoded: {named}; mend or remove them")
    source = ImageSet(
        images.root,
        images.classes,
        tuple(images.paths[index] for index in kept),
        tuple(images.labels[index] for index in kept),
        tuple(images.is_test[index] for index in kept),
        images.skipped + tuple(skipped),
    )
    _require_enough(source)
    return Pixels(source, pixels[: len(kept)].permute(0, 3, 1, 2), torch.tensor(source.labels))


def _read(path: Path, size: int) -> npt.NDArray[np.uint8] | str:
    """One image (size, size, 3), or why it cannot be read."""
    try:
        # Pillow warns of what it can read all the same; what it cannot read is reported below.
        with warnings.catch_warnings(action="ignore"), Image.open(path) as file:
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
    square = ImageOps.fit(image.convert("RGB"), (size, size), Image.Resampling.BILINEAR)
    return np.array(square)


def _require_memory(needed: int) -> None:
    available = _available_bytes()
    if available is not None and needed > available / 2:
        raise DataError(
            f"the decoded images need {needed / 2**30:.1f} GB of memory, which is more than half of the {available / 2**30:.1f} GB "
            "that are free; use fewer images or a machine with more memory"
        )


def _available_bytes() -> int | None:
    """Memory that can be had without swapping; None on systems that do not say."""
    if sys.platform != "linux":
        return None
    facts = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    available = int(facts["MemAvailable"].split()[0]) * 1024
    limit, used = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")
    if limit.is_file() and limit.read_text().strip() != "max":
        available = min(available, int(limit.read_text()) - int(used.read_text()))
    return available


def _listed(names: Iterable[str | os.PathLike[str]]) -> str:
    every = [str(name) for name in names]
    more = len(every) - _NAMED_AT_MOST
    return ", ".join(every[:_NAMED_AT_MOST]) + (f" and {more} more" if more > 0 else "")
