"""The length of the last stretch follows from the minutes that are left when it begins."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from natdeploy import pipeline
from natdeploy.pipeline import SearchConfig, budget
from natdeploy.pipeline.budget import EVALUATION_SHARE, MIN_INITIAL, Budget, make_budget, nat_sizes, settled
from natdeploy.pipeline.setting import Setting, prepare
from natdeploy.progress import Silent
from natdeploy.search import NatSettings
from natdeploy.store import RunStore
from natdeploy.training.adapt import Lesson

PLANNED = Budget(
    warmup_steps=20,
    round_steps=10,
    final_steps=60,
    checkpoint_steps=5,
    tune_steps=0,
    nat=NatSettings(rounds=2),
    minutes=1.0,
    step_seconds=0.6,
    evaluation_seconds=0.1,
    source="--minutes 1",
)


@pytest.mark.parametrize(("spent_s", "final_steps"), [(20.0, 80), (45.0, 30), (100.0, 30)])
def test_last_stretch_takes_the_minutes_left_but_half_of_itself_at_least(
    config: SearchConfig, monkeypatch: pytest.MonkeyPatch, spent_s: float, final_steps: int
) -> None:
    monkeypatch.setattr(budget, "_step_seconds", lambda *_, **__: 0.5)
    setting, lesson = cast("tuple[Setting, Lesson]", (_Anything(), None))
    asked = config.model_copy(update={"minutes": 1.0})
    found = settled(PLANNED, asked, setting, lesson, spent_s)
    assert found == replace(PLANNED, final_steps=final_steps, settled=True)
    assert settled(found, asked, setting, lesson, 0.0) == found
    assert settled(PLANNED, config, setting, lesson, 0.0) == PLANNED  # no minutes were given
    assert settled(replace(PLANNED, final_steps=0), asked, setting, lesson, 0.0).final_steps == 0


def test_first_phases_do_not_come_back_in_a_longer_schedule(config: SearchConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(budget, "_step_seconds", lambda *_, **__: 1e-3)
    setting, lesson = cast("tuple[Setting, Lesson]", (_Anything(), None))
    found = settled(PLANNED, config.model_copy(update={"minutes": 1.0}), setting, lesson, 0.0)
    assert found.steps(2) == 40
    assert found.total_steps == 500  # of which the head's 8 % end where the last stretch begins


def evaluated(sizes: NatSettings) -> int:
    """Networks judged in all, anew in every round."""
    new = sizes.rounds * sizes.infill
    return sizes.initial + new + sum(sizes.initial + number * sizes.infill for number in range(1, sizes.rounds + 1))


@settings(max_examples=50, deadline=None)
@given(seconds=st.floats(60, 7200), evaluation_s=st.floats(0.01, 20), rounds=st.none() | st.integers(1, 40))
def test_what_is_judged_follows_from_what_judging_costs(seconds: float, evaluation_s: float, rounds: int | None) -> None:
    sizes = nat_sizes(seconds, evaluation_s, rounds)
    if rounds is not None:
        assert sizes.rounds == rounds, "what was asked for"
    slower = nat_sizes(seconds, 2 * evaluation_s, rounds)
    assert evaluated(slower) <= evaluated(sizes)
    least = MIN_INITIAL, rounds or 1
    if (sizes.initial, sizes.rounds) != least:
        assert evaluated(sizes) * evaluation_s <= EVALUATION_SHARE * seconds, "it fits into its share"


def test_judging_that_costs_too_much_leaves_rounds_out() -> None:
    assert nat_sizes(480.0, 0.1, None).rounds == 2
    assert nat_sizes(480.0, 2.0, None).rounds == 1


def test_a_search_of_one_round_measures_its_front(config: SearchConfig) -> None:
    seldom = config.model_copy(update={"nat": NatSettings(rounds=1, measure_every=5), "minutes": None})
    setting, lesson = setting_and_lesson(seldom)
    assert make_budget(seldom, setting, lesson).nat.measure_every == 1


def setting_and_lesson(config: SearchConfig) -> tuple[Setting, Lesson]:
    setting = prepare(config, Silent())
    arch = setting.seed_arch(setting.space.resolutions[0])
    return setting, Lesson(setting.task, [arch], lambda count, _: [arch] * count, largest=arch, smallest=arch)


class _Anything:
    supernet = None


class Interrupted(Silent):
    """Stops the run in the midst of its last stretch."""

    @contextmanager
    def task(self, name: str, total: int, unit: str) -> Iterator[Callable[[int], None]]:
        def advance(_: int) -> None:
            if name == "training the front":
                raise KeyboardInterrupt

        yield advance


def test_length_is_settled_once_and_kept_by_a_resumed_run(config: SearchConfig) -> None:
    asked = config.model_copy(update={"minutes": 0.1})
    with pytest.raises(KeyboardInterrupt):
        pipeline.search(asked, Interrupted())
    with RunStore.open(asked.out) as store:
        first = Budget.from_json(store.get("budget"))
    assert first.settled
    pipeline.resume(asked.out)
    with RunStore.open(asked.out) as store:
        assert Budget.from_json(store.get("budget")) == first
        saved = store.load_checkpoint("supernet")
        assert saved is not None
        assert saved[1]["step"] == first.total_steps
