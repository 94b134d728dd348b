"""What a search is about: what it minimises under which constraints, and which architectures it trains."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from natdeploy.errors import InfeasibleError, UsageError
from natdeploy.hardware.device import Target
from natdeploy.latency.estimate import BYTES
from natdeploy.pipeline.config import SearchConfig, target_of
from natdeploy.pipeline.predictor import Predictor, estimated
from natdeploy.pipeline.setting import Setting
from natdeploy.search import Constraint, Objectives, by_precision, parse_constraint, reachable_range, smallest_feasible
from natdeploy.search.objectives import CheapObjective
from natdeploy.space import Arch, BlockSum, Genotypes, SearchSpace
from natdeploy.training.adapt import ArchSampler, Lesson

LATENCY = "latency"
"""On the search's own target; `latency@TARGET` is that of another one."""

LEADER_SHARE = 0.45
"""Of the baseline's resolution, from which on the seed's architecture leads the training."""

SHORTENED = 4
"""One in so many of the first archive is the seed's architecture with fewer layers, at a resolution too large for all of them."""

_DRAWS = 64
"""Architectures drawn at once when only those within the constraints may be trained."""
_MUTATION = 0.1
"""Share of the seed architecture's choices that are drawn anew for architectures around it."""


@dataclass(frozen=True)
class Problem:
    """What is minimised under which constraints, and the architectures that have a part of their own in training.

    Attributes:
        space: of the architectures, with the precisions that are searched.
        targets: where latency counts, by the name of its objective; `latency` is the search's own target, and first. Where
            precisions are searched, that is the target in the first of them, and `latency-int8` the same target in another one.
        latencies: by the same names, the functions of architectures without precision, before any correction.
        objectives: `error` first.
        constraints: to keep.
        baseline: the seed's architecture, at the first resolution at which it exceeds a constraint, or the middle one without any.
        smallest: the smallest architecture of the space where it keeps the constraints, else one that does.
        largest: of the largest and the seed's architecture at all resolutions, the one with the most MACs that keeps the
            constraints, else the smallest.
        reachable: (least, greatest) value of every cheap objective.
        estimated: objectives whose latencies come from a specification sheet.
    """

    space: SearchSpace
    targets: Mapping[str, Target]
    latencies: Mapping[str, CheapObjective]
    objectives: Objectives
    constraints: tuple[Constraint, ...]
    baseline: Arch
    smallest: Arch
    largest: Arch
    reachable: Mapping[str, tuple[float, float]]
    estimated: frozenset[str]

    def keep(self, genotypes: Genotypes) -> npt.NDArray[np.bool_]:
        """Which architectures (n, arch_variables or more) keep the constraints, in one of the precisions."""
        return _keep(self.space, self.objectives, self.constraints, genotypes)

    def macs(self, arch: Arch) -> float:
        """Multiply-accumulates of one image."""
        return float(self.objectives.cheap["macs"](self.space.encode(arch)[None])[0])

    def label(self, objective: str) -> str:
        """What to call an objective's values."""
        return label(objective, estimated=objective in self.estimated)


def label(objective: str, *, estimated: bool) -> str:
    """What to call an objective's values before people: an estimate is never called a latency and nothing else."""
    return f"estimated {objective}" if estimated else objective


def requirements(config: SearchConfig) -> tuple[dict[str, Target], tuple[Constraint, ...]]:
    """Targets by objective and constraints, checked as far as that is possible without reading anything.

    Raises:
        UsageError: target, objective or constraint is unknown or makes no sense.
    """
    constraints = tuple(parse_constraint(text) for text in config.constraints)
    used = dict.fromkeys([*config.objectives, *(each.objective for each in constraints)])
    unknown: dict[str, Any] = dict.fromkeys(used)
    Objectives(config.objectives, unknown)
    if any(name.partition("@")[0] == "energy" for name in used):
        raise UsageError("energy cannot be searched for yet: latency tables hold no measured energy; leave it out")
    targets = {LATENCY: target_of(config)}
    targets |= {f"{LATENCY}-{each}": target_of(config, precision=each) for each in config.precisions[1:]}
    for name in used:
        base, _, text = name.partition("@")
        if base == LATENCY and text:
            if config.precisions:
                raise UsageError(f"precisions are searched for one target only; leave out {name}, or --precision")
            targets[name] = target_of(config, text)
    same = [name for name, target in targets.items() if name != LATENCY and str(target) == str(targets[LATENCY])]
    if same:
        raise UsageError(f"{same[0]} is the search's own target; write `latency`, or name another target")
    return targets, constraints


