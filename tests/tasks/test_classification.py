from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import Tensor
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as reference

from natdeploy.tasks import Augmentation, Classification, ImageSet, Pixels, Task, decode, scan_images, split
from natdeploy.tasks.augment import (
    LUMA,
    Views,
    apply_policy,
    crop_resize,
    draw_erased,
    draw_views,
    erase,
    jitter,
    normalise,
    resize,
)
from natdeploy.tasks.data import MIN_IMAGES, balanced_order

DEFAULT = Augmentation()
MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)


@pytest.fixture(scope="module")
def flowers(shared: Path) -> Pixels:
    """Five real photos of each of two classes."""
    every = scan_images(shared / "data" / "flowers12")
    kept = [index for label in (0, 5) for index in [i for i, own in enumerate(every.labels) if own == label][:MIN_IMAGES]]
    classes = (every.classes[0], every.classes[5])
    labels = tuple(int(every.labels[i] == 5) for i in kept)
    return decode(ImageSet(every.root, classes, tuple(every.paths[i] for i in kept), labels, (False,) * 10), 224)


def numbered(per_class: int, classes: int = 3, size: int = 8) -> Pixels:
    """Image i is of the one colour (i, 255 - i, 0)."""
    n = per_class * classes
    labels = tuple(label for label in range(classes) for _ in range(per_class))
    paths = tuple(f"{label}/{i:03}.png" for i, label in enumerate(labels))
    source = ImageSet(Path("root"), tuple(map(str, range(classes))), paths, labels, (False,) * n)
    colours = torch.tensor([[i, 255 - i, 0] for i in range(n)], dtype=torch.uint8)
    images = colours[:, None, None, :].expand(n, size, size, 3).contiguous().permute(0, 3, 1, 2)
    return Pixels(source, images, torch.tensor(labels))


def plain(pixels: Pixels, *, seed: int = 0, flip: bool = True) -> Classification:
    return Classification(pixels, split(pixels.source, 0), (0.0,) * 3, (1 / 255,) * 3, seed, flip=flip)


def seen(task: Classification, step: int, batch_size: int) -> list[int]:
    """Which images a training batch shows."""
    return task._order(step * batch_size, batch_size).tolist()


# ---- views


@settings(deadline=None)
@given(st.integers(1, 40), st.integers(8, 300), st.integers(0, 2**32), st.booleans())
def test_views_lie_in_the_image(n: int, size: int, seed: int, flip: bool) -> None:
    views = draw_views(n, size, np.random.default_rng(seed), DEFAULT, flip=flip)
    top, left, height, width = views.boxes.T
    assert (views.boxes >= 0).all()
    assert (height >= 1).all()
    assert (width >= 1).all()
    assert (top + height <= size).all()
    assert (left + width <= size).all()
    assert flip or not views.flips.any()


def test_views_keep_the_promised_area_and_shape() -> None:
    views = draw_views(4000, 1000, np.random.default_rng(0), DEFAULT, flip=True)
    _, _, height, width = views.boxes.T
    area, ratio = height * width / 1e6, width / height
    assert area.min() > 0.349
    assert ratio.min() > 0.749
    assert ratio.max() < 1.335
    assert abs(area.mean() - 0.66) < 0.02  # 0.675, less what is cut off crops wider than the image
    assert abs(views.flips.mean() - 0.5) < 0.03
    for factor in (views.brightness, views.contrast, views.saturation):
        assert 0.8 <= factor.min() < 0.81
        assert 1.19 < factor.max() <= 1.2


def test_crops_are_those_of_torchvision(flowers: Pixels) -> None:
    views = draw_views(6, 224, np.random.default_rng(3), DEFAULT, flip=True)
    index = np.array([7, 0, 3, 3, 9, 1])
    assert views.flips.any()
    assert not views.flips.all()
    ours = crop_resize(flowers.images[index], views, 96)
    for place, (image, box, flip) in enumerate(zip(index, views.boxes.tolist(), views.flips, strict=True)):
        theirs = reference.resized_crop(flowers.images[image].contiguous().float(), *box, [96, 96], antialias=True)
        theirs = reference.horizontal_flip(theirs) if flip else theirs
        assert (ours[place].float() - theirs).abs().max() <= 1.0  # rounding to bytes
    assert ours.is_contiguous(memory_format=torch.channels_last)


