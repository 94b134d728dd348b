from __future__ import annotations

import io
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision.transforms.v2.functional import center_crop, pil_to_tensor, resize

from natdeploy.errors import DataError
from natdeploy.tasks import ImageSet, Splits, data, decode, scan_images, split
from natdeploy.tasks.data import MIN_IMAGES


def save(path: Path, image: Image.Image | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    (image or Image.new("RGB", (8, 8), (200, 100, 50))).save(path)
    return path


def fill(folder: Path, classes: Sequence[str] = ("cat", "dog"), count: int = MIN_IMAGES) -> Path:
    for name in classes:
        for number in range(count):
            save(folder / name / f"{number}.png")
    return folder


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
        assert path.parts[:2] == ("test" if is_test else "train", images.classes[label])


def test_a_flat_folder_has_no_test_images(tmp_path: Path) -> None:
    fill(tmp_path, ("dog", "cat"))
    save(tmp_path / "cat" / "deeper" / "more.JPG")
    (tmp_path / "cat" / "notes.txt").write_text("no image")
    (tmp_path / ".thumbnails").mkdir()
    (tmp_path / "readme.md").touch()
    images = scan_images(tmp_path)
    assert images.classes == ("cat", "dog")
    assert [path.as_posix() for path in images.paths[:6]] == [*(f"cat/{i}.png" for i in range(5)), "cat/deeper/more.JPG"]
    assert images.labels == (0,) * 6 + (1,) * 5
    assert not any(images.is_test)


@pytest.mark.parametrize("name", ["val", "valid"])
def test_validation_folders_are_learned_from(tmp_path: Path, name: str) -> None:
    fill(tmp_path / "train", count=4)
    fill(tmp_path / name, count=1)
    fill(tmp_path / "test", count=2)
    images = scan_images(tmp_path)
    assert Counter(path.parts[0] for path in images.paths) == {"train": 8, name: 2, "test": 4}
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
    paths = tuple(Path(f"{'test' if is_test else 'train'}/{label}/{i}.png") for label, is_test, i in samples)
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
    assert split(first, 0).to_json(first) == split(second, 0).to_json(second)


def test_splits_come_back_from_json_after_images_were_added() -> None:
    images = image_set([30, 40], [5, 5])
    splits = split(images, 0)
    values = splits.to_json(images)
    assert values["test"][0] == "test/0/0.png"
    assert Splits.from_json(values, images) == splits
    more = image_set([31, 40], [5, 5])
    assert Splits.from_json(values, more).to_json(more) == values
    with pytest.raises(DataError, match=r"root has changed: train/1/39\.png missing or damaged; restore it"):
        Splits.from_json(values, image_set([30, 39], [5, 5]))


# ---- decoding


def decoded(tmp_path: Path, image: Image.Image, name: str, size: int, **options: object) -> torch.Tensor:
    """One image (3, size, size), decoded from a file of its own."""
    fill(tmp_path, ("b", "c"))
    path = tmp_path / "a" / name
    for number in range(MIN_IMAGES):
        path.with_name(f"{number}-{name}").parent.mkdir(exist_ok=True)
        image.save(path.with_name(f"{number}-{name}"), **options)
    pixels = decode(scan_images(tmp_path), size)
    assert not pixels.source.skipped
    assert torch.equal(pixels.images[0], pixels.images[1])
    return pixels.images[0]


def test_a_photo_is_resized_by_its_shorter_side_and_cut_to_its_centre(tmp_path: Path, shared: Path) -> None:
    photo = Image.open(sorted((shared / "data/flowers12/test/iris").iterdir())[0]).crop((0, 20, 224, 180))
    ours = decoded(tmp_path, photo, "photo.png", 100)
    theirs = pil_to_tensor(center_crop(resize(photo, [100]), [100]))
    assert (ours.float() - theirs.float()).abs().mean() < 1.0  # half a pixel of rounding in the crop


def test_a_large_photo_decodes_alike_with_less_detail_in_between(tmp_path: Path, shared: Path) -> None:
    photo = Image.open(sorted((shared / "data/flowers12/test/iris").iterdir())[0]).resize((1600, 800))
    ours = decoded(tmp_path, photo, "photo.jpg", 64, quality=95)
    theirs = pil_to_tensor(center_crop(resize(photo, [64]), [64]))
    assert (ours.float() - theirs.float()).abs().mean() < 1.5


def test_a_photo_held_sideways_is_turned_upright(tmp_path: Path) -> None:
    image = Image.new("RGB", (16, 16), "black")
    image.paste("white", (0, 0, 16, 4))
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: the first row is the right side
    pixels = decoded(tmp_path, image, "photo.png", 16, exif=exif)
    assert pixels[:, :, -4:].min() == 255
    assert pixels[:, :, :-4].max() == 0


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (Image.new("L", (9, 9), 70), (70, 70, 70)),
        (Image.new("1", (9, 9), 1), (255, 255, 255)),
        (Image.new("RGBA", (9, 9), (10, 20, 30, 255)), (10, 20, 30)),
        (Image.new("RGB", (9, 9), (10, 20, 30)).quantize(4), (10, 20, 30)),
        (Image.fromarray(np.full((9, 9), 70 * 256, dtype=np.uint16)), (70, 70, 70)),
    ],
    ids=["grey", "one bit", "transparent", "palette", "16 bits"],
)
def test_every_kind_of_picture_becomes_rgb(tmp_path: Path, image: Image.Image, expected: tuple[int, int, int]) -> None:
    pixels = decoded(tmp_path, image, "image.png", 4)
    assert torch.equal(pixels, torch.tensor(expected, dtype=torch.uint8).reshape(3, 1, 1).expand(3, 4, 4))


