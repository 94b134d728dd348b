from __future__ import annotations

import itertools

import numpy as np
import pytest

from natdeploy.errors import InfeasibleError
from natdeploy.search import parse_constraint, reachable_range, smallest_feasible
from natdeploy.search.feasible import sample_feasible
from natdeploy.space import SearchSpace, Stage, cost

TINY = SearchSpace("tiny", (16, 24), (1.0,), 8, 1, (Stage(8, 1, 1, 2, (3,), (1, 3)), Stage(16, 2, 1, 2, (3, 5), (3,))), 32)


def everything(space: SearchSpace) -> np.ndarray:
    ranges = [range(low, high + 1) for low, high in zip(space.lower, space.upper, strict=True)]
    return np.unique(space.repair(np.array(list(itertools.product(*ranges)))), axis=0)


def test_the_reachable_range_is_that_of_all_architectures() -> None:
    everyone = everything(TINY)
    assert len(everyone) == TINY.size
    rng = np.random.default_rng(0)
    # Neither of the two grows with the codes: a quantity with its optimum inside, and one of pure chance on every slot.
    table = rng.random((TINY.variables, 10))

    def odd(genotypes: np.ndarray) -> np.ndarray:
        return table[np.arange(TINY.variables), genotypes].sum(axis=1)

    def macs(genotypes: np.ndarray) -> np.ndarray:
        return cost(TINY, TINY.decode_all(genotypes)).macs

    for objective in (odd, macs):
        values = objective(everyone)
        assert reachable_range(objective, TINY, rng) == (values.min(), values.max())


def test_the_smallest_is_taken_where_it_is_feasible(demo_task) -> None:
    found = smallest_feasible(demo_task.space, demo_task.objectives, [parse_constraint("latency<=1s")], np.random.default_rng(0))
    np.testing.assert_array_equal(found, demo_task.space.lower)


def test_an_unreachable_bound_names_the_reachable_range(demo_task) -> None:
    rng = np.random.default_rng(0)
    low, high = reachable_range(demo_task.objectives.cheap["latency"], demo_task.space, rng)
    with pytest.raises(InfeasibleError, match=f"latency from {low:.3g} ms to {high:.3g} ms") as refused:
        smallest_feasible(demo_task.space, demo_task.objectives, [parse_constraint("latency<=1us")], rng)
    assert refused.value.exit_code == 3
    assert "latency<=1us" in str(refused.value)


def test_bounds_that_exclude_each_other_are_told_together() -> None:
    from natdeploy.search import Objectives

    objectives = Objectives(("error", "latency"), {"latency": lambda g: 1.0 + g[:, 2], "macs": lambda g: 10.0 - g[:, 2]})
    constraints = [parse_constraint("latency<=2.5ms"), parse_constraint("macs<=8.5")]
    with pytest.raises(InfeasibleError, match=r"latency from 2 ms to 3 ms, macs from 8 to 9"):
        smallest_feasible(TINY, objectives, constraints, np.random.default_rng(0))


def test_samples_are_feasible_distinct_and_new(mbv2_task) -> None:
    space, objectives, constraints = mbv2_task.space, mbv2_task.objectives, [parse_constraint("latency<=0.4ms")]
    known = space.lower[None]
    drawn = sample_feasible(200, space, objectives, constraints, known=known, rng=np.random.default_rng(0))
    assert len(np.unique(np.concatenate([known, drawn]), axis=0)) == 201
    assert (objectives.violation(drawn, constraints) == 0).all()
    assert len(np.unique(drawn[:, 0])) > 3, "more than one resolution is feasible here"


def test_a_rare_feasible_part_is_filled_by_mutation(mbv2_task) -> None:
    space, objectives = mbv2_task.space, mbv2_task.objectives
    low, _ = reachable_range(objectives.cheap["latency"], space, np.random.default_rng(0))
    constraints = [parse_constraint(f"latency<={1.12 * low}ms")]
    assert (objectives.violation(space.sample(20_000, np.random.default_rng(1)), constraints) > 0).all()
    drawn = sample_feasible(30, space, objectives, constraints, known=space.lower[None], rng=np.random.default_rng(0))
    assert len(np.unique(drawn, axis=0)) == 30
    assert (objectives.violation(drawn, constraints) == 0).all()


def test_an_exhausted_space_gives_what_is_left() -> None:
    from natdeploy.search import Objectives

    objectives = Objectives(("error", "latency"), {"latency": lambda g: g.sum(axis=1) * 1.0})
    everyone = everything(TINY)
    drawn = sample_feasible(10_000, TINY, objectives, [], known=everyone[:5], rng=np.random.default_rng(0))
    np.testing.assert_array_equal(np.unique(drawn, axis=0), everyone[5:])
