from __future__ import annotations

import numpy as np
import pytest

from natdeploy.search import Distribution
from natdeploy.space import get_space

SPACE = get_space("mbv2")


def depths(genotypes: np.ndarray) -> np.ndarray:
    """Of every stage that leaves a choice, (n, elastic stages)."""
    return np.stack([(genotypes[:, part] > 0).sum(axis=1) for _, part in SPACE.elastic], axis=1)


def test_marginals_of_the_best_are_kept() -> None:
    rng = np.random.default_rng(0)
    best = SPACE.sample(40, rng)
    best[:20, 0] = 3
    drawn = Distribution.from_genotypes(SPACE, best, smoothing=0.0).sample(4000, rng)
    np.testing.assert_array_equal(SPACE.repair(drawn), drawn)
    assert (drawn[:, 0] == 3).mean() == pytest.approx((best[:, 0] == 3).mean(), abs=0.03)
    for depth in range(1, 5):
        share, expected = (depths(drawn) == depth).mean(axis=0), (depths(best) == depth).mean(axis=0)
        np.testing.assert_allclose(share, expected, atol=0.03)
    first_slot = 2
    codes = range(1, SPACE.upper[first_slot] + 1)
    shares = [[(part[:, first_slot] == code).mean() for code in codes] for part in (drawn, best)]
    np.testing.assert_allclose(shares[0], shares[1], atol=0.03)


def test_without_smoothing_one_architecture_is_all_there_is() -> None:
    only = SPACE.sample(1, np.random.default_rng(1))
    drawn = Distribution.from_genotypes(SPACE, only, smoothing=0.0).sample(50, np.random.default_rng(2))
    assert (drawn == only).all()


def test_smoothing_leaves_a_chance_to_everything() -> None:
    smallest = SPACE.lower[None]
    distribution = Distribution.from_genotypes(SPACE, smallest, smoothing=0.2)
    for probabilities in (distribution.resolution, distribution.width, *distribution.depths, *distribution.choices):
        assert probabilities.sum() == pytest.approx(1)
        assert (probabilities > 0).all()
    assert distribution.resolution[0] == pytest.approx(0.8 + 0.2 / len(SPACE.resolutions))
    assert distribution.depths[1][3] == pytest.approx(0.05)
    assert (depths(distribution.sample(500, np.random.default_rng(0)))[:, 1] == 4).any()


def test_the_same_chance_draws_the_same() -> None:
    distribution = Distribution.from_genotypes(SPACE, SPACE.sample(10, np.random.default_rng(0)), smoothing=0.1)
    draws = [distribution.sample(20, np.random.default_rng(4)) for _ in range(2)]
    np.testing.assert_array_equal(draws[0], draws[1])