def test_colours_change_as_in_torchvision(flowers: Pixels) -> None:
    # Away from black and white nothing is clipped, so that torchvision's clipping does not show.
    images = (flowers.images[:4] // 2 + 50).contiguous(memory_format=torch.channels_last)
    views = draw_views(4, 224, np.random.default_rng(5), DEFAULT, flip=True)
    ours = jitter(images, views, torch.tensor(MEAN), torch.tensor(STD))
    for place in range(4):
        image = images[place].float() / 255
        image = reference.adjust_brightness(image, float(views.brightness[place]))
        image = reference.adjust_saturation(image, float(views.saturation[place]))
        image = reference.adjust_contrast(image, float(views.contrast[place]))
        theirs = reference.normalize(image, list(MEAN), list(STD))
        # torchvision's grey of 0.2989, 0.587, 0.114 does not sum to one; ours does.
        assert (ours[place] - theirs).abs().max() < 5e-3
    assert ours.is_contiguous(memory_format=torch.channels_last)


def test_no_change_of_colours_is_plain_normalisation(flowers: Pixels) -> None:
    ones = np.ones(10)
    views = Views(np.zeros((10, 4), dtype=np.int64), np.zeros(10, dtype=bool), ones, ones, ones)
    mean, std = torch.tensor(MEAN), torch.tensor(STD)
    plainly = normalise(flowers.images, mean, std)
    assert torch.allclose(jitter(flowers.images, views, mean, std), plainly, atol=1e-5)
    expected = (flowers.images / 255 - mean.view(3, 1, 1)) / std.view(3, 1, 1)
    assert torch.allclose(plainly, expected, atol=1e-5)
    assert plainly.is_contiguous(memory_format=torch.channels_last)


def test_grey_weights_sum_to_one() -> None:
    assert sum(LUMA) == pytest.approx(1)


# ---- training batches


def test_a_step_is_the_same_whatever_came_before(flowers: Pixels) -> None:
    walked, jumped = plain(flowers), plain(flowers)
    for step in range(3):
        walked.train_batch(step, 32, 4)
    first, second = walked.train_batch(3, 32, 4), jumped.train_batch(3, 32, 4)
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[1], second[1])
    assert not torch.equal(first[0], walked.train_batch(4, 32, 4)[0])
    assert not torch.equal(first[0], plain(flowers, seed=1).train_batch(3, 32, 4)[0])


