from __future__ import annotations

import warnings

import numpy as np
import pytest

from natdeploy.search import Archive, parse_constraint
from natdeploy.search.archive import hypervolume, non_dominated
from natdeploy.search.evolve import by_niche, evolve, infill
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


def test_niching_spreads_over_many_objectives_and_avoids_what_is_known() -> None:
    """On a simplex of five objectives, with the archive in one corner."""
    rng = np.random.default_rng(0)
    values = rng.dirichlet(np.ones(5), 200)
    known = 0.999 * rng.dirichlet(np.ones(5) * 30 + np.array([400, 0, 0, 0, 0]), 40)
    chosen = infill(values, known, 8)
    np.testing.assert_array_equal(chosen, by_niche(values, known, 8, np.arange(200)))
    assert len(set(chosen.tolist())) == 8

    def spread(rows) -> float:
        gaps = np.linalg.norm(values[rows][:, None] - values[rows], axis=2)
        return gaps[np.triu_indices(len(rows), 1)].min()

    assert spread(chosen) > np.median([spread(rng.choice(200, 8, replace=False)) for _ in range(50)])
    assert np.linalg.norm(values[chosen][:, None] - known, axis=2).min() > 0.1
    units = np.array([1, 1e6, 1e-3, 5, 1])
    np.testing.assert_array_equal(by_niche(values * units, known * units, 8, np.arange(200)), chosen, "units change nothing")


def test_niching_takes_the_dominated_last() -> None:
    rng = np.random.default_rng(1)
    front = rng.dirichlet(np.ones(4), 6)
    values = np.concatenate([front + 0.5, front])
    assert set(by_niche(values, front[:1] + 2, 6, np.arange(12)).tolist()) == set(range(6, 12))
    assert sorted(by_niche(values, front[:1] + 2, 12, np.arange(12)).tolist()) == list(range(12))


def test_infill_by_volume_weighs_every_row_that_could_gain() -> None:
    """Against the greedy choice over all rows."""
    rng = np.random.default_rng(2)
    values, known = rng.random((40, 3)), rng.random((5, 3))
    chosen = infill(values, known, 4)
    together = np.concatenate([values, known])
    span = np.ptp(together[non_dominated(together)], axis=0)
    points, front, expected = (values - together.min(axis=0)) / span, (known - together.min(axis=0)) / span, []
    for _ in range(4):
        volumes = [hypervolume(np.vstack([front, point]), np.full(3, 1.1)) for point in points]
        expected.append(int(np.argmax(volumes)))
        front = np.vstack([front, points[expected[-1]]])
    np.testing.assert_array_equal(chosen, expected)


@pytest.mark.parametrize("objectives", [2, 5])
def test_infill_weighs_a_network_by_all_its_precisions(objectives: int) -> None:
    """Two networks with two rows each: neither takes two of the places, and the one whose second row gains goes first."""
    known = np.full((1, objectives), 0.5)
    rows = np.array([[0.9, 0.9], [0.7, 0.3], [0.4, 0.6], [0.05, 0.2], [0.95, 0.95], [0.96, 0.96]])
    values = np.column_stack([rows, np.full((6, objectives - 2), 0.5)])
    chosen = infill(values, known, 2, np.array([0, 0, 1, 1, 2, 2]))
    assert chosen.tolist() == [1, 0]
    assert sorted(infill(values, known, 9, np.array([0, 0, 1, 1, 2, 2])).tolist()) == [0, 1, 2]
