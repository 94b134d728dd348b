"""Which nets of a run stand out, and which one a user means."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from natdeploy.pipeline.config import SearchConfig
from natdeploy.pipeline.problem import LATENCY, label
from natdeploy.search import Choice, choose, infill
from natdeploy.search.archive import Indices
from natdeploy.search.decide import RULES, speed_column
from natdeploy.search.objectives import ERROR, Floats
from natdeploy.store import NetRecord


def choose_net(nets: Sequence[NetRecord], config: SearchConfig, which: str) -> Choice:
    """The net of the front that a rule, a wish or an id means.

    By validation error: a choice by test error would make the test images part of the search.

    Raises:
        UsageError: no net is meant, or several are.
    """
    front = [net for net in nets if net.role == "front"]
    # A wish may be about anything that is known; rules are about what was searched for.
    known = front[0].objectives if front and "=" in which else ()
    names = tuple(dict.fromkeys([*config.objectives, *known]))
    values = np.array([[_value(net, name) for name in names] for net in front], dtype=np.float64)
    labels = {name: label(name, estimated=name == LATENCY and any(net.estimated for net in front)) for name in names}
    # Beside a net's test accuracy, "error" alone would be taken for that of the test images.
    labels[ERROR] = "validation error"
    if any(net.objectives.get(LATENCY, net.predicted_ms) != net.predicted_ms for net in front):
        labels[LATENCY] = f"corrected {labels.get(LATENCY, LATENCY)}"
    return choose(values, names, [net.id for net in front], which, labels)


def stand_out(nets: Sequence[NetRecord], config: SearchConfig) -> tuple[Choice, ...]:
    """The nets of the front that stand out, each with its reason; several rules may pick the same one."""
    wishes = [] if config.prefer is None else [config.prefer]
    return tuple(choose_net(nets, config, rule) for rule in (*RULES, *wishes))


def take_few(values: Floats, noise: Floats, config: SearchConfig, count: int) -> Indices:
    """Rows of nets that go on learning, as the schedule of a search chooses them.

    Args:
        values: (n, objectives).
        noise: (n,), one standard error of each error.
        config: of the search.
        count: of nets, at most.
    """
    rule, left = config.schedule.final_choice, list(range(len(values)))
    if rule == "spread":
        return infill(values, values[:0], count)
    chosen: list[int] = []
    while left and len(chosen) < count:
        if rule == "best":
            index = _promising(values[left], noise[left], speed_column(config.objectives))
        else:
            index = choose(values[left], config.objectives, [""] * len(left), rule).index
        chosen.append(left.pop(index))
    return np.array(chosen, dtype=np.int64)


def take_of_each(values: Floats, inputs: Sequence[int], count: int) -> Indices:
    """Rows of nets that begin to share a stretch of which only the end decides: the best of every size of input, then the second
    best of each, and so on; of as good ones the better.

    Args:
        values: (n, objectives), the error first.
        inputs: (n,), sizes of their input.
        count: of nets, at most.
    """
    by_error = values[:, 0].argsort(kind="stable")
    seen: Counter[int] = Counter()
    places = np.zeros(len(values), dtype=np.int64)
    for row in by_error:
        places[row] = seen[inputs[row]]
        seen[inputs[row]] += 1
    return np.lexsort((values[:, 0], places))[:count]


def _promising(values: Floats, noise: Floats, speed: int) -> int:
    """The row that is likely to have the least error in the end: of those that chance does not tell from the least, the slowest.

    Small inputs are learned first; larger networks gain more from the rest of the training (docs/segmentation.md).
    """
    least = int(values[:, 0].argmin())
    alike = np.flatnonzero(values[:, 0] <= values[least, 0] + noise[least])
    return int(alike[values[alike, speed].argmax()])


def _value(net: NetRecord, name: str) -> float | None:
    if name == ERROR:
        return 1 - net.validation_accuracy
    # Runs of before stored no objectives.
    before = {LATENCY: net.predicted_ms, "macs": net.macs, "params": net.params}
    return net.objectives.get(name, before.get(name))
