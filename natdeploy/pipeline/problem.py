"""What a search is about: what it minimises under which constraints, and which architectures it trains."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from natdeploy.errors import InfeasibleError
from natdeploy.hardware.device import Target
from natdeploy.pipeline.config import SearchConfig, target_of
from natdeploy.pipeline.predictor import Predictor, estimated
from natdeploy.pipeline.setting import Setting
from natdeploy.search import Constraint, Objectives, parse_constraint, reachable_range, smallest_feasible
from natdeploy.space import Arch, BlockSum, Genotypes, SearchSpace
from natdeploy.training.adapt import ArchSampler, Lesson

LEADER_SHARE = 0.45
"""Of the baseline's resolution, from which on the seed's architecture leads the training."""

_DRAWS = 64
"""Architectures drawn at once when only those within the constraints may be trained."""
_MUTATION = 0.1
"""Share of the seed architecture's choices that are drawn anew for architectures around it."""


@dataclass(frozen=True)
class Problem:
    """What is minimised under which constraints, and the architectures that have a part of their own in training.

    Attributes:
        target: where latency counts.
        objectives: `error` first.
        constraints: to keep.
        baseline: the seed's architecture, at the first resolution at which it exceeds a constraint, or the middle one without any.
        smallest: the smallest architecture of the space where it keeps the constraints, else one that does.
        reachable: (least, greatest) value of every cheap objective.
        estimated: latencies come from a specification sheet.
    """

    target: Target
    objectives: Objectives
    constraints: tuple[Constraint, ...]
    baseline: Arch
    smallest: Arch
    reachable: Mapping[str, tuple[float, float]]
    estimated: bool

    def label(self, objective: str) -> str:
        """What to call an objective's values."""
        return label(objective, estimated=self.estimated)


def label(objective: str, *, estimated: bool) -> str:
    """What to call an objective's values before people: an estimate is never called a latency and nothing else."""
    return f"estimated {objective}" if estimated and objective == "latency" else objective


def requirements(config: SearchConfig) -> tuple[Target, tuple[Constraint, ...]]:
    """Target and constraints, checked as far as that is possible without reading anything.

    Raises:
        UsageError: target, objective or constraint is unknown or makes no sense.
    """
    constraints = tuple(parse_constraint(text) for text in config.constraints)
    unknown: dict[str, Any] = dict.fromkeys(("latency", "macs", "params"))
    Objectives(config.objectives, unknown)
    return target_of(config), constraints


def objectives_of(names: tuple[str, ...], space: SearchSpace, predictor: Predictor, classes: int) -> Objectives:
    """Objectives with the functions that compute all but the error."""
    return Objectives(
        names,
        {
            "latency": predictor.total(space, classes),
            "macs": BlockSum(space, lambda blocks: [block.macs for block in blocks], classes),
            "params": BlockSum(space, lambda blocks: [block.params for block in blocks], classes),
        },
    )


def make_problem(config: SearchConfig, setting: Setting, predictor: Predictor) -> Problem:
    """The problem that a configuration states.

    Raises:
        InfeasibleError: no architecture keeps the constraints; the message names the reachable range.
    """
    target, constraints = requirements(config)
    space = setting.space
    objectives = objectives_of(config.objectives, space, predictor, len(setting.classes))
    rng = np.random.default_rng(config.seed)
    estimate = estimated(predictor)
    try:
        smallest = space.decode(smallest_feasible(space, objectives, constraints, rng))
    except InfeasibleError as error:
        if estimate is None:
            raise
        raise InfeasibleError(f"{error}; latency is {estimate}") from error
    reachable = {name: reachable_range(function, space, rng) for name, function in objectives.cheap.items()}
    baseline = _baseline(setting, objectives, constraints)
    return Problem(target, objectives, constraints, baseline, smallest, reachable, estimate is not None)


def _baseline(setting: Setting, objectives: Objectives, constraints: Sequence[Constraint]) -> Arch:
    archs = [setting.seed_arch(resolution) for resolution in setting.space.resolutions]
    if not constraints:
        return archs[len(archs) // 2]
    exceeds = objectives.violation(setting.space.encode_all(archs), constraints) > 0
    return archs[int(exceeds.argmax())] if exceeds.any() else archs[-1]


def within(problem: Problem, space: SearchSpace, draw: Callable[[int, np.random.Generator], Genotypes]) -> ArchSampler:
    """Architectures of a distribution that keep the constraints: training others would be a waste.

    If a distribution has nearly none, the smallest architecture stands in for those missing.
    """

    def sample(count: int, rng: np.random.Generator) -> Sequence[Arch]:
        drawn = draw(_DRAWS, rng)
        kept = drawn[problem.objectives.violation(drawn, problem.constraints) == 0][:count]
        return [*space.decode_all(kept), *[problem.smallest] * (count - len(kept))]

    return sample


def around_seed(setting: Setting, problem: Problem) -> ArchSampler:
    """The seed's architecture at any resolution with a few choices changed: such nets inherit most of it, and so are good early."""
    space, seed = setting.space, setting.space.encode(problem.baseline)

    def draw(count: int, rng: np.random.Generator) -> Genotypes:
        drawn = space.mutate(np.tile(seed, (count, 1)), rng, _MUTATION)
        drawn[:, 0] = rng.integers(len(space.resolutions), size=count)
        return drawn

    return within(problem, space, draw)


def first_lesson(setting: Setting, problem: Problem) -> Lesson:
    """What the warm-up teaches: the seed's architecture at all but the smallest resolutions leads those around it."""
    largest = problem.baseline.resolution
    resolutions = [each for each in setting.space.resolutions if LEADER_SHARE * largest <= each <= largest]
    return Lesson(setting.task, [setting.seed_arch(each) for each in resolutions], around_seed(setting, problem))


def first_archs(setting: Setting, problem: Problem, count: int, seed: int) -> list[Arch]:
    """Architectures for the first archive: the baseline, the seed's own at every resolution that keeps the constraints, and as many
    around it as make half of `count`; the search adds others from the whole space.
    """
    own = [setting.seed_arch(resolution) for resolution in setting.space.resolutions]
    kept = problem.objectives.violation(setting.space.encode_all(own), problem.constraints) == 0
    archs = [problem.baseline, *(arch for arch, keeps in zip(own, kept, strict=True) if keeps)]
    near = around_seed(setting, problem)(max(0, count // 2 - len(archs)), np.random.default_rng([seed, len(archs)]))
    return list(dict.fromkeys([*archs, *near]))[:count]
