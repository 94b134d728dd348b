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
from natdeploy.pipeline.quantise import NATIVE
from natdeploy.pipeline.setting import Setting
from natdeploy.search import NatSettings
from natdeploy.store import RunStore
from natdeploy.supernet import Supernet
from natdeploy.training.adapt import Adapter, Lesson
from natdeploy.training.gradient import Chooser
from natdeploy.training.judge import calibrated_subnet, judge

MIN_STEPS = 60
"""Fewer training steps would leave the classifier half trained."""

ROUNDS, INITIAL, INFILL, PARENTS = 3, 32, 8, 12
"""Of a search without a budget in minutes."""

CHECKPOINT_SECONDS = 60.0
"""A killed run repeats at most about this much training."""

TUNED = 3
"""Nets trained alone at the end, at most: those that stand out."""

EVALUATION_SHARE = 0.15
"""Of the minutes, at most, for judging architectures; the rest trains."""

SECONDS_A_ROUND = 200
MIN_INITIAL = 16

ROUND_SECONDS = 4.0
"""Surrogate, evolution and bookkeeping of a round on one core."""

FRONT_SIZE, FRONT_SECONDS = 12, 1.5
"""Nets of a front that are not measured yet, and the time that converting and measuring one takes."""

QUANTISED_SECONDS = 6.0
"""Converting a few networks to one precision, and judging them there."""

UNTIMED_STEPS, TIMED_STEPS, LAST_TIMED_STEPS = 2, 12, 40

HALVING_SHARE = 0.5
"""Of the last stretch, while networks are halved; the rest is for those that are left."""

LOADING, PROFILING, FILES, TEST = "images and weights", "profiling", "judging files of the front", "test"
BESIDE_THE_MINUTES = (LOADING, PROFILING, FILES, TEST)
"""Parts of a run that its budget in minutes does not count."""

LEAST_FINAL = 0.5
"""Of the last stretch as planned, what remains of it where the minutes are over: a machine that was disturbed."""


@dataclass(frozen=True)
class Budget:
    """The work of a search.

    Attributes:
        warmup_steps: training steps before the first evaluation.
        round_steps: training steps in a round.
        final_steps: training steps after the last round, with the nets of the front alone.
        checkpoint_steps: training steps between two states on disk; a diverged run goes back to one of them, so they follow from
            the step alone.
        tune_steps: training steps of each net that is trained alone at the end.
        nat: archs and rounds.
        minutes: estimate for this machine.
        step_seconds: measured, one training step.
        evaluation_seconds: measured, one architecture.
        source: where the size of the budget comes from.
        choosing_seconds: measured, one step that moves the logits of architectures; None where there are none.
        settled: `final_steps` have been set anew, from the minutes that were left.
    """

    warmup_steps: int
    round_steps: int
    final_steps: int
    checkpoint_steps: int
    tune_steps: int
    nat: NatSettings
    minutes: float
    step_seconds: float
    evaluation_seconds: float
    source: str
    choosing_seconds: float | None = None
    settled: bool = False

    @property
    def total_steps(self) -> int:
        return self.steps(self.nat.rounds) + self.final_steps

    def steps(self, version: int) -> int:
        """Training steps behind the weights of a version; version 0 is what the warm-up leaves."""
        return self.warmup_steps + version * self.round_steps

    def halving_steps(self, number: int, halvings: int) -> int:
        """Training steps before a halving, from 1 on."""
        start = self.steps(self.nat.rounds)
        return start + round(number / halvings * HALVING_SHARE * self.final_steps)

    def __str__(self) -> str:
        if self.choosing_seconds is not None:
            moving = self.nat.rounds * self.round_steps
            return (
                f"about {self.minutes:.1f} min ({self.source}): {self.warmup_steps} training steps, {moving} "
                f"while the architecture is chosen, {self.final_steps} with the chosen one alone (a step takes "
                f"{self.step_seconds:.2f} s, one of the architecture {self.choosing_seconds:.2f} s)"
            )
        rounds = f"{self.nat.rounds} round{'' if self.nat.rounds == 1 else 's'}"
        return (
            f"about {self.minutes:.1f} min ({self.source}): {self.warmup_steps} training steps, {rounds} of "
            f"{self.round_steps}, {self.final_steps} with the front alone; {self.nat.initial} nets evaluated at first, "
            f"{self.nat.infill} new ones a round (a step takes {self.step_seconds:.2f} s, a net {self.evaluation_seconds:.2f} s)"
        )

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "nat": self.nat.model_dump()}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Budget:
        return cls(**{**values, "nat": NatSettings(**values["nat"])})


