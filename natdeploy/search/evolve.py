"""Which architectures to evaluate next: NSGA over predicted errors and exact cheap objectives, then a choice among its result."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
from pymoo.algorithms.moo.nsga2 import NSGA2, binary_tournament
from pymoo.algorithms.moo.nsga3 import NSGA3
from pymoo.config import Config
from pymoo.core.duplicate import DefaultDuplicateElimination
from pymoo.core.infill import InfillCriterion
from pymoo.core.population import Population
from pymoo.core.problem import Problem
from pymoo.operators.selection.tournament import TournamentSelection
from pymoo.optimize import minimize
from pymoo.util.ref_dirs import get_reference_directions

from natdeploy.search.archive import Archive, Indices, hypervolume, non_dominated, ranks
from natdeploy.search.feasible import sample_feasible
from natdeploy.search.objectives import Floats
from natdeploy.search.surrogate import ErrorModel
from natdeploy.space import Genotypes

Config.warnings["not_compiled"] = False  # pymoo prints a hint to stdout where its wheel holds no compiled code

PREFER_VOLUME = 3
"""Objectives up to which infill goes by hypervolume."""
DIRECTIONS = 100
"""Of the niches that infill spreads over."""


def evolve(archive: Archive, predict: ErrorModel, rng: np.random.Generator, *, population: int, generations: int) -> Genotypes:
    """Feasible architectures (n, variables) on or near the predicted front, distinct, none of them in the archive.

    NSGA-II (Deb 2002) for two objectives, NSGA-III (Deb and Jain 2014) with Riesz s-energy directions for more. It starts from the
    archive's front, filled up with random feasible architectures, and sees constraints as hard: a feasible architecture always
    survives an infeasible one.

    Args:
        archive: what is known, with the space, the objectives and the constraints.
        predict: the surrogate.
        rng: source of chance.
        population: architectures of a generation.
        generations: how many.
    """
    start = archive.genotypes[archive.front()][:population]
    random = sample_feasible(
        population - len(start),
        archive.space,
        archive.objectives,
        archive.constraints,
        known=archive.genotypes,
        rng=rng,
    )
    mating = _Mating(archive, binary_tournament if len(archive.objectives.names) == 2 else _tournament)
    common = {"pop_size": population, "sampling": np.concatenate([start, random]), "mating": mating, "eliminate_duplicates": True}
    if len(archive.objectives.names) == 2:
        algorithm = NSGA2(**common)
    else:
        algorithm = NSGA3(reference_directions(len(archive.objectives.names), population), **common)
    with warnings.catch_warnings():  # NSGA-III switches all warnings of the process off
        minimize(
            _Predicted(archive, predict), algorithm, ("n_gen", generations), copy_algorithm=False, seed=int(rng.integers(2**31))
        )
    last = np.unique(algorithm.pop.get("X").astype(np.int64), axis=0)
    feasible = archive.objectives.violation(last, archive.constraints) == 0
    new: Genotypes = last[feasible & ~archive.contains(last)]
    return new


def infill(values: Floats, known: Floats, n: int, networks: Indices | None = None) -> Indices:
    """The networks (at most n) to evaluate: by hypervolume up to three objectives, by niches beyond.

    Args:
        values: (candidates, m) predicted.
        known: (k, m) of the archive, predicted too: evaluated errors, the lucky ones among them, would hide real gains.
        n: how many.
        networks: (candidates,) the number of each row's network, where a network has several rows, one in every precision: whoever
            evaluates it learns about all of them. By default each row is a network of its own number.
    """
    by = by_volume if values.shape[1] <= PREFER_VOLUME else by_niche
    networks = np.arange(len(values)) if networks is None else networks
    return by(values, known, min(n, len(np.unique(networks))), networks)


def by_volume(values: Floats, known: Floats, n: int, networks: Indices) -> Indices:
    """One by one, the networks (n,) whose rows add most hypervolume to what is known and chosen; when none adds any, the best ranks
    fill up.

    That spreads them along the front by itself. A dominated candidate adds nothing once the one that dominates it is chosen, and no
    more before, so that only networks with a non-dominated row are weighed.
    """
    rank = ranks(values)
    points, front = _scaled(values, known)
    reference = np.full(values.shape[1], 1.1)  # beyond the worst, so that the ends of the front count
    front = front[non_dominated(front)]
    rest = networks[np.argsort(rank, kind="stable")]
    chosen: list[int] = []
    left = np.unique(networks[rank == 0]).tolist()
    while left and len(chosen) < n:
        volume = hypervolume(front, reference)
        gains = [hypervolume(np.concatenate([front, points[networks == each]]), reference) - volume for each in left]
        if max(gains) <= 0:
            break
        chosen.append(left.pop(int(np.argmax(gains))))
        front = np.concatenate([front, points[networks == chosen[-1]]])
    return np.array(list(dict.fromkeys([*chosen, *rest.tolist()]))[:n], dtype=np.int64)


def by_niche(values: Floats, known: Floats, n: int, networks: Indices) -> Indices:
    """One by one, the networks (n,) with the row of the best rank whose reference direction has the fewest known and chosen rows.

    Niching of NSGA-III (Deb and Jain 2014) with the archive in its niches already, objectives scaled between the ideal and the
    nadir point of all rows. Where niches are equally empty, the row farthest from all that is chosen is taken, which keeps a batch
    diverse, then the one nearest to its direction.
    """
    rank = ranks(np.concatenate([values, known]))[: len(values)]
    points, front = _scaled(values, known)
    front = front[non_dominated(front)]
    directions = reference_directions(values.shape[1], DIRECTIONS)
    niche, distance = _associate(points, directions)
    count = np.bincount(_associate(front, directions)[0], minlength=len(directions))
    gap = np.full(len(values), np.inf)
    chosen: list[int] = []
    left = np.ones(len(values), dtype=np.bool_)
    for _ in range(n):
        best = np.lexsort((distance, -gap, count[niche], rank, ~left))[0]
        chosen.append(int(networks[best]))
        left &= networks != networks[best]
        count[niche[best]] += 1
        gap = np.minimum(gap, np.linalg.norm(points - points[best], axis=1))
    return np.array(chosen, dtype=np.int64)


def _scaled(values: Floats, known: Floats) -> tuple[Floats, Floats]:
    """Both, with every objective between 0 (ideal) and 1 (the worst of the non-dominated rows of both: nadir)."""
    together = np.concatenate([values, known])
    low, span = together.min(axis=0), np.ptp(together[non_dominated(together)], axis=0)
    span[span == 0] = 1.0
    return (values - low) / span, (known - low) / span


def _associate(points: Floats, directions: Floats) -> tuple[Indices, Floats]:
    """Of each point (n, m): the direction that it lies nearest to, and its distance from that line."""
    unit = directions / np.linalg.norm(directions, axis=1, keepdims=True)
    along = points @ unit.T
    distance = np.sqrt(np.maximum((points**2).sum(axis=1)[:, None] - along**2, 0.0))
    niche = distance.argmin(axis=1)
    return niche, distance[np.arange(len(points)), niche]


class _Predicted(Problem):  # type: ignore[misc]
    """The archive's objectives with the surrogate in the place of evaluation."""

    def __init__(self, archive: Archive, predict: ErrorModel) -> None:
        space = archive.space
        super().__init__(
            n_var=space.variables,
            n_obj=len(archive.objectives.names),
            n_ieq_constr=len(archive.constraints),
            xl=space.lower,
            xu=space.upper,
        )
        self._archive = archive
        self._predict = predict

    def _evaluate(self, x: npt.NDArray[Any], out: dict[str, Floats], *_: Any, **__: Any) -> None:
        genotypes = x.astype(np.int64)
        out["F"] = self._archive.objectives.values(genotypes, self._predict(genotypes))
        out["G"] = self._archive.objectives.violations(genotypes, self._archive.constraints)


