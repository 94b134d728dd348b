"""The training loop, supernet adaptation and plain fine-tuning, on random images that carry their class in a colour."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from natdeploy.errors import NatdeployError
from natdeploy.space import Arch, get_space
from natdeploy.space.catalog import plain_arch
from natdeploy.supernet import Subnet, Supernet
from natdeploy.supernet.layers import crop
from natdeploy.tasks import SplitName, Task
from natdeploy.training.adapt import Adapter, AdaptSettings, Lesson
from natdeploy.training.loop import Trainer, TrainSettings
from natdeploy.training.memory import keep_freed_memory
from natdeploy.training.optimizer import SharedSGD
from natdeploy.training.plain import train_subnet

SPACE = get_space("demo")
SEED_ARCH = plain_arch(16, 1.0, (1, 1, 2, 1))


class Colours:
    """Two classes of noise, one of them brighter."""

    classes = ("dark", "bright")

    def train_batch(self, step: int, resolution: int, batch_size: int) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(step)
        labels = torch.randint(0, 2, (batch_size,), generator=generator)
        noise = torch.randn(batch_size, 3, 1, 1, generator=generator).expand(-1, -1, resolution, resolution)
        return noise * 0.1 + labels[:, None, None, None] * 2.0 - 1.0, labels

    def batches(self, split: SplitName, resolution: int, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        yield self.train_batch(10**6, resolution, batch_size)

    def loss(self, logits: Tensor, targets: Tensor, teacher: Tensor | None = None) -> Tensor:
        loss = nn.functional.cross_entropy(logits, targets)
        return loss if teacher is None else loss + nn.functional.cross_entropy(logits, teacher.softmax(1))

    def correct(self, logits: Tensor, targets: Tensor) -> int:
        return int((logits.argmax(1) == targets).sum())


TASK: Task = Colours()


def sampler(count: int, rng: np.random.Generator) -> Sequence[Arch]:
    return SPACE.decode_all(SPACE.sample(count, rng))


LESSON = Lesson(TASK, [SEED_ARCH, SPACE.decode(SPACE.upper)], sampler)


def adapter(head_share: float = 0.25, steps: int = 8) -> Adapter:
    settings = AdaptSettings(train=TrainSettings(batch_size=4, learning_rate=0.05), head_share=head_share, students=1)
    return Adapter(Supernet(SPACE, 2), settings, total_steps=steps, seed=3)


def test_training_interrupted_and_reloaded_ends_with_the_same_bits() -> None:
    whole = adapter()
    whole.run(8, LESSON, lambda: None)
    first = adapter()
    first.run(5, LESSON, lambda: None)
    saved = {name: value.clone() for name, value in first.trainer.tensors().items()}
    second = adapter()
    second.trainer.load_tensors(saved, 5)
    second.run(8, LESSON, lambda: None)
    expected, found = whole.trainer.tensors(), second.trainer.tensors()
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    assert any(name.startswith("momentum.") for name in found)


def test_only_the_classifier_moves_while_the_head_warms_up() -> None:
    trained = adapter(head_share=0.5)
    before = {name: value.clone() for name, value in trained.trainer.model.state_dict().items()}
    trained.run(4, LESSON, lambda: None)
    moved = {name for name, value in trained.trainer.model.state_dict().items() if not torch.equal(value, before[name])}
    assert moved == {"classifier.weight", "classifier.bias"}
    trained.run(5, LESSON, lambda: None)
    assert not torch.equal(trained.trainer.model.state_dict()["stem.conv.weight"], before["stem.conv.weight"])


def test_every_step_is_counted_and_reaching_the_stop_twice_does_nothing() -> None:
    trained, steps = adapter(), []
    trained.run(3, LESSON, lambda: steps.append(trained.trainer.step))
    trained.run(3, LESSON, lambda: steps.append(-1))
    assert steps == [1, 2, 3]


def test_learning_rate_rises_then_falls_to_zero() -> None:
    trainer = Trainer(nn.Linear(2, 2), TrainSettings(learning_rate=1.0, warmup=0.1), 100)
    rates = [trainer.learning_rate(step) for step in range(101)]
    assert rates[0] == pytest.approx(0.1)
    assert max(rates) == pytest.approx(rates[10]) == pytest.approx(1.0)
    assert rates[55] == pytest.approx(0.5)
    assert rates[100] == pytest.approx(0.0)
    assert all(later < earlier for earlier, later in itertools.pairwise(rates[10:]))


def test_average_is_the_exponential_mean_of_the_weights() -> None:
    model = nn.Linear(1, 1)
    trainer = Trainer(model, TrainSettings(average=0.9, warmup=0.0), 50)
    expected = model.weight.detach().clone()
    seen = []

    def after() -> None:
        seen.append(model.weight.detach().clone())

    trainer.run(40, lambda step: iter([(model(torch.ones(1, 1)) - 3.0).square().sum()]), after)
    for step, weight in enumerate(seen, start=1):
        decay = min(0.9, step / (step + 9))
        expected = decay * expected + (1 - decay) * weight
    assert isinstance(trainer.average, nn.Linear)
    torch.testing.assert_close(trainer.average.weight, expected)


def test_weight_decay_spares_scales_and_biases() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    trainer = Trainer(model, TrainSettings(learning_rate=0.1, weight_decay=1.0, momentum=0.5, warmup=0.0), 10)
    weight, bias, scale = (model.state_dict()[name].clone() for name in ("0.weight", "0.bias", "1.weight"))
    trainer.run(1, lambda step: iter([1e-12 * sum(p.sum() for p in model.parameters())]), lambda: None)  # type: ignore[list-item]
    after = model.state_dict()
    assert (after["0.weight"].abs() < weight.abs()).all()
    torch.testing.assert_close(after["0.bias"], bias)
    torch.testing.assert_close(after["1.weight"], scale)


def test_autocast_computes_in_bfloat16_and_keeps_weights_in_fp32() -> None:
    model, seen = nn.Linear(4, 2), []

    def losses(_: int) -> Iterator[Tensor]:
        logits = model(torch.ones(3, 4))
        seen.append(logits.dtype)
        yield logits.float().square().sum()

    Trainer(model, TrainSettings(autocast=True), 4).run(1, losses, lambda: None)
    Trainer(model, TrainSettings(), 4).run(1, losses, lambda: None)
    assert seen == [torch.bfloat16, torch.float32]
    assert model.weight.dtype == torch.float32
    assert not torch.is_autocast_enabled("cpu")


def test_a_supernet_learns_under_autocast() -> None:
    settings = AdaptSettings(train=TrainSettings(batch_size=8, learning_rate=0.05, autocast=True), head_share=0.0)
    trained = Adapter(Supernet(SPACE, 2), settings, total_steps=20, seed=3)
    losses = []
    run = trained._losses

    def watched(step: int, lesson: Lesson) -> Iterator[Tensor]:
        for loss in run(step, lesson):
            losses.append(float(loss.detach()))
            yield loss

    trained._losses = watched  # type: ignore[method-assign]
    trained.run(20, Lesson(TASK, [SEED_ARCH], sampler), lambda: None)
    assert np.mean(losses[-5:]) < 0.5 * np.mean(losses[:3])


def test_shared_sgd_is_torchs_where_every_element_is_used() -> None:
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(4, 3, generator=generator)
    ours, theirs = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    shared = SharedSGD([ours], momentum=0.9, weight_decay=0.1)
    torchs = torch.optim.SGD([theirs], lr=0.05, momentum=0.9, nesterov=True, weight_decay=0.1)
    for _ in range(5):
        ours.grad = torch.randn(4, 3, generator=generator)
        theirs.grad = ours.grad.clone()
        shared.step(0.05)
        torchs.step()
    torch.testing.assert_close(ours, theirs)


def test_slices_that_a_step_does_not_use_stay_as_they_are() -> None:
    trained = adapter(steps=40)
    smallest, largest = SPACE.decode(SPACE.lower), SPACE.decode(SPACE.upper)
    leaders = {"large": Lesson(TASK, [largest], sampler), "small": Lesson(TASK, [smallest], sampler)}
    trained.settings = trained.settings.model_copy(update={"sampled_share": 0.0, "students": 0})
    trained.run(3, leaders["large"], lambda: None)  # everything has momentum now
    before = trained.trainer.model.state_dict()
    before = {name: value.clone() for name, value in before.items()}
    trained.run(6, leaders["small"], lambda: None)
    after = trained.trainer.model.state_dict()
    used = trained._supernet.extract(smallest).state_dict()
    for name, value in after.items():
        moved = value != before[name]
        inside = torch.zeros_like(moved)
        if name in used:
            crop(inside, used[name].shape).fill_(True)
        assert not (moved & ~inside).any(), name
    assert not torch.equal(after["classifier.weight"], before["classifier.weight"])


def test_diverged_training_stops_with_advice() -> None:
    model = nn.Linear(1, 1)
    trainer = Trainer(model, TrainSettings(), 10)
    with pytest.raises(NatdeployError, match="lower learning rate"):
        trainer.run(1, lambda step: iter([model.weight.sum() * float("nan")]), lambda: None)


def test_plain_training_learns_and_returns_the_average() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        subnet = Subnet(SPACE, SEED_ARCH, 2)
    images, labels = TASK.train_batch(10**6, 16, 32)
    settings = TrainSettings(batch_size=8, learning_rate=0.05)
    average = train_subnet(subnet, TASK, settings, 30, lambda: None, head_steps=3)
    average.train()  # normalise by the batch: the statistics are not calibrated yet
    assert TASK.correct(average(images), labels) == 32
    assert average is not subnet


def test_unknown_setting_is_refused() -> None:
    with pytest.raises(ValueError, match="extra"):
        AdaptSettings(student=3)  # type: ignore[call-arg]


def test_keeping_freed_memory_is_harmless() -> None:
    keep_freed_memory()
    assert torch.ones(1 << 22).sum() == 1 << 22
