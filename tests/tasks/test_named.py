"""NAT's data sets by name, on tiny files in each one's own form."""

from __future__ import annotations

import pickle
import shutil
import sys
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
from named_files import CLASSES, LEARNED, TESTED, WRITE, md5, python2_pickle
from named_files import Shade as Of
from torchvision import datasets

from natdeploy.errors import DataError
from natdeploy.progress import Silent
from natdeploy.tasks import NAMED, Augmentation, Classification, NamedSet, decode, named_set, open_named, open_pixels, split

FETCHED = ("cifar10", "cifar100", "stl10", "food101", "fgvc-aircraft", "dtd", "oxford-pets", "flowers102")


def tiny(name: str) -> NamedSet:
    return replace(NAMED[name], classes=CLASSES, train=CLASSES * LEARNED, test=CLASSES * TESTED)


@pytest.fixture
def written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], NamedSet]:
    """Writes a tiny set to `tmp_path`."""

    def write(name: str) -> NamedSet:
        WRITE[name](tmp_path, monkeypatch)
        return tiny(name)

    return write


@pytest.mark.parametrize("name", NAMED)
def test_a_set_is_read_from_its_own_form(written: Callable[[str], NamedSet], tmp_path: Path, name: str) -> None:
    images = open_named(written(name), tmp_path)
    pixels = decode(images, 40)
    assert not pixels.source.skipped
    assert len(set(images.classes)) == CLASSES
    colours = pixels.images.float().mean(dim=(2, 3)).numpy()
    shades = [
        Of(label, round((green - 10) / 20), tested)
        for label, tested, (_, green, _) in zip(images.labels, images.is_test, colours, strict=True)
    ]
    assert len(set(shades)) == len(shades) == CLASSES * (LEARNED + TESTED)
    assert np.abs(colours - [shade.colour for shade in shades]).max() < 2.5  # JPEG


