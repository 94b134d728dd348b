from __future__ import annotations

import csv
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from scipy.interpolate import RBFInterpolator
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import WhiteKernel
from threadpoolctl import threadpool_limits

from natdeploy.search.surrogate import CANDIDATES, SMOOTHING, Features, GaussianProcess, _Cubic, fit_best, kendall, learn_earlier


def sample(task, n: int, seed: int) -> np.ndarray:
    return np.unique(task.space.sample(n, np.random.default_rng(seed)), axis=0)


@pytest.mark.parametrize("name", CANDIDATES)
def test_every_candidate_ranks_architectures_it_has_not_seen(name: str, mbv2_task) -> None:
    seen, unseen = sample(mbv2_task, 100, 0), sample(mbv2_task, 300, 1)
    features = Features(mbv2_task.space, seen)
    surrogate = CANDIDATES[name](np.random.default_rng(0))
    surrogate.fit(features(seen), mbv2_task.evaluate(mbv2_task.space.decode_all(seen), 0).errors)
    assert kendall(surrogate.predict(features(unseen)).errors, mbv2_task.error(unseen)) > 0.7


def test_the_best_of_cross_validation_wins_and_predicts_real_accuracies(shared: Path) -> None:
    """Accel-NASBench: MBConv networks that were really trained."""
    with (shared / "latency" / "accel_nasbench_first2500.csv").open() as file:
        rows = list(csv.DictReader(file))
    choices = np.array([[float(value) for name, value in row.items() if name.startswith("block")] for row in rows])
    choices = (choices - choices.mean(axis=0)) / choices.std(axis=0)
    errors = 1 - np.array([float(row["val_top1"]) for row in rows]) / 100
    order = np.random.default_rng(0).permutation(len(rows))
    seen, unseen = order[:100], order[100:]
    fit = fit_best(choices[seen], errors[seen], np.random.default_rng(0))
    assert fit.taus[fit.name] == max(fit.taus.values())
    assert set(fit.taus) == set(CANDIDATES)
    tau = kendall(fit.predict(choices[unseen]).errors, errors[unseen])
    assert tau > 0.72
    assert tau == pytest.approx(fit.taus[fit.name], abs=0.1), "cross-validation must tell what to expect"


def test_the_same_chance_gives_the_same_surrogate(demo_task) -> None:
    genotypes = sample(demo_task, 30, 0)
    features = Features(demo_task.space, genotypes)
    errors = demo_task.evaluate(demo_task.space.decode_all(genotypes), 0).errors
    first, second = (fit_best(features(genotypes), errors, np.random.default_rng(5)) for _ in range(2))
    assert first.taus == second.taus
    np.testing.assert_array_equal(first.predict(features(genotypes)).errors, second.predict(features(genotypes)).errors)


@pytest.mark.parametrize("errors", [np.full(12, 0.25), np.repeat([0.2, 0.4], 6), np.random.default_rng(0).random(12)])
def test_few_samples_equal_errors_and_pure_noise_are_survived_without_a_warning(errors: np.ndarray, demo_task) -> None:
    genotypes = sample(demo_task, 12, 0)
    features = Features(demo_task.space, genotypes)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fit = fit_best(features(genotypes), errors, np.random.default_rng(0))
        predicted = np.concatenate(fit.predict(features(sample(demo_task, 50, 1))))
    assert np.isfinite(predicted).all()
    assert all(-1 <= tau <= 1 for tau in fit.taus.values())


def test_constant_features_are_left_out_and_the_rest_is_scaled(demo_task) -> None:
    genotypes = sample(demo_task, 60, 0)
    genotypes[:, 0] = 1
    features = Features(demo_task.space, genotypes)(genotypes)
    np.testing.assert_allclose(features.mean(axis=0), 0, atol=1e-9)
    np.testing.assert_allclose(features.std(axis=0), 1)
    assert features.shape[1] < Features(demo_task.space, sample(demo_task, 60, 0))(genotypes).shape[1]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """As in a search; two would wait for each other on a busy machine."""
    with threadpool_limits(1):
        yield


