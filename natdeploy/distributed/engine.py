"""What a search hands out: stretches of training, and architectures to be judged."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol

from natdeploy.space import Arch
from natdeploy.supernet import Supernet
from natdeploy.tasks import SplitName, Task
from natdeploy.training.adapt import Adapter, Lesson
from natdeploy.training.judge import Verdict, judge_arch


class Engine(Protocol):
    """Trains and judges. Whichever engine does it, the same seed gives the same numbers, within what docs/scaling.md states.

    Attributes:
        workers: processes that share a step; the shards of a batch (`TrainSettings.shards`) are a multiple of it.
    """

    workers: int

    def train(self, adapter: Adapter, stop: int, lesson: Lesson, after_step: Callable[[], None]) -> None:
        """Trains `adapter` until `stop` steps are done; `after_step` is called when its step count has grown, at least at the end.

        Raises:
            DivergedError: a loss or a gradient is not finite.
        """

    def judge(
        self, supernet: Supernet, archs: Sequence[Arch], task: Task, split: SplitName, limit: int | None = None
    ) -> Iterator[tuple[Arch, Verdict | str]]:
        """Each of the architectures, in any order, with calibrated BatchNorm on the images of a split, or the first `limit`
        of them; or why it failed."""


class InProcess:
    """One after the other, here."""

    workers = 1

    def train(self, adapter: Adapter, stop: int, lesson: Lesson, after_step: Callable[[], None]) -> None:
        adapter.run(stop, lesson, after_step)

    def judge(
        self, supernet: Supernet, archs: Sequence[Arch], task: Task, split: SplitName, limit: int | None = None
    ) -> Iterator[tuple[Arch, Verdict | str]]:
        for arch in archs:
            yield arch, judge_arch(supernet, arch, task, split, limit)


@contextmanager
def open_engine(ray: str | None = None, *, workers: int | None = None) -> Iterator[Engine]:
    """What a search works with, while it does.

    Args:
        ray: address of a Ray cluster, as of `RayEngine`: `local`, `auto` or HOST:PORT. None works in this process.
        workers: processes of the cluster that are used; all that there is room for by default.

    Raises:
        NatdeployError: Ray is not installed, or there is no such cluster.
    """
    if ray is None:
        yield InProcess()
        return
    from natdeploy.distributed.ray_engine import RayEngine

    engine = RayEngine(ray, workers=workers)
    try:
        yield engine
    finally:
        engine.close()
