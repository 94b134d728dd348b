"""Images of filled squares on black, which tell by themselves where their boxes are."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from natdeploy.tasks import Boxed, BoxSet, Objects

CLASSES = ("red", "blue")


def squares(n: int = 24, side: int = 48, seed: int = 0, most: int = 2) -> Boxed:
    """Up to `most` squares that do not overlap, each red or blue; every eighth image shows none."""
    rng = np.random.default_rng(seed)
    images = np.zeros((n, side, side, 3), dtype=np.uint8)
    objects = []
    for number, image in enumerate(images):
        rows: list[tuple[list[float], int, bool]] = []
        for place in range(0 if number % 8 == 7 else int(rng.integers(1, most + 1))):
            extent = int(rng.integers(side // 4, side // 2))
            left, top = place * (side // 2) + int(rng.integers(0, side // 2 - extent + 1)), int(rng.integers(0, side - extent))
            label = int(rng.integers(2))
            image[top : top + extent, left : left + extent, 2 * label] = 255
            rows.append(([left, top, left + extent, top + extent], label, False))
        objects.append(Objects.of(rows))
    names = tuple(f"{number}.png" for number in range(n))
    source = BoxSet(Path("root"), CLASSES, names, ("train",) * n, ((side, side),) * n, tuple(objects))
    targets = [np.concatenate([each.boxes / side, each.labels[:, None], each.crowd[:, None]], axis=1) for each in objects]
    return Boxed(
        source,
        torch.from_numpy(images).permute(0, 3, 1, 2),
        tuple(torch.from_numpy(target.astype(np.float32)) for target in targets),
    )
