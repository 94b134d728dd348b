"""Images with boxes: finding, checking and splitting them."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch

from natdeploy.errors import DataError
from natdeploy.progress import Silent
from natdeploy.tasks import BoxSet, decode_boxes, scan_boxes, split_boxes
from tests.tasks.box_sets import annotation, coco, rows, save, voc_xml

PERSON, DOG = 1, 18
BOXES = [annotation(100 + key, key, PERSON if key % 2 else DOG, [1.0, 2.0, 4.0, 6.0]) for key in range(9)]
"""Of the images 0 to 8; the ninth shows nothing."""


class Notes(Silent):
    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """One COCO file and its images."""
    for key in range(10):
        save(tmp_path / f"images/{key:012}.png", key)
    coco(tmp_path / "instances.json", BOXES)
    return tmp_path


def voc(root: Path, count: int = 10) -> Path:
    for key in range(count):
        save(root / f"JPEGImages/{key}.png", key)
        voc_xml(root / f"Annotations/{key}.xml", [("cat" if key % 2 else "dog", (2, 3, 5, 8), 0)])
    return root


# ---- layouts


def test_a_coco_file(folder: Path) -> None:
    crowd = annotation(7, 0, PERSON, [0, 0, 16, 12], crowd=1)
    coco(folder / "instances.json", [*BOXES, crowd])
    found = scan_boxes(folder / "instances.json")
    assert found.classes == ("person", "dog"), "in the order of their ids"
    assert rows(found.objects[0]) == [([1, 2, 5, 8], 1, False), ([0, 0, 16, 12], 0, True)]
    assert (len(found), found.negatives, set(found.parts), found.skipped, found.faults) == (10, 1, {"train"}, (), ())
    data = decode_boxes(found, 8, strict=True)
    assert data.images.shape == (10, 3, 8, 8) and data.side == 8 and data.images[3, :, 0, 0].tolist() == [3, 252, 9]
    expected = [[1 / 16, 2 / 12, 5 / 16, 8 / 12, 1, 0], [0, 0, 1, 1, 0, 1]]
    torch.testing.assert_close(data.targets[0], torch.tensor(expected))
    assert data.targets[9].shape == (0, 6)


def test_coco_of_2017(tmp_path: Path) -> None:
    """Captions and keypoints lie beside the instances; images of the test have no boxes, so `val` is the test part."""
    for part, keys in (("train2017", range(10)), ("val2017", range(10, 13))):
        coco(tmp_path / f"annotations/instances_{part}.json", [annotation(k, k, PERSON, [1, 2, 4, 6]) for k in keys], keys)
        for key in keys:
            save(tmp_path / part / f"{key:012}.png", key)
    for other in ("captions_train2017", "image_info_test2017"):
        (tmp_path / f"annotations/{other}.json").write_text("{}")
    found = scan_boxes(tmp_path)
    assert [found.parts.count(part) for part in ("train", "validation", "test")] == [10, 0, 3]
    assert found.images[0] == "train2017/000000000000.png" and found.images[-1] == "val2017/000000000012.png"


def test_coco_by_part(tmp_path: Path) -> None:
    for part, keys in (("train", range(6)), ("valid", range(6, 8)), ("test", range(8, 10))):
        coco(tmp_path / part / "_annotations.coco.json", [annotation(k, k, DOG, [1, 2, 4, 6]) for k in keys], keys)
        for key in keys:
            save(tmp_path / part / f"{key:012}.png", key)
    assert [scan_boxes(tmp_path).parts.count(part) for part in ("train", "validation", "test")] == [6, 2, 2]


def test_images_of_a_coco_file_may_lie_anywhere(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere") / "labels.json"
    elsewhere.write_bytes((folder / "instances.json").read_bytes())
    with pytest.raises(DataError, match="say where they are"):
        scan_boxes(elsewhere)
    assert len(decode_boxes(scan_boxes(elsewhere, folder / "images"), 8).images) == 10


def test_pascal_voc(tmp_path: Path) -> None:
    """Counted from 1, the last row and column inside; difficult objects are crowds; lists of single classes are not looked at."""
    root = voc(tmp_path / "VOCdevkit/VOC2012")
    voc_xml(root / "Annotations/0.xml", [("dog", (1, 1, 16, 12), 0), ("cat", (2.5, 3, 5, 8), 1)])
    lists = root / "ImageSets/Main"
    lists.mkdir(parents=True)
    for name, stems in (("train", "0 1 2 3 4 5"), ("val", "6 7"), ("trainval", "0 1 2 3 4 5 6 7"), ("dog_train", "0 1")):
        (lists / f"{name}.txt").write_text("\n".join(stems.split()) + "\n")
    found = scan_boxes(tmp_path)
    assert (found.root, found.classes) == (root, ("cat", "dog"))
    assert rows(found.objects[0]) == [([0, 0, 16, 12], 1, False), ([1.5, 2, 5, 8], 0, True)]
    assert [found.parts.count(part) for part in ("train", "validation", "test")] == [6, 0, 2]


def test_an_image_without_annotation_shows_nothing(tmp_path: Path) -> None:
    root = voc(tmp_path)
    (root / "ImageSets/Main").mkdir(parents=True)
    (root / "ImageSets/Main/train.txt").write_text("\n".join(map(str, range(10))))
    (root / "Annotations/4.xml").unlink()
    voc_xml(root / "Annotations/5.xml", [])
    progress = Notes()
    data = decode_boxes(scan_boxes(root), 8, strict=True, progress=progress)
    assert len(data.source) == 10 and data.source.negatives == 2
    assert progress.notes == [f"2 of 10 images in {root} show no object, and are background"]


def test_real_blood_cells(shared: Path) -> None:
    """BCCD has two boxes that are points."""
    found = scan_boxes(shared / "data/bccd")
    assert found.classes == ("Platelets", "RBC", "WBC")
    assert [found.parts.count(part) for part in ("train", "validation", "test")] == [205, 87, 72]
    assert sum(map(len, found.objects)) == 4888 and not found.skipped
    some = BoxSet(**{f.name: getattr(found, f.name) for f in fields(found)} | {"images": found.images[:12]})
    data = decode_boxes(some, 64)
    assert data.images.shape == (12, 3, 64, 64) and all(((t[:, :4] >= 0) & (t[:, :4] <= 1)).all() for t in data.targets)
    # White cells are stained blue: what lies in their boxes has more blue than green, compared with the whole image.
    for image, target in zip(data.images, data.targets, strict=True):
        for left, top, right, bottom, label, _ in target.tolist():
            if label == 2:
                blue = image[2].float() - image[1]
                assert blue[round(64 * top) : round(64 * bottom), round(64 * left) : round(64 * right)].mean() > blue.mean()
    data = decode_boxes(found, 8)
    assert [reason[-11:] for _, reason in data.source.faults] == ["has no area"] * 2
    assert len(split_boxes(data, 0).train) == 185


# ---- bad input


@pytest.mark.parametrize(
    ("box", "reason", "left"),
    [
        ([4, 4, 0, 5], "the box 4 4 4 9 has no area", 0),
        ([4, 4, -2, 5], "the box 4 4 2 9 has no area", 0),
        ([20, 4, 6, 5], "the box 20 4 26 9 lies outside of the image", 0),
        ([10, 4, 12, 5], "the box 10 4 22 9 is cut off at the border", 1),
        ([10, 4, 6.9, 5], None, 1),
        ([1, 2, 3], "a box is [1, 2, 3] instead of left, top, width and height", 0),
        (["a", 2, 3, 4], "a box is ['a', 2, 3, 4] instead", 0),
        ([float("nan"), 2, 3, 4], "a box is [nan, 2, 3, 4] instead", 0),
    ],
)
def test_boxes_at_fault_are_counted_and_named(folder: Path, box: Any, reason: str | None, left: int) -> None:
    coco(folder / "instances.json", [*BOXES, annotation(1, 9, DOG, box)])
    found, progress = scan_boxes(folder / "instances.json"), Notes()
    data = decode_boxes(found, 8, progress=progress)
    assert len(data.source) == 10 and len(data.targets[9]) == left
    assert ((data.targets[9][:, :4] >= 0) & (data.targets[9][:, :4] <= 1)).all()
    if reason is None:
        decode_boxes(found, 8, strict=True)
        return
    assert (
        progress.notes[0].startswith(f"1 boxes of {folder} are at fault: images/000000000009.png (")
        or "(a box" in progress.notes[0]
    )
    assert reason in progress.notes[0] and len(data.source.faults) == 1
    with pytest.raises(DataError, match=r"1 boxes of .* are at fault.*; mend or remove them"):
        decode_boxes(found, 8, strict=True)


def test_boxes_of_unknown_categories_and_images(folder: Path) -> None:
    coco(folder / "instances.json", [*BOXES, annotation(1, 9, 3, [1, 2, 4, 6]), annotation(2, 77, DOG, [1, 2, 4, 6])])
    assert [reason for _, reason in scan_boxes(folder / "instances.json").faults] == [
        "a box is of category 3, which is not in the file",
        "a box is of image 77, which is not in the file",
    ]


def test_images_that_are_missing_damaged_or_of_another_size(folder: Path) -> None:
    (folder / "images/000000000003.png").unlink()
    (folder / "images/000000000004.png").write_bytes(b"no picture")
    save(folder / "images/000000000005.png", height=16, width=12)
    progress = Notes()
    found = scan_boxes(folder / "instances.json")
    data = decode_boxes(found, 8, progress=progress)
    assert len(data.source) == len(data.images) == len(data.targets) == len(data.source.parts) == 7
    assert progress.notes[0].startswith(f"3 images of {folder} cannot be used: images/000000000003.png (is named by instances.json")
    assert "has 12 x 16 px, its annotation speaks of 16 x 12" in progress.notes[0]
    with pytest.raises(DataError, match="3 images"):
        decode_boxes(found, 8, strict=True)


def change(**values: Any) -> Callable[[Path, dict[str, Any]], None]:
    return lambda path, content: _write(path, content | values)


def _write(path: Path, content: object) -> None:
    path.write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (lambda path, _: path.write_text("{"), "is not JSON"),
        (lambda path, _: path.write_text("[" * 100_000), "is not JSON"),
        (lambda path, _: path.write_text("[]"), "has not the lists images, annotations, categories"),
        (change(annotations=[1]), "has not the lists"),
        (change(categories=[]), "has no categories"),
        (change(categories=[{"id": 1, "name": "a"}, {"id": 1, "name": "b"}]), "several categories of the id 1; give each its own"),
        (change(categories=[{"id": 1, "name": "a"}, {"id": 2, "name": "a"}]), "several categories of the name a"),
        (change(categories=[{"id": 1}]), "a category without id or name"),
        (change(images=[{"id": 1}]), "the images that .* names are not beside it"),
        (change(images=[]), "the images that .* names are not beside it"),
    ],
)
def test_files_that_cannot_be_understood(folder: Path, break_it: Callable[[Path, dict[str, Any]], object], message: str) -> None:
    path = folder / "instances.json"
    break_it(path, json.loads(path.read_text()))
    with pytest.raises(DataError, match=message):
        scan_boxes(path)


def test_images_named_twice(folder: Path) -> None:
    path = folder / "instances.json"
    content = json.loads(path.read_text())
    _write(path, content | {"images": [*content["images"], content["images"][0]]})
    with pytest.raises(DataError, match="several images of one id"):
        scan_boxes(path)
    _write(path, content | {"images": [*content["images"], content["images"][0] | {"id": 99}]})
    with pytest.raises(DataError, match=r"names images twice, or in several parts: images/000000000000\.png"):
        scan_boxes(path)


def test_parts_do_not_overlap(tmp_path: Path) -> None:
    root = voc(tmp_path)
    (root / "ImageSets/Main").mkdir(parents=True)
    for name in ("train", "test"):
        (root / f"ImageSets/Main/{name}.txt").write_text("1\n2\n")
    with pytest.raises(DataError, match=r"in several parts: JPEGImages/1\.png, JPEGImages/2\.png"):
        scan_boxes(root)


def test_voc_annotations_at_fault(tmp_path: Path) -> None:
    root = voc(tmp_path)
    (root / "classes.txt").write_text("dog\n")
    (root / "JPEGImages/0.png").unlink()
    (root / "Annotations/2.xml").write_text("<annotation>")
    voc_xml(root / "Annotations/4.xml", [("dog", (2, 3, "", 8), 0), ("dog", (5, 5, 5, 5), 0)])
    data = decode_boxes(scan_boxes(root), 8)
    assert [path for path, _ in data.source.skipped] == ["JPEGImages/0.jpg", "JPEGImages/2.png"]
    reasons = [reason for _, reason in data.source.faults]
    assert reasons.count("a box is of class 'cat', which classes.txt does not name") == 5
    assert reasons[-2:] == [reasons[-2], "the box 5 5 5 5 has no area"] and "a box of class 'dog' has no four numbers" in reasons


def test_there_must_be_something(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="there is no folder or file"):
        scan_boxes(tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"holds neither annotations/\*\.json"):
        scan_boxes(tmp_path)
    voc(tmp_path / "a"), voc(tmp_path / "b")
    with pytest.raises(DataError, match="holds several sets"):
        scan_boxes(tmp_path)
    (tmp_path / "c/annotations").mkdir(parents=True)
    for name in ("one", "two"):
        (tmp_path / f"c/annotations/{name}.json").write_text("{}")
    with pytest.raises(DataError, match=r"which part .* is cannot be told"):
        scan_boxes(tmp_path / "c")


def test_a_class_that_is_never_seen_in_training(folder: Path) -> None:
    only = [annotation(key, key, PERSON, [1, 2, 4, 6]) for key in range(10)]
    for extra in ([], [annotation(99, key, DOG, [0, 0, 9, 9], crowd=1) for key in range(10)]):
        coco(folder / "instances.json", [*only, *extra])
        with pytest.raises(DataError, match=r"no box of the 6 training images .* is of class dog; add images of it"):
            split_boxes(decode_boxes(scan_boxes(folder / "instances.json"), 8), 0)


def test_splits_never_overlap_and_depend_on_the_seed_alone(folder: Path) -> None:
    data = decode_boxes(scan_boxes(folder / "instances.json"), 8)
    one, other = split_boxes(data, 0), split_boxes(data, 0)
    every = [index for part in fields(one) for index in getattr(one, part.name)]
    assert one == other and sorted(every) == list(range(10)) and one != split_boxes(data, 1)
