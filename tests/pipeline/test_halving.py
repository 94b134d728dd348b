"""Successive halving: which networks share the last stretch is decided while they learn."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from natdeploy import pipeline
from natdeploy.pipeline import SearchConfig
from natdeploy.pipeline.choice import take_of_each
from natdeploy.space import Arch
from natdeploy.store import RunStore

SCHEDULE = {"epochs": 12, "warmup": 0.2, "final": 0.7, "final_nets": 1, "final_choice": "best", "final_halvings": 2}


@pytest.fixture(scope="module")
def halved(tmp_path_factory: pytest.TempPathFactory, dense_finished: SearchConfig) -> SearchConfig:
    """A search that ends with one network, run to its end."""
    out = tmp_path_factory.mktemp("halved") / "run"
    config = SearchConfig.model_validate({**dense_finished.model_dump(exclude_unset=True), "out": out, "schedule": SCHEDULE})
    pipeline.search(config)
    return config


def outcome(folder: Path) -> dict[str, object]:
    with RunStore.open(folder) as store:
        return {
            "evaluations": sorted((e.step, e.arch, e.correct, e.total, e.loss) for e in store.evaluations()),
            "nets": [(n.role, n.arch, n.validation_accuracy, n.test_accuracy, n.predicted_ms) for n in store.nets()],
        }


def test_one_network_is_left_and_the_others_were_compared_while_they_learned(halved: SearchConfig) -> None:
    (net,) = [net for net in pipeline.nets(halved.out) if net.role == "front"]
    with RunStore.open(halved.out) as store:
        evaluations, budget = store.evaluations(), pipeline.Budget.from_json(store.get("budget"))
    rounds = budget.nat.rounds
    first, second = ({e.arch for e in evaluations if e.step == rounds + number} for number in (1, 2))
    assert (len(first), len(second)) == (4, 2) and second < first and net.arch in second
    searched = {e.arch for e in evaluations if e.step <= rounds}
    assert len({Arch.parse(arch).resolution for arch in first}) == min(4, len({Arch.parse(arch).resolution for arch in searched}))
    latest = next(e for e in evaluations if e.step == rounds + 2 and e.arch == net.arch)
    assert latest.whole and net.validation_accuracy == latest.accuracy
    assert budget.steps(rounds) < budget.halving_steps(1, 2) < budget.halving_steps(2, 2) < budget.total_steps
    result = pipeline.report(halved.out)
    assert result.adaptation is not None and min(result.adaptation.architecture_s, result.adaptation.parameters_s) > 0


def test_broken_off_anywhere_it_ends_as_an_unbroken_run(
    halved: SearchConfig, tmp_path: Path, to_the_end: Callable[[SearchConfig], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    record, records = RunStore.record, 0

    def stop(self: RunStore, *args: Any) -> None:
        nonlocal records
        record(self, *args)
        records += 1
        if records % 7 == 6:
            raise KeyboardInterrupt

    whole = outcome(halved.out)
    monkeypatch.setattr(RunStore, "record", stop)
    broken = halved.model_copy(update={"out": tmp_path / "broken"})
    assert to_the_end(broken) > 2
    assert records > 20
    assert outcome(broken.out) == whole


def test_it_begins_with_the_best_of_every_size_of_input() -> None:
    values = np.array([[0.5, 1.0], [0.3, 2.0], [0.2, 3.0], [0.25, 1.0], [0.9, 4.0]])
    inputs = [64, 96, 96, 96, 128]
    assert take_of_each(values, inputs, 3).tolist() == [2, 0, 4]
    assert take_of_each(values, inputs, 4).tolist() == [2, 0, 4, 3]
    assert take_of_each(values, inputs, 2).tolist() == [2, 0], "of as many places the better ones"
    assert take_of_each(values, inputs, 9).tolist() == [2, 0, 4, 3, 1]


def test_a_search_for_a_single_network_halves_and_what_is_given_counts_over_that() -> None:
    asked = SearchConfig.model_validate({"data": "photos", "out": "run", "single": True, "schedule": {"final": 0.5}})
    schedule = asked.schedule
    assert (schedule.final_nets, schedule.final_choice, schedule.final_halvings, schedule.final) == (1, "best", 2, 0.5)
    assert SearchConfig.model_validate(asked.model_dump()) == asked
    assert not SearchConfig.model_validate({"data": "photos", "out": "run"}).schedule.final_halvings
    with pytest.raises(ValidationError, match="strategy gradient ends with one network by itself; leave out --single"):
        SearchConfig.model_validate({"data": "photos", "out": "run", "single": True, "strategy": "gradient"})


@pytest.mark.parametrize("other", [{"precisions": "fp32,int8"}, {"strategy": "gradient"}])
def test_what_does_not_go_together_is_refused(other: dict[str, str]) -> None:
    with pytest.raises(ValidationError, match="final_halvings compares architectures of a search that evaluates many"):
        SearchConfig.model_validate({"data": "photos", "out": "run", "schedule": {"final_halvings": 1}, **other})
