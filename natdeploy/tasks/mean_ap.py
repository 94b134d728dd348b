"""COCO's mean average precision, by faster-coco-eval."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import Tensor

from natdeploy.errors import MissingRuntimeError

MOST = 100
"""Objects found that count in an image."""


@dataclass(frozen=True)
class Found:
    """What was found in some images, and what they show. Those of disjoint images add up.

    Attributes:
        pairs: of every image what was found, (d, 6): box, label, score; and what it shows, (m, 6): box, label, 1 for a crowd.
    """

    pairs: tuple[tuple[Tensor, Tensor], ...] = ()

    def __add__(self, other: Found) -> Found:
        return Found(self.pairs + other.pairs)


@dataclass(frozen=True)
class Precision:
    """How well objects are found, 0..1 each.

    Attributes:
        ap: mean over classes and over how far a box must overlap to count, 0.5 to 0.95 in steps of 0.05 (COCO's AP).
        ap50: mean over classes, where a half is enough.
        by_class: `ap` of each class; None of one that no image shows.
    """

    ap: float
    ap50: float
    by_class: tuple[float | None, ...]


def mean_precision(found: Found, classes: int) -> Precision:
    """Of all images together. Classes that no image shows are left out of the means; where there is none at all they are 0.

    Raises:
        MissingRuntimeError: faster-coco-eval is not installed.
    """
    try:
        from faster_coco_eval import COCO, COCOeval_faster
    except ImportError as error:
        raise MissingRuntimeError(
            f"mean average precision cannot be computed here ({error}); pip install 'natdeploy[detection]'"
        ) from error

    truth = COCO(
        {
            "images": [{"id": number} for number in range(len(found.pairs))],
            "categories": [{"id": label, "name": str(label)} for label in range(classes)],
            "annotations": _annotations(found),
        }
    )
    judged = COCOeval_faster(truth, truth.loadRes(_results(found)), "bbox", print_function=_silent)
    # Areas are shares of the image here, so they are not told apart by pixels.
    judged.params.areaRng, judged.params.areaRngLbl, judged.params.maxDets = [[0, 2]], ["all"], [MOST]
    judged.evaluate()
    judged.accumulate()
    precision = np.asarray(judged.eval["precision"])[..., 0, 0]  # (overlaps, recalls, classes), -1 where there is nothing to find
    by_class = [float(each.mean()) if each.min() >= 0 else None for each in precision.transpose(2, 0, 1)]
    shown = [label for label, each in enumerate(by_class) if each is not None]
    if not shown:
        return Precision(0.0, 0.0, tuple(by_class))
    return Precision(float(precision[:, :, shown].mean()), float(precision[0][:, shown].mean()), tuple(by_class))


def _annotations(found: Found) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = []
    for number, (_, truth) in enumerate(found.pairs):
        for left, top, right, bottom, label, crowd in truth.tolist():
            box = [left, top, right - left, bottom - top]
            rows.append(
                {"id": len(rows) + 1, "image_id": number, "category_id": int(label), "bbox": box, "area": box[2] * box[3]}
                | {"iscrowd": int(crowd)}
            )
    return rows


def _results(found: Found) -> np.ndarray | list[object]:
    """Rows of image, left, top, width, height, score, label."""
    rows = []
    for number, (detected, _) in enumerate(found.pairs):
        values = detected.double().cpu().numpy()
        corner, extent = values[:, :2], values[:, 2:4] - values[:, :2]
        image = np.full((len(values), 1), number)
        rows.append(np.concatenate([image, corner, extent, values[:, 5:6], values[:, 4:5]], axis=1))
    every = np.concatenate(rows) if rows else np.empty((0, 7))
    return every if len(every) else []


def _silent(*_: object) -> None:
    """It would log what it does."""
