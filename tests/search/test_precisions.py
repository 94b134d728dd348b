"""A search that chooses the precision as well: every architecture counts in all of them, and is evaluated once."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from conftest import make_task

from natdeploy.search import Archive, NatSettings, Objectives, parse_constraint, search
from natdeploy.search.objectives import Floats
from natdeploy.space import Arch, Genotypes, SearchSpace, get_space, space_toml
from natdeploy.space.catalog import plain_arch

PLAIN = get_space("demo")
JOINT = replace(PLAIN, precisions=("fp32", "int8"))
SETTINGS = NatSettings(initial=16, rounds=2, infill=4, parents=8, population=24, generations=5)
BOUND = [parse_constraint("latency<=0.08ms")]
GAIN, LOSS = 0.5, 0.01


def precision(genotypes: Genotypes) -> Genotypes:
    return genotypes[:, -1]


def joint_objectives() -> Objectives:
    """In int8 networks take half of the time, and err a point more."""
    latency = make_task(PLAIN).objectives.cheap["latency"]

    def timed(genotypes: Genotypes) -> Floats:
        faster: Floats = latency(genotypes) * np.where(precision(genotypes), GAIN, 1.0)
        return faster

    return Objectives(("error", "latency"), {"latency": timed}, lambda genotypes: LOSS * precision(genotypes))


def joint_search(evaluated: Counter[tuple[str, int, bool]], reports: list, **more) -> Archive:
    task = make_task(PLAIN)

    def evaluate(archs: list[Arch], version: int, whole: bool):
        evaluated.update((arch.id, version, whole) for arch in archs)
        return task.evaluate(archs, version, whole)

    return search(
        JOINT,
        joint_objectives(),
        BOUND,
        evaluate=evaluate,
        adapt=lambda distribution, version: None,
        settings=SETTINGS,
        seed=0,
        include=[plain_arch(32, 1.0, (1, 2, 3, 2))],
        on_round=reports.append,
        **more,
    )


@pytest.fixture(scope="module")
def searched() -> tuple[Archive, Counter[tuple[str, int, bool]], list]:
    evaluated: Counter[tuple[str, int, bool]] = Counter()
    reports: list = []
    return joint_search(evaluated, reports), evaluated, reports


def test_a_network_is_evaluated_once_for_all_precisions(searched) -> None:
    _, evaluated, _ = searched
    assert evaluated
    assert set(evaluated.values()) == {1}


def test_every_architecture_has_a_row_in_each_precision(searched) -> None:
    archive, _, reports = searched
    assert (archive.genotypes[::2, :-1] == archive.genotypes[1::2, :-1]).all()
    assert archive.genotypes[:, -1].tolist() == [0, 1] * (len(archive) // 2)
    np.testing.assert_array_equal(archive.errors[::2], archive.errors[1::2])
    np.testing.assert_allclose(archive.values[1::2, 0] - archive.values[::2, 0], LOSS)
    np.testing.assert_allclose(archive.values[1::2, 1] / archive.values[::2, 1], GAIN)
    assert reports[-1].evaluated == len(archive.ids) == len(archive) // 2
    assert not set(reports[1].new) & set(reports[0].new)


def test_the_front_holds_nets_that_only_int8_brings_below_the_limit(searched) -> None:
    archive, _, _ = searched
    front = archive.front()
    within = make_task(PLAIN).objectives.violation(archive.genotypes[front, :-1], BOUND) == 0
    assert archive.values[front, 1].max() <= 0.08
    assert set(archive.genotypes[front[~within], -1]) == {1}


def test_corrected_objectives_bring_a_new_loss_and_errors_stay_those_of_the_networks() -> None:
    archive = Archive(JOINT, joint_objectives())
    archive.add(JOINT.sample(5, np.random.default_rng(0)), np.linspace(0.1, 0.2, 5))
    archive.replace_objectives(replace(archive.objectives, loss=lambda genotypes: 0.05 * precision(genotypes)))
    np.testing.assert_allclose(archive.errors, np.repeat(np.linspace(0.1, 0.2, 5), 2))
    np.testing.assert_allclose(archive.values[:, 0], archive.errors + [0, 0.05] * 5)


def test_networks_are_the_first_rows_of_what_is_asked_for() -> None:
    archive = Archive(JOINT, joint_objectives())
    archive.add(JOINT.sample(5, np.random.default_rng(0)), np.linspace(0.1, 0.2, 5))
    assert archive.networks(np.array([7, 2, 3])).tolist() == [2, 6]
    plain = Archive(PLAIN, make_task(PLAIN).objectives)
    assert plain.networks(np.array([7, 2, 3])).tolist() == [7, 2, 3]


def test_genotypes_of_a_space_with_precisions() -> None:
    drawn = JOINT.sample(200, np.random.default_rng(0))
    assert set(precision(drawn)) == {0, 1}
    np.testing.assert_array_equal(JOINT.repair(drawn), drawn)
    archs = JOINT.decode_all(drawn)
    np.testing.assert_array_equal(JOINT.encode_all(archs)[:, :-1], drawn[:, :-1])
    assert not precision(JOINT.encode_all(archs)).any(), "an architecture says nothing of its precision: the first is taken"
    np.testing.assert_array_equal(JOINT.in_precision(drawn[:, :-1], "int8")[:, -1], 1)
    assert [JOINT.precision_of(row) for row in drawn[:20]] == [JOINT.precisions[row[-1]] for row in drawn[:20]]
    assert PLAIN.precision_of(drawn[0, :-1]) is None
    twins = JOINT.in_every_precision(np.concatenate([drawn, drawn]))
    assert len(twins) == 2 * len(set(archs)) == len(np.unique(twins, axis=0))
    assert JOINT.decode_all(twins[::2]) == list(dict.fromkeys(archs))


def test_a_precision_is_neither_part_of_a_space_file_nor_of_costs() -> None:
    assert space_toml(JOINT) == space_toml(PLAIN)
    assert JOINT.archs_only == PLAIN
    assert JOINT.size == PLAIN.size
    task, drawn = make_task(PLAIN), JOINT.sample(50, np.random.default_rng(1))
    np.testing.assert_array_equal(task.objectives.cheap["macs"](drawn), task.objectives.cheap["macs"](drawn[:, :-1]))


def test_the_neighbours_of_a_network_hold_it_in_the_other_precision() -> None:
    drawn = JOINT.sample(1, np.random.default_rng(2))[0]
    other = drawn.copy()
    other[-1] = 1 - other[-1]
    assert (JOINT.neighbours(drawn) == other).all(axis=1).sum() == 1


def test_one_precision_alone_is_possible() -> None:
    alone: SearchSpace = replace(PLAIN, precisions=("int8",))
    archive = Archive(alone, replace(joint_objectives(), loss=lambda genotypes: np.full(len(genotypes), LOSS)))
    archive.add(alone.sample(5, np.random.default_rng(0)), np.linspace(0.1, 0.2, 5))
    assert len(archive) == len(archive.ids) == 5
    np.testing.assert_allclose(archive.values[:, 0], archive.errors + LOSS)
