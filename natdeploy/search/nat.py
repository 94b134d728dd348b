"""The loop of Neural Architecture Transfer (Lu et al., TPAMI 2021, arXiv 2005.05859): search the supernet and adapt it, in turns.

It knows neither networks nor devices: `evaluate` and `adapt` are given. Every draw comes from a generator seeded by (seed,
component, round), and everything else follows from the errors, so a run repeated with the same answers of `evaluate` ends with the
same archive, bit for bit. That is how a broken run goes on: replayed from the evaluations it has stored.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from natdeploy.errors import NatdeployError
from natdeploy.search.archive import Archive
from natdeploy.search.distribution import Distribution
from natdeploy.search.evolve import evolve, infill
from natdeploy.search.feasible import sample_feasible, smallest_feasible
from natdeploy.search.objectives import Constraint, Floats, Objectives
from natdeploy.search.surrogate import Features, Fit, fit_best, kendall
from natdeploy.space import Arch, Genotypes, SearchSpace

Evaluate = Callable[[Sequence[Arch], int], npt.ArrayLike]
"""Architectures and the version of the supernet's weights -> errors (n,) in 0..1."""
Adapt = Callable[[Distribution, int], None]
"""Trains the supernet with architectures of the distribution, into the given version of its weights."""

_INITIAL, _FIT, _EVOLVE = range(3)


