"""Image folders made by tests."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from natdeploy.tasks.data import MIN_IMAGES


def save(path: Path, image: Image.Image | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    (image or Image.new("RGB", (8, 8), (200, 100, 50))).save(path)
    return path


def fill(folder: Path, classes: Sequence[str] = ("cat", "dog"), count: int = MIN_IMAGES) -> Path:
    for name in classes:
        for number in range(count):
            save(folder / name / f"{number}.png")
    return folder
