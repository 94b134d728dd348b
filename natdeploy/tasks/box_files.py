"""Boxes as they are published: COCO's JSON and Pascal VOC's XML, read into a `BoxSet`."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from natdeploy.errors import DataError
from natdeploy.tasks.boxes import BoxSet, Objects
from natdeploy.tasks.data import Part, listed

CLASSES_FILE = "classes.txt"
"""Names the classes of a VOC folder, one a line, where those that occur are not all, or not all are wanted."""

_ROBOFLOW = "_annotations.coco.json"
_PART_NAMES: Mapping[str, Part] = {"train": "train", "val": "validation", "valid": "validation", "test": "test"}
_IMAGES = {".jpg", ".jpeg", ".png", ".bmp", ".ppm", ".webp", ".tif", ".tiff"}


@dataclass(frozen=True)
class _Found:
    """An image as its annotations describe it; `size` is (height, width), px, where they say."""

    path: str
    part: Part
    size: tuple[int, int] | None
    objects: Objects


Faults = list[tuple[str, str]]


def scan_boxes(root: Path, images: Path | None = None) -> BoxSet:
    """Finds the images and boxes of a detection data set.

    Four layouts are known:
        COCO: `annotations/instances_<part>.json` and the images in `<part>/` or `images/`.
        one COCO file: given itself; its images lie in `images`, or beside it.
        COCO by part (Roboflow): `train/_annotations.coco.json` with its images, and perhaps `valid/` and `test/`.
        Pascal VOC: `Annotations/`, `JPEGImages/` and perhaps `ImageSets/Main/{train,val,test}.txt`, in the folder or one below it.

    Where a set has a published `val` but no `test` with boxes, as COCO and VOC 2012 do, `val` is the test part: it is what results
    are published on, and the test is looked at once, at the end.

    Args:
        root: of the set, or a COCO file.
        images: folder of the images of a COCO file.

    Raises:
        DataError: nothing is there, or it cannot be understood.
    """
    if root.is_file():
        return _coco(root.parent, {root: "train"}, images)
    if not root.is_dir():
        raise DataError(f"there is no folder or file {root}; give a COCO file, or a folder in COCO's or Pascal VOC's layout")
    if (root / "annotations").is_dir() and (files := _coco_files(root)):
        return _coco(root, files, images)
    files = {root / name / _ROBOFLOW: part for name, part in _PART_NAMES.items() if (root / name / _ROBOFLOW).is_file()}
    if files:
        return _coco(root, files, images)
    folders = [folder for folder in (root, *_below(root)) if (folder / "Annotations").is_dir()]
    if not folders:
        raise DataError(
            f"{root} holds neither annotations/*.json (COCO) nor Annotations/ (Pascal VOC); add them or give another folder"
        )
    if len(folders) > 1:
        raise DataError(f"{root} holds several sets: {listed(folders)}; give one of them")
    return _voc(folders[0])


def _below(root: Path) -> list[Path]:
    try:
        return sorted(path for path in (*root.iterdir(), *root.glob("VOCdevkit/*")) if path.is_dir())
    except OSError as error:
        raise DataError(f"{root} cannot be read ({error.strerror}); make it readable or give another folder") from error


def _box_set(
    root: Path, classes: Sequence[str], found: Sequence[_Found], skipped: Iterable[tuple[str, str]], faults: Faults
) -> BoxSet:
    if not found:
        raise DataError(f"{root} holds no image that its annotations speak of; give images and annotations that belong together")
    twice = [path for path, count in Counter(each.path for each in found).items() if count > 1]
    if twice:
        raise DataError(f"{root} names images twice, or in several parts: {listed(twice)}; name each once")
    # What results are published on is kept for the end (see `scan_boxes`).
    renamed: Mapping[Part, Part] = {} if any(each.part == "test" for each in found) else {"validation": "test"}
    return BoxSet(
        root=root,
        classes=tuple(classes),
        images=tuple(each.path for each in found),
        parts=tuple(renamed.get(each.part, each.part) for each in found),
        sizes=tuple(each.size for each in found),
        objects=tuple(each.objects for each in found),
        skipped=tuple(skipped),
        faults=tuple(faults),
    )


# ---- COCO


def _coco_files(root: Path) -> dict[Path, Part]:
    every = sorted((root / "annotations").glob("*.json"))
    instances = [path for path in every if path.name.startswith("instances")]  # COCO has captions and keypoints beside them
    chosen = instances or every
    files: dict[Path, Part] = {}
    for path in chosen:
        part = _part_of(path.stem)
        if part is None and len(chosen) > 1:
            raise DataError(f"which part {path} is cannot be told from its name; call it instances_train.json, _val or _test")
        files[path] = part or "train"
    return files


def _part_of(stem: str) -> Part | None:
    name = re.match("train|valid|val|test", stem.removeprefix("instances_"))
    return _PART_NAMES[name[0]] if name else None


def _coco(root: Path, files: Mapping[Path, Part], images: Path | None) -> BoxSet:
    found: list[_Found] = []
    skipped: Faults = []
    faults: Faults = []
    classes: tuple[str, ...] | None = None
    for path, part in files.items():
        content = _json(path)
        labels, names = _categories(path, content)
        if classes is not None and names != classes:
            raise DataError(f"{path} has other categories than the files before it: {listed(set(names) ^ set(classes))}")
        classes = names
        folder = _image_folder(root, path, content, images)
        for name, size, objects in _coco_images(path, content, labels, faults):
            image = _relative(folder / name, root)
            if (root / image).is_file():
                found.append(_Found(image, part, size, objects))
            else:
                skipped.append((image, f"is named by {path.name} but is not there"))
    return _box_set(root, classes or (), found, skipped, faults)


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}); make it readable or give another file") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is not JSON ({error}); give a file in COCO's format") from error
    lists = ("images", "annotations", "categories")
    if not isinstance(content, dict) or not all(_records(content.get(name)) for name in lists):
        raise DataError(f"{path} has not the lists {', '.join(lists)} of COCO's format; give a file of instances")
    return content


def _records(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(each, dict) for each in value)


def _categories(path: Path, content: Mapping[str, Any]) -> tuple[dict[int, int], tuple[str, ...]]:
    """Label of each category's id, and the names in the order of the labels: that of the ids."""
    try:
        pairs = sorted((int(each["id"]), str(each["name"])) for each in content["categories"])
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{path} has a category without id or name; give each both") from error
    for what, values in (("id", [key for key, _ in pairs]), ("name", [name for _, name in pairs])):
        if twice := [value for value, count in Counter(values).items() if count > 1]:
            raise DataError(f"{path} has several categories of the {what} {listed(map(str, twice))}; give each its own")
    if not pairs:
        raise DataError(f"{path} has no categories; name what the boxes show")
    return {key: label for label, (key, _) in enumerate(pairs)}, tuple(name for _, name in pairs)


