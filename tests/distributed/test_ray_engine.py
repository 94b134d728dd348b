"""A cluster of two workers on this machine gives the numbers of one process, whatever happens to a worker."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor

from natdeploy.distributed.engine import Engine, InProcess, open_engine
from natdeploy.distributed.ray_work import Coordinator
from natdeploy.errors import MissingRuntimeError, NatdeployError, UsageError
from natdeploy.space import Arch, get_space
from natdeploy.space.catalog import plain_arch
from natdeploy.supernet import Supernet
from natdeploy.tasks import Classification, ImageSet, Pixels, SplitName, Task, split
from natdeploy.training.adapt import Adapter, AdaptSettings, Lesson
from natdeploy.training.loop import DivergedError, TrainSettings

SPACE = get_space("demo")
CLASSES, IMAGES, SIZE = 3, 16, 32
STEPS = 6


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    """Two workers that post a state after every step or two."""
    ray = pytest.importorskip("ray", reason="Ray is not installed; pip install 'natdeploy[ray]'")
    from natdeploy.distributed.ray_engine import RayEngine

    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import tests
    opened = RayEngine("local", workers=2, report_seconds=0.0)
    yield opened
    opened.close()
    assert not ray.is_initialized()


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """As in the workers: the order of sums depends on it."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def task() -> Task:
    """A few digits."""
    data = load_digits(n_class=CLASSES)
    chosen = np.concatenate([np.flatnonzero(data.target == label)[:IMAGES] for label in range(CLASSES)])
    labels = data.target[chosen]
    images = torch.from_numpy(data.images[chosen] * 15.9).to(torch.uint8)[:, None].expand(-1, 3, -1, -1)
    images = images.repeat_interleave(SIZE // 8, 2).repeat_interleave(SIZE // 8, 3).contiguous(memory_format=torch.channels_last)
    paths = tuple(str(number) for number in range(len(labels)))
    source = ImageSet(Path("digits"), tuple("012"), paths, tuple(labels.tolist()), (False,) * len(labels), ())
    return Classification(Pixels(source, images, torch.from_numpy(labels)), split(source, 0), (0.5,) * 3, (0.5,) * 3, 0, flip=False)


@dataclass(frozen=True)
class Unlucky:
    """A task whose process is killed once: in a step of training, or at its first look at a split.

    Attributes:
        task: what it is otherwise.
        mark: a file that is there once it has happened.
        moment: the step or the split.
        spoilt: instead, every time, the images of the step are not numbers.
    """

    task: Task
    mark: Path
    moment: int | SplitName
    spoilt: bool = False

    @property
    def classes(self) -> tuple[str, ...]:
        return self.task.classes

    def train_batch(self, step: int, resolution: int, batch_size: int) -> tuple[Tensor, Tensor]:
        images, targets = self.task.train_batch(step, resolution, batch_size)
        if step == self.moment and self.spoilt:
            return images * float("nan"), targets
        self._perhaps_die(step)
        return images, targets

    def batches(
        self, split: SplitName, resolution: int, batch_size: int, limit: int | None = None
    ) -> Iterator[tuple[Tensor, Tensor]]:
        self._perhaps_die(split)
        return self.task.batches(split, resolution, batch_size, limit)

    def _perhaps_die(self, moment: int | SplitName) -> None:
        if moment != self.moment:
            return
        try:
            self.mark.touch(exist_ok=False)
        except FileExistsError:
            return
        os.kill(os.getpid(), signal.SIGKILL)

    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        return self.task.loss(logits, targets)

    def distillation(self, logits: Tensor, teacher: Tensor, temperature: float) -> Tensor:
        return self.task.distillation(logits, teacher, temperature)

    def tally(self, logits: Tensor, targets: Tensor) -> Tensor:
        return self.task.tally(logits, targets)

    def metric(self, tally: Tensor) -> float:
        return self.task.metric(tally)


def adapter_of(*, shards: int = 2) -> Adapter:
    """A sandwich with an averaged teacher: nearly all that a state can hold."""
    train = TrainSettings(batch_size=8, learning_rate=0.05, shards=shards)
    settings = AdaptSettings(
        train=train, head_share=0.2, scheme="sandwich", students=1, teacher="average", teacher_every=2, teacher_images=8
    )
    return Adapter(Supernet(SPACE, CLASSES), settings, total_steps=2 * STEPS, seed=3)


def lesson_of(task: Task) -> Lesson:
    """The sampler is a closure, as the pipeline's."""
    largest = SPACE.decode(SPACE.upper)

    def sampler(count: int, rng: np.random.Generator) -> Sequence[Arch]:
        return SPACE.decode_all(SPACE.sample(count, rng))

    return Lesson(task, [plain_arch(32, 1.0, (1, 1, 2, 1))], sampler, largest=largest, smallest=SPACE.decode(SPACE.lower))


def train(engine: Engine, adapter: Adapter, stop: int, task: Task) -> list[int]:
    """The step counts that were told."""
    told: list[int] = []
    engine.train(adapter, stop, lesson_of(task), lambda: told.append(adapter.trainer.step))
    return told


def assert_equal_bits(one: Adapter, other: Adapter) -> None:
    ours, theirs = one.tensors(), other.tensors()
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []
    assert one.facts() == other.facts()


def verdicts(engine: Engine, task: Task, limit: int | None = None) -> dict[Arch, tuple[int, int, float] | str]:
    archs = SPACE.decode_all(SPACE.sample(8, np.random.default_rng(0)))
    judged = dict(engine.judge(Supernet(SPACE, CLASSES), archs, task, "validation", limit))
    assert judged.keys() == set(archs)
    return {arch: each if isinstance(each, str) else (each.correct, each.total, each.loss) for arch, each in judged.items()}


def test_without_an_address_the_work_is_done_here() -> None:
    with open_engine() as here:
        assert isinstance(here, InProcess)
        assert here.workers == 1


def test_a_missing_ray_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingRuntimeError, match=r"^Ray is not installed; pip install 'natdeploy\[ray\]'$"), open_engine("local"):
        pass