def objectives_of(
    names: tuple[str, ...], space: SearchSpace, latencies: Mapping[str, CheapObjective], classes: int, precision: str
) -> Objectives:
    """Objectives with the functions that compute all but the error.

    Args:
        names: of the objectives.
        space: of the architectures, of one width.
        latencies: by target, of architectures.
        classes: outputs of the classifier.
        precision: of the weights in the file, which has as many as there are parameters; those that are searched count before it.
    """
    archs = space.archs_only
    sizes = [_size(archs, classes, each) for each in space.precisions or (precision,)]
    return Objectives(
        names,
        {
            **by_objective(space, latencies),
            "macs": BlockSum(archs, lambda blocks: [block.macs for block in blocks], classes),
            "params": BlockSum(archs, lambda blocks: [block.params for block in blocks], classes),
            "size": by_precision(sizes) if space.precisions else sizes[0],
        },
    )


def _size(space: SearchSpace, classes: int, precision: str) -> CheapObjective:
    return BlockSum(space, lambda blocks: [BYTES[precision] * block.params / 1e6 for block in blocks], classes)


def by_objective(space: SearchSpace, latencies: Mapping[str, CheapObjective]) -> dict[str, CheapObjective]:
    """Latencies by the name of their objective, from those by target: of several precisions they are one objective."""
    return {LATENCY: by_precision(list(latencies.values()))} if space.precisions else dict(latencies)


def make_problem(config: SearchConfig, setting: Setting, predictors: Mapping[str, Predictor]) -> Problem:
    """The problem that a configuration states.

    Args:
        config: what the user asks for.
        setting: images and supernet.
        predictors: of latency, by the names of `requirements`.

    Raises:
        InfeasibleError: no architecture keeps the constraints; the message names the reachable range.
    """
    targets, constraints = requirements(config)
    space, classes = replace(setting.space, precisions=config.precisions), len(setting.classes)
    latencies = {name: predictors[name].total(setting.space, classes) for name in targets}
    objectives = objectives_of(config.objectives, space, latencies, classes, targets[LATENCY].precision)
    rng = np.random.default_rng(config.seed)
    estimates = {name: text for name, predictor in predictors.items() if (text := estimated(predictor))}
    try:
        smallest = space.decode(smallest_feasible(space, objectives, constraints, rng))
    except InfeasibleError as error:
        if not estimates:
            raise
        raise InfeasibleError(f"{error}; {'; '.join(f'{name} is {text}' for name, text in estimates.items())}") from error
    known = (name for name in predictors if name in objectives.cheap)
    named = dict.fromkeys([*known, *(each.objective for each in constraints), *config.objectives[1:], "macs", "params"])
    reachable = {name: reachable_range(objectives.cheap[name], space, rng) for name in named}
    return Problem(
        space=space,
        targets=targets,
        latencies=latencies,
        objectives=objectives,
        constraints=constraints,
        baseline=_baseline(setting, space, objectives, constraints),
        smallest=smallest,
        largest=_largest(setting, space, objectives, constraints) or smallest,
        reachable=reachable,
        estimated=frozenset(name if name in objectives.cheap else LATENCY for name in estimates),
    )


def _keep(
    space: SearchSpace, objectives: Objectives, constraints: Sequence[Constraint], genotypes: Genotypes
) -> npt.NDArray[np.bool_]:
    options = [space.in_precision(genotypes, each) for each in space.precisions] or [genotypes]
    kept: npt.NDArray[np.bool_] = np.any([objectives.violation(each, constraints) == 0 for each in options], axis=0)
    return kept


def _largest(setting: Setting, space: SearchSpace, objectives: Objectives, constraints: Sequence[Constraint]) -> Arch | None:
    upper = space.decode(space.upper)
    archs = [arch for each in space.resolutions for arch in (setting.seed_arch(each), replace(upper, resolution=each))]
    keeps = _keep(space, objectives, constraints, space.encode_all(archs))
    kept = [arch for arch, keep in zip(archs, keeps, strict=True) if keep]
    return max(kept, key=lambda arch: float(objectives.cheap["macs"](space.encode(arch)[None])[0]), default=None)