class _Mating(InfillCriterion):  # type: ignore[misc]
    """The space's own crossover and mutation, which repair what they make; NAT crosses with probability 0.9."""

    def __init__(self, archive: Archive, tournament: Callable[..., Any]) -> None:
        super().__init__(eliminate_duplicates=DefaultDuplicateElimination())
        self._space = archive.space
        self._selection = TournamentSelection(func_comp=tournament)

    def _do(self, problem: Any, pop: Any, n_offsprings: int, *, random_state: np.random.Generator, **kwargs: Any) -> Any:
        parents = self._selection.do(problem, pop, n_offsprings, 2, to_pop=False, random_state=random_state, **kwargs)
        first, second = (pop[parents[:, side]].get("X").astype(np.int64) for side in (0, 1))
        crossed = self._space.crossover(first, second, random_state)
        children = np.where(random_state.random((n_offsprings, 1)) < 0.9, crossed, first)
        return Population.new("X", self._space.mutate(children, random_state, 1 / self._space.variables))


def _tournament(pop: Any, pairs: Indices, *, random_state: np.random.Generator, **_: Any) -> Indices:
    """Of each pair the less infeasible, else either: NSGA-III's, whose original in pymoo breaks ties by an unseeded generator."""
    violation = pop.get("CV")[:, 0][pairs]
    tied = violation[:, 0] == violation[:, 1]
    side = np.where(tied, random_state.integers(2, size=len(pairs)), violation.argmin(axis=1))
    return pairs[np.arange(len(pairs)), side][:, None]


@lru_cache
def reference_directions(objectives: int, count: int) -> Floats:
    """Evenly spread reference directions (count, objectives) of least Riesz s-energy (Blank et al. 2021)."""
    directions: Floats = get_reference_directions("energy", objectives, count, seed=1, n_max_iter=200)
    return directions
