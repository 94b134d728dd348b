from __future__ import annotations

import warnings

import numpy as np
import pytest

from natdeploy.search import Archive, parse_constraint
from natdeploy.search.archive import hypervolume, non_dominated
from natdeploy.search.evolve import evolve, infill
from natdeploy.search.feasible import sample_feasible


def start(task, constraint: str, n: int = 20) -> Archive:
    archive = Archive(task.space, task.objectives, [parse_constraint(constraint)])
    known = task.space.lower[None]
    drawn = sample_feasible(n, task.space, task.objectives, archive.constraints, known=known, rng=np.random.default_rng(0))
    genotypes = np.concatenate([known, drawn])
    archive.add(genotypes, task.error(genotypes))
    return archive


@pytest.mark.parametrize("name", ["demo_task", "demo_task_of_three"])
def test_candidates_are_new_distinct_feasible_and_better_than_chance(name: str, request: pytest.FixtureRequest) -> None:
    task = request.getfixturevalue(name)
    archive = start(task, "latency<=0.12ms")
    filters = list(warnings.filters)
    found = evolve(archive, task.error, np.random.default_rng(0), population=24, generations=15)
    assert warnings.filters == filters
    assert len(found) > 10
    assert len(np.unique(found, axis=0)) == len(found)
    assert not archive.contains(found).any()
    assert (task.objectives.cheap["latency"](found) <= 0.12).all()
    known = archive.genotypes
    chance = sample_feasible(100, task.space, task.objectives, archive.constraints, known=known, rng=np.random.default_rng(1))
    values, drawn = (task.objectives.values(genotypes, task.error(genotypes)) for genotypes in (found, chance))
    worst = drawn.max(axis=0)
    assert hypervolume(values / worst, np.ones(len(worst))) > hypervolume(drawn / worst, np.ones(len(worst)))


@pytest.mark.parametrize("name", ["demo_task", "demo_task_of_three"])
def test_the_same_chance_evolves_the_same(name: str, request: pytest.FixtureRequest) -> None:
    """A bound that most offspring break, so that infeasible parents tie."""
    task = request.getfixturevalue(name)
    archive = start(task, "latency<=0.08ms", n=4)
    runs = [evolve(archive, task.error, np.random.default_rng(7), population=24, generations=6) for _ in range(2)]
    np.testing.assert_array_equal(runs[0], runs[1])


def test_infill_takes_what_adds_most() -> None:
    known = np.array([[0.5, 0.5]])
    values = np.array([[0.6, 0.6], [0.1, 0.9], [0.12, 0.9], [0.9, 0.1], [0.45, 0.45], [0.7, 0.5]])
    assert set(infill(values, known, 3).tolist()) == {1, 3, 4}, (
        "both ends and the gain in the middle; neither the dominated nor the twin"
    )
    everything = infill(values, known, 99).tolist()
    assert sorted(everything) == list(range(6))
    assert set(everything[:3]) == {1, 3, 4}
    assert everything[-1] in {0, 5}
    assert len(infill(values[:0], known, 3)) == 0


def test_infill_prefers_the_best_rank_when_nothing_is_gained() -> None:
    known = np.array([[0.0, 0.0]])
    values = np.array([[0.9, 0.9], [0.2, 0.8], [0.8, 0.2]])
    chosen = infill(values, known, 2)
    assert non_dominated(values)[chosen].all()