def make_budget(config: SearchConfig, setting: Setting, lesson: Lesson, chooser: Chooser | None = None) -> Budget:
    """The work that the data or `minutes` ask for.

    Without `minutes` it follows from the data alone, so the same search does the same work on any machine; the speed of this one,
    measured just now, only says how long that takes. With `minutes` the speed decides how much work fits.
    """
    schedule = config.schedule
    step_s, evaluation_s = _measure(config, setting, lesson)
    choosing_s = None if chooser is None else _choosing_seconds(chooser)
    # Of the steps of rounds alone, hence by their share of all steps.
    rounds_share = 1 - schedule.warmup - schedule.final
    mean_s = step_s if choosing_s is None else step_s + rounds_share * choosing_s / config.gradient.every
    images = len(setting.task.splits.train)
    if config.minutes is None:
        nat = _sized(config, NatSettings(initial=INITIAL, rounds=ROUNDS, infill=INFILL, parents=PARENTS), chooser)
        steps = max(MIN_STEPS, math.ceil(schedule.epochs * images / config.adapt.train.batch_size))
        source = f"{schedule.epochs:g} epochs of the {images} training images"
    else:
        nat = _sized(config, nat_sizes(60 * config.minutes, evaluation_s, config.rounds), chooser)
        searching_s = _search_seconds(nat, evaluation_s, chosen=chooser is not None) + _quantising_seconds(nat, config)
        steps = max(MIN_STEPS, math.floor((60 * config.minutes - searching_s) / mean_s))
        source = f"--minutes {config.minutes:g}"
    final_steps = round(steps * schedule.final)
    round_steps = max(1, round(steps * (1 - schedule.warmup - schedule.final) / nat.rounds)) if nat.rounds else 0
    if schedule.warmup + schedule.final == 1:
        round_steps = 0
    warmup_steps = steps - final_steps - nat.rounds * round_steps
    searching_s = _search_seconds(nat, evaluation_s, chosen=chooser is not None) + _quantising_seconds(nat, config)
    seconds = steps * mean_s + searching_s + 60 * config.finetune_minutes
    return Budget(
        warmup_steps=warmup_steps,
        round_steps=round_steps,
        final_steps=final_steps,
        checkpoint_steps=max(1, round(CHECKPOINT_SECONDS / (step_s + (choosing_s or 0.0)))),
        tune_steps=round(60 * config.finetune_minutes / (TUNED * step_s)),
        nat=nat,
        minutes=seconds / 60,
        step_seconds=step_s,
        evaluation_seconds=evaluation_s,
        source=source,
        choosing_seconds=choosing_s,
    )


def settled(budget: Budget, config: SearchConfig, setting: Setting, lesson: Lesson, spent_s: float) -> Budget:
    """The budget with as many steps for the last stretch as the minutes have room for, now that its nets are known.

    Their steps may cost half or twice what was thought at the start, when nobody knew which nets would be trained.

    Args:
        budget: of the search until now.
        config: of the search; without `minutes` nothing changes.
        setting: images and supernet.
        lesson: of the last stretch.
        spent_s: seconds of the minutes that are over.
    """
    if budget.settled or config.minutes is None or not budget.final_steps:
        return budget
    step_s = _step_seconds(config, setting.supernet, lesson, sampled_share=config.adapt.sampled_share, timed_steps=LAST_TIMED_STEPS)
    fitting = math.floor((60 * config.minutes - spent_s) / step_s)
    # First phases and the rise of the rate are shares of all steps; they must not come back.
    done, first = budget.total_steps - budget.final_steps, max(config.adapt.first_share, config.adapt.train.warmup)
    most = math.floor(done / first) - done if first else fitting
    return replace(budget, final_steps=max(1, round(LEAST_FINAL * budget.final_steps), min(fitting, most)), settled=True)


def _sized(config: SearchConfig, sizes: NatSettings, chooser: Chooser | None) -> NatSettings:
    """Sizes that follow from the budget, and over them the settings that were given.

    Where a chooser moves logits, rounds are places to look at it, and all that is evaluated is what it has come to.
    """
    given = {name: getattr(config.nat, name) for name in config.nat.model_fields_set}
    rounds = {} if config.rounds is None else {"rounds": config.rounds}
    if chooser is not None:
        return NatSettings(rounds=max(1, config.rounds or given.get("rounds", ROUNDS)))
    sized = sizes.model_copy(update=given | rounds)
    # A search of fewer rounds than that measures its front once all the same.
    return sized.model_copy(update={"measure_every": min(sized.measure_every, sized.rounds)})


