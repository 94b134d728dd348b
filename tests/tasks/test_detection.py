"""The task of finding objects: views, batches, and networks that learn it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from natdeploy.space import DETECTOR_KINDS, DetectorKind, HeadSpec, get_space
from natdeploy.space.detectors import anchor_count
from natdeploy.supernet import Supernet, calibrate
from natdeploy.supernet.detectors import Decode, anchors
from natdeploy.tasks import BoxAugmentation, Boxed, Detection, Task, split_boxes
from natdeploy.tasks.detection import draw_views, seen
from natdeploy.training.adapt import Adapter, AdaptSettings, Lesson
from natdeploy.training.judge import judge, judge_arch
from natdeploy.training.loop import TrainSettings
from tests.tasks.squares import CLASSES, squares

PLAIN = BoxAugmentation(crop=(1.0, 1.0), flip=False, jitter=0.0)


def task_of(data: Boxed, augmentation: BoxAugmentation = PLAIN, seed: int = 0, head: DetectorKind = "ssdlite") -> Detection:
    return Detection(data, split_boxes(data, 0), (0.5,) * 3, (0.5,) * 3, seed, head=head, augmentation=augmentation)


def test_it_is_a_task() -> None:
    task: Task = task_of(squares())
    assert (task.name, task.metric_name, task.classes) == ("detection", "mean AP", CLASSES)
    assert task.input_size(40) == (40, 40) and task.image_size == (48, 48) and task.aspect == 1
    assert task.photos(5, 64).shape == (5, 3, 64, 64)
    other = task.with_input((0.0,) * 3, (1.0,) * 3).with_splits(replace(task.splits, test=task.splits.test[:1]))
    images, targets = next(iter(other.batches("test", 48, 8)))
    assert images.min() == 0 and images.max() == 1 and len(targets) == 1


def test_every_step_can_be_had_alone_and_resolutions_show_the_same_windows() -> None:
    first, second = (task_of(squares(), BoxAugmentation()) for _ in range(2))
    for step in range(3):
        first.train_batch(step, 32, 4)
    images, targets = first.train_batch(3, 32, 4)
    again, same = second.train_batch(3, 32, 4)
    assert torch.equal(images, again) and all(torch.equal(one, other) for one, other in zip(targets, same, strict=True))
    large, others = first.train_batch(3, 64, 4)
    assert large.shape == (4, 3, 64, 64) and all(torch.equal(one, other) for one, other in zip(targets, others, strict=True))
    assert not torch.equal(images, task_of(squares(), BoxAugmentation(), seed=1).train_batch(3, 32, 4)[0])


def coloured(image: Tensor, label: int) -> list[float]:
    """The box around all pixels of a class's colour, as shares of the sides."""
    rows, columns = (image[2 * label] > 0.5).nonzero(as_tuple=True)
    side = image.shape[-1]
    return [float(columns.min()) / side, float(rows.min()) / side, float(columns.max() + 1) / side, float(rows.max() + 1) / side]


@pytest.mark.parametrize("augmentation", [BoxAugmentation(jitter=0.0), BoxAugmentation(jitter=0.0, shrink=3.0)])
def test_boxes_go_where_their_squares_go(augmentation: BoxAugmentation) -> None:
    task = task_of(squares(n=32, side=96, most=1), augmentation)
    compared = 0
    for step in range(8):
        images, targets = task.train_batch(step, 96, 8)
        for image, target in zip(images, targets, strict=True):
            for *box, label, _ in target.tolist():
                found = coloured(image, int(label))
                assert found == pytest.approx(box, abs=0.03), "but for what bilinear blends at borders"
                compared += 1
            if not len(target):
                # What has its middle outside is nothing to learn; but little of it may be seen.
                assert float((image > 0.5).any(dim=0).double().mean()) < 0.6
    assert compared > 40


def test_crops_keep_objects_whose_middle_is_inside() -> None:
    target = np.array([[0.1, 0.1, 0.5, 0.5, 1, 0], [0.6, 0.6, 0.7, 0.7, 0, 0], [0.0, 0.0, 1.0, 1.0, 0, 1]])
    rows = seen(target, np.array([0.2, 0.2, 0.4, 0.4]), flip=False)
    np.testing.assert_allclose(rows, [[0, 0, 0.75, 0.75, 1, 0], [0, 0, 1, 1, 0, 1]], atol=1e-6)
    mirrored = seen(target, np.array([0.2, 0.2, 0.4, 0.4]), flip=True)
    np.testing.assert_allclose(mirrored[0], [0.25, 0, 1, 0.75, 1, 0], atol=1e-6)
    assert seen(np.empty((0, 6)), np.array([0.0, 0.0, 1.0, 1.0]), flip=True).shape == (0, 6)


