"""NAT's data sets from their files, each in the form in which its makers give it out.

torchvision reads lists and labels; pictures are left to natdeploy's own decoder. The one format that could carry code, CIFAR's
pickles, is read here: a file's bytes must have the published checksum, and then only arrays are made of them.
"""

from __future__ import annotations

import hashlib
import io
import pickle
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path, PurePath
from typing import Any, ClassVar

import numpy as np

from natdeploy.errors import DataError
from natdeploy.tasks.data import ImageSet, collect, image_set, require_enough

_CIFAR_SIDE, _CINIC_SIDE = 32, 32


# ---- sets that keep their images in a few large files


def cifar10(root: Path) -> ImageSet:
    return _cifar(root, "CIFAR10", "labels")


def cifar100(root: Path) -> ImageSet:
    return _cifar(root, "CIFAR100", "fine_labels")


def _cifar(root: Path, name: str, labels: str) -> ImageSet:
    """A CIFAR set; torchvision's class of that name knows its files' names and checksums."""
    published = _torchvision(name)
    folder = root / published.base_folder
    batches = [
        (_unpickled(folder / name, md5), is_test)
        for files, is_test in ((published.train_list, False), (published.test_list, True))
        for name, md5 in files
    ]
    classes = _unpickled(folder / published.meta["filename"], published.meta["md5"])[published.meta["key"]]
    planes = [np.asarray(batch["data"]).reshape(-1, 3, _CIFAR_SIDE, _CIFAR_SIDE) for batch, _ in batches]
    own = [label for batch, _ in batches for label in batch[labels]]
    is_test = [is_test for batch, is_test in batches for _ in batch[labels]]
    return _from_arrays(root, classes, np.concatenate(planes), own, is_test)


def stl10(root: Path) -> ImageSet:
    parts = [_torchvision("STL10")(root, split=split) for split in ("train", "test")]
    planes, labels = np.concatenate([part.data for part in parts]), np.concatenate([part.labels for part in parts])
    is_test = [place > 0 for place, part in enumerate(parts) for _ in range(len(part))]
    return _from_arrays(root, parts[0].classes, planes, labels.tolist(), is_test)


def _from_arrays(root: Path, classes: Iterable[str], planes: Any, labels: list[int], is_test: list[bool]) -> ImageSet:
    """Images (n, 3, side, side) as a set; they are called by their place."""
    if not len(planes) == len(labels) == len(is_test):
        raise DataError(f"{root} holds {len(planes)} images and {len(labels)} labels; get the set anew")
    names = tuple(f"{'test' if tested else 'train'}/{place:05d}" for place, tested in enumerate(is_test))
    arrays = np.ascontiguousarray(planes.transpose(0, 2, 3, 1), dtype=np.uint8)
    images = ImageSet(root, tuple(classes), names, tuple(labels), tuple(is_test), side=arrays.shape[1], arrays=arrays)
    require_enough(images)
    return images


class _ArraysOnly(pickle.Unpickler):
    """Makes numbers, text, lists, dictionaries and NumPy arrays; whatever else a pickle names is refused before it is looked up."""

    _KNOWN: ClassVar[dict[tuple[str, str], Callable[..., Any]]] = {
        ("numpy.core.multiarray", "_reconstruct"): lambda *_: np.ndarray(0, dtype=np.uint8),
        ("numpy", "ndarray"): np.ndarray,
        ("numpy", "dtype"): np.dtype,
    }

    def find_class(self, module: str, name: str) -> Any:
        if (known := self._KNOWN.get((module, name))) is None:
            raise DataError(f"a file of the set names {module}.{name}, which is no array of numbers; get the set anew")
        return known


def _unpickled(path: Path, md5: str) -> dict[str, Any]:
    """What Python 2 pickled into a file: checked and read from the same bytes, so that nobody can change them in between."""
    data = path.read_bytes()
    if hashlib.md5(data, usedforsecurity=False).hexdigest() != md5:
        raise DataError(f"{path} is not the published file (MD5 {md5}); remove it and get the set anew")
    content = _ArraysOnly(io.BytesIO(data), encoding="latin1").load()
    if not isinstance(content, dict):
        raise DataError(f"{path} holds no table; get the set anew")
    return content


