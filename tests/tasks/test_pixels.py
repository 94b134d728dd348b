"""Pixels, decoded once or on demand."""

from __future__ import annotations

import io
import os
import pickle
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from folders import fill, save
from PIL import Image
from torchvision.transforms.v2.functional import center_crop, pil_to_tensor, resize

from natdeploy.errors import DataError
from natdeploy.tasks import Augmentation, Classification, ImageSet, PixelSource, decode, open_pixels, pixels, scan_images, split
from natdeploy.tasks.data import MIN_IMAGES
from natdeploy.tasks.pixels import OnDemand, read


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


def damage(folder: Path) -> list[str]:
    """Three images that cannot be read, in three ways."""
    photo = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    cut = save(folder / "cat" / "cut.jpg", photo)
    cut.write_bytes(cut.read_bytes()[:-500])
    (folder / "cat" / "empty.png").touch()
    (folder / "dog" / "text.jpg").write_text("<html>404</html>")
    return ["cat/cut.jpg", "cat/empty.png", "dog/text.jpg"]


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
    assert pixels.source.skipped == (("cat/float.tif", "pixels of 32 bits (mode F) have no known range"),)


@pytest.mark.filterwarnings("ignore:::PIL")
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "BMP", "PPM"])
def test_no_damage_escapes(tmp_path: Path, kind: str) -> None:
    """Bytes changed or lost anywhere give an image or a reason, never another error."""
    rng = np.random.default_rng(1)
    buffer = io.BytesIO()
    Image.fromarray(rng.integers(0, 256, (40, 50, 3), dtype=np.uint8)).save(buffer, kind)
    path = tmp_path / "image"
    source = ImageSet(tmp_path, ("only",), (path.name,), (0,), (False,))
    outcomes = Counter[type]()
    for _ in range(60):
        bad = bytearray(buffer.getvalue())
        for position in rng.integers(0, min(len(bad), 400), 5):
            bad[position] = rng.integers(256)
        path.write_bytes(bad[: rng.integers(len(bad) // 2, len(bad))] if rng.random() < 0.5 else bad)
        result = read(source, 0, 16)
        assert isinstance(result, str) or result.shape == (16, 16, 3)
        outcomes[type(result)] += 1
    assert outcomes[str] > 0


# ---- one protocol, in memory and on demand


BUSY = Augmentation(policy="randaugment", mixup=0.2, cutmix=1.0, mix_probability=0.8, erase=0.3)


@pytest.fixture
def noise(tmp_path: Path) -> ImageSet:
    """24 photos of noise, of several shapes, in two classes."""
    rng = np.random.default_rng(0)
    for place in range(24):
        image = Image.fromarray(rng.integers(0, 256, (20 + place, 44 - place, 3), dtype=np.uint8))
        save(tmp_path / "noise" / ("cat", "dog")[place % 2] / f"{place:02}.{'jpg' if place % 3 else 'png'}", image)
    return scan_images(tmp_path / "noise")


def task_of(source: PixelSource, augmentation: Augmentation = BUSY) -> Classification:
    return Classification(source, split(source.source, 0), (0.5,) * 3, (0.5,) * 3, 0, augmentation=augmentation)


@pytest.mark.parametrize("room", [2**28, 1], ids=["room for all", "room for nearly none"])
def test_both_sources_give_the_same_bits(noise: ImageSet, monkeypatch: pytest.MonkeyPatch, room: int) -> None:
    monkeypatch.setattr(pixels, "DECODED_BYTES", room)
    held, lazy = task_of(decode(noise, 32)), task_of(OnDemand(noise, 32))
    for step in (0, 1, 2, 1, 7, 30, 0):
        for resolution in (24, 32):
            for ours, theirs in zip(held.train_batch(step, resolution, 5), lazy.train_batch(step, resolution, 5), strict=True):
                assert torch.equal(ours, theirs)
                assert ours.stride() == theirs.stride()
    for name in ("train", "validation", "calibration", "test"):
        for limit in (None, 3):
            one, other = list(held.batches(name, 24, 4, limit)), list(lazy.batches(name, 24, 4, limit))
            assert len(one) == len(other)
            for (x, y), (x_lazy, y_lazy) in zip(one, other, strict=True):
                assert torch.equal(x, x_lazy) and torch.equal(y, y_lazy)


@pytest.mark.parametrize("source", [decode, OnDemand])
def test_a_task_can_be_sent_to_another_process(noise: ImageSet, source: Callable[[ImageSet, int], PixelSource]) -> None:
    task = task_of(source(noise, 32))
    before = task.train_batch(2, 24, 5)
    sent = pickle.loads(pickle.dumps(task))  # noqa: S301
    assert all(torch.equal(one, other) for one, other in zip(sent.train_batch(2, 24, 5), before, strict=True))


def test_only_a_few_images_are_held(noise: ImageSet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pixels, "DECODED_BYTES", 6 * 3 * 32 * 32)
    source = OnDemand(noise, 32)
    for place in range(24):
        source.take(np.array([place]))
        assert len(source._images) <= 6
    assert sorted(source._images) == list(range(18, 24))


def test_what_is_expected_is_decoded_before_it_is_asked_for(noise: ImageSet, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded: list[int] = []
    monkeypatch.setattr(pixels, "read", lambda images, place, size: decoded.append(place) or read(images, place, size))
    source = OnDemand(noise, 32)
    source.expect(np.array([4, 2]))
    for waiting in source._images.values():
        waiting.result()
    assert sorted(decoded) == [2, 4]
    images, index = source.take(np.array([2, 4, 2]))
    assert sorted(decoded) == [2, 4] and index.tolist() == [2, 4, 2]
    assert torch.equal(images, decode(noise, 32).images[[2, 4, 2]])
    task = task_of(OnDemand(noise, 32))
    task.train_batch(0, 32, 3)
    for waiting in task.pixels._images.values():  # type: ignore[attr-defined]
        waiting.result()
    decoded.clear()
    task.train_batch(1, 32, 3)
    task.train_batch(2, 32, 3)
    ahead = {*task._order(9, 6).tolist()}
    assert set(decoded) <= ahead


class Notes(Counting):
    @property
    def lines(self) -> list[str]:
        return [call for call in self.calls if isinstance(call, str)]


def test_damage_is_left_out_of_batches_and_noted_once(tmp_path: Path) -> None:
    damage(fill(tmp_path))
    notes = Notes()
    source = OnDemand(scan_images(tmp_path), 8, progress=notes)
    assert len(source.source) == 13
    for _ in range(2):
        images, index = source.take(np.arange(13))
        assert len(images) == len(index) == 10
        assert images[:, 0].min() == images[:, 0].max() == 200
        assert [source.source.paths[place] for place in range(13) if place not in index] == damage(tmp_path)
    assert [line.split(":")[0] for line in notes.lines] == [f"skipped {path}" for path in damage(tmp_path)]
    task = task_of(source, Augmentation(cutmix=1.0))
    shown = [task.train_batch(step, 8, 4) for step in range(6)]
    assert all(len(x) == len(y) for x, y in shown)
    assert 0 < sum(len(x) for x, _ in shown) < 24
    with pytest.raises(DataError, match=r"cut\.jpg cannot be decoded: .*truncated.*; mend it, or start a new run without it"):
        OnDemand(scan_images(tmp_path), 8, strict=True).take(np.arange(13))
    bad = np.array([place for place, path in enumerate(source.source.paths) if path in damage(tmp_path)])
    with pytest.raises(DataError, match=r"none of 3 images of .* can be decoded"):
        source.take(bad)


def test_free_memory_decides_where_images_are_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = scan_images(fill(tmp_path))
    needed = 10 * 3 * 224 * 224
    notes = Notes()
    monkeypatch.setattr(pixels, "available_bytes", lambda: 2 * needed - 1)
    assert isinstance(open_pixels(images, 224, progress=notes), OnDemand)
    assert notes.lines[0].startswith(
        "images: 10 would take 0.0 GB in memory, of 0.0 GB free; decoded again whenever they are needed, by"
    )
    for enough in (2 * needed, None):
        monkeypatch.setattr(pixels, "available_bytes", lambda enough=enough: enough)
        assert isinstance(open_pixels(images, 224, progress=notes), pixels.Pixels)
        assert notes.lines[-1] == "images: 10 decoded once, 0.0 GB in memory"
    assert isinstance(open_pixels(images, 224, on_demand=True), OnDemand)


@pytest.mark.skipif(not Path("/proc/meminfo").exists(), reason="only Linux says how much memory is free")
def test_the_free_memory_is_less_than_all_there_is() -> None:
    available = pixels.available_bytes()
    assert available is not None
    assert 2**20 < available < os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
