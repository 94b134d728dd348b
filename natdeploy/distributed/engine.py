"""What a search hands out: stretches of training, and architectures to be judged."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Protocol

from natdeploy.space import Arch
from natdeploy.supernet import Supernet
from natdeploy.tasks import SplitName, Task
from natdeploy.training.adapt import Adapter, Lesson
from natdeploy.training.judge import Verdict, calibrated_subnet, judge


class Engine(Protocol):
    """Trains and judges. Whichever engine does it, the same seed gives the same numbers, within what docs/scaling.md states."""

    def train(self, adapter: Adapter, stop: int, lesson: Lesson, after_step: Callable[[], None]) -> None:
        """Trains `adapter` until `stop` steps are done; `after_step` is called when its step count has grown, at least at the end.

        Raises:
            NatdeployError: a loss is not finite.
        """

    def judge(
        self, supernet: Supernet, archs: Sequence[Arch], task: Task, split: SplitName
    ) -> Iterator[tuple[Arch, Verdict | str]]:
        """Each of the architectures with calibrated BatchNorm on the images of a split, in any order; or why it failed."""


class InProcess:
    """One after the other, here."""

    def train(self, adapter: Adapter, stop: int, lesson: Lesson, after_step: Callable[[], None]) -> None:
        adapter.run(stop, lesson, after_step)

    def judge(
        self, supernet: Supernet, archs: Sequence[Arch], task: Task, split: SplitName
    ) -> Iterator[tuple[Arch, Verdict | str]]:
        for arch in archs:
            yield arch, judge_arch(supernet, arch, task, split)


def judge_arch(supernet: Supernet, arch: Arch, task: Task, split: SplitName) -> Verdict | str:
    """One architecture on the images of a split; or, where torch cannot compute it, why."""
    start = time.perf_counter()
    try:
        verdict = judge(calibrated_subnet(supernet, arch, task), task, split)
    except RuntimeError as error:  # of torch: out of memory, a kernel that the machine lacks
        return " ".join(str(error).split())
    if not math.isfinite(verdict.loss):
        return f"its loss is {verdict.loss}"
    return replace(verdict, seconds=time.perf_counter() - start)
