from __future__ import annotations

import json
import warnings
from collections import Counter
from dataclasses import asdict

import numpy as np
import pytest
from pydantic import ValidationError

from natdeploy.errors import InfeasibleError, NatdeployError, UsageError
from natdeploy.search import Archive, Distribution, NatSettings, Objectives, parse_constraint, search
from natdeploy.search.feasible import sample_feasible
from natdeploy.space import Arch, SearchSpace, Stage
from natdeploy.space.catalog import plain_arch

QUICK = NatSettings(initial=16, rounds=2, infill=4, parents=8, population=24, generations=5)
DEMO_SEED = plain_arch(32, 1.0, (1, 2, 3, 2))
BOUND = [parse_constraint("latency<=0.12ms")]


class Recorder:
    """The calls of a search, in order."""

    def __init__(self, task) -> None:
        self.task = task
        self.calls: list[tuple[str, int]] = []
        self.evaluated: Counter[tuple[str, int]] = Counter()
        self.distributions = []
        self.reports = []

    def evaluate(self, archs, version: int):
        self.calls.append(("evaluate", version))
        self.evaluated.update((arch.id, version) for arch in archs)
        return self.task.evaluate(archs, version)

    def adapt(self, distribution, version: int) -> None:
        self.calls.append(("adapt", version))
        self.distributions.append(distribution)

    def search(self, settings: NatSettings = QUICK, *, seed: int = 0, constraints=BOUND, include=()) -> Archive:
        return search(
            self.task.space,
            self.task.objectives,
            constraints,
            evaluate=self.evaluate,
            adapt=self.adapt,
            settings=settings,
            seed=seed,
            include=include,
            on_round=self.reports.append,
        )


@pytest.fixture(scope="module")
def searched(demo_task) -> tuple[Recorder, Archive]:
    """One search, with a baseline that is too slow for its constraint."""
    recorder = Recorder(demo_task)
    return recorder, recorder.search(include=[DEMO_SEED, DEMO_SEED])


def test_the_loop_beats_random_search_at_equal_evaluations(mbv2_task) -> None:
    """Judged by the errors without noise."""
    constraints = [parse_constraint("latency<=1.2ms")]
    space, objectives = mbv2_task.space, mbv2_task.objectives
    found = Recorder(mbv2_task).search(NatSettings(initial=24, rounds=3, infill=8), constraints=constraints)
    assert len(found) == 24 + 3 * 8
    known = space.lower[None]
    chance = np.concatenate(
        [known, sample_feasible(len(found) - 1, space, objectives, constraints, known=known, rng=np.random.default_rng(0))]
    )
    volumes = []
    for genotypes in (found.genotypes, chance):
        archive = Archive(space, objectives, constraints)
        archive.add(genotypes, mbv2_task.error(genotypes))
        volumes.append(archive.hypervolume([0.25, 1.2]))
    assert volumes[0] > 1.02 * volumes[1], volumes


def test_a_replay_is_bit_equal(searched, demo_task) -> None:
    first, archive = searched
    answers = {}
    for version in range(QUICK.rounds + 1):
        for arch, error in zip(archive.archs, demo_task.evaluate(archive.archs, version), strict=True):
            answers[arch.id, version] = error
    again = Recorder(demo_task)
    again.evaluate = lambda archs, version: [answers[arch.id, version] for arch in archs]
    replayed = again.search(include=[DEMO_SEED])
    assert archive.genotypes.tobytes() == replayed.genotypes.tobytes()
    assert archive.values.tobytes() == replayed.values.tobytes()
    assert first.reports == again.reports
    for one, other in zip(first.distributions, again.distributions, strict=True):
        draws = [each.sample(5, np.random.default_rng(0)).tobytes() for each in (one, other)]
        assert draws[0] == draws[1]


def test_another_seed_searches_elsewhere(searched, demo_task) -> None:
    other = Recorder(demo_task).search(seed=1, include=[DEMO_SEED])
    assert set(other.ids) != set(searched[1].ids)


def test_calls_come_in_order_and_nothing_is_evaluated_twice_at_a_version(searched, demo_task) -> None:
    recorder, archive = searched
    assert recorder.calls == [
        ("evaluate", 0),
        *(("evaluate", 0), ("adapt", 1), ("evaluate", 1)),
        *(("evaluate", 1), ("adapt", 2), ("evaluate", 2)),
    ]
    assert max(recorder.evaluated.values()) == 1
    assert {arch for arch, version in recorder.evaluated if version == 2} == set(archive.ids)
    np.testing.assert_array_equal(archive.values[:, 0], demo_task.evaluate(archive.archs, 2))


