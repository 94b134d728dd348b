from __future__ import annotations

import json
import warnings
from collections import Counter
from dataclasses import asdict

import numpy as np
import pytest
from conftest import make_task
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from pydantic import ValidationError

from natdeploy.errors import InfeasibleError, NatdeployError, UsageError
from natdeploy.search import Archive, NatSettings, Objectives, Scores, parse_constraint, search
from natdeploy.search.distribution import Marginals
from natdeploy.search.feasible import sample_feasible
from natdeploy.space import Arch, SearchSpace, Stage, get_space
from natdeploy.space.catalog import plain_arch

QUICK = NatSettings(initial=16, rounds=2, infill=4, parents=8, population=24, generations=5)
DEMO_SEED = plain_arch(32, 1.0, (1, 2, 3, 2))
BOUND = [parse_constraint("latency<=0.12ms")]


class Recorder:
    """The calls of a search, in order."""

    def __init__(self, task) -> None:
        self.task = task
        self.calls: list[tuple] = []
        self.answers: dict[tuple[str, int, bool], tuple[float, float]] = {}
        self.evaluated: Counter[tuple[str, int, bool]] = Counter()
        self.distributions = []
        self.reports = []

    def evaluate(self, archs, version: int, whole: bool) -> Scores:
        self.calls.append(("evaluate", version, whole))
        self.evaluated.update((arch.id, version, whole) for arch in archs)
        scores = self.answer(archs, version, whole)
        for arch, error, noise in zip(archs, scores.errors, scores.noise, strict=True):
            self.answers[arch.id, version, whole] = error, noise
        return scores

    def answer(self, archs, version: int, whole: bool) -> Scores:
        return self.task.evaluate(archs, version, whole)

    def replay(self, answers) -> None:
        """Answers as another search was answered; what that one was not asked is an error."""

        def answer(archs, version: int, whole: bool) -> Scores:
            found = [answers[arch.id, version, whole] for arch in archs]
            return Scores(*np.array(found).reshape(-1, 2).T)

        self.answer = answer

    def adapt(self, distribution, version: int) -> None:
        self.calls.append(("adapt", version))
        self.distributions.append(distribution)

    def search(self, settings: NatSettings = QUICK, *, seed: int = 0, constraints=BOUND, include=(), **more) -> Archive:
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
            **more,
        )


def settings(**changes) -> NatSettings:
    return QUICK.model_copy(update=changes)


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


def assert_replays(first: Recorder, archive: Archive, settings: NatSettings, **more) -> None:
    again = Recorder(first.task)
    again.replay(first.answers)
    replayed = again.search(settings, **more)
    assert archive.genotypes.tobytes() == replayed.genotypes.tobytes()
    assert archive.values.tobytes() == replayed.values.tobytes()
    assert again.calls == first.calls
    assert first.reports == again.reports
    for one, other in zip(first.distributions, again.distributions, strict=True):
        draws = [each.sample(5, np.random.default_rng(0)).tobytes() for each in (one, other)]
        assert draws[0] == draws[1]


def test_a_replay_is_bit_equal(searched) -> None:
    assert_replays(*searched, QUICK, include=[DEMO_SEED])


def test_another_seed_searches_elsewhere(searched, demo_task) -> None:
    other = Recorder(demo_task).search(seed=1, include=[DEMO_SEED])
    assert set(other.ids) != set(searched[1].ids)


def test_calls_come_in_order_and_nothing_is_evaluated_twice_at_a_version(searched) -> None:
    recorder, archive = searched
    calls = [call for number, call in enumerate(recorder.calls) if not number or call != recorder.calls[number - 1]]
    assert calls == [
        ("evaluate", 0, True),
        *(("adapt", 1), ("evaluate", 1, False), ("evaluate", 1, True)),
        *(("adapt", 2), ("evaluate", 2, False), ("evaluate", 2, True)),
    ]
    assert max(recorder.evaluated.values()) == 1
    assert {arch for arch, version, whole in recorder.evaluated if version == 2 and not whole} == set(archive.ids)


def test_only_rows_whose_rank_may_matter_are_evaluated_whole(searched, demo_task) -> None:
    recorder, archive = searched
    part, whole = (demo_task.evaluate(archive.archs, 2, all_images) for all_images in (False, True))
    asked = np.array([(id, 2, True) in recorder.answers for id in archive.ids])
    assert 0 < asked.sum() < len(archive)
    assert asked[archive.front()].all()
    np.testing.assert_array_equal(archive.values[asked, 0], whole.errors[asked])
    shift = (whole.errors - part.errors)[asked].mean()
    np.testing.assert_allclose(archive.values[~asked, 0], part.errors[~asked] + shift, rtol=1e-12)
    screened = Archive(archive.space, archive.objectives, archive.constraints)
    screened.add(archive.genotypes, part.errors)
    assert asked[screened.contenders(part.noise)].all()