@pytest.mark.parametrize("name", NAMED)
def test_the_published_test_part_is_the_test(written: Callable[[str], NamedSet], tmp_path: Path, name: str) -> None:
    wanted = written(name)
    images = open_named(wanted, tmp_path)
    splits = split(images, 0, validation=wanted.recipe.validation)
    parts = {part.name: getattr(splits, part.name) for part in fields(splits)}
    assert sorted(index for part in parts.values() for index in part) == list(range(len(images)))
    assert [images.is_test[index] for index in parts["test"]] == [True] * (CLASSES * TESTED)
    assert {len(parts[name]) // CLASSES for name in ("train", "validation", "calibration")} >= {1}
    assert all({images.labels[index] for index in part} == set(range(CLASSES)) for part in parts.values())
    assert images.fingerprint() == open_named(wanted, tmp_path).fingerprint()


@pytest.mark.parametrize("name", NAMED)
def test_a_set_that_is_not_whole_is_refused_with_both_numbers(
    written: Callable[[str], NamedSet], tmp_path: Path, name: str
) -> None:
    written(name)
    published = NAMED[name]
    message = f"{name} in .* has 18 images to learn from and 6 for the test, of 3 classes, but {published.train}, {published.test} "
    with pytest.raises(DataError, match=message + f"and {published.classes} are published") as caught:
        open_named(published, tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", NAMED)
def test_missing_files_are_named_with_a_way_to_get_them(tmp_path: Path, name: str) -> None:
    wanted = NAMED[name]
    with pytest.raises(DataError) as caught:
        open_named(wanted, tmp_path)
    message = str(caught.value)
    assert f"{name} is not in {tmp_path}: {wanted.files[0]}" in message
    assert wanted.home in message
    assert ("--download fetches it" in message) == (name in FETCHED)
    assert ("cannot be downloaded" in message) == (name not in FETCHED)
    assert "--data-root" in message
    assert not any(tmp_path.iterdir())


class Notes(Silent):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def note(self, message: str) -> None:
        self.lines.append(message)


def test_a_set_is_fetched_with_consent_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    calls: list[Path] = []

    def fetch(root: Path) -> None:
        sys.stderr.write("downloading")
        calls.append(root)
        WRITE["dtd"](root, monkeypatch)

    wanted, notes, root = replace(tiny("dtd"), fetch=fetch), Notes(), tmp_path / "new" / "data"
    with pytest.raises(DataError, match="--download"):
        open_named(wanted, root)
    assert not root.exists()
    for _ in range(2):  # what is there is not fetched again
        assert len(open_named(wanted, root, download=True, progress=notes)) == 24
    assert calls == [root]
    assert notes.lines == [f"downloading dtd to {root}; its makers' terms are on {wanted.home}"]
    assert capfd.readouterr() == ("", "")


def test_a_download_that_fails_is_explained(tmp_path: Path) -> None:
    def fetch(root: Path) -> None:
        raise OSError("Connection\nrefused")

    with pytest.raises(DataError, match=r"dtd cannot be downloaded \(Connection refused\); try again, or get it from https"):
        open_named(replace(NAMED["dtd"], fetch=fetch), tmp_path, download=True)


@pytest.mark.parametrize("name", FETCHED)
def test_downloads_go_to_where_files_are_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """torchvision is asked for the archives, whose checksums it has; nothing is read before it is unpacked."""
    asked: list[tuple[str, Path]] = []

    def archive(url: str, download_root: str | Path, *_: object, **__: object) -> None:
        asked.append((url, Path(download_root)))
        WRITE[name](tmp_path / "there", monkeypatch)
        shutil.copytree(tmp_path / "there", tmp_path / "data", dirs_exist_ok=True)
        shutil.rmtree(tmp_path / "there")

    for module in ("cifar", "stl10", "food101", "fgvc_aircraft", "dtd", "oxford_iiit_pet", "flowers102"):
        monkeypatch.setattr(f"torchvision.datasets.{module}.download_and_extract_archive", archive)
    monkeypatch.setattr("torchvision.datasets.flowers102.download_url", lambda url, root, **_: asked.append((url, Path(root))))
    monkeypatch.setattr("torchvision.datasets.utils.download_and_extract_archive", archive)
    assert len(open_named(tiny(name), tmp_path / "data", download=True)) == 24
    assert asked
    assert all(url.startswith("http") and folder.is_relative_to(tmp_path / "data") for url, folder in asked)


# ---- files that cannot be trusted


def forged(value: object, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch whose checksum is right."""
    path.write_bytes(pickle.dumps(value, protocol=2))
    lists = [[name, md5(path.read_bytes()) if name == path.name else old] for name, old in datasets.CIFAR10.train_list]
    monkeypatch.setattr(datasets.CIFAR10, "train_list", lists)


class Payload:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Callable[..., object], tuple[Path]]:
        return Path.touch, (self.target,)


def test_nothing_but_arrays_is_unpickled(
    written: Callable[[str], NamedSet], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted, file = written("cifar10"), tmp_path / "cifar-10-batches-py/data_batch_1"
    forged(Payload(tmp_path / "executed"), file, monkeypatch)
    with pytest.raises(DataError, match=r"names pathlib\.|names __builtin__\."):
        open_named(wanted, tmp_path)
    assert not (tmp_path / "executed").exists()
    forged([1, 2], file, monkeypatch)
    with pytest.raises(DataError, match="data_batch_1 holds no table"):
        open_named(wanted, tmp_path)


def test_a_file_with_another_checksum_is_not_unpickled(written: Callable[[str], NamedSet], tmp_path: Path) -> None:
    wanted, file = written("cifar100"), tmp_path / "cifar-100-python/meta"
    file.write_bytes(pickle.dumps(Payload(tmp_path / "executed")))
    with pytest.raises(DataError, match=r"meta is not the published file \(MD5 [0-9a-f]{32}\); remove it"):
        open_named(wanted, tmp_path)
    assert not (tmp_path / "executed").exists()


def test_pickles_are_what_python_2_wrote() -> None:
    """The writer of the tests against the standard library's reader, with the names that old NumPy had."""
    data = python2_pickle({"data": np.arange(6, dtype=np.uint8).reshape(2, 3), "labels": [1, 2]})
    assert b"cnumpy.core.multiarray\n_reconstruct\n" in data and b"_codecs" not in data
    assert pickle.loads(data, encoding="latin1")["data"].tolist() == [[0, 1, 2], [3, 4, 5]]  # noqa: S301


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("stl10", "stl10_binary/test_y.bin"),
        ("food101", "food-101/meta/test.json"),
        ("stanford-cars", "stanford_cars/devkit/cars_meta.mat"),
        ("fgvc-aircraft", "fgvc-aircraft-2013b/data/variants.txt"),
        ("dtd", "dtd/dtd/labels/val1.txt"),
        ("oxford-pets", "oxford-iiit-pet/annotations/trainval.txt"),
        ("flowers102", "flowers-102/setid.mat"),
    ],
)
def test_damaged_lists_end_in_a_sentence(written: Callable[[str], NamedSet], tmp_path: Path, name: str, file: str) -> None:
    wanted = written(name)
    for content in (b"", b"\x00\xff{[ 1 2\n"):
        (tmp_path / file).write_bytes(content)
        with pytest.raises(DataError) as caught:
            open_named(wanted, tmp_path)
        assert "\n" not in str(caught.value)
    (tmp_path / file).unlink()
    with pytest.raises(DataError):
        open_named(wanted, tmp_path)


def test_a_picture_that_is_missing_is_noticed(written: Callable[[str], NamedSet], tmp_path: Path) -> None:
    images = open_named(written("food101"), tmp_path)
    (tmp_path / images.paths[0]).unlink()
    with pytest.raises(DataError, match=r"cannot be read"):
        images.fingerprint()
    [(path, reason)] = decode(images, 8).source.skipped
    assert path == images.paths[0] and "No such file" in reason


def test_a_class_without_enough_images_is_named(written: Callable[[str], NamedSet], tmp_path: Path) -> None:
    wanted = written("dtd")
    labels = tmp_path / "dtd/dtd/labels/train1.txt"
    labels.write_text(
        "".join(line for line in labels.read_text().splitlines(keepends=True) if "blotchy" not in line) + "blotchy/x.jpg\n"
    )
    with pytest.raises(DataError, match=r"class 'blotchy' in .* has 4 images to learn from; at least 5 are needed"):
        open_named(wanted, tmp_path)


def test_a_label_without_a_class_is_refused(
    written: Callable[[str], NamedSet], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted, file = written("stl10"), tmp_path / "stl10_binary/train_y.bin"
    file.write_bytes(b"\x09" + file.read_bytes()[1:])
    lists = [[name, md5(file.read_bytes()) if name == file.name else old] for name, old in datasets.STL10.train_list]
    monkeypatch.setattr(datasets.STL10, "train_list", lists)
    with pytest.raises(DataError, match="has an image of class number 8, which has no name"):
        open_named(wanted, tmp_path)


# ---- the table


def test_a_folder_comes_before_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert named_set(Path("cifar10")) is NAMED["cifar10"]
    (tmp_path / "cifar10").mkdir()
    assert named_set(Path("cifar10")) is None
    with pytest.raises(DataError, match=r"there is no folder cifar; .* or the name of a data set: cifar10, cifar100, .*imagenet"):
        named_set(Path("cifar"))


def test_the_table_has_what_was_published() -> None:
    """Classes and sizes once more, from NSGANetV2's own table and the makers' pages."""
    published = {
        "cifar10": (10, 50_000, 10_000),
        "cifar100": (100, 50_000, 10_000),
        "cinic10": (10, 180_000, 90_000),
        "stl10": (10, 5_000, 8_000),
        "food101": (101, 101 * 750, 101 * 250),
        "stanford-cars": (196, 8_144, 16_185 - 8_144),
        "fgvc-aircraft": (100, 6_667, 10_000 - 6_667),
        "dtd": (47, 2 * 40 * 47, 40 * 47),
        "oxford-pets": (37, 3_680, 7_349 - 3_680),
        "flowers102": (102, 2 * 10 * 102, 8_189 - 2 * 10 * 102),
        "imagenet": (1000, 1_281_167, 50 * 1000),
    }
    assert {name: (each.classes, each.train, each.test) for name, each in NAMED.items()} == published
    for name, each in NAMED.items():
        recipe = each.recipe
        assert (recipe.resolutions[0], recipe.resolutions[-1]) == (192, 256)
        assert recipe.batch_size == {"flowers102": 32, "food101": 128, "imagenet": 128}.get(name, 96)
        assert recipe.rounds * recipe.round_epochs == (0 if name == "imagenet" else 150)
        assert recipe.validation is None or recipe.validation <= each.train / 4


@pytest.mark.parametrize(("name", "side"), [("cifar10", 32), ("cinic10", 32), ("stl10", 96), ("dtd", 128)])
def test_small_pictures_are_kept_small(written: Callable[[str], NamedSet], tmp_path: Path, name: str, side: int) -> None:
    """Enlarging 60,000 images beforehand would take 9 GB for nothing."""
    pixels = open_pixels(open_named(written(name), tmp_path), 128)
    assert pixels.size == side
    task = Classification(pixels, split(pixels.source, 0), (0.0,) * 3, (1.0,) * 3, 0)
    assert task.train_batch(0, 128, 4)[0].shape == (4, 3, 128, 128)
    (images, labels) = next(task.batches("test", 128, 6))
    assert images.shape == (6, 3, 128, 128) and len(labels) == 6


def test_the_fingerprint_of_arrays_covers_pixels_and_labels(written: Callable[[str], NamedSet], tmp_path: Path) -> None:
    images = open_named(written("cifar10"), tmp_path)
    before = images.fingerprint()
    assert replace(images, labels=images.labels[::-1]).fingerprint() != before
    assert images.arrays is not None
    images.arrays[3, 2, 1, 0] += 1
    assert images.fingerprint() != before
    images.arrays[3, 2, 1, 0] -= 1
    assert images.fingerprint() == before


def test_the_page_says_what_the_table_says() -> None:
    page = (Path(__file__).parents[2] / "docs" / "data.md").read_text(encoding="utf-8")
    rows = {}
    for line in page.splitlines():
        if line.startswith("| `"):
            cells = [cell.strip(" `") for cell in line.strip("|").split("|")]
            rows[cells[0]] = cells[1:]
    assert [name for name in rows if name in NAMED] == list(NAMED)
    for name, each in NAMED.items():
        classes, train, test, batch, epochs, validation, files = rows[name]
        numbers = [int(cell.replace(",", "")) for cell in (classes, train, test, batch)]
        assert numbers == [each.classes, each.train, each.test, each.recipe.batch_size]
        assert epochs == f"{each.recipe.rounds} x {each.recipe.round_epochs}"
        assert validation == ("not stated" if each.recipe.validation is None else f"{each.recipe.validation:,}")
        assert all(part.partition("/")[0] in files for part in each.files)
        assert ("no download" in files) == (each.fetch is None)
        assert each.home in page
    for name, field in Augmentation.model_fields.items():
        shown = " to ".join(map(str, field.default)) if isinstance(field.default, tuple) else field.default
        assert rows[name][0] == {"0.75 to 1.3333333333333333": "3/4 to 4/3"}.get(str(shown), str(shown))