def test_constraints_hold_and_included_architectures_stay_off_the_front(searched) -> None:
    recorder, archive = searched
    too_slow = archive.ids.index(DEMO_SEED.id)
    assert archive.values[too_slow, 1] > 0.12
    assert archive.values[too_slow, 0] < archive.values[archive.front(), 0].min(), "it would be on the front if it were feasible"
    assert too_slow not in archive.front()
    assert too_slow not in archive.best(1000)
    assert (np.delete(archive.values[:, 1], too_slow) <= 0.12).all()
    assert recorder.reports[0].evaluated == QUICK.initial


def test_training_follows_the_best(searched, demo_task) -> None:
    recorder, archive = searched
    before = Archive(demo_task.space, demo_task.objectives, BOUND)
    before.add(archive.genotypes, demo_task.evaluate(archive.archs, QUICK.rounds - 1))
    best = before.genotypes[before.best(QUICK.parents)]
    expected, used = Distribution.from_genotypes(demo_task.space, best, QUICK.smoothing), recorder.distributions[-1]
    np.testing.assert_array_equal(used.resolution, expected.resolution)
    for one, other in zip((*used.depths, *used.choices), (*expected.depths, *expected.choices), strict=True):
        np.testing.assert_array_equal(one, other)


def test_reports_say_where_the_search_is_and_are_plain_data(searched) -> None:
    recorder, archive = searched
    reports = recorder.reports
    assert [report.round for report in reports] == [0, 1, 2]
    assert [report.evaluated for report in reports] == [16, 20, 24]
    assert sum((report.new for report in reports), ()) == archive.ids
    assert len({report.reference for report in reports}) == 1
    last = reports[-1]
    assert last.hypervolume == archive.hypervolume(last.reference)
    assert last.front_size == len(archive.front())
    assert last.best_error == archive.values[archive.front(), 0].min()
    assert reports[0].surrogate is None
    assert last.surrogate.taus[last.surrogate.name] == max(last.surrogate.taus.values())
    assert last.surrogate.new_rmse < 0.1
    assert json.loads(json.dumps(asdict(last)))["surrogate"]["name"] == last.surrogate.name


def test_three_objectives_are_searched_with_nsga3(demo_task_of_three) -> None:
    recorder = Recorder(demo_task_of_three)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        archive = recorder.search()
    assert archive.values.shape == (24, 3)
    assert (archive.values[archive.front(), 1] <= 0.12).all()
    assert Recorder(demo_task_of_three).search().genotypes.tobytes() == archive.genotypes.tobytes()


def test_a_space_smaller_than_the_search_is_searched_whole() -> None:
    space = SearchSpace("tiny", (16, 24), (1.0,), 8, 1, (Stage(8, 1, 1, 2, (3,), (1, 3)),), 32)
    objectives = Objectives(("error", "latency"), {"latency": lambda genotypes: 1.0 + genotypes.sum(axis=1)})
    versions = []

    def evaluate(archs, version: int):
        versions.append((len(archs), version))
        return [0.5 / (1 + sum(layer.expansion for layer in arch.stages[0])) for arch in archs]

    settings = NatSettings(initial=10, rounds=2, infill=4, population=10, generations=2)
    archive = search(space, objectives, [], evaluate=evaluate, adapt=lambda *_: None, settings=settings, seed=0)
    assert len(archive) == space.size == 12
    assert versions == [(10, 0), (2, 0), (12, 1), (12, 2)]


def test_an_impossible_constraint_ends_before_anything_is_evaluated(demo_task) -> None:
    recorder = Recorder(demo_task)
    with pytest.raises(InfeasibleError, match=r"latency from 0\.0\d+ ms to 0\.\d+ ms") as refused:
        recorder.search(constraints=[parse_constraint("latency<=1us")])
    assert refused.value.exit_code == 3
    assert not recorder.calls


def test_an_included_architecture_must_be_of_the_space(demo_task) -> None:
    with pytest.raises(UsageError, match="resolution 64"):
        Recorder(demo_task).search(include=[Arch(64, 1.0, DEMO_SEED.stages)])


@pytest.mark.parametrize("answer", [[0.5], [np.nan] * 16, [1.5] * 16, [-0.1] * 16])
def test_a_wrong_evaluation_is_refused(answer: list[float], demo_task) -> None:
    recorder = Recorder(demo_task)
    recorder.evaluate = lambda archs, version: answer
    with pytest.raises(NatdeployError, match=r"shape|not in 0\.\.1"):
        recorder.search()


def test_settings_are_checked() -> None:
    with pytest.raises(ValidationError):
        NatSettings(initial=2)
    with pytest.raises(ValidationError):
        NatSettings.model_validate({"round": 3})
