"""The files of NAT's data sets, in the form in which their makers give them out, with a few tiny images."""

from __future__ import annotations

import hashlib
import io
import json
import pickle
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat
from torchvision import datasets

CLASSES, LEARNED, TESTED = 3, 6, 2
"""Images of a class; `LEARNED` of them in all parts that are not the test."""


@dataclass(frozen=True)
class Shade:
    """Whatever has a colour of its own: image `number` of a class in the part that is learned from, or for the test."""

    label: int
    number: int
    tested: bool

    @property
    def colour(self) -> tuple[int, int, int]:
        return 60 * self.label + 20, 20 * self.number + 10, 250 if self.tested else 0


LEARN = [Shade(label, number, False) for number in range(LEARNED) for label in range(CLASSES)]
TEST = [Shade(label, number, True) for number in range(TESTED) for label in range(CLASSES)]


def picture(path: Path, shade: Shade, side: int = 40) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (side, side), shade.colour).save(path, quality=95)


def planes(shades: list[Shade], side: int) -> np.ndarray:
    colours = np.array([shade.colour for shade in shades], dtype=np.uint8)
    return np.broadcast_to(colours[:, :, None, None], (len(shades), 3, side, side))


# ---- CIFAR: what Python 2's pickle wrote


class Python2Pickler(pickle._Pickler):
    """Writes texts and bytes as Python 2 wrote its strings, and NumPy's names as they were then."""

    dispatch: ClassVar = dict(pickle._Pickler.dispatch)

    def _string(self, value: str | bytes) -> None:
        data = value.encode("ascii") if isinstance(value, str) else value
        self.write(pickle.BINSTRING + struct.pack("<i", len(data)) + data)
        self.memoize(value)

    dispatch[str] = _string
    dispatch[bytes] = _string

    def save_global(self, obj: Any, name: str | None = None) -> None:
        module, name = obj.__module__.replace("numpy._core", "numpy.core"), name or obj.__qualname__
        self.write(pickle.GLOBAL + f"{module}\n{name}\n".encode("ascii"))
        self.memoize(obj)

    dispatch[type] = save_global
    dispatch[type(len)] = save_global
    dispatch[type(picture)] = save_global


def python2_pickle(value: object) -> bytes:
    buffer = io.BytesIO()
    Python2Pickler(buffer, protocol=2).dump(value)
    return buffer.getvalue()


def md5(data: bytes) -> str:
    return hashlib.md5(data, usedforsecurity=False).hexdigest()


def _write_cifar(monkeypatch: pytest.MonkeyPatch, root: Path, published: Any, labels: str, parts: dict[str, list[Shade]]) -> None:
    folder = root / published.base_folder
    folder.mkdir(parents=True)
    sums = {}
    for name, shades in parts.items():
        rows = planes(shades, 32).reshape(len(shades), -1).copy()
        table = {"batch_label": name, labels: [shade.label for shade in shades], "data": rows, "filenames": ["x.png"] * len(shades)}
        (folder / name).write_bytes(python2_pickle(table))
        sums[name] = md5((folder / name).read_bytes())
    meta = python2_pickle({published.meta["key"]: ["bird", "cat", "dog"], "num_vis": 3072})
    (folder / published.meta["filename"]).write_bytes(meta)
    for attribute in ("train_list", "test_list"):
        tiny = [[name, sums[name]] for name, _ in getattr(published, attribute)]
        monkeypatch.setattr(published, attribute, tiny)
    monkeypatch.setattr(published, "meta", {**published.meta, "md5": md5(meta)})


def cifar10(root: Path, monkeypatch: pytest.MonkeyPatch, learn: Sequence[Shade] = LEARN) -> None:
    parts = {f"data_batch_{place + 1}": [*learn[place::5]] for place in range(5)}
    _write_cifar(monkeypatch, root, datasets.CIFAR10, "labels", {**parts, "test_batch": TEST})


