"""What a search begins with, and which networks share its last stretch."""

from __future__ import annotations

import numpy as np
import pytest

from natdeploy.pipeline import SearchConfig
from natdeploy.pipeline.choice import take_few
from natdeploy.pipeline.predictor import find_predictor
from natdeploy.pipeline.problem import Problem, around_seed, first_archs, fitted, make_problem, requirements
from natdeploy.pipeline.setting import Setting, prepare
from natdeploy.progress import Silent


def problem_of(config: SearchConfig) -> tuple[Setting, Problem]:
    setting, (targets, _) = prepare(config, Silent()), requirements(config)
    (target,) = targets.values()
    predictor = find_predictor(target, setting.space, tables=config.tables, table=None, allow_estimate=False, progress=Silent())
    assert predictor is not None
    return setting, make_problem(config, setting, {"latency": predictor})


def macs(problem: Problem, setting: Setting, *resolutions: int) -> list[float]:
    archs = [setting.seed_arch(resolution) for resolution in resolutions]
    return [float(value) for value in problem.objectives.cheap["macs"](setting.space.encode_all(archs))]


@pytest.fixture
def tight(config: SearchConfig) -> tuple[Setting, Problem]:
    """The seed's own network keeps the bound at the two smaller of three resolutions, by a hair at the second."""
    setting, problem = problem_of(config)
    _, second, _ = macs(problem, setting, *setting.space.resolutions)
    return problem_of(config.model_copy(update={"constraints": (f"macs<={second:.0f}",)}))


def test_the_seed_stays_whole_where_it_keeps_the_bound_and_loses_layers_where_it_does_not(tight: tuple[Setting, Problem]) -> None:
    setting, problem = tight
    small, middle, large = setting.space.resolutions
    assert fitted(setting, problem, small) == [setting.seed_arch(small)]
    assert fitted(setting, problem, middle) == [setting.seed_arch(middle)]
    own, shortened = setting.seed_arch(large), fitted(setting, problem, large)
    assert shortened, "some layers of the seed's can be left out"
    for arch in shortened:
        assert problem.keep(setting.space.encode(arch)[None])[0]
        assert arch.depths != own.depths
        for stage, whole in zip(arch.stages, own.stages, strict=True):
            assert stage == whole[: len(stage)], "what is left is the seed's own"


def test_a_bound_that_nothing_left_of_the_seed_keeps_leaves_nothing(config: SearchConfig) -> None:
    setting, problem = problem_of(config)
    small, *_, large = setting.space.resolutions
    (least,) = macs(problem, setting, small)
    setting, problem = problem_of(config.model_copy(update={"constraints": (f"macs<={0.6 * least:.0f}",)}))
    assert fitted(setting, problem, large) == []
    drawn = around_seed(setting, problem)(5, np.random.default_rng(0))
    assert problem.keep(setting.space.encode_all(list(drawn))).all()


def test_the_first_archive_has_the_seed_at_every_resolution_whole_or_shortened(tight: tuple[Setting, Problem]) -> None:
    setting, problem = tight
    first = first_archs(setting, problem, 16, 0)
    for resolution in setting.space.resolutions:
        assert set(fitted(setting, problem, resolution)) <= set(first)
    assert len(first) == len(set(first)) <= 16
    assert first == first_archs(setting, problem, 16, 0)


def test_networks_around_the_seed_keep_the_bound_at_every_resolution(tight: tuple[Setting, Problem]) -> None:
    setting, problem = tight
    drawn = around_seed(setting, problem)(60, np.random.default_rng(1))
    assert problem.keep(setting.space.encode_all(list(drawn))).all()
    assert {arch.resolution for arch in drawn} == set(setting.space.resolutions), "the largest too, with fewer layers"


FRONT = np.array([[0.5, 1.0], [0.3, 2.0], [0.25, 3.0], [0.24, 9.0]])
"""Error and latency: the third is little worse than the fourth and far faster."""
NOISE = np.full(4, 0.005)


@pytest.mark.parametrize(
    ("rule", "count", "rows"),
    [
        ("best", 1, {3}),
        ("best", 2, {2, 3}),
        ("fastest", 1, {0}),
        ("fastest", 3, {0, 1, 2}),
        ("best", 9, {0, 1, 2, 3}),
        ("spread", 4, {0, 1, 2, 3}),
    ],
)
def test_the_last_stretch_is_shared_by_those_that_the_schedule_names(
    config: SearchConfig, rule: str, count: int, rows: set[int]
) -> None:
    asked = SearchConfig.model_validate({**config.model_dump(), "schedule": {"final_nets": count, "final_choice": rule}})
    assert set(take_few(FRONT, NOISE, asked, count).tolist()) == rows


def test_a_single_knee_is_the_one_that_stands_out(config: SearchConfig) -> None:
    asked = SearchConfig.model_validate({**config.model_dump(), "schedule": {"final_nets": 1, "final_choice": "knee"}})
    (row,) = take_few(FRONT, NOISE, asked, 1)
    assert row in {1, 2}, "the ends cost more than they gain"


@pytest.mark.parametrize(("noise", "row"), [(0.0, 1), (0.015, 2), (0.05, 3)])
def test_of_those_that_chance_does_not_tell_from_the_best_the_slowest_is_trained(
    config: SearchConfig, noise: float, row: int
) -> None:
    asked = SearchConfig.model_validate({**config.model_dump(), "schedule": {"final_nets": 1, "final_choice": "best"}})
    contenders = np.array([[0.5, 1.0], [0.30, 2.0], [0.31, 3.0], [0.34, 4.0]])
    assert take_few(contenders, np.full(4, noise), asked, 1).tolist() == [row]
