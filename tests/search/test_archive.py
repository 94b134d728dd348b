from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from pymoo.operators.survival.rank_and_crowding.metrics import get_crowding_function
from pymoo.util.nds.non_dominated_sorting import NonDominatedSorting

from natdeploy.errors import NatdeployError
from natdeploy.search import Archive, Objectives, non_dominated, parse_constraint
from natdeploy.search.archive import crowding, hypervolume, ranks

tables = st.integers(2, 4).flatmap(
    lambda m: arrays(np.float64, st.tuples(st.integers(1, 25), st.just(m)), elements=st.integers(0, 6))
)


def dominates(first: np.ndarray, second: np.ndarray) -> bool:
    return all(first <= second) and any(first < second)


@settings(deadline=None)
@given(tables)
def test_non_dominated_is_what_the_definition_says(values: np.ndarray) -> None:
    expected = [not any(dominates(other, row) for other in values) for row in values]
    np.testing.assert_array_equal(non_dominated(values), expected)


@settings(deadline=None)
@given(tables)
def test_ranks_are_those_of_pymoo(values: np.ndarray) -> None:
    _, expected = NonDominatedSorting().do(values, return_rank=True)
    np.testing.assert_array_equal(ranks(values), expected)


@pytest.mark.parametrize("objectives", [2, 3])
def test_crowding_is_that_of_pymoo(objectives: int) -> None:
    values = np.random.default_rng(0).random((20, objectives))
    theirs = get_crowding_function("cd").do(values)
    np.testing.assert_allclose(crowding(values) / objectives, theirs)


@settings(deadline=None)
@given(arrays(np.float64, st.tuples(st.integers(1, 12), st.just(2)), elements=st.integers(0, 9)))
def test_hypervolume_counts_the_cells_that_are_dominated(values: np.ndarray) -> None:
    cells = np.stack(np.meshgrid(np.arange(8), np.arange(8)), axis=-1).reshape(-1, 2)
    dominated = (values[:, None] <= cells).all(axis=2).any(axis=0).sum()
    assert hypervolume(values, np.array([8.0, 8.0])) == pytest.approx(dominated)


def test_the_approximation_for_many_objectives_is_near_the_exact_volume() -> None:
    """Of one box, whose volume is known in any dimension, and of points, against Monte Carlo."""
    rng = np.random.default_rng(0)
    assert hypervolume(np.full((1, 12), 0.2), np.ones(12)) == pytest.approx(0.8**12, rel=0.02)
    seven = rng.random((40, 7))
    samples = rng.random((200_000, 7))
    share = np.mean([(seven <= chunk[:, None]).all(axis=2).any(axis=1).mean() for chunk in np.split(samples, 200)])
    assert hypervolume(seven, np.ones(7)) == pytest.approx(share, rel=0.02)
    assert hypervolume(seven, np.ones(7)) == hypervolume(seven, np.ones(7))


@pytest.fixture
def archive(demo_task) -> Archive:
    archive = Archive(demo_task.space, demo_task.objectives, [parse_constraint("latency<=0.12ms")])
    genotypes = np.unique(demo_task.space.sample(40, np.random.default_rng(3)), axis=0)
    archive.add(genotypes, demo_task.error(genotypes))
    return archive


def test_the_front_is_feasible_and_sorted_by_latency(archive: Archive) -> None:
    assert 5 < archive.feasible.sum() < len(archive)
    front = archive.front()
    assert archive.feasible[front].all()
    assert (archive.values[front, 1] <= 0.12).all()
    assert (np.diff(archive.values[front, 1]) > 0).all()
    assert (np.diff(archive.values[front, 0]) < 0).all()
    rest = np.setdiff1d(np.flatnonzero(archive.feasible), front)
    assert all(any(dominates(archive.values[f], archive.values[r]) for f in front) for r in rest)


