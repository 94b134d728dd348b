from __future__ import annotations

import numpy as np
import pytest

from natdeploy.errors import InfeasibleError, UsageError
from natdeploy.search import choose

NAMES = ("error", "latency")
IDS = ("ab12", "ab34", "cd56", "ef78", "0912")
# Falls steeply to the third row and hardly afterwards.
FRONT = np.array([[0.40, 0.2], [0.25, 0.4], [0.10, 0.6], [0.09, 1.4], [0.08, 2.2]])


def test_the_knee_is_where_more_latency_stops_paying() -> None:
    choice = choose(FRONT, NAMES, IDS, "knee")
    assert (choice.index, choice.id, choice.rule) == (2, "cd56", "knee")
    # To the last row: 0.8 of the latency range for 0.0625 of the error range, and to the first 0.9375 for 0.2: 4.7 times.
    assert choice.reason == "cd56 has error 10.0 %, latency 0.6 ms: every other costs at least 4.7 times what it gains"


def test_units_do_not_move_the_knee() -> None:
    assert choose(FRONT * [1, 1e6], NAMES, IDS, "knee").index == choose(FRONT, NAMES, IDS, "knee").index
    assert choose(np.vstack([FRONT, [0.079, 9.0]]), NAMES, (*IDS, "x"), "knee").index == 2


def test_best_and_fastest() -> None:
    assert choose(FRONT, NAMES, IDS, "best").index == 4
    assert choose(FRONT, NAMES, IDS, "best").reason.endswith("none has less error")
    assert choose(FRONT, NAMES, IDS, "fastest").index == 0
    assert choose(FRONT, NAMES, IDS, "fastest").reason.endswith("none has less latency")
    macs_first = np.column_stack([FRONT[:, 0], FRONT[::-1, 1] * 1e8, FRONT[:, 1]])
    assert choose(macs_first, ("error", "macs", "latency"), IDS, "fastest").index == 0
    assert choose(macs_first[:, :2], ("error", "macs"), IDS, "fastest").index == 4


def test_equal_values_are_decided_by_the_other_objective() -> None:
    values = np.array([[0.1, 3.0], [0.1, 2.0], [0.3, 1.0], [0.2, 1.0]])
    assert choose(values, NAMES, IDS[:4], "best").index == 1
    assert choose(values, NAMES, IDS[:4], "fastest").index == 3


def test_an_id_or_its_beginning() -> None:
    choice = choose(FRONT, NAMES, IDS, "cd")
    assert (choice.index, choice.rule) == (2, "id")
    assert choose(FRONT, NAMES, IDS, "0912").index == 4
    with pytest.raises(UsageError, match="begins 2 ids"):
        choose(FRONT, NAMES, IDS, "ab")
    with pytest.raises(UsageError, match=r"begins no id.*knee, best, fastest, levels like .* or one of ab12"):
        choose(FRONT, NAMES, IDS, "zz")


def test_short_fronts() -> None:
    assert choose(FRONT[:1], NAMES, IDS[:1], "knee").reason.endswith("it is the only one")
    assert choose(FRONT[:2], NAMES, IDS[:2], "knee").index == 1, "a draw goes to the lower error"


def test_bounds_take_the_most_accurate_that_keeps_them() -> None:
    choice = choose(FRONT, NAMES, IDS, "latency<=1.5ms")
    assert (choice.index, choice.rule) == (3, "bounds")
    assert choice.reason.endswith("the least error of the 4 that keep latency<=1.5 ms")
    three = np.column_stack([FRONT, [9.0, 5.0, 3.0, 7.0, 1.0]])
    assert choose(three, (*NAMES, "size"), IDS, "latency<=1500us,size<=4MB").index == 2
    with pytest.raises(InfeasibleError, match=r"keeps latency<=0\.1 ms; it has latency from 0\.2 ms: choose a wider bound"):
        choose(FRONT, NAMES, IDS, "latency<=0.1ms")
    with pytest.raises(UsageError, match="params is no objective of this front; it has error, latency"):
        choose(FRONT, NAMES, IDS, "params<=3M")
    with pytest.raises(UsageError, match="needs a unit"):
        choose(FRONT, NAMES, IDS, "latency<=3")


def test_levels_to_aspire_to() -> None:
    choice = choose(FRONT, NAMES, IDS, "error=9.5%,latency=2ms")
    assert (choice.index, choice.rule) == (3, "levels")
    assert choice.reason.endswith("it reaches error 9.5 % and latency 2 ms with most to spare")
    near = choose(FRONT, NAMES, IDS, "error=8%,latency=0.6ms")
    assert near.index == 2, "1/16 of the error's range over, nothing else is as near"
    assert near.reason.endswith("it comes nearest to error 8.0 % and latency 0.6 ms and misses error by 2.0 %")
    assert choose(FRONT, NAMES, IDS, "latency=0.3ms").index == 0, "what is not named decides nothing but draws"
    assert choose(FRONT, NAMES, IDS, "error=0.1,latency=0.6ms").index == 2
    for wrong in ("error=5ms", "latency=fast", "error=5%,", "params=3M"):
        with pytest.raises(UsageError):
            choose(FRONT, NAMES, IDS, wrong)


def test_the_first_latency_of_several_is_speed() -> None:
    values = np.column_stack([FRONT[:, 0], FRONT[::-1, 1] * 1e6, FRONT[:, 1], FRONT[::-1, 1]])
    assert choose(values, ("error", "macs", "latency@a", "latency@b"), IDS, "fastest").index == 0