class NatSettings(BaseModel):
    """How much a search does.

    Attributes:
        initial: architectures evaluated before the first round.
        rounds: turns of search and adaptation.
        infill: architectures evaluated in a round.
        parents: best architectures of the archive that training follows.
        population: of the evolution on the surrogate.
        generations: of it.
        smoothing: share of uniform chance in the distribution that training follows.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    initial: int = Field(default=100, ge=10)
    rounds: int = Field(default=30, ge=0)
    infill: int = Field(default=8, ge=1)
    parents: int = Field(default=50, ge=1)
    population: int = Field(default=100, ge=10)
    generations: int = Field(default=40, ge=1)
    smoothing: float = Field(default=0.1, ge=0, le=1)


@dataclass(frozen=True)
class SurrogateQuality:
    """How well the errors of a round were predicted.

    Attributes:
        name: of the surrogate that won.
        taus: cross-validated Kendall tau of every candidate on the archive.
        new_tau: Kendall tau between predicted and evaluated errors of the new architectures, None if there are fewer than two.
        new_rmse: root mean square of their difference, None without new ones.
    """

    name: str
    taus: Mapping[str, float]
    new_tau: float | None
    new_rmse: float | None


@dataclass(frozen=True)
class RoundReport:
    """Where the search is after a round; round 0 is the initial sample.

    Attributes:
        round: also the version of the weights that the archive's errors belong to.
        evaluated: architectures in the archive.
        new: ids of those added in this round.
        surrogate: how well it predicted them; None in round 0.
        hypervolume: share of the box up to `reference` that the front dominates, 0..1.
        reference: 1.01 times the worst feasible values of round 0, frozen.
        front_size: feasible non-dominated architectures.
        best_error: least error of them.
    """

    round: int
    evaluated: int
    new: tuple[str, ...]
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
    on_round: Callable[[RoundReport], None] = lambda _: None,
) -> Archive:
    """Runs the whole search; no architecture is evaluated twice at one version of the weights.

    Args:
        space: where to search.
        objectives: what to minimise.
        constraints: what must hold.
        evaluate: asked at version 0 for the initial sample; in round r at version r - 1 for the new architectures and, after
            `adapt`, at version r for the whole archive.
        adapt: asked once in every round, for version r.
        settings: how much to do.
        seed: of all chance.
        include: architectures that are evaluated in any case, such as the seed network; they may break constraints, and are then
            never on the front.
        on_round: told after every round, the initial one included.

    Returns:
        The archive, all its errors at the last version.

    Raises:
        InfeasibleError: no architecture keeps the constraints.
        NatdeployError: `evaluate` gave something else than an error in 0..1 for every architecture.
        UsageError: an included architecture is not of the space.
    """
    archive = Archive(space, objectives, constraints)
    first = _initial(archive, space.encode_all(list(dict.fromkeys(include))), settings.initial, _rng(seed, _INITIAL, 0))
    archive.add(first, _errors(evaluate, space.decode_all(first), 0))
    reference = 1.01 * archive.values[archive.feasible].max(axis=0)
    on_round(_report(archive, 0, archive.ids, None, reference))
    for number in range(1, settings.rounds + 1):
        fit, new, predicted = _propose(archive, settings, seed, number)
        archs = space.decode_all(new)
        errors = _errors(evaluate, archs, number - 1)
        quality = _quality(fit, predicted, errors)
        archive.add(new, errors)
        best = archive.genotypes[archive.best(settings.parents)]
        adapt(Distribution.from_genotypes(space, best, settings.smoothing), number)
        archive.replace_errors(_errors(evaluate, archive.archs, number))
        on_round(_report(archive, number, tuple(arch.id for arch in archs), quality, reference))
    return archive


def _rng(seed: int, component: int, number: int) -> np.random.Generator:
    return np.random.default_rng([seed, component, number])


def _initial(archive: Archive, include: Genotypes, count: int, rng: np.random.Generator) -> Genotypes:
    """The included, the smallest feasible and random feasible architectures, `count` in all where the space has them."""
    space, objectives, constraints = archive.space, archive.objectives, archive.constraints
    smallest = smallest_feasible(space, objectives, constraints, rng)
    known = np.unique(np.concatenate([include, smallest[None]]), axis=0)
    return np.concatenate([known, sample_feasible(count - len(known), space, objectives, constraints, known=known, rng=rng)])


def _propose(archive: Archive, settings: NatSettings, seed: int, number: int) -> tuple[Fit, Genotypes, Floats]:
    """New architectures (n, variables) with predicted errors (n,); one BLAS thread, whose number would change the last bits."""
    space, objectives, rng = archive.space, archive.objectives, _rng(seed, _EVOLVE, number)
    with threadpool_limits(1):
        features = Features(space, archive.genotypes)
        fit = fit_best(features(archive.genotypes), archive.values[:, 0], _rng(seed, _FIT, number))

        def predict(genotypes: Genotypes) -> Floats:
            return fit.surrogate.predict(features(genotypes))

        candidates = evolve(archive, predict, rng, population=settings.population, generations=settings.generations)
        known = np.concatenate([archive.genotypes, candidates])
        missing = settings.infill - len(candidates)
        random = sample_feasible(missing, space, objectives, archive.constraints, known=known, rng=rng)
        candidates = np.concatenate([candidates, random])
        both = np.concatenate([candidates, archive.genotypes[archive.feasible]])
        values = objectives.values(both, predict(both))
        chosen = infill(values[: len(candidates)], values[len(candidates) :], settings.infill)
        return fit, candidates[chosen], values[chosen, 0]


def _errors(evaluate: Evaluate, archs: Sequence[Arch], version: int) -> Floats:
    errors = np.asarray(evaluate(archs, version) if archs else [], dtype=np.float64)
    if errors.shape != (len(archs),):
        raise NatdeployError(f"{len(archs)} architectures were to be evaluated, the answer has shape {errors.shape}")
    wrong = np.flatnonzero(~((errors >= 0) & (errors <= 1)))
    if len(wrong):
        raise NatdeployError(
            f"architecture {archs[wrong[0]].id} has error {errors[wrong[0]]}, not in 0..1; if training diverged, lower its rate"
        )
    return errors


def _quality(fit: Fit, predicted: Floats, errors: Floats) -> SurrogateQuality:
    return SurrogateQuality(
        name=fit.name,
        taus=fit.taus,
        new_tau=kendall(predicted, errors) if len(errors) > 1 else None,
        new_rmse=float(np.sqrt(np.mean((predicted - errors) ** 2))) if len(errors) else None,
    )


def _report(
    archive: Archive, number: int, new: tuple[str, ...], quality: SurrogateQuality | None, reference: Floats
) -> RoundReport:
    front = archive.front()
    return RoundReport(
        round=number,
        evaluated=len(archive),
        new=new,
        surrogate=quality,
        hypervolume=archive.hypervolume(reference),
        reference=tuple(reference.tolist()),
        front_size=len(front),
        best_error=float(archive.values[front, 0].min()),
    )