def _image_folder(root: Path, path: Path, content: Mapping[str, Any], given: Path | None) -> Path:
    """Where the images of a COCO file lie: in the first place that has one of them."""
    name = path.stem.removeprefix("instances_")
    beside = (root / name, root / "images" / name, root / "images", path.parent, root, root.parent / name, root.parent / "images")
    names = [str(each.get("file_name")) for each in content["images"][:100]]
    for folder in beside if given is None else (given,):
        if any((folder / each).is_file() for each in names):
            return folder
    places = f"in {given}" if given is not None else f"beside it, nor in images/ or {name}/"
    raise DataError(f"the images that {path} names are not {places}; say where they are")


def _coco_images(
    path: Path, content: Mapping[str, Any], labels: Mapping[int, int], faults: Faults
) -> Iterator[tuple[str, tuple[int, int] | None, Objects]]:
    """Name, size and objects of every image of a file."""
    try:
        records = {int(each["id"]): each for each in content["images"]}
        names = {key: str(each["file_name"]) for key, each in records.items()}
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{path} has an image without id or file_name; give each both") from error
    if len(records) < len(content["images"]):
        raise DataError(f"{path} has several images of one id; give each its own")
    rows: dict[int, list[tuple[tuple[float, ...], int, bool]]] = {key: [] for key in records}
    for each in content["annotations"]:
        key, category = each.get("image_id"), each.get("category_id")
        if key not in rows:
            faults.append((path.name, f"a box is of image {key}, which is not in the file"))
        elif category not in labels:
            faults.append((names[key], f"a box is of category {category}, which is not in the file"))
        elif (box := _numbers(each.get("bbox"))) is None:
            faults.append((names[key], f"a box is {each.get('bbox')!r} instead of left, top, width and height"))
        else:
            left, top, width, height = box
            rows[key].append(((left, top, left + width, top + height), labels[category], bool(each.get("iscrowd", 0))))
    for key, each in records.items():
        yield names[key], _size(each.get("width"), each.get("height")), Objects.of(rows[key])


def _relative(path: Path, root: Path) -> str:
    """Below `root` where it lies there, else whole."""
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else path.absolute().as_posix()


def _numbers(values: object) -> list[float] | None:
    if not isinstance(values, Sequence) or len(values) != 4:
        return None
    try:
        numbers = [float(each) for each in values]
    except (TypeError, ValueError):
        return None
    return numbers if all(map(math.isfinite, numbers)) else None


