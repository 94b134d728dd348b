from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from pathlib import Path

import pytest
from folders import fill, save
from hypothesis import given, settings
from hypothesis import strategies as st

from natdeploy.errors import DataError
from natdeploy.tasks import ImageSet, Splits, scan_images, split
from natdeploy.tasks.data import CALIBRATION_IMAGES, MIN_IMAGES, VALIDATION_IMAGES


def parts(splits: Splits) -> dict[str, tuple[int, ...]]:
    return {part.name: getattr(splits, part.name) for part in fields(splits)}


# ---- finding images


def test_flowers_are_found_with_their_test_folder(shared: Path) -> None:
    images = scan_images(shared / "data" / "flowers12")
    assert len(images) == 960
    assert len(images.classes) == 12
    assert images.classes == tuple(sorted(path.name for path in (shared / "data/flowers12/train").iterdir()))
    assert Counter(zip(images.labels, images.is_test, strict=True)) == {
        (label, is_test): 20 if is_test else 60 for label in range(12) for is_test in (False, True)
    }
    for path, label, is_test in zip(images.paths, images.labels, images.is_test, strict=True):
        assert Path(path).parts[:2] == ("test" if is_test else "train", images.classes[label])


def test_a_flat_folder_has_no_test_images(tmp_path: Path) -> None:
    fill(tmp_path, ("dog", "cat"))
    save(tmp_path / "cat" / "deeper" / "more.JPG")
    (tmp_path / "cat" / "notes.txt").write_text("no image")
    (tmp_path / ".thumbnails").mkdir()
    (tmp_path / "readme.md").touch()
    images = scan_images(tmp_path)
    assert images.classes == ("cat", "dog")
    assert [*images.paths[:6]] == [*(f"cat/{i}.png" for i in range(5)), "cat/deeper/more.JPG"]
    assert images.labels == (0,) * 6 + (1,) * 5
    assert not any(images.is_test)


@pytest.mark.parametrize("name", ["val", "valid"])
def test_validation_folders_are_learned_from(tmp_path: Path, name: str) -> None:
    fill(tmp_path / "train", count=4)
    fill(tmp_path / name, count=1)
    fill(tmp_path / "test", count=2)
    images = scan_images(tmp_path)
    assert Counter(path.split("/")[0] for path in images.paths) == {"train": 8, name: 2, "test": 4}
    assert sum(images.is_test) == 4


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    assert scan_images(fill(tmp_path, ("bus", "test", "train"))).classes == ("bus", "test", "train")


def nothing(root: Path) -> None:
    root.rmdir()


def empty(root: Path) -> None:
    pass


def loose_images(root: Path) -> None:
    save(root / "1.png")


def one_class(root: Path) -> None:
    fill(root, ("cat",))


def one_class_in_train(root: Path) -> None:
    fill(root / "train", ("cat",))


def other_test_classes(root: Path) -> None:
    fill(root / "train", ("cat", "dog"))
    fill(root / "test", ("cat", "fox"))


def only_a_test_folder(root: Path) -> None:
    fill(root / "test")


def too_few(root: Path) -> None:
    fill(root)
    fill(root, ("fox",), count=4)


def no_images(root: Path) -> None:
    fill(root)
    (root / "fox").mkdir()


def no_test_images(root: Path) -> None:
    fill(root / "train")
    fill(root / "test", ("cat",))
    (root / "test" / "dog").mkdir()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (nothing, r"there is no folder .*root; give a folder"),
        (empty, r"root holds no class folders"),
        (loose_images, r"root holds no class folders"),
        (one_class, r"one class only \(cat\)"),
        (one_class_in_train, r"train holds one class only \(cat\)"),
        (other_test_classes, r"train and .*test have different classes: dog, fox only in one"),
        (only_a_test_folder, r"holds test/ but no train/"),
        (too_few, r"class 'fox' in .*root has 4 images to learn from; at least 5 are needed"),
        (no_images, r"class 'fox' in .*root has 0 images to learn from; .*\.jpg"),
        (no_test_images, r"class 'dog' has no images in .*test"),
    ],
)
def test_a_folder_that_does_not_fit_is_explained(tmp_path: Path, make: Callable[[Path], None], message: str) -> None:
    root = tmp_path / "root"
    root.mkdir()
    make(root)
    with pytest.raises(DataError, match=message) as caught:
        scan_images(root)
    assert "\n" not in str(caught.value)


def test_the_fingerprint_follows_names_and_sizes(tmp_path: Path) -> None:
    fill(tmp_path)
    before = scan_images(tmp_path).fingerprint()
    assert scan_images(tmp_path).fingerprint() == before
    path = tmp_path / "cat" / "0.png"
    path.rename(path.with_name("renamed.png"))
    renamed = scan_images(tmp_path)
    assert renamed.fingerprint() != before
    path.with_name("renamed.png").rename(path)
    assert scan_images(tmp_path).fingerprint() == before
    path.write_bytes(path.read_bytes() + b" ")
    assert scan_images(tmp_path).fingerprint() != before
    with pytest.raises(DataError, match=r"renamed\.png cannot be read"):
        renamed.fingerprint()