def test_windows_of_all_kinds_are_drawn() -> None:
    targets = [each.numpy() for each in squares(n=200).targets]
    views = draw_views(targets, 48, np.random.default_rng(0), BoxAugmentation(shrink=2.0))
    top, left, height, width = views.boxes.T
    inside = (top >= 0) & (left >= 0) & (top + height <= 48) & (left + width <= 48)
    around = (top <= 0) & (left <= 0) & (top + height >= 48) & (left + width >= 48)
    assert (inside | around).all() and (height >= 1).all() and (width >= 1).all()
    assert (inside & (height < 48)).sum() > 60 and (around & (height > 48)).sum() > 5
    assert views.flips.any() and not views.flips.all()


def test_batches_hold_every_image_once() -> None:
    task = task_of(squares())
    batches = list(task.batches("train", 24, 5))
    assert sum(len(images) for images, _ in batches) == sum(len(targets) for _, targets in batches) == len(task.splits.train)
    expected = [task.data.targets[index] for index in task.splits.train]
    assert all(torch.equal(one, other) for one, other in zip((t for _, each in batches for t in each), expected, strict=True))
    part = [t for _, each in task.batches("train", 24, 5, limit=7) for t in each]
    assert len(part) == 7 and all(any(one is other for other in expected) for one in part)


def test_answers_that_are_right_are_worth_everything() -> None:
    pytest.importorskip("faster_coco_eval", reason="faster-coco-eval is not installed; pip install 'natdeploy[detection]'")
    task = task_of(squares())
    tallies = []
    for images, targets in task.batches("test", 48, 2):
        answers = torch.zeros(len(images), 60, 6)
        for row, target in enumerate(targets):
            answers[row, : len(target), :4] = target[:, :4]
            answers[row, range(len(target)), 4 + target[:, 4].long()] = 0.9
        tallies.append(task.tally(answers, targets))
    whole = tallies[0]
    for each in tallies[1:]:
        whole = whole + each
    assert task.metric(whole) == 1 and len(whole.pairs) == len(task.splits.test)


def test_what_makes_no_sense_is_refused() -> None:
    with pytest.raises(ValidationError, match="a tenth of the image"):
        BoxAugmentation(crop=(0.01, 1.0))
    with pytest.raises(ValidationError, match="extra"):
        BoxAugmentation(rotate=3)  # type: ignore[call-arg]


@pytest.mark.parametrize("kind", DETECTOR_KINDS)
def test_what_a_teacher_is_sure_of_is_learned_like_labels(kind: DetectorKind) -> None:
    task = task_of(squares(), head=kind)
    _, targets = task.train_batch(0, 48, 3)
    outputs = torch.randn(3, anchor_count(kind, 4), 4 + 1 + 2, generator=torch.Generator().manual_seed(0))
    sure = torch.zeros(3, anchor_count(kind, 8), 4 + 2)
    for row, target in enumerate(targets):
        sure[row, : len(target), :4] = target[:, :4]
        sure[row, range(len(target)), 4 + target[:, 4].long()] = 0.9
        sure[row, len(target), :] = torch.tensor([0, 0, 1, 1, 0.4, 0.3])
    torch.testing.assert_close(task.distillation(outputs, sure, 2.0), task.loss(outputs, targets))
    in_training = torch.zeros(3, anchor_count(kind, 8), 4 + 1 + 2)
    in_training[..., 5:] = -9
    empty = [torch.zeros(0, 6)] * 3
    torch.testing.assert_close(task.distillation(outputs, in_training, 1.0), task.loss(outputs, empty))


# ---- networks