def _size(width: object, height: object) -> tuple[int, int] | None:
    """Height and width; None where they are not given, or 0 as some programs write."""
    known = isinstance(width, int) and isinstance(height, int) and width > 0 and height > 0
    return (int(height), int(width)) if known else None  # type: ignore[call-overload]


# ---- Pascal VOC


def _voc(root: Path) -> BoxSet:
    photos = _stems(root / "JPEGImages", _IMAGES)
    annotations = _stems(root / "Annotations", {".xml"})
    skipped: Faults = []
    faults: Faults = []
    read: list[tuple[str, Part, tuple[int, int] | None, list[_Object]]] = []
    for part, stems in _voc_parts(root, annotations).items():
        for stem in stems:
            if stem not in photos:
                skipped.append((f"JPEGImages/{stem}.jpg", "is named by the annotations but is not there"))
                continue
            path = f"JPEGImages/{photos[stem]}"
            try:  # an image that nobody drew boxes on shows nothing
                size, objects = _xml(root / "Annotations" / annotations[stem]) if stem in annotations else (None, [])
            except (ElementTree.ParseError, ValueError) as error:
                skipped.append((path, f"its annotation cannot be read: {error}"))
            else:
                read.append((path, part, size, objects))
    classes = _voc_classes(root, read)
    labels = {name: label for label, name in enumerate(classes)}
    found: list[_Found] = []
    for path, part, size, objects in read:
        known = []
        for each in objects:
            if each.name not in labels:
                faults.append((path, f"a box is of class {each.name!r}, which {CLASSES_FILE} does not name"))
            elif each.box is None:
                faults.append((path, f"a box of class {each.name!r} has no four numbers"))
            else:
                known.append((each.box, labels[each.name], each.difficult))
        found.append(_Found(path, part, size, Objects.of(known)))
    return _box_set(root, classes, found, skipped, faults)


def _stems(folder: Path, suffixes: set[str]) -> dict[str, str]:
    """Names of files by their stems."""
    try:
        return {
            path.stem: path.name
            for path in sorted(folder.iterdir())
            if path.suffix.lower() in suffixes and not path.name.startswith(".")
        }
    except OSError as error:
        raise DataError(
            f"{folder} cannot be read ({error.strerror}); a Pascal VOC folder has Annotations/ and JPEGImages/"
        ) from error


def _voc_parts(root: Path, annotations: Mapping[str, str]) -> dict[Part, list[str]]:
    """Stems of the images of each published part; all that have annotations are for training where none is published."""
    lists = root / "ImageSets" / "Main"
    parts: dict[Part, list[str]] = {}
    for name, part in _PART_NAMES.items():
        if (lists / f"{name}.txt").is_file():
            parts[part] = (lists / f"{name}.txt").read_text(encoding="utf-8").split()
    if "train" not in parts and (lists / "trainval.txt").is_file():
        parts["train"] = (lists / "trainval.txt").read_text(encoding="utf-8").split()
    return parts or {"train": sorted(annotations)}


@dataclass(frozen=True)
class _Object:
    name: str
    box: tuple[float, float, float, float] | None
    difficult: bool


def _xml(path: Path) -> tuple[tuple[int, int] | None, list[_Object]]:
    """Size and objects of an annotation.

    VOC counts pixels from 1, and a box holds its last row and column; here a box ends where they end, and counting is from 0. A box
    that ends where it begins stays empty: programs write them for clicks without a drag.
    """
    tree = ElementTree.fromstring(path.read_bytes())
    width, height = (int(float(tree.findtext(f"size/{name}") or 0)) for name in ("width", "height"))
    objects: list[_Object] = []
    for each in tree.iter("object"):
        numbers = _numbers([each.findtext(f"bndbox/{name}") for name in ("xmin", "ymin", "xmax", "ymax")])
        box = None
        if numbers is not None:
            left, top, right, bottom = numbers
            box = (left, top, right, bottom) if right <= left or bottom <= top else (left - 1, top - 1, right, bottom)
        objects.append(_Object((each.findtext("name") or "").strip(), box, (each.findtext("difficult") or "0").strip() == "1"))
    return _size(width, height), objects


def _voc_classes(root: Path, read: Iterable[tuple[str, Part, tuple[int, int] | None, list[_Object]]]) -> list[str]:
    path = root / CLASSES_FILE
    if not path.is_file():
        names = sorted({each.name for _, _, _, objects in read for each in objects})
    else:
        try:
            names = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"{path} cannot be read; write a class a line into it") from error
    if not names or len(set(names)) < len(names):
        raise DataError(f"{root} has no classes, or one twice: its annotations, or {path}, must name each once")
    return names
