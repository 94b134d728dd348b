"""Plain training of one network, with and without a teacher."""

from __future__ import annotations

from typing import Any

import torch
from colours import LARGEST, SEED_ARCH, SPACE, TASK

from natdeploy.supernet import Subnet
from natdeploy.tasks.distill import distillation
from natdeploy.training.loop import TrainSettings
from natdeploy.training.plain import Finetuner, train_subnet

SETTINGS = TrainSettings(batch_size=8, learning_rate=0.05)


def network(arch: Any = SEED_ARCH, seed: int = 0) -> Subnet:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Subnet(SPACE, arch, 2)


def test_the_loss_is_that_of_the_labels_and_of_the_teachers_answer_at_its_own_resolution() -> None:
    teacher = network(LARGEST, 1)
    assert LARGEST.resolution != SEED_ARCH.resolution
    subnet = network()
    tuner = Finetuner(subnet, TASK, SETTINGS, 10, teacher=teacher, teacher_weight=0.4, temperature=3.0)
    [found] = tuner._losses(0, slice(0, 8))
    images, labels = TASK.train_batch(0, SEED_ARCH.resolution, 8)
    with torch.no_grad():
        logits = subnet(images)
        answer = teacher.eval()(TASK.train_batch(0, LARGEST.resolution, 8)[0])
        expected = TASK.loss(logits, labels) + 0.4 * distillation(logits, answer, 3.0)
    torch.testing.assert_close(found.detach(), expected)


def test_a_teacher_helps_and_does_not_change() -> None:
    teacher = network(LARGEST, 1)  # in training mode, as it is built
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    taught = train_subnet(network(), TASK, SETTINGS, 4, lambda: None, teacher=teacher)
    alone = train_subnet(network(), TASK, SETTINGS, 4, lambda: None)
    assert all(torch.equal(before[name], value) for name, value in teacher.state_dict().items())
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert not torch.equal(taught.classifier.weight, alone.classifier.weight)


def test_fine_tuning_resumes_to_the_bit_and_in_one_go_is_the_same() -> None:
    teacher = network(LARGEST, 1)
    first = Finetuner(network(), TASK, SETTINGS, 8, head_steps=2, teacher=teacher)
    first.run(5, lambda: None)
    second = Finetuner(network(seed=4), TASK, SETTINGS, 8, head_steps=2, teacher=teacher)
    second.trainer.load_tensors({name: value.clone() for name, value in first.trainer.tensors().items()}, first.trainer.facts())
    second.run(8, lambda: None)
    whole = train_subnet(network(), TASK, SETTINGS, 8, lambda: None, head_steps=2, teacher=teacher)
    for name, value in whole.named_parameters():
        assert torch.equal(value, second.average.get_parameter(name)), name
