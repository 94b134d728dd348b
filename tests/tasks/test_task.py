"""What every task promises to those who know nothing else about it."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate, one_hot

from natdeploy.space import get_space
from natdeploy.space.detectors import anchor_count
from natdeploy.supernet.detectors import anchors
from natdeploy.tasks import (
    Classification,
    Detection,
    Segmentation,
    Targets,
    Task,
    TaskName,
    decode,
    decode_boxes,
    decode_masks,
    moved,
    scan_boxes,
    scan_images,
    scan_masks,
    split,
    split_boxes,
    split_masks,
    total,
)
from natdeploy.tasks.detection_loss import match
from natdeploy.tasks.masks import IGNORE
from natdeploy.tasks.task import SplitName
from tests.tasks.box_sets import annotation, coco

RESOLUTION = 16
SPLITS: tuple[SplitName, ...] = get_args(SplitName)


def save(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def classification(folder: Path) -> Task:
    rng = np.random.default_rng(0)
    for label in range(2):
        for number in range(10):
            save(folder / str(label) / f"{number}.png", rng.integers(0, 256, (20, 20, 3), dtype=np.uint8))
    pixels = decode(scan_images(folder), 20)
    return Classification(pixels, split(pixels.source, 0), (0.0,) * 3, (1.0,) * 3, 0)


def segmentation(folder: Path) -> Task:
    rng = np.random.default_rng(0)
    for number in range(20):
        save(folder / f"images/{number}.png", rng.integers(0, 256, (20, 60, 3), dtype=np.uint8))
        save(folder / f"masks/{number}.png", rng.choice([0, 1, IGNORE], (20, 60)).astype(np.uint8))
    (folder / "classes.txt").write_text("one\nother\n")
    data = decode_masks(scan_masks(folder))
    return Segmentation(data, split_masks(data, 0), (0.0,) * 3, (1.0,) * 3, 0)


def detection(folder: Path) -> Task:
    rng = np.random.default_rng(0)
    keys = range(20)
    for key in keys:
        save(folder / f"images/{key:012}.png", rng.integers(0, 256, (12, 16, 3), dtype=np.uint8))
    boxes = [annotation(100 + key, key, (1, 18)[key % 2], [1 + key % 4, 2, 8, 9]) for key in keys]
    coco(folder / "instances.json", boxes, keys)
    data = decode_boxes(scan_boxes(folder / "instances.json"), 20)
    return Detection(data, split_boxes(data, 0), (0.0,) * 3, (1.0,) * 3, 0)


MAKERS: dict[TaskName, Callable[[Path], Task]] = {
    "classification": classification,
    "segmentation": segmentation,
    "detection": detection,
}


@pytest.fixture(scope="module", params=MAKERS)
def task(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Task:
    return MAKERS[request.param](tmp_path_factory.mktemp(request.param))


def right(task: Task, targets: Targets) -> Tensor:
    """What a network would answer that knows the targets."""
    if task.name == "detection":
        return torch.stack([_right_boxes(each) for each in targets])
    answer = one_hot(targets.clamp(max=len(task.classes) - 1), len(task.classes)).float()
    return answer if task.name == "classification" else answer.permute(0, 3, 1, 2)


def _right_boxes(target: Tensor) -> Tensor:
    """Every anchor that is to find an object finds it, and the others nothing."""
    places = anchors("ssdlite", anchor_count("ssdlite", 4))
    found = match("ssdlite", target[:, :4], places)
    answer = torch.cat([places.clamp(0, 1), torch.zeros(len(places), 2)], dim=1)
    finds = found >= 0
    answer[finds, :4] = target[found[finds], :4]
    answer[finds, 4 + target[found[finds], 4].long()] = 1
    return answer


def chance(task: Task, count: int, cells: int = 4) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    if task.name == "detection":
        return torch.randn(count, anchor_count("ssdlite", cells), 4 + 1 + 2, generator=generator)
    size = () if task.name == "classification" else task.input_size(RESOLUTION)
    return torch.randn(count, len(task.classes), *size, generator=generator)


def test_every_task_is_looked_at() -> None:
    assert set(MAKERS) == set(get_args(TaskName))


def test_it_says_what_it_is(task: Task) -> None:
    assert task.name in MAKERS and task.metric_name and len(task.classes) == 2
    space = replace(get_space("demo"), aspect=task.aspect)
    for resolution in (16, 24, 32):
        assert task.input_size(resolution) == space.input_size(resolution), "files and latencies are of what networks see"
    assert task.image_size[0] == 20


def test_a_training_step_is_the_same_whatever_came_before(task: Task) -> None:
    images, targets = task.train_batch(5, RESOLUTION, 4)
    task.train_batch(6, RESOLUTION, 4)
    again, _ = task.train_batch(5, RESOLUTION, 4)
    assert torch.equal(images, again) and images.dtype == torch.float32
    assert images.shape == (4, 3, *task.input_size(RESOLUTION))
    assert len(targets) == 4 and len(targets[1:3]) == 2
    loss = task.loss(chance(task, 4).requires_grad_(), targets)
    assert loss.shape == () and loss.isfinite() and loss.grad_fn is not None


@pytest.mark.parametrize("part", SPLITS)
def test_a_split_is_seen_once_and_a_part_of_it_is_fixed(task: Task, part: SplitName) -> None:
    expected = len(getattr(task.splits, part))
    batches = list(task.batches(part, RESOLUTION, 2))
    assert sum(len(images) for images, _ in batches) == expected
    assert all(images.shape[1:] == (3, *task.input_size(RESOLUTION)) and len(images) == len(own) for images, own in batches)
    few = [torch.cat([images for images, _ in task.batches(part, RESOLUTION, size, 1)]) for size in (1, 2)]
    assert len(few[0]) == 1 and torch.equal(*few)


def test_tallies_add_up_to_those_of_all_images_and_knowing_better_is_better(task: Task) -> None:
    if task.name == "detection":
        pytest.importorskip("faster_coco_eval", reason="faster-coco-eval is not installed; pip install 'natdeploy[detection]'")
    for answer, low, high in ((right, 1.0, 1.0), (lambda _, own: -right(task, own), 0.0, 0.0)):
        batches = list(task.batches("train", RESOLUTION, 3))
        alone = total(task.tally(answer(task, own[i : i + 1]), own[i : i + 1]) for _, own in batches for i in range(len(own)))
        whole = total(task.tally(answer(task, own), own) for _, own in batches)
        assert low <= task.metric(alone) == task.metric(whole) <= high
    _, targets = next(task.batches("train", RESOLUTION, 4))
    sure = right(task, targets) * (1 if task.name == "detection" else 9)
    assert task.loss(sure, targets) < task.loss(chance(task, len(targets)), targets)


def test_another_network_is_learned_from_at_whatever_resolution(task: Task) -> None:
    student = chance(task, 2).requires_grad_()
    teacher = chance(task, 2).requires_grad_()
    larger = teacher
    if task.name == "detection":
        larger = chance(task, 2, cells=7).requires_grad_()
    elif task.name == "segmentation":
        larger = interpolate(teacher, task.input_size(32), mode="nearest")
    for answer in (teacher, larger):
        loss = task.distillation(student, answer, 2.0)
        (gradient,) = torch.autograd.grad(loss, student)
        assert loss.shape == () and gradient.abs().sum() > 0
        assert not torch.autograd.grad(task.distillation(student, answer, 2.0), teacher, allow_unused=True)[0]


def test_other_splits_and_another_input_leave_the_rest(task: Task) -> None:
    swapped = task.with_splits(replace(task.splits, train=task.splits.validation, validation=task.splits.train))
    assert swapped.splits.validation == task.splits.train and swapped.fingerprint() == task.fingerprint()
    mean, std = (0.5, 0.4, 0.3), (0.2, 0.25, 0.5)
    other = task.with_input(mean, std)
    (images, _), (changed, _) = next(task.batches("test", RESOLUTION, 2)), next(other.batches("test", RESOLUTION, 2))
    expected = (images - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    torch.testing.assert_close(changed, expected, atol=1e-5, rtol=1e-5)
    assert other.splits == task.splits and type(other) is type(swapped) is type(task)


def test_its_facts_are_json_and_it_travels(task: Task) -> None:
    facts = json.loads(json.dumps(task.facts()))
    assert {"fingerprint", "splits", "classes"} <= set(facts) and set(facts["splits"]) == set(SPLITS)
    there: Task = pickle.loads(pickle.dumps(task))  # noqa: S301 (as Ray sends it)
    assert torch.equal(there.train_batch(3, RESOLUTION, 2)[0], task.train_batch(3, RESOLUTION, 2)[0])


def test_photos_for_a_seed_are_squares_of_colours(task: Task) -> None:
    photos = task.photos(3, 32)
    assert photos.shape == (3, 3, 32, 32) and photos.min() >= 0 and photos.max() <= 1
    assert task.photos(100, 8).shape == (len(task.splits.train), 3, 20, 20)


def test_targets_of_any_form_move_and_keep_it() -> None:
    listed = [{"boxes": torch.zeros(2, 4), "name": "cat"}, {"boxes": torch.zeros(0, 4), "name": "dog"}]
    there = moved(listed, "meta")
    assert [each["boxes"].device.type for each in there] == ["meta", "meta"] and there[1]["name"] == "dog"
    assert moved(torch.zeros(2), "meta").device.type == "meta"
