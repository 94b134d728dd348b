"""The training loop, supernet adaptation and plain fine-tuning, on random images that carry their class in a colour."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from colours import LARGEST, SEED_ARCH, SMALLEST, SPACE, TASK, lesson_of
from torch import Tensor, nn

from natdeploy.supernet import Subnet, Supernet
from natdeploy.supernet.layers import crop
from natdeploy.training.adapt import Adapter, AdaptSettings, Lesson
from natdeploy.training.loop import DivergedError, Trainer, TrainSettings
from natdeploy.training.memory import keep_freed_memory
from natdeploy.training.optimizer import SharedSGD
from natdeploy.training.plain import train_subnet

LESSON = lesson_of(SEED_ARCH, LARGEST)


def adapter(head_share: float = 0.25, steps: int = 8) -> Adapter:
    settings = AdaptSettings(train=TrainSettings(batch_size=4, learning_rate=0.05), head_share=head_share, students=1)
    return Adapter(Supernet(SPACE, 2), settings, total_steps=steps, seed=3)


def test_training_interrupted_and_reloaded_ends_with_the_same_bits() -> None:
    whole = adapter()
    whole.run(8, LESSON, lambda: None)
    first = adapter()
    first.run(5, LESSON, lambda: None)
    saved = {name: value.clone() for name, value in first.tensors().items()}
    second = adapter()
    second.load_tensors(saved, first.facts())
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

    trainer.run(40, lambda step, rows: iter([(model(torch.ones(1, 1)) - 3.0).square().sum()]), after)
    for step, weight in enumerate(seen, start=1):
        decay = min(0.9, step / (step + 9))
        expected = decay * expected + (1 - decay) * weight
    assert isinstance(trainer.average, nn.Linear)
    torch.testing.assert_close(trainer.average.weight, expected)


def test_weight_decay_spares_scales_and_biases() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    trainer = Trainer(model, TrainSettings(learning_rate=0.1, weight_decay=1.0, momentum=0.5, warmup=0.0), 10)
    weight, bias, scale = (model.state_dict()[name].clone() for name in ("0.weight", "0.bias", "1.weight"))
    trainer.run(1, lambda step, rows: iter([1e-12 * sum(p.sum() for p in model.parameters())]), lambda: None)  # type: ignore[list-item]
    after = model.state_dict()
    assert (after["0.weight"].abs() < weight.abs()).all()
    torch.testing.assert_close(after["0.bias"], bias)
    torch.testing.assert_close(after["1.weight"], scale)


def test_autocast_computes_in_bfloat16_and_keeps_weights_in_fp32() -> None:
    model, seen = nn.Linear(4, 2), []

    def losses(_: int, rows: slice) -> Iterator[Tensor]:
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

    def watched(step: int, rows: slice, lesson: Lesson) -> Iterator[Tensor]:
        for loss in run(step, rows, lesson):
            losses.append(float(loss.detach()))
            yield loss

    trained._losses = watched  # type: ignore[method-assign]
    trained.run(20, lesson_of(SEED_ARCH), lambda: None)
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


def test_shared_sgd_selects_to_the_bit() -> None:
    """Element by element, matrices and vectors: what has no gradient stays, the rest moves by the textbook's formula."""
    generator = torch.Generator().manual_seed(0)
    shapes = [(8, 3, 3, 3), (8,), (4, 8), (4,)]
    ours = [nn.Parameter(torch.randn(shape, generator=generator)) for shape in shapes]
    ours[0].data = ours[0].data.to(memory_format=torch.channels_last)
    theirs, velocities = [p.detach().clone() for p in ours], [torch.zeros(shape) for shape in shapes]
    shared = SharedSGD(ours, momentum=0.9, weight_decay=0.1)
    for step in range(4):
        for number, parameter in enumerate(ours):
            used = torch.rand(parameter.shape, generator=generator) < 0.6
            gradient = torch.randn(parameter.shape, generator=generator) * used
            parameter.grad = None if (step + number) % 4 == 3 else gradient
            if parameter.grad is None:
                continue
            decayed = gradient.add(theirs[number], alpha=0.1) if parameter.ndim > 1 else gradient
            faster = decayed.add(velocities[number], alpha=0.9)
            move = decayed.add(faster, alpha=0.9)
            velocities[number] = torch.where(used, faster, velocities[number])
            theirs[number] = torch.where(used, theirs[number].sub(move, alpha=0.05), theirs[number])
        shared.step(0.05)
    for parameter, weight, velocity in zip(ours, theirs, velocities, strict=True):
        assert torch.equal(parameter, weight)
        assert torch.equal(shared.velocity[parameter], velocity)


