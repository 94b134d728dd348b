from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from natdeploy.search.distribution import Marginals, Pairs, follow
from natdeploy.space import get_space

SPACE = get_space("mbv2")


def depths(genotypes: np.ndarray) -> np.ndarray:
    """Of every stage that leaves a choice, (n, elastic stages)."""
    return np.stack([(genotypes[:, part] > 0).sum(axis=1) for _, part in SPACE.elastic], axis=1)


def test_marginals_of_the_best_are_kept() -> None:
    rng = np.random.default_rng(0)
    best = SPACE.sample(40, rng)
    best[:20, 0] = 3
    drawn = Marginals.from_genotypes(SPACE, best, smoothing=0.0).sample(4000, rng)
    np.testing.assert_array_equal(SPACE.repair(drawn), drawn)
    assert (drawn[:, 0] == 3).mean() == pytest.approx((best[:, 0] == 3).mean(), abs=0.03)
    for depth in range(1, 5):
        share, expected = (depths(drawn) == depth).mean(axis=0), (depths(best) == depth).mean(axis=0)
        np.testing.assert_allclose(share, expected, atol=0.03)
    first_slot = 2
    codes = range(1, SPACE.upper[first_slot] + 1)
    shares = [[(part[:, first_slot] == code).mean() for code in codes] for part in (drawn, best)]
    np.testing.assert_allclose(shares[0], shares[1], atol=0.03)


@pytest.mark.parametrize("kind", [Marginals, Pairs])
def test_without_smoothing_one_architecture_is_all_there_is(kind) -> None:
    only = SPACE.sample(1, np.random.default_rng(1))
    drawn = kind.from_genotypes(SPACE, only, smoothing=0.0).sample(50, np.random.default_rng(2))
    assert (drawn == only).all()


def test_smoothing_leaves_a_chance_to_everything() -> None:
    smallest = SPACE.lower[None]
    distribution = Marginals.from_genotypes(SPACE, smallest, smoothing=0.2)
    for probabilities in distribution.probabilities:
        assert probabilities.sum() == pytest.approx(1)
        assert (probabilities > 0).all()
    assert distribution.probabilities[0][0] == pytest.approx(0.8 + 0.2 / len(SPACE.resolutions))
    assert distribution.probabilities[2 + 1][3] == pytest.approx(0.05)
    assert (depths(distribution.sample(500, np.random.default_rng(0)))[:, 1] == 4).any()


@pytest.mark.parametrize("kind", [Marginals, Pairs])
def test_the_same_chance_draws_the_same(kind) -> None:
    distribution = kind.from_genotypes(SPACE, SPACE.sample(10, np.random.default_rng(0)), smoothing=0.1)
    draws = [distribution.sample(20, np.random.default_rng(4)) for _ in range(2)]
    np.testing.assert_array_equal(draws[0], draws[1])


def linked(n: int, rng: np.random.Generator) -> np.ndarray:
    """High resolutions have deep second stages and large first kernels, low ones shallow and small."""
    genotypes = SPACE.sample(n, rng)
    high = rng.random(n) < 0.5
    genotypes[:, 0] = np.where(high, SPACE.upper[0], 0)
    first = SPACE.elastic[0][1].start
    genotypes[:, first] = np.where(high, SPACE.upper[first], 1)
    part = SPACE.elastic[1][1]
    codes = rng.integers(1, SPACE.upper[part.start] + 1, (n, part.stop - part.start))
    genotypes[:, part] = np.where(high[:, None], codes, codes * (np.arange(codes.shape[1]) < 1))
    return SPACE.repair(genotypes)


def test_pairs_keep_what_depends_on_each_other_and_marginals_do_not() -> None:
    best = linked(60, np.random.default_rng(0))
    kept = {}
    for kind in (Marginals, Pairs):
        drawn = kind.from_genotypes(SPACE, best, smoothing=0.0).sample(4000, np.random.default_rng(1))
        np.testing.assert_array_equal(SPACE.repair(drawn), drawn)
        high = drawn[:, 0] == SPACE.upper[0]
        assert high.mean() == pytest.approx((best[:, 0] > 0).mean(), abs=0.03)
        kept[kind] = ((depths(drawn)[:, 1] == 4) == high).mean()
        assert (depths(drawn) == 4).mean(axis=0)[0] == pytest.approx((depths(best) == 4).mean(axis=0)[0], abs=0.05)
    assert kept[Pairs] > 0.95
    assert kept[Marginals] < 0.6


def test_independent_variables_stay_nearly_independent() -> None:
    """What chance shows in a small sample is hardly taken for a dependency."""
    best = SPACE.sample(50, np.random.default_rng(2))
    tree = Pairs.from_genotypes(SPACE, best, smoothing=0.1)
    assert len(tree.order) == len(tree.tables) == 2 + len(SPACE.elastic) + len(SPACE.slots)
    assert sum(parent is not None for _, parent in tree.order) <= 3


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 60), st.floats(0, 1), st.integers(0, 10**6))
def test_tables_of_pairs_are_probabilities_and_parents_come_first(n: int, smoothing: float, seed: int) -> None:
    tree = Pairs.from_genotypes(SPACE, SPACE.sample(n, np.random.default_rng(seed)), smoothing)
    done: set[int] = set()
    for (variable, parent), table in zip(tree.order, tree.tables, strict=True):
        assert parent is None or parent in done
        done.add(variable)
        np.testing.assert_allclose(table.sum(axis=1), 1)
        assert (table >= smoothing / table.shape[1] - 1e-12).all()
    drawn = tree.sample(20, np.random.default_rng(seed))
    np.testing.assert_array_equal(SPACE.repair(drawn), drawn)


def test_uniform_forgets_the_archive() -> None:
    drawn = follow("uniform", SPACE, SPACE.lower[None], 0.1).sample(4000, np.random.default_rng(0))
    assert np.bincount(drawn[:, 0]).min() > 0.8 * len(drawn) / len(SPACE.resolutions)
    np.testing.assert_allclose([(depths(drawn)[:, 1] == depth).mean() for depth in range(1, 5)], 0.25, atol=0.03)
