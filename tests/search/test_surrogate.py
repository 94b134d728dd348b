from __future__ import annotations

import csv
import warnings
from pathlib import Path

import numpy as np
import pytest

from natdeploy.search.surrogate import CANDIDATES, Features, fit_best, kendall


def sample(task, n: int, seed: int) -> np.ndarray:
    return np.unique(task.space.sample(n, np.random.default_rng(seed)), axis=0)


@pytest.mark.parametrize("name", CANDIDATES)
def test_every_candidate_ranks_architectures_it_has_not_seen(name: str, mbv2_task) -> None:
    seen, unseen = sample(mbv2_task, 100, 0), sample(mbv2_task, 300, 1)
    features = Features(mbv2_task.space, seen)
    surrogate = CANDIDATES[name](np.random.default_rng(0))
    surrogate.fit(features(seen), mbv2_task.evaluate(mbv2_task.space.decode_all(seen), 0))
    assert kendall(surrogate.predict(features(unseen)), mbv2_task.error(unseen)) > 0.7


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
    tau = kendall(fit.surrogate.predict(choices[unseen]), errors[unseen])
    assert tau > 0.72
    assert tau == pytest.approx(fit.taus[fit.name], abs=0.1), "cross-validation must tell what to expect"


def test_the_same_chance_gives_the_same_surrogate(demo_task) -> None:
    genotypes = sample(demo_task, 30, 0)
    features = Features(demo_task.space, genotypes)
    errors = demo_task.evaluate(demo_task.space.decode_all(genotypes), 0)
    first, second = (fit_best(features(genotypes), errors, np.random.default_rng(5)) for _ in range(2))
    assert first.taus == second.taus
    np.testing.assert_array_equal(first.surrogate.predict(features(genotypes)), second.surrogate.predict(features(genotypes)))


@pytest.mark.parametrize("errors", [np.full(12, 0.25), np.repeat([0.2, 0.4], 6), np.random.default_rng(0).random(12)])
def test_few_samples_equal_errors_and_pure_noise_are_survived_without_a_warning(errors: np.ndarray, demo_task) -> None:
    genotypes = sample(demo_task, 12, 0)
    features = Features(demo_task.space, genotypes)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fit = fit_best(features(genotypes), errors, np.random.default_rng(0))
        predicted = fit.surrogate.predict(features(sample(demo_task, 50, 1)))
    assert np.isfinite(predicted).all()
    assert all(-1 <= tau <= 1 for tau in fit.taus.values())


def test_constant_features_are_left_out_and_the_rest_is_scaled(demo_task) -> None:
    genotypes = sample(demo_task, 60, 0)
    genotypes[:, 0] = 1
    features = Features(demo_task.space, genotypes)(genotypes)
    np.testing.assert_allclose(features.mean(axis=0), 0, atol=1e-9)
    np.testing.assert_allclose(features.std(axis=0), 1)
    assert features.shape[1] < Features(demo_task.space, sample(demo_task, 60, 0))(genotypes).shape[1]
