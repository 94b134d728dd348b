"""Mean average precision, against a computation by hand."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch
from torch import Tensor

from natdeploy.errors import MissingRuntimeError
from natdeploy.tasks.mean_ap import Found, mean_precision

Box = list[float]


@pytest.fixture(autouse=True)
def _library() -> None:
    pytest.importorskip("faster_coco_eval", reason="faster-coco-eval is not installed; pip install 'natdeploy[detection]'")


def truth(*rows: tuple[Box, int] | tuple[Box, int, int]) -> Tensor:
    return torch.tensor([[*row[0], row[1], row[2] if len(row) > 2 else 0] for row in rows]).reshape(-1, 6)


def found(*rows: tuple[Box, int, float]) -> Tensor:
    return torch.tensor([[*box, label, score] for box, label, score in rows]).reshape(-1, 6)


A, B, C = [0.0, 0.0, 0.4, 0.4], [0.5, 0.5, 0.9, 0.9], [0.0, 0.5, 0.3, 0.8]


def test_all_that_is_there_and_nothing_else() -> None:
    pairs = Found(((found((A, 0, 0.9), (B, 1, 0.8)), truth((A, 0), (B, 1))),))
    assert mean_precision(pairs, 3) == mean_precision(pairs, 2).__class__(1.0, 1.0, (1.0, 1.0, None))


def test_by_hand() -> None:
    """Two objects of a class in two images. The best answer is wrong, the second finds one whole, the third a box of IoU 0.625."""
    half = [0.5, 0.5, 0.9, 0.75]
    pairs = Found(((found((C, 0, 0.9), (A, 0, 0.8)), truth((A, 0))), (found((half, 0, 0.7)), truth((B, 0)))))
    # At IoU 0.50, 0.55, 0.60: precision 0, 1/2, 2/3 at recall 0, 1/2, 1; so 2/3 at each of the 101 recalls.
    # From 0.65 on: 1/2 at the 51 recalls up to 0.5, then nothing.
    expected = (3 * 2 / 3 + 7 * (51 / 101) / 2) / 10
    result = mean_precision(pairs, 1)
    assert result.ap == pytest.approx(expected) and result.ap50 == pytest.approx(2 / 3)


def test_objects_that_are_missed_wrong_labels_and_doubles_cost() -> None:
    image = truth((A, 0), (B, 0))
    assert mean_precision(Found(((found((A, 0, 0.9)), image),)), 1).ap == pytest.approx(51 / 101), "half is found"
    wrong = mean_precision(Found(((found((A, 1, 0.9)), truth((A, 0), (B, 1))),)), 2)
    assert wrong.ap == 0
    double = mean_precision(Found(((found((A, 0, 0.9), (A, 0, 0.8), (B, 0, 0.7)), image),)), 1)
    assert double.ap == pytest.approx((51 + 50 * 2 / 3) / 101)


def test_crowds_neither_ask_nor_punish() -> None:
    alone = Found(((found((A, 0, 0.9)), truth((A, 0))),))
    crowd = Found(((found((A, 0, 0.8), (C, 0, 0.9), ([0.1, 0.55, 0.2, 0.7], 0, 0.95)), truth((A, 0), (C, 0, 1))),))
    assert mean_precision(crowd, 1) == mean_precision(alone, 1) and mean_precision(alone, 1).ap == 1


def test_images_without_objects_and_answers() -> None:
    nothing = found()
    assert mean_precision(Found(((nothing, truth((A, 0))),)), 1).ap == 0
    assert mean_precision(Found(((nothing, truth()),)), 2).by_class == (None, None)
    empty = Found(((found((A, 0, 0.9)), truth((A, 0))), (nothing, truth())))
    assert mean_precision(empty, 1).ap == 1
    false_alarm = Found(((found((A, 0, 0.8)), truth((A, 0))), (found((A, 0, 0.9)), truth())))
    assert mean_precision(false_alarm, 1).ap == pytest.approx(0.5)


def test_random_answers_are_judged_as_by_hand() -> None:
    rng = np.random.default_rng(0)
    pairs = tuple((_random(rng, 8, scored=True), _random(rng, 5, scored=False)) for _ in range(6))
    expected = [[_by_hand(pairs, label, overlap) for overlap in np.arange(0.5, 1.0, 0.05)] for label in range(2)]
    halves = Found(pairs[:3]) + Found(pairs[3:])
    result = mean_precision(halves, 2)
    assert result.ap == pytest.approx(np.mean(expected), abs=1e-6) and 0.02 < result.ap < 0.9
    assert result.ap50 == pytest.approx(np.mean([row[0] for row in expected]), abs=1e-6)
    assert result.by_class == pytest.approx(np.mean(expected, axis=1), abs=1e-6)


def _random(rng: np.random.Generator, n: int, *, scored: bool) -> Tensor:
    """Boxes near a few common places, so that some overlap."""
    corner = 0.3 * rng.integers(0, 3, (n, 2)) + 0.03 * rng.random((n, 2))
    last = rng.random((n, 1)) if scored else np.zeros((n, 1))
    return torch.from_numpy(
        np.concatenate([corner, corner + 0.25 + 0.04 * rng.random((n, 2)), rng.integers(0, 2, (n, 1)), last], 1)
    )


def _by_hand(pairs: tuple[tuple[Tensor, Tensor], ...], label: int, least: float) -> float:
    """Average precision at 101 recalls, as COCO's paper has it."""
    hits: list[tuple[float, bool]] = []
    total = 0
    for detected, objects in pairs:
        own = [row[:4] for row in objects.tolist() if row[4] == label]
        total += len(own)
        free = set(range(len(own)))
        for row in sorted((row for row in detected.tolist() if row[4] == label), key=lambda row: -row[5]):
            best = max(free, key=lambda number: _overlap(row[:4], own[number]), default=None)
            hit = best is not None and _overlap(row[:4], own[best]) >= least
            free -= {best} if hit else set()
            hits.append((row[5], hit))
    hits.sort(key=lambda each: -each[0])
    right = np.cumsum([hit for _, hit in hits])
    precision, recall = right / np.arange(1, len(hits) + 1), right / total
    return float(np.mean([max(precision[recall >= at - 1e-12], default=0.0) for at in np.linspace(0, 1, 101)]))


def _overlap(one: Box, other: Box) -> float:
    wide, high = (min(one[i + 2], other[i + 2]) - max(one[i], other[i]) for i in (0, 1))
    common = max(wide, 0.0) * max(high, 0.0)
    return common / (sum((box[2] - box[0]) * (box[3] - box[1]) for box in (one, other)) - common)


def test_what_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "faster_coco_eval", None)
    with pytest.raises(MissingRuntimeError, match=r"pip install 'natdeploy\[detection\]'"):
        mean_precision(Found(), 1)
