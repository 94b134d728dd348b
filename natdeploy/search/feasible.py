"""What a space can reach, found on cheap objectives alone: before anything is spent, a constraint is known to be possible."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from natdeploy.errors import InfeasibleError
from natdeploy.search.objectives import CheapObjective, Constraint, Objectives, show
from natdeploy.space import Genotypes, SearchSpace

STARTS = 6
SAMPLES = 1000
TRIES = 20


def reachable_range(objective: CheapObjective, space: SearchSpace, rng: np.random.Generator) -> tuple[float, float]:
    """Least and greatest value of a cheap objective over the space, in its unit.

    Found by hill climbing over single choices from several starts; exact where the objective is a sum over blocks that grow with
    the resolution, and close to it otherwise.
    """
    low = _climb(lambda genotypes: -objective(genotypes), space, rng)
    high = _climb(objective, space, rng)
    return float(objective(low[None])[0]), float(objective(high[None])[0])


def smallest_feasible(
    space: SearchSpace, objectives: Objectives, constraints: Sequence[Constraint], rng: np.random.Generator
) -> Genotypes:
    """The smallest architecture (variables,) if it keeps the constraints, else one that does.

    Raises:
        InfeasibleError: there is none; the message names the range that each constrained objective reaches.
    """
    smallest = space.repair(space.lower)
    if objectives.violation(smallest[None], constraints)[0] == 0:
        return smallest
    found = _climb(lambda genotypes: -objectives.violation(genotypes, constraints), space, rng)
    if objectives.violation(found[None], constraints)[0] == 0:
        return found
    bounds = " and ".join(str(each) for each in constraints)
    ranges = []
    for name in dict.fromkeys(each.objective for each in constraints):
        low, high = reachable_range(objectives.cheap[name], space, rng)
        ranges.append(f"{name} from {show(name, low)} to {show(name, high)}")
    raise InfeasibleError(
        f"no architecture of space {space.name} keeps {bounds}; it reaches {', '.join(ranges)}: choose a bound within that range"
    )


def sample_feasible(
    n: int,
    space: SearchSpace,
    objectives: Objectives,
    constraints: Sequence[Constraint],
    *,
    known: Genotypes,
    rng: np.random.Generator,
) -> Genotypes:
    """Random feasible architectures (at most n, variables), distinct and none of them in `known`.

    Rejection sampling, balanced over depths; where the feasible part of the space is too small to be hit, mutations of `known` and
    of those found fill up. Fewer than `n` come back only when the feasible part seems exhausted.

    Args:
        n: how many are wanted.
        space: to draw from.
        objectives: hold the functions that constraints bound.
        constraints: to keep.
        known: (k, variables) to leave out; at least one of them feasible.
        rng: source of chance.
    """
    seen = {row.tobytes() for row in known}
    found: list[Genotypes] = []

    def keep(genotypes: Genotypes) -> None:
        for row in genotypes[objectives.violation(genotypes, constraints) == 0]:
            if len(found) < n and row.tobytes() not in seen:
                seen.add(row.tobytes())
                found.append(row)

    for _ in range(TRIES):
        if len(found) < n:
            keep(space.sample(SAMPLES, rng))
    parents = known[objectives.violation(known, constraints) == 0]
    for _ in range(TRIES):
        if len(found) < n:
            pool = np.concatenate([parents, np.array(found).reshape(-1, space.variables)])
            keep(space.mutate(pool[rng.integers(len(pool), size=SAMPLES)], rng, 2 / space.variables))
    return np.array(found, dtype=np.int64).reshape(-1, space.variables)


def _climb(score: CheapObjective, space: SearchSpace, rng: np.random.Generator) -> Genotypes:
    """The architecture (variables,) of the highest score that steepest ascent over single choices finds from several starts."""
    sampled = space.sample(SAMPLES, rng)
    starts = np.stack([space.lower, space.upper, *sampled[np.argsort(-score(sampled), kind="stable")[:STARTS]]])
    tops = np.stack([_ascend(score, space, start) for start in starts])
    best: Genotypes = tops[score(tops).argmax()]
    return best


def _ascend(score: CheapObjective, space: SearchSpace, start: Genotypes) -> Genotypes:
    current, height = start, score(start[None])[0]
    while True:
        neighbours = space.neighbours(current)
        heights = score(neighbours)
        if heights.max(initial=-np.inf) <= height:
            return current
        current, height = neighbours[heights.argmax()], heights.max()