# ---- sets of one file an image


def cinic10(root: Path) -> ImageSet:
    return collect(root / "CINIC-10", ("train", "valid"), "test", side=_CINIC_SIDE)


def imagenet(root: Path) -> ImageSet:
    return collect(root / "imagenet", ("train",), "val")


def food101(root: Path) -> ImageSet:
    return _listed(root, {split: _torchvision("Food101")(root, split=split, loader=_path) for split in ("train", "test")})


def stanford_cars(root: Path) -> ImageSet:
    return _listed(root, {split: _torchvision("StanfordCars")(root, split=split, loader=_path) for split in ("train", "test")})


def fgvc_aircraft(root: Path) -> ImageSet:
    return _listed(root, {split: _torchvision("FGVCAircraft")(root, split=split, loader=_path) for split in ("trainval", "test")})


def dtd(root: Path) -> ImageSet:
    return _listed(root, {split: _torchvision("DTD")(root, split=split, loader=_path) for split in ("train", "val", "test")})


def flowers102(root: Path) -> ImageSet:
    return _listed(root, {split: _torchvision("Flowers102")(root, split=split, loader=_path) for split in ("train", "val", "test")})


def oxford_pets(root: Path) -> ImageSet:
    """The lists are read here, for torchvision's reader would open every picture."""
    folder = root / "oxford-iiit-pet"
    samples: list[tuple[int, str, bool]] = []
    names: dict[int, str] = {}
    for split in ("trainval", "test"):
        for line in (folder / "annotations" / f"{split}.txt").read_text(encoding="utf-8").splitlines():
            image, label, *_ = line.split()
            names[int(label) - 1] = image.rpartition("_")[0].replace("_", " ").title()
            samples.append((int(label) - 1, f"{folder.name}/images/{image}.jpg", split == "test"))
    if sorted(names) != list(range(len(names))):
        raise DataError(f"{folder / 'annotations'} lists no images of some classes; get the set anew")
    return image_set(root, [names[label] for label in sorted(names)], sorted(samples))


def _torchvision(name: str) -> Any:
    """torchvision's class of a data set. Importing it takes as long as importing torch, and few processes read a named set."""
    from torchvision import datasets

    return getattr(datasets, name)


def _path(path: str | Path) -> str:
    """In place of torchvision's loader: which picture it would open."""
    return str(path)


def _listed(root: Path, parts: dict[str, Any]) -> ImageSet:
    """The images of torchvision's data sets, by part."""
    classes = {tuple(part.classes) for part in parts.values()}
    if len(classes) > 1:
        raise DataError(f"the parts {', '.join(parts)} in {root} have different classes; get the set anew")
    samples = [
        (int(label), PurePath(path).relative_to(root).as_posix(), name == "test")
        for name, part in parts.items()
        for path, label in (part[index] for index in range(len(part)))
    ]
    return image_set(root, [str(name) for name in classes.pop()], sorted(samples))


# ---- downloads, by torchvision, which checks what it gets where a checksum is published


def _unpack(name: str, root: Path) -> None:
    """Only fetched and unpacked: torchvision's own reader would unpickle it."""
    from torchvision.datasets.utils import download_and_extract_archive

    published = _torchvision(name)
    download_and_extract_archive(published.url, root, filename=published.filename, md5=published.tgz_md5)


def _fetch(name: str, root: Path) -> None:
    _torchvision(name)(root, download=True)


fetch_cifar10 = partial(_unpack, "CIFAR10")
fetch_cifar100 = partial(_unpack, "CIFAR100")
fetch_stl10 = partial(_fetch, "STL10")
fetch_food101 = partial(_fetch, "Food101")
fetch_fgvc_aircraft = partial(_fetch, "FGVCAircraft")
fetch_dtd = partial(_fetch, "DTD")
fetch_oxford_pets = partial(_fetch, "OxfordIIITPet")
fetch_flowers102 = partial(_fetch, "Flowers102")
