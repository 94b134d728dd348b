"""A queue of work over several devices: every item once, whoever dies on the way."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from natdeploy.errors import DeviceError, DeviceLostError
from natdeploy.hardware.farm import Farm, Stopped


class Phone:
    """Fails at the given attempts, counted from 0."""

    def __init__(self, name: str, fails_at: set[int] | None = None, *, forever: bool = False) -> None:
        self.name, self.fails_at, self.forever, self.attempts = name, fails_at or set(), forever, 0

    def __str__(self) -> str:
        return self.name

    def square(self, item: int) -> int:
        attempt, self.attempts = self.attempts, self.attempts + 1
        if attempt in self.fails_at or (self.forever and attempt >= min(self.fails_at)):
            raise DeviceLostError(f"lost at item {item}")
        return item * item


def run(items: list[int], phones: list[Phone], pauses_s: tuple[float, ...] = (0.0, 0.0)) -> tuple[dict[int, int], list[str]]:
    found: dict[int, int] = {}
    notes: list[str] = []

    def take(item: int, phone: Phone, result: int) -> None:
        assert item not in found
        assert threading.current_thread() is threading.main_thread()
        found[item] = result

    Farm(phones, notes.append, pauses_s=pauses_s).work_on(iter(items), lambda item, phone, _: phone.square(item), take)
    return found, notes


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 12), st.lists(st.sets(st.integers(0, 8), max_size=3), min_size=1, max_size=4))
def test_every_item_is_worked_on_once_if_a_device_is_left(count: int, failures: list[set[int]]) -> None:
    phones = [Phone(f"phone#{i}", fails_at) for i, fails_at in enumerate([*failures, set()])]
    found, notes = run(list(range(count)), phones)
    assert found == {item: item * item for item in range(count)}
    assert all("lost at item" in note for note in notes)


def test_a_single_device_is_waited_for() -> None:
    phone = Phone("phone", {1, 2})
    found, notes = run([3, 4], [phone])
    assert found == {3: 9, 4: 16}
    assert phone.attempts == 4
    assert [note.split(";")[0] for note in notes] == ["phone: lost at item 4"] * 2


def test_a_single_device_that_was_never_there_is_not_waited_for() -> None:
    phone = Phone("phone", {0})
    with pytest.raises(DeviceLostError, match=r"^lost at item 3$"):
        run([3, 4], [phone], pauses_s=(1000.0,))
    assert phone.attempts == 1


def test_a_device_that_stays_away_is_given_up_and_its_work_done_by_the_other() -> None:
    gone, other = Phone("phone#1", {0}, forever=True), Phone("phone#2")
    barrier = threading.Barrier(2, timeout=10)
    first = True

    def work(item: int, phone: Phone, _: Callable[[], None]) -> int:
        nonlocal first
        if first:  # both begin before either is done
            barrier.wait()
            first = False
        return phone.square(item)

    found: dict[int, int] = {}
    notes: list[str] = []
    farm = Farm([gone, other], notes.append, pauses_s=())
    farm.work_on(iter(range(6)), work, lambda i, _, r: found.update({i: r}))
    assert found == {item: item * item for item in range(6)}
    assert re.fullmatch(r"phone#1: lost at item \d; it is given up", "".join(notes))
    farm.work_on(iter([7]), lambda item, phone, _: phone.square(item), lambda i, _, r: found.update({i: r}))
    assert found[7] == 49
    assert gone.attempts == 1


def test_when_all_are_gone_the_last_reason_is_told() -> None:
    phones = [Phone(f"phone#{i}", {1}, forever=True) for i in range(2)]
    with pytest.raises(DeviceLostError, match=r"none of the devices can go on; phone#\d: lost at item \d") as caught:
        run(list(range(8)), phones)
    assert caught.value.exit_code == 5


def test_items_are_asked_for_only_when_a_device_is_free() -> None:
    asked: list[int] = []
    taken: list[int] = []

    def items() -> Iterator[int]:
        for item in range(5):
            assert len(asked) - len(taken) < 2
            asked.append(item)
            yield item

    farm = Farm([Phone("a"), Phone("b")], print)
    farm.work_on(items(), lambda item, phone, _: phone.square(item), lambda item, *_: taken.append(item))
    assert sorted(taken) == list(range(5))


def test_another_failure_stops_the_others() -> None:
    stopped = threading.Event()

    def work(item: int, phone: Phone, still_wanted: Callable[[], None]) -> int:
        if item == 0:
            raise DeviceError("the model is wrong")
        try:
            while True:
                still_wanted()
                time.sleep(0.01)
        except Stopped:
            stopped.set()
            raise

    with pytest.raises(DeviceError, match="the model is wrong"):
        Farm([Phone("a"), Phone("b")], print).work_on(iter([0, 1]), work, lambda *_: None)
    assert stopped.is_set()


def test_an_interruption_of_a_single_device_is_seen_at_once() -> None:
    def work(item: int, phone: Phone, _: Callable[[], None]) -> int:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Farm([Phone("a")], print).work_on(iter([0]), work, lambda *_: None)