def cifar100(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _write_cifar(monkeypatch, root, datasets.CIFAR100, "fine_labels", {"train": LEARN, "test": TEST})


# ---- the others


def cinic10(root: Path, _: pytest.MonkeyPatch) -> None:
    for part, shades in {"train": LEARN[:9], "valid": LEARN[9:], "test": TEST}.items():
        for shade in shades:
            name = f"{('airplane', 'bird', 'cat')[shade.label]}/cifar10-{part}-{shade.number}.png"
            picture(root / "CINIC-10" / part / name, shade, side=32)


def stl10(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = root / "stl10_binary"
    folder.mkdir(parents=True)
    (folder / "class_names.txt").write_text("airplane\nbird\ncar\n")
    for part, shades in {"train": LEARN, "test": TEST}.items():
        # Column after column, as MATLAB has it; labels begin with 1.
        planes(shades, 96).transpose(0, 1, 3, 2).tofile(folder / f"{part}_X.bin")
        np.array([shade.label + 1 for shade in shades], dtype=np.uint8).tofile(folder / f"{part}_y.bin")
    (folder / "unlabeled_X.bin").touch()
    for attribute in ("train_list", "test_list"):
        tiny = [[name, md5((folder / name).read_bytes())] for name, _ in getattr(datasets.STL10, attribute)]
        monkeypatch.setattr(datasets.STL10, attribute, tiny)


def food101(root: Path, _: pytest.MonkeyPatch) -> None:
    names = ("apple_pie", "baklava", "waffles")
    for part, shades in {"train": LEARN, "test": TEST}.items():
        lists: dict[str, list[str]] = {name: [] for name in names}
        for shade in shades:
            lists[names[shade.label]].append(f"{names[shade.label]}/{10 * shade.number + shade.tested}")
            picture(root / "food-101/images" / f"{lists[names[shade.label]][-1]}.jpg", shade)
        (root / "food-101/meta").mkdir(exist_ok=True)
        (root / "food-101/meta" / f"{part}.json").write_text(json.dumps(lists))


def stanford_cars(root: Path, _: pytest.MonkeyPatch) -> None:
    folder = root / "stanford_cars"
    fields = [(name, object) for name in ("bbox_x1", "bbox_y1", "bbox_x2", "bbox_y2", "class", "fname")]
    for part, shades, file in (("train", LEARN, "devkit/cars_train_annos"), ("test", TEST, "cars_test_annos_withlabels")):
        rows = [(1, 1, 40, 40, shade.label + 1, f"{place:05d}.jpg") for place, shade in enumerate(shades, 1)]
        for row, shade in zip(rows, shades, strict=True):
            picture(folder / f"cars_{part}" / row[-1], shade)
        (folder / "devkit").mkdir(exist_ok=True)
        savemat(folder / f"{file}.mat", {"annotations": np.array([rows], dtype=fields)})
    names = np.array([["AM General Hummer SUV 2000", "Acura RL Sedan 2012", "smart fortwo Convertible 2012"]], dtype=object)
    savemat(folder / "devkit/cars_meta.mat", {"class_names": names})


def fgvc_aircraft(root: Path, _: pytest.MonkeyPatch) -> None:
    folder, names = root / "fgvc-aircraft-2013b/data", ("707-320", "F/A-18", "Boeing 717")
    for part, shades in {"trainval": LEARN, "test": TEST}.items():
        lines = []
        for place, shade in enumerate(shades):
            image = f"{place + (1000 if shade.tested else 0):07d}"
            picture(folder / "images" / f"{image}.jpg", shade)
            lines.append(f"{image} {names[shade.label]}\n")
        (folder / f"images_variant_{part}.txt").write_text("".join(lines))
    (folder / "variants.txt").write_text("".join(f"{name}\n" for name in names))


def dtd(root: Path, _: pytest.MonkeyPatch) -> None:
    folder = root / "dtd/dtd"
    (folder / "labels").mkdir(parents=True)
    for part, shades in {"train": LEARN[:9], "val": LEARN[9:], "test": TEST}.items():
        names = [f"{('banded', 'blotchy', 'zigzagged')[shade.label]}/{part}_{shade.number}.jpg" for shade in shades]
        for name, shade in zip(names, shades, strict=True):
            picture(folder / "images" / name, shade)
        (folder / "labels" / f"{part}1.txt").write_text("".join(f"{name}\n" for name in names))


def oxford_pets(root: Path, _: pytest.MonkeyPatch) -> None:
    folder = root / "oxford-iiit-pet"
    (folder / "annotations").mkdir(parents=True)
    for part, shades in {"trainval": LEARN, "test": TEST}.items():
        names = [
            f"{('Abyssinian', 'american_bulldog', 'Bengal')[shade.label]}_{shade.number + 100 * shade.tested}" for shade in shades
        ]
        for name, shade in zip(names, shades, strict=True):
            picture(folder / "images" / f"{name}.jpg", shade)
        lines = [f"{name} {shade.label + 1} {1 + shade.label % 2} 1\n" for name, shade in zip(names, shades, strict=True)]
        (folder / "annotations" / f"{part}.txt").write_text("".join(lines))


def flowers102(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = root / "flowers-102"
    every = [*LEARN, *TEST]
    for number, shade in enumerate(every, 1):
        picture(folder / "jpg" / f"image_{number:05d}.jpg", shade)
    savemat(folder / "imagelabels.mat", {"labels": np.array([[shade.label + 1 for shade in every]], dtype=np.uint8)})
    numbers = np.arange(1, len(every) + 1, dtype=np.uint16)[None]
    savemat(folder / "setid.mat", {"trnid": numbers[:, :9], "valid": numbers[:, 9:18], "tstid": numbers[:, 18:]})
    files = {key: (name, md5((folder / name).read_bytes()) if key != "image" else "") for key, (name, _) in FLOWERS_FILES.items()}
    monkeypatch.setattr(datasets.Flowers102, "_file_dict", files)
    monkeypatch.setattr(datasets.Flowers102, "classes", ["pink primrose", "hard-leaved pocket orchid", "canterbury bells"])


FLOWERS_FILES = dict(datasets.Flowers102._file_dict)


def imagenet(root: Path, _: pytest.MonkeyPatch) -> None:
    names = ("n01440764", "n01443537", "n15075141")
    for part, shades in {"train": LEARN, "val": TEST}.items():
        for shade in shades:
            file = f"ILSVRC2012_val_{shade.number:08d}.JPEG" if shade.tested else f"{names[shade.label]}_{shade.number}.JPEG"
            picture(root / "imagenet" / part / names[shade.label] / file, shade)


WRITE: dict[str, Callable[[Path, pytest.MonkeyPatch], None]] = {
    "cifar10": cifar10,
    "cifar100": cifar100,
    "cinic10": cinic10,
    "stl10": stl10,
    "food101": food101,
    "stanford-cars": stanford_cars,
    "fgvc-aircraft": fgvc_aircraft,
    "dtd": dtd,
    "oxford-pets": oxford_pets,
    "flowers102": flowers102,
    "imagenet": imagenet,
}