@pytest.mark.parametrize("batch_size", [1, 4, 7, 50])
def test_every_epoch_shows_every_training_image_once(batch_size: int) -> None:
    task = plain(numbered(10))
    train = list(task.splits.train)
    epochs = 3
    steps = -(-epochs * len(train) // batch_size)
    sequence = [image for step in range(steps) for image in seen(task, step, batch_size)]
    shown = [sequence[epoch * len(train) : (epoch + 1) * len(train)] for epoch in range(epochs)]
    assert all(sorted(epoch) == train for epoch in shown)
    assert shown[0] != shown[1] != shown[2]
    assert sequence == (seen(task, 0, steps * batch_size))


def test_labels_belong_to_their_images() -> None:
    pixels = numbered(10)
    for label in range(3):  # red, green and blue stay what they are under jitter
        pixels.images[pixels.labels == label] = 200 * torch.eye(3, dtype=torch.uint8)[label].view(3, 1, 1)
    task = plain(pixels)
    for step in range(4):
        x, y = task.train_batch(step, 8, 16)
        assert torch.equal(x.mean(dim=(2, 3)).argmax(dim=1), y)
        assert y.tolist() == [pixels.labels[image] for image in seen(task, step, 16)]


def test_batches_have_the_form_networks_are_fast_with(flowers: Pixels) -> None:
    task = plain(flowers)
    for x, y in (task.train_batch(0, 64, 3), next(task.batches("train", 64, 3))):
        assert x.shape == (3, 3, 64, 64)
        assert x.dtype == torch.float32
        assert x.is_contiguous(memory_format=torch.channels_last)
        assert y.dtype == torch.int64
        assert torch.isfinite(x).all()


def test_every_resolution_shows_the_same_crops(flowers: Pixels) -> None:
    task = plain(flowers)
    small, large = task.train_batch(2, 32, 4)[0], task.train_batch(2, 128, 4)[0]
    shrunk = reference.resize(large, [32, 32], antialias=True)
    assert (small - shrunk).abs().mean() < 6  # of 255


def test_nothing_is_flipped_when_mirror_images_differ() -> None:
    pixels = numbered(10, size=16)
    pixels.images[:, :, :, :8] = 0  # dark left half
    pixels.images[:, :, :, 8:] = 200
    for flip, expected in ((False, {True}), (True, {True, False})):
        task = plain(pixels, flip=flip)
        x = torch.cat([task.train_batch(step, 16, 20)[0] for step in range(3)])
        assert set((x[..., 0].mean(dim=(1, 2)) <= x[..., -1].mean(dim=(1, 2))).tolist()) == expected


# ---- evaluation batches


def test_batches_hold_every_image_of_a_split_once_in_order(flowers: Pixels) -> None:
    pixels = numbered(20)
    task = plain(pixels)
    for name in ("train", "validation", "calibration", "test"):
        batches = list(task.batches(name, 8, 4))
        part = torch.tensor(getattr(task.splits, name))
        assert [len(y) for _, y in batches[:-1]] == [4] * (len(batches) - 1)
        assert torch.equal(torch.cat([x for x, _ in batches]), pixels.images[part].float())
        assert torch.equal(torch.cat([y for _, y in batches]), pixels.labels[part])


def test_batches_are_resized_and_normalised_whole_images(flowers: Pixels) -> None:
    task = Classification(flowers, split(flowers.source, 0), MEAN, STD, 0)
    images = flowers.images[list(task.splits.test)].contiguous().float()
    theirs = reference.normalize(reference.resize(images, [96, 96], antialias=True) / 255, list(MEAN), list(STD))
    (x, _) = next(task.batches("test", 96, 8))
    assert (x - theirs).abs().max() < 1.1 / 255 / min(STD)
    assert torch.equal(resize(flowers.images, 224), flowers.images)


def test_resized_images_are_kept_while_there_is_room(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []

    def counted(images: Tensor, resolution: int) -> Tensor:
        calls.append(resolution)
        return resize(images, resolution)

    monkeypatch.setattr("natdeploy.tasks.classification.resize", counted)
    task = plain(numbered(20))
    first, second = (list(task.batches("validation", 4, 4)) for _ in range(2))
    assert calls == [4] * len(first) and len(first) > 1
    assert all(torch.equal(x, again) for (x, _), (again, _) in zip(first, second, strict=True))
    first[0][0].zero_()  # what a user does to a batch stays with that batch
    assert torch.equal(next(task.batches("validation", 4, 4))[0], second[0][0])
    monkeypatch.setattr("natdeploy.tasks.classification.CACHE_BYTES", 4 * 3 * 6 * 6)
    task = plain(numbered(20))
    calls.clear()
    for _ in range(2):
        list(task.batches("validation", 6, 4))
    assert len(calls) == 2 * len(first) - 1  # room for one batch of them


@pytest.mark.parametrize("limit", [1, 7, 12, 40])
def test_a_part_of_a_split_is_fixed_balanced_and_nested(limit: int) -> None:
    task = plain(numbered(40, classes=5))
    whole = torch.cat([x for x, _ in task.batches("validation", 8, 4)])
    every = {tuple(image.flatten().tolist()) for image in whole}
    batches = list(task.batches("validation", 8, 4, limit))
    images, labels = torch.cat([x for x, _ in batches]), torch.cat([y for _, y in batches])
    part = [tuple(image.flatten().tolist()) for image in images]
    assert len(part) == len(set(part)) == min(limit, len(whole))
    assert set(part) <= every
    counts = np.bincount(labels, minlength=5)
    assert counts.max() - counts.min() <= 1
    longer = torch.cat([x for x, _ in plain(task.pixels, seed=0).batches("validation", 8, 9, limit + 5)])
    assert torch.equal(longer[: len(images)], images)


def test_a_part_lasts_as_long_as_every_class_does() -> None:
    labels = np.array([0] * 2 + [1] * 10)
    order = balanced_order(np.arange(12), labels, [0])
    assert sorted(order) == list(range(12))
    assert labels[order].tolist() == [0, 1, 0, 1, *[1] * 8]


# ---- mixing, erasing, policies


def with_augmentation(pixels: Pixels, **settings: object) -> Classification:
    return Classification(
        pixels, split(pixels.source, 0), (0.5,) * 3, (0.5,) * 3, 0, augmentation=Augmentation.model_validate(settings)
    )


@pytest.mark.parametrize(
    "settings",
    [
        {"mixup": 0.4, "mix_probability": 1.0},
        {"cutmix": 1.0, "mix_probability": 1.0},
        {"mixup": 0.2, "cutmix": 1.0},
        {"policy": "randaugment"},
        {"policy": "autoaugment"},
        {"erase": 0.5},
    ],
    ids=str,
)
def test_augmentation_depends_on_seed_and_step_alone(flowers: Pixels, settings: dict[str, object]) -> None:
    task, plainly = with_augmentation(flowers, **settings), with_augmentation(flowers)
    torch.manual_seed(1)
    state = torch.random.get_rng_state()
    first = task.train_batch(3, 48, 6)
    assert torch.equal(torch.random.get_rng_state(), state)
    torch.manual_seed(2)
    np.random.seed(2)
    task.train_batch(2, 48, 6)
    again = with_augmentation(flowers, **settings).train_batch(3, 48, 6)
    assert all(torch.equal(one, other) for one, other in zip(first, again, strict=True))
    assert first[0].is_contiguous(memory_format=torch.channels_last)
    assert first[0].shape == (6, 3, 48, 48) and first[0].dtype == torch.float32
    assert any(not torch.equal(task.train_batch(step, 48, 6)[0], plainly.train_batch(step, 48, 6)[0]) for step in range(4))


@pytest.mark.parametrize("settings", [{"policy": "randaugment"}, {"mixup": 1.0, "cutmix": 1.0}, {"erase": 1.0}], ids=str)
def test_every_resolution_shows_the_same_changes(flowers: Pixels, settings: dict[str, object]) -> None:
    task = with_augmentation(flowers, **settings)
    for step in range(4):
        (small, soft), (large, same) = task.train_batch(step, 64, 6), task.train_batch(step, 192, 6)
        shrunk = reference.resize(large, [64, 64], antialias=True)
        assert (small - shrunk).abs().mean() < 0.12  # of a range of 2; another crop is 0.5 away
        assert (soft.float() - same.float()).abs().max() < 0.04


def test_mixed_targets_are_the_shares_of_what_is_seen() -> None:
    """Every image has the one colour of its class, so that a picture's mean says how much of each class is in it."""
    pixels = numbered(10, size=32)
    for label in range(3):
        pixels.images[pixels.labels == label] = 255 * torch.eye(3, dtype=torch.uint8)[label].view(3, 1, 1)
    for mixes in ({"mixup": 1.0}, {"cutmix": 1.0}, {"mixup": 1.0, "cutmix": 1.0}):
        augmentation = Augmentation(jitter=0, mix_probability=0.75, **mixes)
        task = Classification(pixels, split(pixels.source, 0), (0.0,) * 3, (1.0,) * 3, 0, augmentation=augmentation)
        mixed = 0
        for step in range(40):
            x, y = task.train_batch(step, 24, 8)
            assert y.shape == (8, 3) and y.dtype == torch.float32
            assert torch.allclose(y.sum(dim=1), torch.ones(8))
            assert torch.allclose(x.mean(dim=(2, 3)), y, atol=1e-5)
            mixed += bool(((y > 0) & (y < 1)).any())
            if "mixup" not in mixes:
                assert set(x.unique().tolist()) <= {0.0, 1.0}
        assert 20 <= mixed < 38


def test_what_is_erased_is_the_mean_colour() -> None:
    boxes = draw_erased(2000, np.random.default_rng(0), 0.25)
    whole = ~boxes.any(axis=1)
    assert abs(whole.mean() - 0.75) < 0.03
    top, left, height, width = boxes[~whole].T
    assert ((top >= 0) & (left >= 0) & (top + height <= 1) & (left + width <= 1)).all()
    assert (height * width).min() > 0.019 and (height * width).max() < 0.331
    images = torch.ones(3, 3, 20, 20)
    erase(images, np.array([[0.25, 0.5, 0.25, 0.5], [0, 0, 0, 0], [0, 0, 1, 1]]))
    assert (images[0] == 0).sum() == 3 * 5 * 10 and (images[0, :, 5:10, 10:] == 0).all()
    assert images[1].min() == 1 and images[2].max() == 0


def test_policies_are_torchvisions(flowers: Pixels) -> None:
    images = flowers.images[:4]
    with torch.random.fork_rng():
        torch.manual_seed(7)
        theirs = torch.stack([v2.RandAugment(2, 9)(image) for image in images])
    assert torch.equal(apply_policy(images, "randaugment", 7), theirs)


@pytest.mark.parametrize(
    "settings",
    [
        *({"scale": (0.5, 0.2)}, {"scale": (0.5, 2)}, {"ratio": (0, 1)}, {"ratio": (1, math.inf)}, {"jitter": 1}),
        *({"mixup": -1}, {"mixup": math.nan}, {"erase": 2}, {"policy": "mine"}, {"x": 1}),
    ],
    ids=str,
)
def test_impossible_settings_are_refused(settings: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        Augmentation.model_validate(settings)


# ---- devices


def test_floats_give_the_bytes_within_a_grey_level(flowers: Pixels) -> None:
    """Accelerators resize floats. On the CPU the same code can be had by asking for it with floats."""
    views = draw_views(6, 224, np.random.default_rng(3), DEFAULT, flip=True)
    images = flowers.images[:6]
    for resolution in (96, 224, 256):
        floats, exact = crop_resize(images.float(), views, resolution), crop_resize(images, views, resolution)
        assert floats.dtype == torch.uint8
        assert (floats.int() - exact.int()).abs().max() <= 1
        assert (resize(images.float(), resolution).int() - resize(images, resolution).int()).abs().max() <= 1


def test_batches_are_put_together_on_the_device(flowers: Pixels) -> None:
    """On torch's device without data: whatever is left on the CPU cannot be combined with it."""
    task = Classification(
        flowers,
        split(flowers.source, 0),
        MEAN,
        STD,
        0,
        augmentation=Augmentation(mixup=0.3, cutmix=0.3, mix_probability=1, erase=0.5),
        device="meta",
    )
    for images, targets in (*(task.train_batch(step, 64, 4) for step in range(4)), *task.batches("validation", 64, 4)):
        assert images.device.type == targets.device.type == "meta"
        assert images.shape[1:] == (3, 64, 64) and images.dtype == torch.float32
    moved = task.with_splits(task.splits)
    assert (moved.device, moved.augmentation, moved.seed) == (task.device, task.augmentation, task.seed)
    assert flowers.to(torch.device("meta")).images.device.type == "meta"


# ---- loss and metric


def numpy_log_softmax(logits: Tensor) -> np.ndarray:
    values = logits.detach().double().numpy()
    shifted = values - values.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))


def test_the_loss_is_smoothed_cross_entropy() -> None:
    task = plain(numbered(5, classes=4))
    generator = torch.Generator().manual_seed(0)
    logits = (3 * torch.randn(6, 4, generator=generator)).requires_grad_()
    y = torch.tensor([0, 1, 2, 3, 0, 1])
    log_p = numpy_log_softmax(logits)
    target = 0.9 * np.eye(4)[y.numpy()] + 0.1 / 4
    hard = -(target * log_p).sum(axis=1).mean()
    assert task.loss(logits, y).item() == pytest.approx(hard, rel=1e-5)
    assert task.loss(logits, torch.eye(4)[y]).item() == pytest.approx(hard, rel=1e-5)
    blurred = torch.softmax(torch.randn(6, 4, generator=generator), dim=1)
    target = 0.9 * blurred.numpy() + 0.1 / 4
    mixed = -(target * log_p).sum(axis=1).mean()
    assert task.loss(logits, blurred).item() == pytest.approx(mixed, rel=1e-5)
    assert with_augmentation(task.pixels, label_smoothing=0).loss(logits, y).item() == pytest.approx(
        -log_p[np.arange(6), y.numpy()].mean(), rel=1e-5
    )
    task.loss(logits, y).backward()  # type: ignore[no-untyped-call]
    expected = (torch.softmax(logits.detach(), dim=1).numpy() - (0.9 * np.eye(4)[y.numpy()] + 0.1 / 4)) / 6
    np.testing.assert_allclose(logits.grad, expected, atol=1e-6)


def test_correct_counts_highest_logits() -> None:
    task: Task = plain(numbered(5, classes=3))
    logits = torch.tensor([[1.0, 2.0, 3.0], [3.0, 2.0, 1.0], [0.0, 5.0, 1.0]])
    assert task.tally(logits, torch.tensor([2, 1, 1])).tolist() == [2, 3]
    assert task.classes == ("0", "1", "2")


def test_a_linear_model_learns_two_flowers(flowers: Pixels) -> None:
    task = Classification(flowers, split(flowers.source, 0), (0.5,) * 3, (0.5,) * 3, 0)
    weight = torch.zeros(3 * 16 * 16, 2, requires_grad=True)
    losses = []
    for step in range(60):
        x, y = task.train_batch(step, 16, 4)
        loss = task.loss(x.flatten(1) @ weight, y)
        (gradient,) = torch.autograd.grad(loss, weight)
        weight = (weight - 0.005 * gradient).detach().requires_grad_()
        losses.append(loss.item())
    assert np.mean(losses[-10:]) < 0.75 * np.mean(losses[:3])
    x, y = next(task.batches("train", 16, 8))
    assert task.metric(task.tally(x.flatten(1) @ weight, y)) == 1