def fit_with(task, knowledge, seen, seed: int = 0, names=("gp",)):
    earlier = learn_earlier(task.space, knowledge, np.random.default_rng(9))
    features = Features(task.space, seen, earlier)
    errors = task.evaluate(task.space.decode_all(seen), 0).errors
    fit = fit_best(features(seen), errors, np.random.default_rng(seed), names=names, earlier=len(earlier))
    unseen = sample(task, 400, 77)
    return fit, kendall(fit.predict(features(unseen)).errors, task.error(unseen))


def test_an_earlier_search_of_a_related_task_helps(mbv2_task) -> None:
    """Its errors are half as large, moved and noisy."""
    before, seen = sample(mbv2_task, 100, 5), sample(mbv2_task, 24, 6)
    noise = 0.002 * np.random.default_rng(0).standard_normal(len(before))
    alone, tau_alone = fit_with(mbv2_task, [], seen)
    informed, tau = fit_with(mbv2_task, [(before, 0.2 + 0.5 * mbv2_task.error(before) + noise)], seen)
    assert alone.name == "gp"
    assert informed.name == "gp+earlier"
    assert tau > tau_alone + 0.05


def test_an_earlier_search_of_an_unrelated_task_does_no_harm(mbv2_task) -> None:
    before = sample(mbv2_task, 60, 5)
    taus = []
    for seed in range(3):
        seen = sample(mbv2_task, 40, 20 + seed)
        unrelated = np.random.default_rng(seed).random(len(before))
        _, alone = fit_with(mbv2_task, [], seen, seed)
        _, misled = fit_with(mbv2_task, [(before, unrelated)], seen, seed)
        taus.append(misled - alone)
    assert np.mean(taus) > -0.01
    assert min(taus) > -0.03


def test_what_an_earlier_search_could_not_evaluate_is_left_out(mbv2_task) -> None:
    before = sample(mbv2_task, 60, 5)
    errors = mbv2_task.error(before)
    errors[50:] = np.nan
    one, other = (
        learn_earlier(mbv2_task.space, [known], np.random.default_rng(0))[0]
        for known in ((before, errors), (before[:50], errors[:50]))
    )
    unseen = sample(mbv2_task, 20, 1)
    np.testing.assert_array_equal(one(unseen), other(unseen))
    assert learn_earlier(mbv2_task.space, [(before[:5], errors[:5])], np.random.default_rng(0)) == []


@pytest.mark.parametrize("name", ["gp", "rbf"])
def test_a_surrogate_is_surer_of_what_it_has_seen(name: str, mbv2_task) -> None:
    seen, unseen = sample(mbv2_task, 80, 0), sample(mbv2_task, 80, 1)
    features = Features(mbv2_task.space, seen)
    surrogate = CANDIDATES[name](np.random.default_rng(0))
    surrogate.fit(features(seen), mbv2_task.error(seen))
    known, new = (surrogate.predict(features(each)).deviation for each in (seen, unseen))
    assert (known >= 0).all()
    assert known.mean() < 0.9 * new.mean()


def test_the_gaussian_process_is_that_of_scikit_learn(mbv2_task) -> None:
    seen, unseen = sample(mbv2_task, 60, 0), sample(mbv2_task, 30, 1)
    features = Features(mbv2_task.space, seen)
    errors = mbv2_task.evaluate(mbv2_task.space.decode_all(seen), 0).errors
    ours = GaussianProcess()
    ours.fit(features(seen), errors)
    kernel = ours._kernel + WhiteKernel(ours._noise)
    theirs = GaussianProcessRegressor(kernel, optimizer=None, alpha=0, normalize_y=True).fit(features(seen), errors)
    mean, deviation = theirs.predict(features(unseen), return_std=True)
    predicted = ours.predict(features(unseen))
    np.testing.assert_allclose(predicted.errors, mean, rtol=1e-6)
    noise = ours._noise * errors.std() ** 2
    np.testing.assert_allclose(predicted.deviation**2 + noise, deviation**2, rtol=1e-5)


def test_radial_basis_functions_are_those_of_scipy() -> None:
    rng = np.random.default_rng(0)
    samples, errors, others = rng.standard_normal((50, 6)), rng.random(50), rng.standard_normal((20, 6))
    theirs = RBFInterpolator(samples, errors, kernel="cubic", degree=1, smoothing=SMOOTHING)
    np.testing.assert_allclose(_Cubic(samples, errors)(others), theirs(others), rtol=1e-9)
