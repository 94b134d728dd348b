"""A search by gradient: what costs, at which resolution, and how the architecture it comes to is made to keep the constraints."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch

from natdeploy.errors import InfeasibleError, UsageError
from natdeploy.pipeline.config import SearchConfig
from natdeploy.pipeline.predictor import Predictor
from natdeploy.pipeline.problem import LATENCY, Problem
from natdeploy.pipeline.setting import Setting, make_supernet
from natdeploy.search import Archive, RoundReport, Scores, show, smallest_feasible
from natdeploy.search.objectives import CheapObjective
from natdeploy.space import Arch, BlockSum, Genotypes, SearchSpace
from natdeploy.store import RunStore
from natdeploy.tasks import Task
from natdeploy.training.adapt import Lesson
from natdeploy.training.gradient import Chooser, Cost

SAMPLES = 256
"""Architectures by which the sum of a predictor's parts is made to agree with what it says of whole ones."""

BLOCK = 20
"""Steps of weights between two turns of the logits where weights are trained elsewhere: each turn moves all weights."""

RESTARTED = "restarted"
"""Fact of a run: the chosen network begins with the seed's weights again."""
CHOSEN = "chosen"
"""Fact of a run: the architecture after each round."""


def make_chooser(
    config: SearchConfig,
    setting: Setting,
    problem: Problem,
    predictors: Mapping[str, Predictor],
    *,
    start: int = 0,
    stop: int = 1,
    workers: int = 1,
) -> Chooser:
    """Logits over the search's space at one resolution.

    Args:
        config: of the search.
        setting: images and supernet.
        problem: objectives and constraints.
        predictors: of latency, by objective.
        start: step of weights after which the logits move.
        stop: the last one.
        workers: processes that train.

    Raises:
        UsageError: the resolution that is asked for is not of the space.
        InfeasibleError: nothing keeps the constraints at it.
    """
    resolution = _resolution(config, setting, problem)
    return Chooser(
        setting.supernet,
        _own_task(setting.task),
        resolution,
        _costs(config, setting, problem, predictors, resolution),
        config.gradient,
        start=start,
        stop=stop,
        seed=config.seed,
        own=setting.seed_arch(resolution),
        autocast=config.adapt.train.autocast,
        block=config.gradient.every * (1 if workers == 1 else BLOCK),
    )


def remapped_anew(setting: Setting, config: SearchConfig) -> dict[str, torch.Tensor]:
    """The supernet's weights as they were before any training, without the classifier."""
    generator = torch.Generator().manual_seed(config.seed)
    supernet, _ = make_supernet(
        setting.seed, setting.space, len(setting.classes), setting.convention.padding, generator, rules=config.remap
    )
    return {name: value for name, value in supernet.state_dict().items() if not name.startswith("classifier.")}


def gradient_lesson(setting: Setting, problem: Problem, chooser: Chooser) -> Lesson:
    """What weights learn while the logits move: architectures as they are drawn from them, and first the seed's own."""
    return Lesson(
        setting.task,
        [setting.seed_arch(chooser.resolution)],
        chooser.draws,
        largest=replace(setting.space.decode(setting.space.upper), resolution=chooser.resolution),
        smallest=replace(problem.smallest, resolution=chooser.resolution),
    )


def _own_task(task: Task) -> Task:
    """The logits learn from validation images, changed like training ones: weights see them only once the architecture is chosen,
    and by them evolution chooses as well.
    """
    return task.with_splits(replace(task.splits, train=task.splits.validation, validation=task.splits.train))


def _resolution(config: SearchConfig, setting: Setting, problem: Problem) -> int:
    space, asked = setting.space, config.gradient.resolution
    if asked is not None and asked not in space.resolutions:
        raise UsageError(f"gradient.resolution {asked} is not in space {space.name}; it has {list(space.resolutions)}")
    choices = [asked] if asked is not None else [each for each in space.resolutions if each <= problem.baseline.resolution]
    for resolution in reversed(choices):
        try:
            _smallest(problem, space, resolution)
        except InfeasibleError:
            continue
        return resolution
    bounds = " and ".join(map(str, problem.constraints))
    where = f"{asked} px" if asked is not None else f"{choices[0]} to {choices[-1]} px"
    raise InfeasibleError(f"no architecture of space {space.name} keeps {bounds} at {where}; choose another bound or resolution")


def _smallest(problem: Problem, space: SearchSpace, resolution: int) -> Genotypes:
    """The smallest architecture (arch_variables,) at a resolution that keeps the constraints, as a genotype of the whole space."""
    narrow = space.restrict(resolutions=(resolution,))
    code = space.resolutions.index(resolution)

    def widened(genotypes: Genotypes) -> Genotypes:
        wide = genotypes.copy()
        wide[:, 0] = code
        return wide

    cheap = {name: _after(widened, function) for name, function in problem.objectives.cheap.items()}
    objectives = replace(problem.objectives, cheap=cheap)
    found = smallest_feasible(narrow, objectives, problem.constraints, np.random.default_rng(0))
    smallest: Genotypes = widened(found[None])[0]
    return smallest


def _after(first: Callable[[Genotypes], Genotypes], then: CheapObjective) -> CheapObjective:
    return lambda genotypes: then(first(genotypes))


