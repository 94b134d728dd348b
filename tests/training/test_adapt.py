"""What a step of adaptation trains, from whom it learns, and that teachers neither move nor get lost."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from colours import LARGEST, SEED_ARCH, SMALLEST, SPACE, TASK, Colours, lesson_of
from safetensors.torch import load, save
from torch import Tensor
from torch.nn.functional import kl_div

from natdeploy.supernet import Supernet, calibrate
from natdeploy.tasks.distill import distillation
from natdeploy.training.adapt import Adapter, AdaptSettings
from natdeploy.training.loop import TrainSettings

TRAIN = TrainSettings(batch_size=4, learning_rate=0.05)
LESSON = lesson_of(SEED_ARCH)


def adapter(steps: int = 20, **settings: Any) -> Adapter:
    settings = {"head_share": 0.0, "train": TRAIN} | settings
    return Adapter(Supernet(SPACE, 2), AdaptSettings(**settings), total_steps=steps, seed=3)


def state(trained: Adapter) -> dict[str, Tensor]:
    """As it comes back from a file, which takes no two tensors that share memory."""
    return load(save(trained.tensors()))


def test_phases_follow_each_other() -> None:
    trained = adapter(20, head_share=0.1, largest_share=0.25, wide_share=0.4, sampled_share=0.0)
    phases = [trained.phase(step) for step in range(20)]
    assert [(name, len(list(group))) for name, group in itertools.groupby(phases)] == [
        ("head", 2),
        ("largest", 5),
        ("wide", 8),
        ("rounds", 5),
    ]
    archs = [trained.archs(step, LESSON) for step in range(20)]
    assert archs[:2] == [[SEED_ARCH]] * 2
    assert archs[2:7] == [[LARGEST]] * 5
    assert all(len(each) == 1 and each != [SEED_ARCH] for each in archs[7:15])
    assert archs[15:] == [[SEED_ARCH]] * 5


def test_a_sandwich_trains_both_ends_and_samples() -> None:
    trained = adapter(scheme="sandwich", students=2)
    archs = [trained.archs(step, LESSON) for step in range(20)]
    assert all(each[:2] == [LARGEST, SMALLEST] and len(each) == 4 for each in archs)
    assert len({arch for each in archs for arch in each[2:]}) > 30
    assert archs == [trained.archs(step, LESSON) for step in range(20)]


def test_a_shared_resolution_is_that_of_one_of_the_step() -> None:
    own, shared = (adapter(scheme="sandwich", students=2, resolution=each) for each in ("own", "shared"))
    seen = set()
    for step in range(20):
        before, after = own.archs(step, LESSON), shared.archs(step, LESSON)
        assert [arch.stages for arch in before] == [arch.stages for arch in after]
        [resolution] = {arch.resolution for arch in after}
        assert resolution in {arch.resolution for arch in before}
        seen.add(resolution)
    assert len(seen) > 2


def test_students_learn_from_the_first_net_of_their_step_with_the_weights_of_the_settings() -> None:
    trained = adapter(
        scheme="sandwich", students=1, teacher="inplace", student_weight=0.7, teacher_weight=0.6, label_weight=0.3, temperature=2.0
    )
    found = [float(loss.detach()) for loss in trained._losses(0, slice(0, 4), LESSON)]
    net, archs = trained._supernet, trained.archs(0, LESSON)
    logits, labels = [], torch.empty(0)
    for arch in archs:
        images, labels = TASK.train_batch(0, arch.resolution, 4)
        logits.append(net(images, arch).detach())
    soft = (logits[0] / 2).softmax(1)
    entropy = -(soft * soft.log()).sum(1).mean()
    expected = [float(TASK.loss(logits[0], labels))]
    for each in logits[1:]:
        divergence = kl_div((each / 2).log_softmax(1), soft, reduction="batchmean")
        expected.append(float(0.7 * (0.3 * TASK.loss(each, labels) + 0.6 * 4 * (divergence + entropy))))
    assert found == pytest.approx(expected, rel=1e-5)
    assert net.training


def test_no_gradient_flows_into_the_teachers_answer() -> None:
    student, teacher = torch.randn(3, 5, requires_grad=True), torch.randn(3, 5, requires_grad=True)
    distillation(student, teacher, 2.0).backward()  # type: ignore[no-untyped-call]
    assert teacher.grad is None
    # Of softened cross-entropy: temperature times the difference of probabilities, over the batch.
    expected = 2.0 * ((student / 2).softmax(1) - (teacher / 2).softmax(1)) / 3
    torch.testing.assert_close(student.grad, expected.detach())


def test_the_averaged_teacher_is_a_calibrated_copy_that_stays_as_it_is_until_its_time() -> None:
    trained = adapter(teacher="average", teacher_every=4, teacher_images=8)
    trained.run(4, LESSON, lambda: None)
    with torch.no_grad():
        expected = trained.trainer.average.extract(LARGEST).to(memory_format=torch.channels_last)  # type: ignore[operator]
        calibrate(expected, (TASK.train_batch(step, LARGEST.resolution, 4)[0] for step in (4, 5)))
    statistics = {name: value.clone() for name, value in trained.trainer.average.named_buffers()}
    seen = []

    def look() -> None:
        assert trained._teacher is not None and not trained._teacher.training
        seen.append({name: value.clone() for name, value in trained._teacher.state_dict().items()})

    trained.run(9, LESSON, look)
    for each in seen[:4]:
        assert all(torch.equal(each[name], value) for name, value in expected.state_dict().items())
    assert not torch.equal(seen[4]["classifier.weight"], seen[3]["classifier.weight"])
    assert all(torch.equal(statistics[name], value) for name, value in trained.trainer.average.named_buffers())


def test_all_but_the_largest_learn_from_the_averaged_teacher() -> None:
    taught, alone = adapter(teacher="average", scheme="sandwich"), adapter(scheme="sandwich")
    losses = [[float(loss.detach()) for loss in each._losses(0, slice(0, 4), LESSON)] for each in (taught, alone)]
    assert losses[0][0] == losses[1][0]
    assert losses[0][1] > losses[1][1]


@pytest.mark.parametrize("stop", [3, 5, 8])
def test_a_schedule_with_an_averaged_teacher_resumes_to_the_bit(stop: int) -> None:
    """Between two copies, at a step that makes one, and where another lesson asks for another teacher."""
    other = lesson_of(SEED_ARCH)
    other = type(other)(other.task, other.leaders, other.sampler, largest=SEED_ARCH, smallest=SMALLEST)
    settings = {"teacher": "average", "teacher_every": 5, "teacher_images": 4, "head_share": 0.1}

    def run(trained: Adapter) -> None:
        for end, lesson in ((8, LESSON), (12, other)):
            if trained.trainer.step < end:
                trained.run(end, lesson, lambda: None)

    whole, first, second = (adapter(12, **settings) for _ in range(3))
    run(whole)
    first.run(stop, LESSON, lambda: None)
    second.load_tensors(state(first), first.facts())
    run(second)
    expected, found = whole.tensors(), second.tensors()
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    assert "teacher.classifier.weight" in found


@pytest.mark.parametrize("teacher", ["none", "inplace", "average"])
@pytest.mark.parametrize("scheme", ["single", "sandwich"])
def test_every_scheme_learns_from_class_probabilities(scheme: str, teacher: str) -> None:
    train = TrainSettings(batch_size=8, learning_rate=0.05)
    trained = adapter(30, train=train, scheme=scheme, teacher=teacher, students=1, teacher_every=4, teacher_images=16)
    trained.run(30, lesson_of(SEED_ARCH, task=Colours(mixed=True)), lambda: None)
    subnet = trained.trainer.average.extract(SEED_ARCH)  # type: ignore[operator]
    images, labels = TASK.train_batch(10**6, SEED_ARCH.resolution, 32)
    calibrate(subnet, [images])
    assert int(TASK.tally(subnet(images), labels)[0]) >= 24


def test_settings_that_make_no_sense_are_refused_with_a_way_out() -> None:
    with pytest.raises(ValueError, match=r"nobody to teach.*set students"):
        AdaptSettings(teacher="inplace")
    with pytest.raises(ValueError, match="add up to more than 1"):
        AdaptSettings(head_share=0.5, largest_share=0.4, wide_share=0.2)
    with pytest.raises(ValueError, match="single"):
        AdaptSettings(scheme="sandwhich")  # type: ignore[arg-type]


def test_the_draws_of_a_step_do_not_depend_on_the_teacher() -> None:
    plain, taught = adapter(students=2), adapter(students=2, teacher="average")
    assert [plain.archs(step, LESSON) for step in range(10)] == [taught.archs(step, LESSON) for step in range(10)]
    assert np.unique([len(plain.archs(step, LESSON)) for step in range(10)]).tolist() == [3]
