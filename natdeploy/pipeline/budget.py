"""How much work a search does: fixed in steps before it starts, so that a resumed run does exactly the same."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from statistics import mean
from typing import Any

from natdeploy.pipeline.config import SearchConfig
from natdeploy.pipeline.setting import Setting
from natdeploy.search import NatSettings
from natdeploy.training.adapt import Adapter, Lesson
from natdeploy.training.judge import calibrated_subnet, judge

EPOCHS = 60
"""Passes over the training images when the user gives no budget: some seven minutes for flowers12 on one slow core."""

MIN_STEPS = 60
"""Fewer training steps would leave the classifier half trained."""

ROUNDS, INITIAL, INFILL, PARENTS = 3, 32, 8, 12
"""Of a search without a budget in minutes."""

WARMUP_SHARE, FINAL_SHARE = 0.2, 0.65
"""Of the training steps: before the first evaluation, and after the last round. The rounds share the others."""

EVALUATION_SHARE = 0.15
"""Of the minutes, at most, for judging architectures; the rest trains."""

SECONDS_A_ROUND = 200
MIN_INITIAL = 16

ROUND_SECONDS = 4.0
"""Surrogate, evolution and bookkeeping of a round on one core."""

UNTIMED_STEPS, TIMED_STEPS = 2, 12

MEAN_STEP = 1.05
"""Of a typical leader's step, what a step costs on average: sampled nets have larger kernels, the classifier alone is cheap."""


@dataclass(frozen=True)
class Budget:
    """The work of a search.

    Attributes:
        warmup_steps: training steps before the first evaluation.
        round_steps: training steps in a round.
        final_steps: training steps after the last round, with the nets of the front alone.
        nat: archs and rounds.
        minutes: estimate for this machine.
        step_seconds: measured, one training step.
        evaluation_seconds: measured, one architecture.
        source: where the size of the budget comes from.
    """

    warmup_steps: int
    round_steps: int
    final_steps: int
    nat: NatSettings
    minutes: float
    step_seconds: float
    evaluation_seconds: float
    source: str

    @property
    def total_steps(self) -> int:
        return self.steps(self.nat.rounds) + self.final_steps

    def steps(self, version: int) -> int:
        """Training steps behind the weights of a version; version 0 is what the warm-up leaves."""
        return self.warmup_steps + version * self.round_steps

    def __str__(self) -> str:
        return (
            f"about {self.minutes:.1f} min ({self.source}): {self.warmup_steps} training steps, {self.nat.rounds} rounds of "
            f"{self.round_steps}, {self.final_steps} with the front alone; {self.nat.initial} nets evaluated at first, "
            f"{self.nat.infill} new ones a round (a step takes {self.step_seconds:.2f} s, a net {self.evaluation_seconds:.2f} s)"
        )

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "nat": self.nat.model_dump()}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Budget:
        return cls(**{**values, "nat": NatSettings(**values["nat"])})


def make_budget(config: SearchConfig, setting: Setting, lesson: Lesson) -> Budget:
    """The work that the data or `minutes` ask for.

    Without `minutes` it follows from the data alone, so the same search does the same work on any machine; the speed of this one,
    measured just now, only says how long that takes. With `minutes` the speed decides how much work fits.
    """
    step_s, evaluation_s = _measure(config, setting, lesson)
    images = len(setting.task.splits.train)
    if config.minutes is None:
        nat = config.nat or NatSettings(initial=INITIAL, rounds=config.rounds or ROUNDS, infill=INFILL, parents=PARENTS)
        steps = max(MIN_STEPS, math.ceil(EPOCHS * images / config.adapt.train.batch_size))
        source = f"{EPOCHS} epochs of the {images} training images"
    else:
        nat = config.nat or _nat(60 * config.minutes, evaluation_s, config.rounds)
        steps = max(MIN_STEPS, math.floor((60 * config.minutes - _search_seconds(nat, evaluation_s)) / (MEAN_STEP * step_s)))
        source = f"--minutes {config.minutes:g}"
    final_steps = round(steps * FINAL_SHARE)
    round_steps = max(1, round(steps * (1 - WARMUP_SHARE - FINAL_SHARE) / nat.rounds)) if nat.rounds else 0
    warmup_steps = steps - final_steps - nat.rounds * round_steps
    seconds = MEAN_STEP * steps * step_s + _search_seconds(nat, evaluation_s)
    return Budget(warmup_steps, round_steps, final_steps, nat, seconds / 60, step_s, evaluation_s, source)


def _search_seconds(nat: NatSettings, evaluation_s: float) -> float:
    """Time of all that is not training. The archive is evaluated anew in every round, after the weights have moved."""
    archive = [nat.initial + number * nat.infill for number in range(nat.rounds + 1)]
    return (sum(archive) + nat.rounds * nat.infill) * evaluation_s + nat.rounds * ROUND_SECONDS


def _nat(seconds: float, evaluation_s: float, rounds: int | None) -> NatSettings:
    """As near to NAT's published sizes (100 at first, 30 rounds of 8) as a share of the time allows."""
    number = rounds or min(30, max(2, round(seconds / SECONDS_A_ROUND)))
    for initial in range(100, MIN_INITIAL, -4):
        nat = NatSettings(initial=initial, rounds=number, infill=INFILL, parents=max(INFILL, initial // 3))
        if _search_seconds(nat, evaluation_s) <= EVALUATION_SHARE * seconds:
            return nat
    return NatSettings(initial=MIN_INITIAL, rounds=number, infill=INFILL, parents=INFILL)


def _measure(config: SearchConfig, setting: Setting, lesson: Lesson) -> tuple[float, float]:
    """Seconds of a leader's step and of an evaluation, on a copy of the supernet."""
    supernet = copy.deepcopy(setting.supernet)
    # The cost of a step grows with the area of its images: a leader of the mean area stands for all of them.
    mean_area = mean(arch.resolution**2 for arch in lesson.leaders)
    typical = min(lesson.leaders, key=lambda arch: abs(arch.resolution**2 - mean_area))
    settings = config.adapt.model_copy(update={"head_share": 0.0, "sampled_share": 0.0})
    adapter = Adapter(supernet, settings, total_steps=UNTIMED_STEPS + TIMED_STEPS, seed=config.seed)
    lesson = replace(lesson, leaders=[typical])
    adapter.run(UNTIMED_STEPS, lesson, lambda: None)
    start = time.perf_counter()
    adapter.run(UNTIMED_STEPS + TIMED_STEPS, lesson, lambda: None)
    step_s = (time.perf_counter() - start) / TIMED_STEPS
    start = time.perf_counter()
    judge(calibrated_subnet(supernet, typical, setting.task), setting.task, "validation")
    return step_s, time.perf_counter() - start