def test_without_screening_or_reevaluation(demo_task) -> None:
    whole = Recorder(demo_task)
    archive = whole.search(settings(screen=False))
    assert all(call[2] for call in whole.calls if call[0] == "evaluate")
    np.testing.assert_array_equal(archive.values[:, 0], demo_task.evaluate(archive.archs, 2, True).errors)
    once = Recorder(demo_task)
    archive = once.search(settings(reevaluate=False))
    assert [call for call in once.calls if call[0] == "evaluate"] == [("evaluate", version, True) for version in (0, 0, 1)]
    assert Counter(id for id, _, _ in once.evaluated) == Counter(archive.ids), "every architecture once in its life"


def test_constraints_hold_and_included_architectures_stay_off_the_front(searched) -> None:
    recorder, archive = searched
    too_slow = archive.ids.index(DEMO_SEED.id)
    assert archive.values[too_slow, 1] > 0.12
    assert archive.values[too_slow, 0] < archive.values[archive.front(), 0].min(), "it would be on the front if it were feasible"
    assert too_slow not in archive.front()
    assert too_slow not in archive.best(1000)
    assert (np.delete(archive.values[:, 1], too_slow) <= 0.12).all()
    assert recorder.reports[0].evaluated == QUICK.initial


def test_training_follows_the_best(demo_task) -> None:
    recorder = Recorder(demo_task)
    archive = recorder.search(settings(screen=False))
    before = Archive(demo_task.space, demo_task.objectives, BOUND)
    before.add(archive.genotypes, demo_task.evaluate(archive.archs, QUICK.rounds - 1).errors)
    best = before.genotypes[before.best(QUICK.parents)]
    expected = Marginals.from_genotypes(demo_task.space, best, QUICK.smoothing)
    for one, other in zip(recorder.distributions[-1].probabilities, expected.probabilities, strict=True):
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
    assert -1 <= last.surrogate.new_spearman <= 1
    assert all(report.failed == 0 and report.left == () for report in reports)
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

    def evaluate(archs, version: int, whole: bool) -> Scores:
        versions.append((len(archs), version))
        errors = np.array([0.5 / (1 + sum(layer.expansion for layer in arch.stages[0])) for arch in archs])
        return Scores(errors, np.zeros(len(archs)))

    settings = NatSettings(initial=10, rounds=2, infill=4, population=10, generations=2, screen=False)
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


@pytest.mark.parametrize("answer", [[0.5], [1.5] * 16, [-0.1] * 16, [np.inf] * 16])
def test_a_wrong_evaluation_is_refused(answer: list[float], demo_task) -> None:
    recorder = Recorder(demo_task)
    recorder.evaluate = lambda archs, version, whole: Scores(np.array(answer), np.zeros(len(answer)))
    with pytest.raises(NatdeployError, match=r"shape|not in 0\.\.1"):
        recorder.search()
    recorder.evaluate = lambda archs, version, whole: Scores(np.full(len(archs), 0.5), np.zeros(1))
    with pytest.raises(NatdeployError, match="noise have shape"):
        recorder.search()


# ---- architectures that cannot be evaluated


class Failing(Recorder):
    """Nets of the second resolution cannot be evaluated before version `heal`."""

    heal = 99

    def answer(self, archs, version: int, whole: bool) -> Scores:
        scores = super().answer(archs, version, whole)
        genotypes = self.task.space.encode_all(archs)
        fails = (genotypes[:, 0] == 1) & (version < self.heal)
        return Scores(np.where(fails, np.nan, scores.errors), scores.noise)


@pytest.mark.parametrize("screen", [False, True])
def test_what_fails_is_counted_and_left_out_of_everything_else(screen: bool, demo_task) -> None:
    recorder = Failing(demo_task)
    archive = recorder.search(settings(screen=screen))
    failed = archive.genotypes[:, 0] == 1
    assert 0 < failed.sum() < len(archive)
    np.testing.assert_array_equal(archive.failed, failed)
    assert recorder.reports[-1].failed == failed.sum()
    assert np.isfinite(recorder.reports[-1].hypervolume)
    assert not failed[archive.front()].any()
    assert not failed[archive.best(1000)].any()
    assert not failed[archive.contenders(1.0)].any()
    assert all(np.isfinite(report.surrogate.new_rmse) for report in recorder.reports[1:] if report.surrogate.new_rmse is not None)
    # Training never sees a failed one: with all smoothing off, the resolution that fails has no share.
    free = Failing(demo_task)
    free.search(settings(screen=screen, smoothing=0.0))
    assert all(distribution.probabilities[0][1] == 0 for distribution in free.distributions)