def test_contenders_are_the_front_and_what_lies_within_the_noise_behind_it(archive: Archive) -> None:
    np.testing.assert_array_equal(archive.contenders(0.0), archive.front())
    errors, latency = archive.values.T[:2]
    noise = np.linspace(0.0, 0.1, len(archive))
    found = archive.contenders(noise)
    assert set(archive.front()) < set(found)
    for row in np.flatnonzero(archive.feasible):
        rival = errors[archive.feasible & (latency <= latency[row])].min()
        assert (row in found) == (errors[row] - rival <= noise[row])
    assert (np.diff(latency[found]) >= 0).all()


def test_the_best_are_feasible_and_come_rank_by_rank(archive: Archive) -> None:
    front = archive.front()
    everything = archive.best(1000)
    assert set(everything) == set(np.flatnonzero(archive.feasible))
    assert set(everything[: len(front)]) == set(front)
    rank = ranks(archive.values[everything])
    assert (np.diff(rank) >= 0).all()
    two = archive.best(2)
    assert set(two) == {front[0], front[-1]}, "the ends of the front are the least crowded"


def test_an_architecture_is_known_in_any_form(archive: Archive) -> None:
    second, third = 5, 6  # slots of a stage of the demo space that may be skipped
    held = next(row for row in archive.genotypes if row[second] and not row[third])
    other_form = held.copy()
    other_form[[second, third]] = 0, held[second]
    assert not np.array_equal(other_form, held)
    assert archive.contains(np.stack([held, other_form])).all()
    with pytest.raises(ValueError, match="once"):
        archive.add(other_form[None], [0.5])
    assert len(set(archive.ids)) == len(archive)


def test_new_errors_replace_old_ones_and_nothing_else(archive: Archive) -> None:
    latency = archive.values[:, 1].copy()
    archive.replace_errors(np.linspace(0, 1, len(archive)))
    np.testing.assert_array_equal(archive.values[:, 0], np.linspace(0, 1, len(archive)))
    np.testing.assert_array_equal(archive.values[:, 1], latency)
    with pytest.raises(NatdeployError, match="not a number"):
        archive.replace_errors(np.full(len(archive), np.inf))


def test_failed_rows_are_known_and_nothing_more(archive: Archive) -> None:
    front = archive.front()
    errors = archive.values[:, 0].copy()
    errors[front[1]] = np.nan
    archive.replace_errors(errors)
    np.testing.assert_array_equal(np.flatnonzero(archive.failed), [front[1]])
    assert archive.contains(archive.genotypes[front[1:2]]).all()
    for rows in (archive.front(), archive.best(1000), archive.contenders(1.0), np.flatnonzero(archive.feasible)):
        assert front[1] not in rows
    assert 0 < archive.hypervolume([1.0, 0.2]) < 1


def test_corrected_objectives_decide_anew_who_is_feasible(archive: Archive) -> None:
    errors, was_feasible = archive.values[:, 0].copy(), archive.feasible.sum()
    before = archive.objectives.cheap["latency"]
    archive.replace_objectives(Objectives(("error", "latency"), {"latency": lambda genotypes: 1.2 * before(genotypes)}))
    np.testing.assert_array_equal(archive.values[:, 0], errors)
    np.testing.assert_allclose(archive.values[:, 1], 1.2 * before(archive.genotypes))
    np.testing.assert_array_equal(archive.feasible, archive.values[:, 1] <= 0.12)
    assert archive.feasible.sum() < was_feasible
    with pytest.raises(ValueError, match="cannot hold error, macs"):
        archive.replace_objectives(Objectives(("error", "macs"), {"macs": before}))


def test_hypervolume_of_an_archive_is_a_share_of_its_reference_box(archive: Archive) -> None:
    front = archive.values[archive.front()]
    reference = np.array([1.0, 0.2])
    steps = np.diff(np.append(front[:, 1], reference[1]))
    assert archive.hypervolume(reference) == pytest.approx(((reference[0] - front[:, 0]) * steps).sum() / reference.prod())
    assert archive.hypervolume(front.min(axis=0) / 2) == 0