def _costs(
    config: SearchConfig, setting: Setting, problem: Problem, predictors: Mapping[str, Predictor], resolution: int
) -> dict[str, Cost]:
    """What has a bound, and what a penalty counts; without either, the seed's own cost bounds."""
    bounds: dict[str, float | None] = {}
    for each in problem.constraints:
        bounds[each.objective] = min(each.bound, bounds.get(each.objective) or each.bound)
    name = config.gradient.cost
    if not bounds and not config.gradient.penalty:
        own = setting.space.encode(setting.seed_arch(resolution))[None]
        bounds[name] = float(problem.objectives.cheap[name](own)[0])
    if config.gradient.penalty:
        bounds.setdefault(name, None)
    parts = {name: _parts(setting, problem, predictors, name, resolution) for name in bounds}
    return {name: Cost(*parts[name], bound) for name, bound in bounds.items()}


def _parts(
    setting: Setting, problem: Problem, predictors: Mapping[str, Predictor], name: str, resolution: int
) -> tuple[float, torch.Tensor]:
    """A quantity of what is fixed, and what each code of each slot adds, (slots, 1 + codes).

    A predictor's booster knows whole networks only; its factor, the median over some of them, is taken into the parts.
    """
    space, cheap = setting.space, problem.objectives.cheap[name]
    if name.partition("@")[0] == LATENCY:
        fixed, added = predictors[name].terms(space, len(setting.classes), resolution, space.widths[0])
    else:
        assert isinstance(cheap, BlockSum), "all but latencies are plain sums"
        fixed, added = cheap.terms(space.resolutions.index(resolution), 0)
    drawn = space.sample(SAMPLES, np.random.default_rng(0))
    drawn[:, 0] = space.resolutions.index(resolution)
    codes = drawn[:, 2 : space.arch_variables]
    summed = fixed + added[np.arange(codes.shape[1]), codes].sum(axis=1)
    factor = float(np.median(cheap(drawn) / summed))
    return factor * fixed, torch.from_numpy(factor * added)


def kept(problem: Problem, space: SearchSpace, chooser: Chooser) -> Arch:
    """The likeliest architecture; where it breaks a constraint, one near it that does not.

    Single choices are changed one after the other, each time the one that costs least likelihood for what it takes off the excess;
    then all that can be taken back is.
    """
    current = space.encode(chooser.likeliest())
    violation = problem.objectives.violation(current[None], problem.constraints)[0]
    if violation == 0:
        return space.decode(current)
    while violation > 0:
        others = _beside(space, current)
        left = problem.objectives.violation(others, problem.constraints)
        nearer = np.flatnonzero(left < violation)
        if not len(nearer):
            return space.decode(_smallest(problem, space, chooser.resolution))
        lost = chooser.scores(current[None])[0] - chooser.scores(others[nearer])
        best = nearer[np.argmin(lost / (violation - left[nearer]))]
        current, violation = others[best], left[best]
    while True:
        others = _beside(space, current)
        others = others[problem.keep(others)]
        scores = chooser.scores(others)
        if scores.max(initial=-np.inf) <= chooser.scores(current[None])[0]:
            return space.decode(current)
        current = others[scores.argmax()]


def _beside(space: SearchSpace, genotype: Genotypes) -> Genotypes:
    """Architectures that differ in one choice, of the same resolution."""
    found: Genotypes = space.neighbours(genotype)
    same: Genotypes = found[found[:, 0] == genotype[0]]
    return same


@dataclass(frozen=True)
class Rounds:
    """What is looked at while logits move: after each round, the architecture they have come to, and the baseline.

    Attributes:
        problem: of the search.
        space: of its architectures.
        chooser: holds the logits.
        evaluate: errors of architectures with the weights of a version.
        store: remembers what was chosen.
        note: is told about the logits.
    """

    problem: Problem
    space: SearchSpace
    chooser: Chooser
    evaluate: Callable[[list[Arch], int, bool], Scores]
    store: RunStore
    note: Callable[[str], None]

    def look(self, version: int) -> tuple[Archive, RoundReport]:
        """The archive of the architecture of a version alone, and what the round found."""
        chosen: dict[str, str] = self.store.get(CHOSEN) or {}
        if str(version) not in chosen:
            chosen[str(version)] = str(kept(self.problem, self.space, self.chooser))
            self.store.set(CHOSEN, chosen)
            self._tell()
        archs = [Arch.parse(text) for number, text in chosen.items() if int(number) <= version]
        both = Archive(self.space, self.problem.objectives, self.problem.constraints)
        now = list(dict.fromkeys([archs[-1], self.problem.baseline]))
        both.add(self.space.encode_all(now), self.evaluate(now, version, True).errors)
        alone = Archive(self.space, self.problem.objectives, self.problem.constraints)
        alone.add(both.genotypes[:1], both.errors[:1])
        reference = 1.01 * both.objectives.values(self.space.encode(self.problem.baseline)[None], np.ones(1))[0]
        before = {arch.id for arch in archs[:-1]}
        report = RoundReport(
            round=version,
            evaluated=len({arch.id for arch in archs} | {self.problem.baseline.id}),
            failed=int(both.failed.sum()),
            new=tuple(arch.id for arch in now if arch.id not in before and (version == 0 or arch != self.problem.baseline)),
            left=(),
            surrogate=None,
            hypervolume=alone.hypervolume(reference),
            reference=tuple(reference.tolist()),
            front_size=len(alone.front()),
            best_error=float(both.values[0, 0]),
        )
        return alone, report

    def _tell(self) -> None:
        prices = self.chooser.prices
        costs = [
            f"{self.problem.label(name)} {show(name, value)}" + (f" at a price of {prices[name]:.2g}" if name in prices else "")
            for name, value in self.chooser.expected().items()
        ]
        self.note(f"the mixture is expected to take {', '.join(costs)}")