def test_slices_that_a_step_does_not_use_stay_as_they_are() -> None:
    trained = adapter(steps=40)
    trained.settings = trained.settings.model_copy(update={"sampled_share": 0.0, "students": 0})
    trained.run(3, lesson_of(LARGEST), lambda: None)  # everything has momentum now
    before = trained.trainer.model.state_dict()
    before = {name: value.clone() for name, value in before.items()}
    trained.run(6, lesson_of(SMALLEST), lambda: None)
    after = trained.trainer.model.state_dict()
    used = trained._supernet.extract(SMALLEST).state_dict()
    for name, value in after.items():
        moved = value != before[name]
        inside = torch.zeros_like(moved)
        if name in used:
            crop(inside, used[name].shape).fill_(True)
        assert not (moved & ~inside).any(), name
    assert not torch.equal(after["classifier.weight"], before["classifier.weight"])


@pytest.mark.parametrize(
    ("loss", "what"),
    [
        (lambda weight: weight.sum() * float("nan"), "the loss is nan"),
        (lambda weight: weight.sum() * float("inf"), "the loss is inf"),
        (lambda weight: (weight - weight.detach()).abs().sqrt().sum(), "the norm of the gradient is"),
    ],
)
def test_divergence_is_found_before_the_weights_move(loss: Callable[[Tensor], Tensor], what: str) -> None:
    model = nn.Linear(1, 1)
    trainer = Trainer(model, TrainSettings(learning_rate=0.3), 10)
    trainer.run(2, lambda step, rows: iter([model.weight.square().sum()]), lambda: None)
    before = {name: value.clone() for name, value in trainer.tensors().items()}
    with pytest.raises(DivergedError, match=f"{what}.* at step 2; start again with a lower learning rate than 0.3") as caught:
        trainer.run(3, lambda step, rows: iter([loss(model.weight.abs())]), lambda: None)
    assert (caught.value.step, trainer.step) == (2, 2)
    assert all(torch.equal(before[name], value) for name, value in trainer.tensors().items())


def test_the_rate_scale_multiplies_the_schedule_and_comes_back_with_the_state() -> None:
    model = nn.Linear(2, 2)
    trainer = Trainer(model, TrainSettings(learning_rate=1.0), 100)
    full = [trainer.learning_rate(step) for step in range(100)]
    trainer.rate_scale = 0.25
    assert [trainer.learning_rate(step) for step in range(100)] == pytest.approx([0.25 * rate for rate in full])
    facts = trainer.facts()
    assert facts == {"step": 0, "rate_scale": 0.25}
    later = Trainer(nn.Linear(2, 2), TrainSettings(learning_rate=1.0), 100)
    later.load_tensors(trainer.tensors(), facts)
    assert (later.step, later.rate_scale) == (0, 0.25)


def test_plain_training_learns_and_returns_the_average() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        subnet = Subnet(SPACE, SEED_ARCH, 2)
    images, labels = TASK.train_batch(10**6, 16, 32)
    settings = TrainSettings(batch_size=8, learning_rate=0.05)
    average = train_subnet(subnet, TASK, settings, 30, lambda: None, head_steps=3)
    average.train()  # normalise by the batch: the statistics are not calibrated yet
    assert TASK.tally(average(images), labels).tolist() == [32, 32]
    assert average is not subnet


def test_unknown_setting_is_refused() -> None:
    with pytest.raises(ValueError, match="extra"):
        AdaptSettings(student=3)  # type: ignore[call-arg]


def test_keeping_freed_memory_is_harmless() -> None:
    keep_freed_memory()
    assert torch.ones(1 << 22).sum() == 1 << 22