def test_what_failed_is_asked_again_and_may_recover(demo_task) -> None:
    recorder = Failing(demo_task)
    recorder.heal = 2
    archive = recorder.search()
    assert [report.failed > 0 for report in recorder.reports] == [True, True, False]
    assert not archive.failed.any()


def test_replays_hold_where_some_fail(demo_task) -> None:
    recorder = Failing(demo_task)
    assert_replays(recorder, recorder.search(), QUICK)


def test_a_search_in_which_everything_fails_says_so(demo_task) -> None:
    recorder = Recorder(demo_task)
    recorder.answer = lambda archs, version, whole: Scores(np.full(len(archs), np.nan), np.zeros(len(archs)))
    with pytest.raises(NatdeployError, match="none of the 16 feasible architectures could be evaluated"):
        recorder.search()


def test_too_few_evaluated_ones_to_learn_from_are_followed_by_random_ones(demo_task) -> None:
    recorder = Recorder(demo_task)
    worked = []

    def answer(archs, version: int, whole: bool) -> Scores:
        worked.append(len(archs))
        errors = demo_task.evaluate(archs, version).errors
        errors[5:] = np.nan if len(worked) == 1 else errors[5:]
        return Scores(errors, np.zeros(len(archs)))

    recorder.answer = answer
    recorder.search(settings(screen=False))
    assert recorder.reports[1].surrogate is None
    assert len(recorder.reports[1].new) == QUICK.infill
    assert recorder.reports[2].surrogate is not None


# ---- corrected objectives


def slower(objectives: Objectives, factor: float) -> Objectives:
    """Large nets are slower than was thought."""
    before = objectives.cheap["latency"]
    return Objectives(objectives.names, {**objectives.cheap, "latency": lambda genotypes: before(genotypes) ** factor})


def test_a_correction_moves_values_and_drops_what_leaves_the_front(demo_task) -> None:
    recorder, asked, thrown = Recorder(demo_task), [], []

    def correct(archive: Archive, number: int) -> Objectives | None:
        asked.append(number)
        if number > 2:
            return None
        front = archive.values[archive.front()]
        limit = np.median(front[:, 1])
        before = demo_task.objectives.cheap["latency"]
        cheap = {
            **demo_task.objectives.cheap,
            "latency": lambda genotypes: before(genotypes) * np.where(before(genotypes) > limit, 2, 1),
        }
        thrown.extend(archive.ids[row] for row in archive.front() if archive.values[row, 1] > limit)
        return Objectives(demo_task.objectives.names, cheap)

    kind = settings(rounds=5, measure_every=2)
    archive = recorder.search(kind, correct=correct)
    assert asked == [2, 4]
    left = recorder.reports[2].left
    assert left
    assert set(left) <= set(thrown)
    assert not set(left) & {archive.ids[row] for row in archive.front()}
    assert [bool(report.left) for report in recorder.reports] == [False, False, True, False, False, False]
    np.testing.assert_array_equal(archive.values[:, 1], archive.objectives.cheap["latency"](archive.genotypes))
    assert (archive.values[archive.front(), 1] <= 0.12).all()
    assert len({report.reference for report in recorder.reports}) == 1
    front = [archive.ids[row] for row in archive.front()]
    assert all((id, 5, True) in recorder.answers for id in front), "a corrected front is evaluated whole as well"
    assert_replays(recorder, archive, kind, correct=correct)


def test_where_nothing_known_is_feasible_any_more_others_are_found(demo_task) -> None:
    """After the correction nets of the smallest resolution alone are fast enough, and those known are as slow as all others."""
    recorder = Recorder(demo_task)
    known: list[bytes] = []

    def correct(archive: Archive, number: int) -> Objectives:
        known.extend(row.tobytes() for row in archive.genotypes)
        before = demo_task.objectives.cheap["latency"]

        def latency(genotypes):
            slow = np.array([row.tobytes() in known for row in genotypes])
            return before(genotypes) + slow

        return Objectives(demo_task.objectives.names, {**demo_task.objectives.cheap, "latency": latency})

    kind = settings(rounds=1, measure_every=1)
    archive = recorder.search(kind, correct=correct)
    assert archive.feasible.sum() == QUICK.infill
    assert recorder.reports[-1].new[-QUICK.infill :] == archive.ids[-QUICK.infill :]
    assert max(recorder.evaluated.values()) == 1