# ---- splitting


def image_set(learned: Sequence[int], tested: Sequence[int]) -> ImageSet:
    samples = [(label, False, i) for label, count in enumerate(learned) for i in range(count)]
    samples += [(label, True, i) for label, count in enumerate(tested) for i in range(count)]
    samples.sort()
    paths = tuple(f"{'test' if is_test else 'train'}/{label}/{i}.png" for label, is_test, i in samples)
    names = tuple(map(str, range(len(learned))))
    return ImageSet(Path("root"), names, paths, tuple(s[0] for s in samples), tuple(s[1] for s in samples))


COUNTS = st.lists(st.integers(MIN_IMAGES, 80), min_size=2, max_size=6)


@settings(deadline=None)
@given(COUNTS, st.booleans(), st.integers(0, 2**32))
def test_splits_are_disjoint_complete_and_stratified(learned: list[int], has_test: bool, seed: int) -> None:
    images = image_set(learned, [3] * len(learned) if has_test else [])
    splits = split(images, seed)
    assert sorted(index for part in parts(splits).values() for index in part) == list(range(len(images)))
    assert all(list(part) == sorted(part) for part in parts(splits).values())
    if has_test:
        assert splits.test == tuple(index for index, is_test in enumerate(images.is_test) if is_test)
    for label, count in enumerate(learned):
        size = {name: sum(images.labels[index] == label for index in part) for name, part in parts(splits).items()}
        assert min(size.values()) >= 1
        assert size["train"] >= 2
        rest = count if has_test else count - size["test"]
        if not has_test:
            assert size["test"] == max(1, round(0.20 * count))
        assert abs(size["validation"] - 0.15 * rest) <= 0.5
        assert size["calibration"] == max(1, round(0.10 * rest))


def test_splits_depend_on_the_seed_alone() -> None:
    images = image_set([30, 40], [])
    assert split(images, 3) == split(replace(images, root=Path("elsewhere")), 3)
    assert split(images, 3) != split(images, 4)


def test_a_class_is_split_whatever_the_others_hold() -> None:
    few, many = image_set([30, 40], []), image_set([30, 60], [])
    for name, part in parts(split(few, 0)).items():
        assert [few.paths[i] for i in part if few.labels[i] == 0] == [
            many.paths[i] for i in parts(split(many, 0))[name] if many.labels[i] == 0
        ]


def test_splits_do_not_depend_on_the_order_of_the_file_system(tmp_path: Path) -> None:
    names = [f"{label}/{i}.png" for label in ("cat", "dog") for i in range(12)]
    for folder, order in (("first", names), ("second", names[::-1])):
        for name in order:
            save(tmp_path / folder / name)
    first, second = scan_images(tmp_path / "first"), scan_images(tmp_path / "second")
    assert split(first, 0).to_json(first.paths) == split(second, 0).to_json(second.paths)


def test_splits_come_back_from_json_after_images_were_added() -> None:
    images = image_set([30, 40], [5, 5])
    splits = split(images, 0)
    values = splits.to_json(images.paths)
    assert values["test"][0] == "test/0/0.png"
    assert Splits.from_json(values, images.paths, images.root) == splits
    more = image_set([31, 40], [5, 5])
    assert Splits.from_json(values, more.paths, more.root).to_json(more.paths) == values
    fewer = image_set([30, 39], [5, 5])
    with pytest.raises(DataError, match=r"root has changed: train/1/39\.png missing or damaged; restore it"):
        Splits.from_json(values, fewer.paths, fewer.root)


def test_large_sets_validate_and_calibrate_on_a_bounded_part() -> None:
    images = image_set([3000] * 40, [10] * 40)
    splits = split(images, 0)
    assert len(splits.validation) == VALIDATION_IMAGES
    assert len(splits.calibration) == CALIBRATION_IMAGES
    assert sum(map(len, parts(splits).values())) == len(images)
    for part in (splits.validation, splits.calibration):
        assert len(set(Counter(images.labels[index] for index in part).values())) == 1


@settings(deadline=None)
@given(COUNTS, st.integers(1, 1000))
def test_validation_can_be_given(learned: list[int], wanted: int) -> None:
    images = image_set(learned, [3] * len(learned))
    splits = split(images, 0, validation=wanted)
    assert sorted(index for part in parts(splits).values() for index in part) == list(range(len(images)))
    for label, count in enumerate(learned):
        size = {name: sum(images.labels[index] == label for index in part) for name, part in parts(splits).items()}
        assert size["train"] >= 2 and min(size.values()) >= 1
        assert size["validation"] == max(1, round(count * min(wanted / sum(learned), 1 / 3)))
