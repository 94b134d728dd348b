from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from natdeploy import stopwatch
from natdeploy.stopwatch import take, timed


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[float]]:
    """A clock that stands still until it is set."""
    take()
    now = [0.0]
    monkeypatch.setattr(stopwatch.time, "perf_counter", lambda: now[0])
    take()
    yield now
    monkeypatch.undo()
    take()


def test_an_inner_part_is_not_counted_to_the_outer_one(clock: list[float]) -> None:
    with timed("outer"):
        clock[0] += 1
        with timed("inner"):
            clock[0] += 2
        clock[0] += 4
    clock[0] += 8
    assert take() == {"outer": 5, "inner": 2}


def test_what_is_taken_is_gone_and_an_open_part_goes_on(clock: list[float]) -> None:
    with timed("part"):
        clock[0] += 1
        assert take() == {"part": 1}
        clock[0] += 2
    assert take() == {"part": 2}
    assert take() == {}


def test_a_part_ends_with_an_error(clock: list[float]) -> None:
    with pytest.raises(RuntimeError), timed("part"):
        clock[0] += 1
        raise RuntimeError
    clock[0] += 1
    assert take() == {"part": 1}


def test_parts_add_up_to_the_time_that_passed() -> None:
    take()
    start = time.perf_counter()
    with timed("a"):
        for _ in range(100):
            with timed("b"):
                sum(range(100))
    passed = time.perf_counter() - start
    assert 0 < sum(take().values()) <= passed


def test_the_share_of_passes_leaves_out_what_the_target_takes() -> None:
    spent = {
        "training: forward and backward": 50.0,
        "judging: forward passes": 20.0,
        "test: BatchNorm pass": 10.0,
        "images": 20.0,
        "profiling": 500.0,
        "measuring the front": 100.0,
    }
    assert stopwatch.share_of_passes(spent) == 0.8
    assert stopwatch.share_of_passes({"profiling": 5.0}) is None