def test_a_constraint_that_becomes_impossible_ends_with_the_range_now_reached(demo_task) -> None:
    recorder = Recorder(demo_task)

    def correct(archive: Archive, number: int) -> Objectives:
        before = demo_task.objectives.cheap["latency"]
        return Objectives(demo_task.objectives.names, {**demo_task.objectives.cheap, "latency": lambda g: before(g) + 1.0})

    with pytest.raises(
        InfeasibleError, match=r"round 1 has corrected.*latency<=0\.12ms; it reaches latency from 1\.\d+ ms"
    ) as refused:
        recorder.search(settings(measure_every=1), correct=correct)
    assert refused.value.exit_code == 3


# ---- other ways to search


@pytest.mark.parametrize("kind", ["archive", "pairs", "uniform"])
def test_training_follows_what_the_setting_names(kind: str, demo_task) -> None:
    recorder = Recorder(demo_task)
    recorder.search(settings(distribution=kind, rounds=1))
    drawn = recorder.distributions[0].sample(50, np.random.default_rng(0))
    np.testing.assert_array_equal(demo_task.space.repair(drawn), drawn)
    if kind == "uniform":
        np.testing.assert_allclose(recorder.distributions[0].probabilities[0], 1 / len(demo_task.space.resolutions))


def test_random_proposals_ask_no_surrogate(demo_task) -> None:
    recorder = Recorder(demo_task)
    archive = recorder.search(settings(propose="random"))
    assert all(report.surrogate is None for report in recorder.reports)
    assert len(archive) == 24
    assert (archive.values[:, 1] <= 0.12).all()


@pytest.mark.parametrize("name", ["rbf", "gp", "xgboost"])
def test_a_named_surrogate_is_the_only_one(name: str, demo_task) -> None:
    recorder = Recorder(demo_task)
    recorder.search(settings(surrogate=name, rounds=1))
    assert recorder.reports[1].surrogate.name == name
    assert set(recorder.reports[1].surrogate.taus) == {name}


def test_twelve_objectives_are_searched_end_to_end() -> None:
    task = make_task(get_space("demo"), ("error", "latency", "macs", "params", *(f"latency@{target}" for target in range(8))))
    recorder = Recorder(task)
    archive = recorder.search(settings(initial=20, rounds=1))
    assert archive.values.shape == (24, 12)
    assert 0 < recorder.reports[-1].hypervolume < 1
    assert_replays(recorder, archive, settings(initial=20, rounds=1))


@hypothesis_settings(max_examples=8, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    objectives=st.sampled_from([("error", "latency"), ("error", "latency", "params"), ("error", "latency", "macs", "params")]),
    initial=st.integers(10, 14),
    infill=st.integers(1, 12),
    propose=st.sampled_from(["evolution", "random"]),
)
def test_no_network_is_ever_evaluated_twice(
    seed: int, objectives: tuple[str, ...], initial: int, infill: int, propose: str
) -> None:
    """A space of 36 networks, nearly used up, and codes with gaps that mean the same network."""
    space = SearchSpace("tiny", (16, 24, 32), (1.0,), 8, 1, (Stage(8, 1, 1, 3, (3,), (1, 3)),), 32)
    recorder = Recorder(make_task(space, objectives))
    kind = settings(initial=initial, infill=infill, propose=propose, surrogate="gp", population=10, generations=3)
    archive = recorder.search(kind, seed=seed, constraints=[])
    assert max(recorder.evaluated.values()) == 1
    assert len(set(archive.ids)) == len(archive) == min(space.size, initial + 2 * infill)


# ---- earlier searches


def test_an_earlier_search_of_the_same_space_must_fit(demo_task) -> None:
    with pytest.raises(UsageError, match="not of space demo"):
        Recorder(demo_task).search(knowledge=[(np.zeros((20, 3), dtype=np.int64), np.zeros(20))])


def test_what_an_earlier_search_learned_is_used_and_replayed(demo_task) -> None:
    genotypes = np.unique(demo_task.space.sample(80, np.random.default_rng(3)), axis=0)
    errors = 0.3 + 0.5 * demo_task.error(genotypes)
    errors[0] = np.nan
    recorder = Recorder(demo_task)
    archive = recorder.search(knowledge=[(genotypes, errors)])
    assert any(name.endswith("+earlier") for name in recorder.reports[1].surrogate.taus)
    assert_replays(recorder, archive, QUICK, knowledge=[(genotypes, errors)])


def test_settings_are_checked() -> None:
    with pytest.raises(ValidationError):
        NatSettings(initial=2)
    with pytest.raises(ValidationError):
        NatSettings.model_validate({"round": 3})