def _baseline(setting: Setting, space: SearchSpace, objectives: Objectives, constraints: Sequence[Constraint]) -> Arch:
    archs = [setting.seed_arch(resolution) for resolution in space.resolutions]
    if not constraints:
        return archs[len(archs) // 2]
    exceeds = objectives.violation(space.encode_all(archs), constraints) > 0
    return archs[int(exceeds.argmax())] if exceeds.any() else archs[-1]


def within(problem: Problem, space: SearchSpace, draw: Callable[[int, np.random.Generator], Genotypes]) -> ArchSampler:
    """Architectures of a distribution that keep the constraints: training others would be a waste.

    If a distribution has nearly none, the smallest architecture stands in for those missing.
    """

    def sample(count: int, rng: np.random.Generator) -> Sequence[Arch]:
        drawn = draw(_DRAWS, rng)
        kept = drawn[problem.keep(drawn)][:count]
        return [*space.decode_all(kept), *[problem.smallest] * (count - len(kept))]

    return sample


def fitted(setting: Setting, problem: Problem, resolution: int) -> list[Arch]:
    """The seed's architecture at a resolution if it keeps the constraints there; else what is left of it that does.

    Layers are taken off the ends of stages, from the last stage on, or evenly, from the deepest one: two answers, or one if they
    agree, or none. What stays has the seed's own weights, so a larger input can be had for layers that matter less.
    """
    found = []
    for even in (False, True):
        archs = _shortened(setting.space, setting.seed_arch(resolution), even=even)
        kept = np.flatnonzero(problem.keep(setting.space.encode_all(archs)))
        found += [archs[row] for row in kept[:1]]
    return list(dict.fromkeys(found))


def _shortened(space: SearchSpace, arch: Arch, *, even: bool) -> list[Arch]:
    """An architecture, and what is left of it as one layer after the other goes."""
    archs = [arch]
    while True:
        depths = archs[-1].depths
        longer = [number for number, stage in enumerate(space.stages) if depths[number] > stage.min_depth]
        if not longer:
            return archs
        place = max(longer, key=lambda number: (depths[number] if even else 0, number))
        stages = [layers[:-1] if number == place else layers for number, layers in enumerate(archs[-1].stages)]
        archs.append(replace(arch, stages=tuple(stages)))


def around_seed(setting: Setting, problem: Problem) -> ArchSampler:
    """The seed's architecture at any resolution, as it fits there, with a few choices changed: such nets inherit most of it, and so
    are good early.
    """
    space = setting.space
    bases = [arch for resolution in space.resolutions for arch in fitted(setting, problem, resolution)[:1]]
    seeds = space.encode_all(bases or [problem.baseline])

    def draw(count: int, rng: np.random.Generator) -> Genotypes:
        drawn = seeds[rng.integers(len(seeds), size=count)]
        mutated = space.mutate(drawn, rng, _MUTATION)
        mutated[:, 0] = drawn[:, 0]
        return mutated

    return within(problem, space, draw)


def first_lesson(setting: Setting, problem: Problem, *, uniform: bool = False) -> Lesson:
    """What the warm-up teaches: the seed's architecture at all but the smallest resolutions leads those around it.

    Args:
        setting: images and supernet.
        problem: of the search.
        uniform: all architectures are sampled alike, instead of those around the seed.
    """
    sampler = within(problem, setting.space, setting.space.sample) if uniform else around_seed(setting, problem)
    largest = problem.baseline.resolution
    resolutions = [each for each in setting.space.resolutions if LEADER_SHARE * largest <= each <= largest]
    return Lesson(
        setting.task,
        [setting.seed_arch(each) for each in resolutions],
        sampler,
        largest=problem.largest,
        smallest=problem.smallest,
    )


def first_archs(setting: Setting, problem: Problem, count: int, seed: int) -> list[Arch]:
    """Architectures for the first archive: the baseline, the largest, the seed's own at every resolution that keeps the
    constraints and shortened at the next ones, and as many around it as make half of `count`; the search adds the smallest and
    others from the whole space.
    """
    kept: list[Arch] = []
    shortened: list[Arch] = []
    for resolution in setting.space.resolutions:
        archs = fitted(setting, problem, resolution)
        (kept if archs == [setting.seed_arch(resolution)] else shortened).extend(archs)
    archs = list(dict.fromkeys([problem.baseline, problem.largest, *kept, *shortened[: count // SHORTENED]]))
    near = around_seed(setting, problem)(max(0, count // 2 - len(archs)), np.random.default_rng([seed, len(archs)]))
    return list(dict.fromkeys([*archs, *near]))[:count]
