"""Presets, and what is given over them."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from natdeploy.pipeline import SearchConfig
from natdeploy.pipeline.presets import GRADIENT, PRESETS, merged
from natdeploy.search import NatSettings
from natdeploy.tasks import NAMED

PLACES = {"data": Path("data"), "out": Path("out")}


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_is_a_valid_configuration_and_comes_back_from_json(name: str) -> None:
    config = SearchConfig(**PLACES, preset=name)
    assert SearchConfig.model_validate_json(config.model_dump_json()) == config


def test_paper_is_what_was_published() -> None:
    config = SearchConfig(**PLACES, preset="paper")
    assert (config.nat.initial, config.nat.rounds, config.nat.infill) == (100, 30, 8)
    assert config.nat.population * config.nat.generations == 10_000
    assert config.schedule.epochs * config.schedule.warmup == pytest.approx(5)
    assert config.schedule.epochs * (1 - config.schedule.warmup) / config.nat.rounds == pytest.approx(5)
    assert config.schedule.final == 0


def test_what_is_given_counts_and_the_preset_fills_the_rest() -> None:
    config = SearchConfig(**PLACES, preset="paper", nat={"rounds": 3}, adapt={"train": {"batch_size": 32}})
    assert (config.nat.rounds, config.nat.initial) == (3, 100)
    assert (config.adapt.train.batch_size, config.adapt.train.weight_decay) == (32, 3e-4)
    given = SearchConfig(**PLACES, preset="paper", nat=NatSettings(rounds=3))
    assert given.nat == config.nat


@pytest.mark.parametrize("name", NAMED)
def test_paper_takes_the_recipe_of_a_set_that_is_known_by_name(name: str) -> None:
    recipe = NAMED[name].recipe
    config = SearchConfig(data=Path(name), out=Path("out"), preset="paper")
    assert config.resolutions == recipe.resolutions
    assert config.adapt.train.batch_size == recipe.batch_size
    assert config.augmentation == recipe.augmentation
    assert config.schedule.epochs * (1 - config.schedule.warmup) == pytest.approx(recipe.rounds * recipe.round_epochs)
    assert SearchConfig(data=Path(name), out=Path("out")).resolutions is None, "quick is not what was published"


def test_an_unknown_preset_is_refused() -> None:
    with pytest.raises(ValidationError, match="quick"):
        SearchConfig(**PLACES, preset="best")


def test_tables_merge_and_values_replace() -> None:
    assert merged({"a": {"x": 1, "y": 2}, "b": 3}, {"a": {"y": 4}, "c": 5}) == {"a": {"x": 1, "y": 4}, "b": 3, "c": 5}


@pytest.mark.parametrize("preset", PRESETS)
def test_a_strategy_and_what_rounds_propose_are_one_setting(preset: str) -> None:
    by_strategy = SearchConfig(**PLACES, preset=preset, strategy="random")
    by_rounds = SearchConfig(**PLACES, preset=preset, nat={"propose": "random"})
    assert by_strategy == by_rounds
    assert (by_rounds.strategy, by_strategy.nat.propose) == ("random", "random")
    assert SearchConfig(**PLACES, preset=preset).strategy == "evolution"
    stored = by_strategy.model_dump(mode="json")
    assert SearchConfig.model_validate(stored) == by_strategy
    assert SearchConfig.model_validate({name: value for name, value in stored.items() if name != "strategy"}) == by_strategy


@pytest.mark.parametrize("name", GRADIENT)
def test_every_preset_by_gradient_is_valid_and_draws_all_that_weights_learn(name: str) -> None:
    config = SearchConfig(**PLACES, preset=name, strategy="gradient")
    assert SearchConfig.model_validate_json(config.model_dump_json()) == config
    assert (config.adapt.scheme, config.adapt.sampled_share, config.nat.propose) == ("single", 1.0, "evolution")


def test_paper_by_gradient_is_what_was_published_for_segmentation() -> None:
    config = SearchConfig(**PLACES, preset="paper", strategy="gradient")
    searched = config.schedule.epochs * (1 - config.schedule.final)
    assert (searched, config.schedule.epochs * config.schedule.warmup) == (80, 30)
    assert (config.gradient.penalty, config.gradient.base, config.gradient.cost) == (9e-3, 45, "macs")
    assert (config.gradient.learning_rate, config.gradient.weight_decay, config.gradient.weights) == (1e-3, 4e-5, "seed")


def test_a_search_by_gradient_knows_no_precisions() -> None:
    with pytest.raises(ValidationError, match="chooses among architectures alone; leave out --precision"):
        SearchConfig(**PLACES, strategy="gradient", precisions=("fp32", "int8"))


def test_a_strategy_that_contradicts_the_rounds_is_refused() -> None:
    with pytest.raises(ValidationError, match="contradicts strategy evolution; leave out one of them"):
        SearchConfig(**PLACES, strategy="evolution", nat={"propose": "random"})
