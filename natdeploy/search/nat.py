"""The loop of Neural Architecture Transfer (Lu et al., TPAMI 2021, arXiv 2005.05859): search the supernet and adapt it, in turns.

It knows neither networks nor devices: `evaluate`, `adapt` and `correct` are given. Every draw comes from a generator seeded by
(seed, component, round), and everything else follows from the answers, so a run repeated with the same answers ends with the same
archive, bit for bit. That is how a broken run goes on: replayed from the evaluations it has stored.

Where the space leaves a choice of precision, the search goes over pairs of architecture and precision, but networks are evaluated,
and the surrogate learns, once for all precisions: what a precision costs in accuracy is the objectives' `loss`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from natdeploy.errors import InfeasibleError, NatdeployError
from natdeploy.search.archive import Archive, Indices
from natdeploy.search.distribution import Distribution, follow
from natdeploy.search.evolve import evolve, infill
from natdeploy.search.feasible import sample_feasible, smallest_feasible
from natdeploy.search.objectives import Constraint, Floats, Objectives
from natdeploy.search.surrogate import (
    CANDIDATES,
    FEWEST,
    ErrorModel,
    Features,
    Fit,
    Knowledge,
    fit_best,
    kendall,
    learn_earlier,
    spearman,
)
from natdeploy.space import Arch, Genotypes, SearchSpace
from natdeploy.stopwatch import timed

_INITIAL, _FIT, _EVOLVE, _CORRECT, _EARLIER = range(5)


@dataclass(frozen=True, eq=False)
class Scores:
    """What evaluation found out.

    Attributes:
        errors: (n,) in 0..1; NaN where an architecture could not be evaluated.
        noise: (n,), one standard error of each; 0 where unknown.
    """

    errors: Floats
    noise: Floats


Evaluate = Callable[[Sequence[Arch], int, bool], Scores]
"""Architectures, the version of the supernet's weights, and whether to use all validation images or a fixed part of them."""
Adapt = Callable[[Distribution, int], None]
"""Trains the supernet with architectures of the distribution, into the given version of its weights."""
Correct = Callable[[Archive, int], Objectives | None]
"""Measures the archive's front after a round, and gives the same objectives with corrected functions; None leaves them."""