def test_a_supernet_learns_to_find_and_its_networks_are_judged_by_precision() -> None:
    pytest.importorskip("faster_coco_eval", reason="faster-coco-eval is not installed; pip install 'natdeploy[detection]'")
    space = replace(get_space("demo"), dense=HeadSpec("ssdlite", channels=16)).restrict(resolutions=[32])
    task = task_of(squares(n=64, side=32, most=1))
    supernet = Supernet(space, 2).to(memory_format=torch.channels_last)
    largest, smallest = space.decode(space.upper), space.decode(space.lower)
    before = judge_arch(supernet, smallest, task, "train")
    settings = AdaptSettings(train=TrainSettings(learning_rate=0.05, batch_size=16, average=0.9), head_share=0.0)
    adapter = Adapter(supernet, settings, total_steps=40, seed=0)
    lesson = Lesson(task, [smallest], lambda n, rng: space.decode_all(space.sample(n, rng)), largest, smallest)
    adapter.run(40, lesson, lambda: None)
    average = adapter.trainer.average
    assert isinstance(average, Supernet)
    verdict = judge_arch(average, smallest, task, "train")
    assert not isinstance(verdict, str) and not isinstance(before, str)
    assert verdict.loss < 0.7 * before.loss and verdict.metric > max(0.1, 2 * before.metric), verdict


def test_retinanet_learns() -> None:
    """Its head begins near zero, so that it needs more steps than a test has to be worth something; what it loses falls at once."""
    space = replace(get_space("demo"), dense=HeadSpec("retinanet", channels=16)).restrict(resolutions=[16])
    task = task_of(squares(n=32, side=32, most=1), head="retinanet")
    subnet = Supernet(space, 2).extract(space.decode(space.lower)).to(memory_format=torch.channels_last).train()
    images, targets = task.train_batch(0, 16, 16)
    optimizer = torch.optim.Adam(subnet.parameters(), 3e-3)
    losses = []
    for _ in range(12):
        optimizer.zero_grad()
        loss = task.loss(subnet(images), targets)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.8 * losses[0], losses


@pytest.mark.parametrize("kind", DETECTOR_KINDS)
def test_an_extracted_network_finds_what_the_supernet_finds(kind: DetectorKind) -> None:
    space = replace(get_space("mbv2").restrict(resolutions=(64, 72), widths=(0.35,)), dense=HeadSpec(kind, channels=16))
    supernet = Supernet(space, 3, width=0.35).eval()
    for arch in space.decode_all(space.sample(2, np.random.default_rng(0))):
        x = torch.randn(2, 3, arch.resolution, arch.resolution, generator=torch.Generator().manual_seed(0))
        calibrate(supernet.extract(arch), [x])
        subnet = supernet.extract(arch)
        with torch.no_grad():
            found = subnet(x)
            assert (1, *found.shape[1:]) == subnet.output_shape
            torch.testing.assert_close(found, supernet(x, arch), atol=1e-5, rtol=1e-4)
            raw = supernet.train()(x, arch)
            supernet.eval()
        assert raw.shape[2] == found.shape[2] + 1 and len(anchors(kind, raw.shape[1])) == raw.shape[1]
        assert Decode(kind)(raw).shape == found.shape


@pytest.mark.parametrize("kind", DETECTOR_KINDS)
def test_the_blocks_of_a_network_have_all_its_parameters(kind: DetectorKind) -> None:
    space = replace(get_space("mbv2").restrict(resolutions=(96,), widths=(0.35,)), dense=HeadSpec(kind, channels=32))
    arch = space.decode(space.upper)
    subnet = Supernet(space, 3, width=0.35).extract(arch)
    blocks = space.blocks(arch, 3)
    assert sum(block.params for block in blocks) == sum(each.numel() for each in subnet.parameters())
    macs = 0
    hooks = []

    def count(module: torch.nn.Conv2d, _: object, out: Tensor) -> None:
        nonlocal macs
        macs += out[0, 0].numel() * module.weight.numel()

    for module in subnet.modules():
        if isinstance(module, torch.nn.Conv2d):
            hooks.append(module.register_forward_hook(count))  # type: ignore[arg-type]
    subnet(torch.zeros(1, 3, 96, 96))
    assert sum(block.macs for block in blocks) == macs


def test_a_whole_network_judges_itself() -> None:
    pytest.importorskip("faster_coco_eval", reason="faster-coco-eval is not installed; pip install 'natdeploy[detection]'")
    space = replace(get_space("demo"), dense=HeadSpec("ssdlite", channels=16))
    subnet = Supernet(space, 2).extract(space.decode(space.lower))
    verdict = judge(subnet.eval(), task_of(squares()), "test")
    assert 0 <= verdict.metric < 0.2 and verdict.total == 5 and np.isfinite(verdict.loss)