def _search_seconds(nat: NatSettings, evaluation_s: float, *, chosen: bool = False) -> float:
    """Time of all that is not training. The archive is evaluated anew in every round, after the weights have moved."""
    if chosen:
        return 2 * (nat.rounds + 1) * evaluation_s
    archive = [nat.initial + number * nat.infill for number in range(nat.rounds + 1)]
    if not nat.reevaluate:
        archive = archive[:1]
    measuring_s = _fronts(nat) * FRONT_SIZE * FRONT_SECONDS
    return (sum(archive) + nat.rounds * nat.infill) * evaluation_s + nat.rounds * ROUND_SECONDS + measuring_s


def _fronts(nat: NatSettings) -> int:
    """How often the front is measured."""
    return nat.rounds // nat.measure_every if nat.measure_every else 0


def _quantising_seconds(nat: NatSettings, config: SearchConfig) -> float:
    """Time for learning what precisions cost, before the first round and with every measured front."""
    quantised = [each for each in config.precisions if each != NATIVE]
    return (1 + _fronts(nat)) * len(quantised) * QUANTISED_SECONDS


def nat_sizes(seconds: float, evaluation_s: float, rounds: int | None) -> NatSettings:
    """NAT's 30 rounds of 8 and as many networks at first as a search without a budget has, or what a share of the time allows.

    Args:
        seconds: of the search.
        evaluation_s: that judging a network takes: where it is much, fewer networks are judged at first, then in fewer rounds.
        rounds: that are asked for.
    """
    most = rounds or min(30, max(2, round(seconds / SECONDS_A_ROUND)))
    sizes = [(most, initial) for initial in range(INITIAL, MIN_INITIAL, -4)]
    sizes += [(number, MIN_INITIAL) for number in ([most] if rounds else range(most, 0, -1))]
    for number, initial in sizes:
        nat = NatSettings(initial=initial, rounds=number, infill=INFILL, parents=max(INFILL, (initial + number * INFILL) // 4))
        if _search_seconds(nat, evaluation_s) <= EVALUATION_SHARE * seconds:
            break
    return nat


def _choosing_seconds(chooser: Chooser) -> float:
    """Of a step that moves the logits, the first of which is not timed."""
    chooser.gradient()
    start = time.perf_counter()
    for _ in range(UNTIMED_STEPS):
        chooser.gradient()
    return (time.perf_counter() - start) / UNTIMED_STEPS


def _measure(config: SearchConfig, setting: Setting, lesson: Lesson) -> tuple[float, float]:
    """Seconds of a step and of an evaluation."""
    # The cost of a step grows with the area of its images: a leader of the mean area stands for all of them.
    mean_area = mean(arch.resolution**2 for arch in lesson.leaders)
    typical = min(lesson.leaders, key=lambda arch: abs(arch.resolution**2 - mean_area))
    led = _step_seconds(config, setting.supernet, replace(lesson, leaders=[typical]), sampled_share=0.0)
    sampled = _step_seconds(config, setting.supernet, lesson, sampled_share=1.0)
    # The last stretch draws nets of the front for sampled ones, which are like its leaders.
    share = config.adapt.sampled_share * (1 - config.schedule.final)
    step_s = (1 - share) * led + share * sampled
    start = time.perf_counter()
    judge(calibrated_subnet(setting.supernet, typical, setting.task), setting.task, "validation")
    return step_s, time.perf_counter() - start


def _step_seconds(
    config: SearchConfig, supernet: Supernet, lesson: Lesson, *, sampled_share: float, timed_steps: int = TIMED_STEPS
) -> float:
    """Of a step once the first phases are over; of a copy of the supernet, at a rate of zero."""
    phases = {"head_share": 0.0, "largest_share": 0.0, "wide_share": 0.0}
    still = config.adapt.train.model_copy(update={"learning_rate": 0.0})
    settings = config.adapt.model_copy(update={**phases, "sampled_share": sampled_share, "train": still})
    adapter = Adapter(copy.deepcopy(supernet), settings, total_steps=UNTIMED_STEPS + timed_steps, seed=config.seed)
    adapter.run(UNTIMED_STEPS, lesson, lambda: None)
    start = time.perf_counter()
    adapter.run(UNTIMED_STEPS + timed_steps, lesson, lambda: None)
    return (time.perf_counter() - start) / timed_steps


def spent_seconds(store: RunStore) -> float:
    """What a run has spent of its minutes."""
    return sum(seconds for part, seconds in store.seconds().items() if part.partition(":")[0] not in BESIDE_THE_MINUTES)
