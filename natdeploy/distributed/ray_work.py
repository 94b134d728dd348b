"""What the processes of a Ray cluster do for `RayEngine`: judge architectures, train on a share of every batch, keep the state."""

from __future__ import annotations

import copy
import os
import tempfile
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from natdeploy.space import Arch
from natdeploy.supernet import Supernet
from natdeploy.tasks import SplitName
from natdeploy.training.adapt import Adapter, AdaptSettings, Lesson
from natdeploy.training.group import TorchGroup
from natdeploy.training.judge import Verdict, judge_arch
from natdeploy.training.loop import DivergedError
from natdeploy.training.memory import keep_freed_memory

RETRIES = 3
"""Worker processes that may die in a stretch of training, or under one architecture."""

State = tuple[dict[str, Tensor], dict[str, float | int]]
"""An adapter's `tensors()`, on the processor, and `facts()`."""

Divergence = tuple[str, int, float]
"""What, step and learning rate of a `DivergedError`."""

_held: dict[str, tuple[str, Any]] = {}
"""The last object that this process took out of the object store, by what it is."""


@dataclass(frozen=True)
class Held:
    """A reference to an object in the store, read once a process. Ray itself would hand every call a copy of its own."""

    kind: str
    reference: Any

    def get(self) -> Any:
        import ray

        name = self.reference.hex()
        if _held.get(self.kind, ("",))[0] != name:
            _held.pop(self.kind, None)  # two at once might not fit
            _held[self.kind] = (name, ray.get(self.reference))
        return _held[self.kind][1]


def versions() -> dict[str, str]:
    """What has to be the same on all machines for the same numbers."""
    from natdeploy._version import __version__

    return {"natdeploy": __version__, "torch": torch.__version__}


def judge_there(
    supernet: Held, task: Held, arch: Arch, split: SplitName, limit: int | None, *, threads: int, device: str
) -> Verdict | str:
    """`judge_arch` with what the store holds."""
    torch.set_num_threads(threads)
    return judge_arch(supernet.get().to(device), arch, task.get(), split, limit)


class Coordinator:
    """Has stretches of training done, one after the other, and keeps the last state of each; an actor that computes nothing.

    It outlives the processes that train, so that new ones go on from that state. Ray Train's own checkpoints would need a folder
    that all machines share. Ending it ends them.
    """

    def __init__(self) -> None:
        self._state: State = {}, {"step": 0}
        self._diverged: Divergence | None = None
        self._lock = threading.Lock()

    def train(self, stretch: Stretch, state: State) -> Divergence | None:
        """Trains a stretch from a state; gives the `DivergedError` that ended it, if one did.

        Raises:
            TrainingFailedError: of Ray Train; workers failed more often than `RETRIES`.
        """
        import ray
        from ray.train import FailureConfig, RunConfig, ScalingConfig
        from ray.train.torch import TorchConfig, TorchTrainer

        self._state, self._diverged = state, None
        os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")  # by which the end is noticed, too; 2 by default
        resources = {"CPU": float(stretch.threads)} | ({"GPU": stretch.gpus} if stretch.gpus else {})
        own = ray.get_runtime_context().current_actor
        with tempfile.TemporaryDirectory() as folder:  # Ray Train wants one; nothing of ours goes there
            TorchTrainer(
                train_share,
                train_loop_config={"stretch": stretch, "coordinator": own},
                torch_config=TorchConfig(backend="nccl" if stretch.gpus else "gloo"),
                scaling_config=ScalingConfig(
                    num_workers=stretch.workers, use_gpu=bool(stretch.gpus), resources_per_worker=resources
                ),
                run_config=RunConfig(storage_path=folder, failure_config=FailureConfig(max_failures=RETRIES)),
            ).fit()
        return self._diverged

    def post(self, state: State) -> None:
        """Takes a state of the stretch, unless a later one is there: calls of an actor with threads may overtake each other."""
        with self._lock:
            if state[1]["step"] > self._state[1]["step"]:
                self._state = state

    def diverge(self, state: State, divergence: Divergence) -> None:
        """Takes the last state before a `DivergedError`."""
        self._state, self._diverged = state, divergence

    def state(self) -> State:
        """The last one."""
        return self._state

    def later_than(self, step: int) -> State | None:
        """The last one, if it has more steps done."""
        return self._state if self._state[1]["step"] > step else None


@dataclass(frozen=True)
class Stretch:
    """A stretch of training, as it is sent to every process.

    Attributes:
        supernet: without weights (on torch's meta device).
        settings: of the adapter.
        total_steps: of its schedule.
        seed: of its architectures.
        lesson: without its task.
        task: of the lesson.
        stop: steps to reach.
        workers: processes.
        gpus: of each.
        threads: of each.
        report_seconds: a state is posted when the last one is so old.
    """

    supernet: Supernet
    settings: AdaptSettings
    total_steps: int
    seed: int
    lesson: Mapping[str, Any]
    task: Held
    stop: int
    workers: int
    gpus: float
    threads: int
    report_seconds: float


def skeleton(supernet: Supernet) -> Supernet:
    """A supernet of the same shape without weights."""
    with torch.no_grad():
        return copy.deepcopy(supernet).to("meta")


def state_of(adapter: Adapter) -> State:
    """All that another process needs to go on."""
    return {name: tensor.cpu() for name, tensor in adapter.tensors().items()}, adapter.facts()


def train_share(config: Mapping[str, Any]) -> None:
    """One process of those that train together: all begin with the coordinator's state, and the first posts new ones."""
    import ray
    from ray.train.collective import broadcast_from_rank_zero
    from ray.train.torch import get_device

    stretch: Stretch = config["stretch"]
    coordinator = config["coordinator"]
    torch.set_num_threads(stretch.threads)
    keep_freed_memory()
    group = TorchGroup()
    supernet = stretch.supernet.to_empty(device=get_device())
    adapter = Adapter(supernet, stretch.settings, total_steps=stretch.total_steps, seed=stretch.seed, group=group)
    # One state for all: a process that was killed may have posted while these asked for it.
    [reference] = broadcast_from_rank_zero([coordinator.state.remote()] if group.rank == 0 else [None])
    adapter.load_tensors(*ray.get(reference))
    last = time.monotonic()

    def after_step() -> None:
        nonlocal last
        done = adapter.trainer.step == stretch.stop
        if group.rank == 0 and (done or time.monotonic() - last >= stretch.report_seconds):
            posted = coordinator.post.remote(state_of(adapter))
            last = time.monotonic()
            if done:
                ray.get(posted)

    try:
        adapter.run(stretch.stop, Lesson(task=stretch.task.get(), **stretch.lesson), after_step)
    except DivergedError as error:  # in every process at the same step; to try again would end alike
        if group.rank == 0:
            ray.get(coordinator.diverge.remote(state_of(adapter), (error.what, error.step, error.learning_rate)))