class NatSettings(BaseModel):
    """How much a search does, and how; docs/search.md has the reason of every default.

    Attributes:
        initial: architectures evaluated before the first round.
        rounds: turns of search and adaptation.
        infill: architectures evaluated in a round.
        parents: best architectures of the archive that training follows.
        population: of the evolution on the surrogate.
        generations: of it.
        smoothing: share of uniform chance in the distribution that training follows.
        surrogate: which model predicts errors; `auto` takes the best of cross-validation, anew in every round.
        optimism: standard deviations of the surrogate that an architecture is thought to be better than predicted.
        propose: where new architectures come from; `random` is for comparisons.
        distribution: what training follows: the frequencies in the archive's best, with `pairs` their dependencies as well, or
            everything alike.
        reevaluate: whether the archive is evaluated anew after adaptation; without, its errors are of several versions.
        screen: whether that begins with a part of the validation images, and goes on with all of them only where rank may matter.
        measure_every: rounds after which the front is measured and the objectives corrected; 0 never.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    initial: int = Field(default=20, ge=10)
    rounds: int = Field(default=30, ge=0)
    infill: int = Field(default=8, ge=1)
    parents: int = Field(default=50, ge=1)
    population: int = Field(default=100, ge=10)
    generations: int = Field(default=100, ge=1)
    smoothing: float = Field(default=0.1, ge=0, le=1)
    surrogate: Literal["auto", "rbf", "gp", "xgboost"] = "auto"
    optimism: float = Field(default=0.5, ge=0)
    propose: Literal["evolution", "random"] = "evolution"
    distribution: Literal["archive", "pairs", "uniform"] = "archive"
    reevaluate: bool = True
    screen: bool = True
    measure_every: int = Field(default=0, ge=0)


@dataclass(frozen=True)
class SurrogateQuality:
    """How well the errors of a round were predicted. Of the new architectures: those that could be evaluated.

    Attributes:
        name: of the surrogate that won; `+earlier` where it builds on earlier searches.
        taus: cross-validated Kendall tau of all that were tried on the archive.
        new_tau: Kendall tau between predicted and evaluated errors of the new architectures, None if there are fewer than two.
        new_spearman: Spearman's rank correlation of the same, likewise.
        new_rmse: root mean square of their difference, None without new ones.
    """

    name: str
    taus: Mapping[str, float]
    new_tau: float | None
    new_spearman: float | None
    new_rmse: float | None


@dataclass(frozen=True)
class RoundReport:
    """Where the search is after a round; round 0 is the initial sample.

    Attributes:
        round: also the version of the weights that the archive's errors belong to.
        evaluated: architectures in the archive.
        failed: those of them that could not be evaluated when last tried.
        new: ids of those added in this round.
        left: ids that a correction of the objectives threw off the front.
        surrogate: how well it predicted them; None in round 0, and where none was asked or too few errors were known to fit one.
        hypervolume: share of the box up to `reference` that the front dominates, 0..1; approximate for many objectives.
        reference: 1.01 times the worst feasible values of round 0, frozen.
        front_size: feasible non-dominated architectures, each as often as precisions of it are so.
        best_error: least error of them.
    """

    round: int
    evaluated: int
    failed: int
    new: tuple[str, ...]
    left: tuple[str, ...]
    surrogate: SurrogateQuality | None
    hypervolume: float
    reference: tuple[float, ...]
    front_size: int
    best_error: float


def search(
    space: SearchSpace,
    objectives: Objectives,
    constraints: Sequence[Constraint],
    *,
    evaluate: Evaluate,
    adapt: Adapt,
    settings: NatSettings,
    seed: int,
    include: Sequence[Arch] = (),
    correct: Correct | None = None,
    knowledge: Sequence[Knowledge] = (),
    on_round: Callable[[RoundReport], None] = lambda _: None,
) -> Archive:
    """Runs the whole search; no architecture is evaluated twice at one version of the weights on the same images.

    Args:
        space: where to search.
        objectives: what to minimise.
        constraints: what must hold.
        evaluate: asked at version 0 for the initial sample; in round r at version r - 1 for the new architectures, and after
            `adapt` at version r for the archive: on a part of the images for all of it, then on all images where rank may matter.
        adapt: asked once in every round, for version r.
        settings: how much to do.
        seed: of all chance.
        include: architectures that are evaluated in any case, such as the seed network; they may break constraints, and are then
            never on the front.
        correct: asked after every `settings.measure_every` rounds.
        knowledge: what earlier searches of the same space have found out.
        on_round: told after every round, the initial one included.

    Returns:
        The archive, its errors at the last version. Where the archive was screened, all of the front were evaluated on all images.

    Raises:
        InfeasibleError: no architecture keeps the constraints, or none does any more once the objectives are corrected.
        NatdeployError: `evaluate` gave something else than an error in 0..1 or NaN for every architecture, or NaN for all that are
            feasible.
        UsageError: an included architecture or an earlier search is not of the space.
    """
    archive = Archive(space, objectives, constraints)
    first = _first(archive, space.encode_all(list(dict.fromkeys(include))), settings.initial, _rng(seed, _INITIAL, 0))
    with threadpool_limits(1):
        earlier = learn_earlier(space.archs_only, knowledge, _rng(seed, _EARLIER, 0))
    judge = _Judge(archive, evaluate)
    judge.add(first, 0)
    reference = 1.01 * archive.values[archive.feasible].max(axis=0)
    on_round(_report(archive, 0, reference, new=archive.ids))
    for number in range(1, settings.rounds + 1):
        before = len(archive.ids)
        new, fit, predicted = _propose(archive, settings, seed, number, earlier)
        errors = judge.add(new, number - 1)
        quality = None if fit is None else _quality(fit, predicted, errors)
        best = archive.genotypes[archive.best(settings.parents), : space.arch_variables]
        adapt(follow(settings.distribution, space.archs_only, best, settings.smoothing), number)
        if settings.reevaluate:
            judge.all(number, settings.screen)
        left: tuple[str, ...] = ()
        if correct is not None and settings.measure_every and number % settings.measure_every == 0:
            left = _corrected(judge, correct, settings, seed, number)
        on_round(_report(archive, number, reference, new=archive.ids[before:], left=left, quality=quality))
    return archive


def _rng(seed: int, component: int, number: int) -> np.random.Generator:
    return np.random.default_rng([seed, component, number])


def _first(archive: Archive, include: Genotypes, count: int, rng: np.random.Generator) -> Genotypes:
    """The included, the smallest feasible and random feasible architectures, distinct, `count` in all where the space has them."""
    space, objectives, constraints = archive.space, archive.objectives, archive.constraints
    smallest = smallest_feasible(space, objectives, constraints, rng)
    known = np.unique(np.concatenate([include, smallest[None]]), axis=0)
    random = sample_feasible(count - len(known), space, objectives, constraints, known=known, rng=rng)
    return _networks(space, np.concatenate([known, random]))


def _networks(space: SearchSpace, genotypes: Genotypes) -> Genotypes:
    """Each architecture of (n, variables) once, in the first precision."""
    return space.in_every_precision(genotypes)[:: space.options]


class _Judge:
    """Errors of an archive: asks for them, and knows which of them come from all images and which from a part."""

    def __init__(self, archive: Archive, evaluate: Evaluate) -> None:
        self.archive = archive
        self._evaluate = evaluate
        self._part: Floats = np.empty(0)  # errors on the fixed part, NaN where that was not asked for or failed
        self._whole = np.empty(0, dtype=np.bool_)

    def add(self, genotypes: Genotypes, version: int) -> Floats:
        """Evaluates new, distinct architectures (n, variables) on all images and takes them into the archive; their errors (n,).

        Raises:
            NatdeployError: no feasible architecture of the archive could be evaluated.
        """
        before = len(self.archive)
        errors = self._ask(genotypes, version, whole=True).errors
        self.archive.add(genotypes, errors)
        rows = len(self.archive) - before
        self._part = np.append(self._part, np.full(rows, np.nan))
        self._whole = np.append(self._whole, np.ones(rows, dtype=np.bool_))
        self._require_one()
        return errors

    def all(self, version: int, screen: bool) -> None:
        """Evaluates the archive anew; with `screen` on all images only where rank may matter, which is a fraction of the work.

        Raises:
            NatdeployError: no feasible architecture could be evaluated.
        """
        options = self.archive.space.options
        scores = self._ask(self.archive.genotypes[::options], version, whole=not screen)
        self._part = np.repeat(scores.errors, options)
        self.archive.replace_errors(self._part)
        self._require_one()
        self._whole[:] = not screen
        if screen:
            self._ask_whole(self.archive.contenders(np.repeat(scores.noise, options)), version)
            self.settle(version)

    def settle(self, version: int) -> None:
        """Evaluates on all images until the front holds nothing but what was."""
        while len(wanted := self._on_part(self.archive.front())):
            self._ask_whole(wanted, version)

    def _on_part(self, rows: Indices) -> Indices:
        return rows[~self._whole[rows]]

    def _ask_whole(self, rows: Indices, version: int) -> None:
        """The networks of rows (k,) on all images; the others are moved by what the part differs from all images on average."""
        rows = self.archive.networks(rows)
        errors = self.archive.errors.copy()
        found = self._ask(self.archive.genotypes[rows], version, whole=True).errors
        for option in range(self.archive.space.options):
            errors[rows + option] = found
            self._whole[rows + option] = True
        difference = (errors - self._part)[self._whole]
        difference = difference[np.isfinite(difference)]
        if len(difference):
            errors[~self._whole] = np.clip(self._part[~self._whole] + difference.mean(), 0.0, 1.0)
        self.archive.replace_errors(errors)
        self._require_one()

    def _ask(self, genotypes: Genotypes, version: int, whole: bool) -> Scores:
        archs = self.archive.space.decode_all(genotypes)
        scores = self._evaluate(archs, version, whole) if archs else Scores(np.empty(0), np.empty(0))
        for what in ("errors", "noise"):
            if (shape := np.shape(getattr(scores, what))) != (len(archs),):
                raise NatdeployError(f"{len(archs)} architectures were to be evaluated, the answer's {what} have shape {shape}")
        wrong = np.flatnonzero((scores.errors < 0) | (scores.errors > 1))
        if len(wrong):
            raise NatdeployError(f"architecture {archs[wrong[0]].id} has error {scores.errors[wrong[0]]}, not in 0..1")
        return scores

    def _require_one(self) -> None:
        if not self.archive.feasible.any() and (self.archive.violation == 0).any():
            count = np.count_nonzero(self.archive.violation == 0)
            raise NatdeployError(
                f"none of the {count} feasible architectures could be evaluated; the log says why of each: mend that, or lower the "
                "rate of training if it diverged"
            )


def _propose(
    archive: Archive, settings: NatSettings, seed: int, number: int, earlier: Sequence[ErrorModel]
) -> tuple[Genotypes, Fit | None, Floats]:
    """New architectures (n, variables), what predicted their errors, and the predicted errors (n,); random ones are not predicted.

    One BLAS thread, because their number would change the last bits.
    """
    space, objectives, rng = archive.space, archive.objectives, _rng(seed, _EVOLVE, number)

    def chance(count: int, known: Genotypes) -> Genotypes:
        return sample_feasible(count, space, objectives, archive.constraints, known=known, rng=rng)

    known = archive.genotypes[~archive.failed][:: space.options]
    if settings.propose == "random" or len(known) < FEWEST:
        return _networks(space, chance(settings.infill, archive.genotypes)), None, np.empty(0)
    with threadpool_limits(1):
        features = Features(space, known, earlier)
        names = tuple(CANDIDATES) if settings.surrogate == "auto" else (settings.surrogate,)
        errors = archive.errors[~archive.failed][:: space.options]
        with timed("search: surrogate"):
            fit = fit_best(features(known), errors, _rng(seed, _FIT, number), names=names, earlier=len(earlier))

        def hope(genotypes: Genotypes) -> Floats:
            predicted = fit.predict(features(genotypes))
            return predicted.errors - settings.optimism * predicted.deviation

        with timed("search: evolution"):
            candidates = evolve(archive, hope, rng, population=settings.population, generations=settings.generations)
        networks = _networks(space, candidates)
        known = np.concatenate([archive.genotypes, space.in_every_precision(networks)])
        networks = _networks(space, np.concatenate([networks, chance(settings.infill - len(networks), known)]))
        ways = space.in_every_precision(networks)
        feasible = objectives.violation(ways, archive.constraints) == 0
        both = np.concatenate([ways[feasible], archive.genotypes[archive.feasible]])
        values, count = objectives.values(both, hope(both)), np.count_nonzero(feasible)
        with timed("search: infill"):
            owners = np.repeat(np.arange(len(networks)), space.options)[feasible]
            new = networks[infill(values[:count], values[count:], settings.infill, owners)]
        return new, fit, fit.predict(features(new)).errors


def _corrected(judge: _Judge, correct: Correct, settings: NatSettings, seed: int, number: int) -> tuple[str, ...]:
    """Takes corrected objectives; ids that they threw off the front.

    Raises:
        InfeasibleError: no architecture of the space keeps the constraints by them.
    """
    archive = judge.archive
    objectives = correct(archive, number)
    if objectives is None:
        return ()
    before = _front_ids(archive)
    archive.replace_objectives(objectives)
    if not archive.feasible.any():
        try:
            new = _first(archive, archive.genotypes[:0], settings.infill, _rng(seed, _CORRECT, number))
        except InfeasibleError as error:
            raise InfeasibleError(f"measuring in round {number} has corrected the objectives, and by them {error}") from error
        judge.add(new[~archive.contains(new)], number)
    judge.settle(number)
    after = set(_front_ids(archive))
    return tuple(each for each in before if each not in after)


def _front_ids(archive: Archive) -> list[str]:
    archs = archive.space.decode_all(archive.genotypes[archive.front()])
    return list(dict.fromkeys(arch.id for arch in archs))


def _quality(fit: Fit, predicted: Floats, errors: Floats) -> SurrogateQuality:
    predicted, errors = predicted[known := np.isfinite(errors)], errors[known]
    several = len(errors) > 1
    return SurrogateQuality(
        name=fit.name,
        taus=fit.taus,
        new_tau=kendall(predicted, errors) if several else None,
        new_spearman=spearman(predicted, errors) if several else None,
        new_rmse=float(np.sqrt(np.mean((predicted - errors) ** 2))) if len(errors) else None,
    )


def _report(
    archive: Archive,
    number: int,
    reference: Floats,
    *,
    new: tuple[str, ...],
    left: tuple[str, ...] = (),
    quality: SurrogateQuality | None = None,
) -> RoundReport:
    front = archive.front()
    return RoundReport(
        round=number,
        evaluated=len(archive.ids),
        failed=int(archive.failed[:: archive.space.options].sum()),
        new=new,
        left=left,
        surrogate=quality,
        hypervolume=archive.hypervolume(reference),
        reference=tuple(reference.tolist()),
        front_size=len(front),
        best_error=float(archive.values[front, 0].min()),
    )