def test_no_cluster_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    ray = pytest.importorskip("ray", reason="Ray is not installed; pip install 'natdeploy[ray]'")

    def refuse(**_: object) -> None:
        raise ConnectionError("Could not find any running Ray instance.\nMore of it.")

    monkeypatch.setattr(ray, "init", refuse)
    with pytest.raises(NatdeployError, match=r"no Ray cluster can be used at auto \(Could not find any running Ray instance\.\); "):
        open_engine("auto").__enter__()


@pytest.mark.parametrize(
    ("workers", "gpus", "threads", "room", "expected"),
    [
        (None, 0, 1, {"CPU": 8.0}, 8),
        (None, 0, 3, {"CPU": 8.0}, 2),
        (None, 1, 2, {"CPU": 32.0, "GPU": 4.0}, 4),
        (None, 0.5, 1, {"CPU": 6.0, "GPU": 4.0}, 6),
        (3, 0, 1, {"CPU": 8.0}, 3),
        (9, 0, 1, {"CPU": 8.0}, None),
        (None, 1, 1, {"CPU": 8.0}, None),
        (0, 0, 1, {"CPU": 8.0}, None),
    ],
)
def test_workers_fit_into_the_cluster(
    workers: int | None, gpus: float, threads: int, room: dict[str, float], expected: int | None
) -> None:
    from natdeploy.distributed.ray_engine import fitting_workers

    if expected is not None:
        assert fitting_workers(workers, room, gpus, threads) == expected
        return
    with pytest.raises(UsageError, match="do not fit into the Ray cluster, which has 8 processors and 0 GPUs"):
        fitting_workers(workers, room, gpus, threads)


def test_verdicts_are_the_same_bits(engine: Engine, task: Task) -> None:
    assert engine.workers == 2
    assert verdicts(engine, task) == verdicts(InProcess(), task)
    assert verdicts(engine, task, 3) == verdicts(InProcess(), task, 3) != verdicts(InProcess(), task)


def test_a_killed_worker_loses_no_verdict(engine: Engine, task: Task, tmp_path: Path) -> None:
    mark = tmp_path / "killed"
    assert verdicts(engine, Unlucky(task, mark, "validation")) == verdicts(InProcess(), task)
    assert mark.exists()


def test_judging_can_be_left_early(engine: Engine, task: Task) -> None:
    judging = engine.judge(
        Supernet(SPACE, CLASSES), SPACE.decode_all(SPACE.sample(4, np.random.default_rng(1))), task, "validation"
    )
    assert next(judging)
    judging.close()  # type: ignore[attr-defined]
    assert verdicts(engine, task) == verdicts(InProcess(), task)


def test_shards_that_cannot_be_dealt_out_are_refused(engine: Engine, task: Task) -> None:
    with pytest.raises(UsageError, match=r"1 shards cannot be dealt out evenly to 2 workers; set train\.shards to 2"):
        train(engine, adapter_of(shards=1), 1, task)


def test_training_ends_with_the_same_bits_though_a_worker_is_killed(engine: Engine, task: Task, tmp_path: Path) -> None:
    """Two stretches: an undisturbed one, and one that begins where it ended and loses a worker."""
    mark, ours, theirs = tmp_path / "killed", adapter_of(), adapter_of()
    told = train(engine, ours, STEPS, task)
    assert told == sorted(set(told))
    assert told[-1] == STEPS
    train(InProcess(), theirs, STEPS, task)
    assert_equal_bits(ours, theirs)
    assert train(engine, ours, STEPS, task) == []

    told = train(engine, ours, 2 * STEPS, Unlucky(task, mark, STEPS + 3))
    assert mark.exists()
    assert told[-1] == 2 * STEPS
    train(InProcess(), theirs, 2 * STEPS, task)
    assert_equal_bits(ours, theirs)


def test_a_state_that_arrives_late_does_not_take_the_place_of_a_later_one() -> None:
    coordinator = Coordinator()
    for step in (3, 6, 5):
        coordinator.post(({"weight": torch.tensor(float(step))}, {"step": step}))
    tensors, facts = coordinator.state()
    assert (facts["step"], float(tensors["weight"])) == (6, 6.0)
    assert coordinator.later_than(6) is None


def test_divergence_is_told_with_the_state_before_it(engine: Engine, task: Task, tmp_path: Path) -> None:
    ours, theirs = adapter_of(), adapter_of()
    spoilt = Unlucky(task, tmp_path / "unused", 3, spoilt=True)  # no step that copies the teacher
    with pytest.raises(DivergedError, match="at step 3") as caught:
        train(engine, ours, STEPS, spoilt)
    assert caught.value.step == 3
    with pytest.raises(DivergedError, match="at step 3"):
        train(InProcess(), theirs, STEPS, spoilt)
    assert_equal_bits(ours, theirs)