def test_pixels_lie_channels_last_with_their_labels(tmp_path: Path) -> None:
    images = scan_images(fill(tmp_path))
    pixels = decode(images, 6)
    assert pixels.source == images
    assert pixels.size == 6
    assert pixels.images.shape == (10, 3, 6, 6)
    assert pixels.images.is_contiguous(memory_format=torch.channels_last)
    assert pixels.images.dtype == torch.uint8
    assert pixels.labels.tolist() == [0] * 5 + [1] * 5
    assert pixels.images[0, :, 0, 0].tolist() == [200, 100, 50]


class Counting:
    def __init__(self) -> None:
        self.calls: list[object] = []

    @contextmanager
    def task(self, name: str, total: int, unit: str) -> Iterator[Callable[[int], None]]:
        self.calls.append((name, total, unit))
        yield self.calls.append

    def note(self, message: str) -> None:
        self.calls.append(message)


def test_progress_hears_of_every_image(tmp_path: Path) -> None:
    progress = Counting()
    decode(scan_images(fill(tmp_path)), 4, progress=progress)
    assert progress.calls == [("decoding images", 10, "images"), *[1] * 10]


def damage(folder: Path) -> list[Path]:
    """Three images that cannot be read, in three ways."""
    photo = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    cut = save(folder / "cat" / "cut.jpg", photo)
    cut.write_bytes(cut.read_bytes()[:-500])
    (folder / "cat" / "empty.png").touch()
    (folder / "dog" / "text.jpg").write_text("<html>404</html>")
    return [Path("cat/cut.jpg"), Path("cat/empty.png"), Path("dog/text.jpg")]


def test_damaged_images_are_left_out_and_named(tmp_path: Path) -> None:
    bad = damage(fill(tmp_path))
    pixels = decode(scan_images(tmp_path), 8)
    assert [path for path, _ in pixels.source.skipped] == bad
    assert "truncated" in pixels.source.skipped[0][1]
    assert all(reason and str(tmp_path) not in reason for _, reason in pixels.source.skipped)
    assert len(pixels.source) == len(pixels.images) == len(pixels.labels) == 10
    assert not set(bad) & set(pixels.source.paths)
    assert pixels.images[:, 0].min() == pixels.images[:, 0].max() == 200
    assert split(pixels.source, 0) == split(scan_images(fill(tmp_path / "clean")), 0)


def test_damaged_images_are_refused_when_asked(tmp_path: Path) -> None:
    damage(fill(tmp_path))
    (tmp_path / "dog" / "x.png").write_bytes(b"\x89PNG")
    with pytest.raises(DataError, match=r"4 of 14 images cannot be decoded: .*cut\.jpg \(.*\), .*empty.png .* and 1 more; mend"):
        decode(scan_images(tmp_path), 8, strict=True)


def test_a_class_that_is_damaged_through_and_through_is_named(tmp_path: Path) -> None:
    fill(tmp_path)
    for path in (tmp_path / "dog").iterdir():
        path.write_bytes(b"")
    with pytest.raises(DataError, match=r"class 'dog' .* has 0 images to learn from \(5 damaged files were left out\)"):
        decode(scan_images(tmp_path), 8)


def test_pixels_without_a_known_range_are_not_guessed(tmp_path: Path) -> None:
    fill(tmp_path)
    save(tmp_path / "cat" / "float.tif", Image.fromarray(np.zeros((8, 8), dtype=np.float32)))
    pixels = decode(scan_images(tmp_path), 8)
    assert pixels.source.skipped == ((Path("cat/float.tif"), "pixels of 32 bits (mode F) have no known range"),)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "BMP", "PPM"])
def test_no_damage_escapes(tmp_path: Path, kind: str) -> None:
    """Bytes changed or lost anywhere give an image or a reason, never another error."""
    rng = np.random.default_rng(1)
    buffer = io.BytesIO()
    Image.fromarray(rng.integers(0, 256, (40, 50, 3), dtype=np.uint8)).save(buffer, kind)
    path = tmp_path / "image"
    outcomes = Counter[type]()
    for _ in range(60):
        bad = bytearray(buffer.getvalue())
        for position in rng.integers(0, min(len(bad), 400), 5):
            bad[position] = rng.integers(256)
        path.write_bytes(bad[: rng.integers(len(bad) // 2, len(bad))] if rng.random() < 0.5 else bad)
        result = data._read(path, 16)
        assert isinstance(result, str) or result.shape == (16, 16, 3)
        outcomes[type(result)] += 1
    assert outcomes[str] > 0


def test_images_that_do_not_fit_into_memory_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = scan_images(fill(tmp_path))
    needed = 10 * 3 * 224 * 224
    monkeypatch.setattr(data, "_available_bytes", lambda: 2 * needed - 1)
    with pytest.raises(DataError, match=r"need 0\.0 GB of memory, which is more than half"):
        decode(images, 224)
    for enough in (2 * needed, None):
        monkeypatch.setattr(data, "_available_bytes", lambda enough=enough: enough)
        assert decode(images, 224).size == 224


@pytest.mark.skipif(not Path("/proc/meminfo").exists(), reason="only Linux says how much memory is free")
def test_the_free_memory_is_less_than_all_there_is() -> None:
    available = data._available_bytes()
    assert available is not None
    assert 2**20 < available < os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
