"""The whole flow on data that ships with scikit-learn, to be seen without network, data set or pretrained weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from sklearn.datasets import load_digits

from natdeploy.pipeline.benchmark import benchmark
from natdeploy.pipeline.config import SearchConfig
from natdeploy.pipeline.export import export
from natdeploy.pipeline.search import search
from natdeploy.progress import Progress, Silent
from natdeploy.space import get_space
from natdeploy.space.catalog import plain_arch
from natdeploy.supernet import Subnet, calibrate, write_seed
from natdeploy.tasks import Classification, decode, scan_images, split
from natdeploy.training.judge import judge
from natdeploy.training.loop import TrainSettings
from natdeploy.training.memory import keep_freed_memory
from natdeploy.training.plain import train_subnet

SPACE = "demo"
SIDE = 32
"""Digits of 8 x 8 pixels are enlarged to this."""
SEED_DEPTHS = (1, 2, 3, 2)
SEED_STEPS = 240
MINUTES = 2.0
CONSTRAINT = "latency<=0.4ms"


def demo(out: Path, progress: Progress | None = None, *, minutes: float = MINUTES, seed_steps: int = SEED_STEPS) -> Path:
    """Trains a small network on scikit-learn's handwritten digits, then searches from it as from any pretrained network, exports
    the front and measures it on this machine.

    Args:
        out: run folder; images and seed are written into it. Called again, it goes on.
        progress: is told about the work.
        minutes: budget of the search, the profile apart.
        seed_steps: training steps of the seed network.

    Returns:
        The run folder.
    """
    progress = progress or Silent()
    keep_freed_memory()
    torch.set_num_threads(1)
    images, seed = out / "digits", out / "seed.safetensors"
    if not seed.exists():
        _write_digits(images)
        progress.note(f"data: {images}, scikit-learn's handwritten digits as PNG files")
        _train_seed(images, seed, seed_steps, progress)
    config = SearchConfig(
        data=images, out=out, space=SPACE, seed_weights=seed, constraints=(CONSTRAINT,), minutes=minutes, flip=False
    )
    search(config, progress)
    export(out, "front", progress=progress)
    benchmark(out, progress=progress)
    return out


def _write_digits(folder: Path) -> None:
    digits = load_digits()
    for number, (image, label) in enumerate(zip(digits.images, digits.target, strict=True)):
        path = folder / str(label) / f"{number:04d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        grey = Image.fromarray((image / digits.images.max() * 255).astype(np.uint8))
        grey.resize((SIDE, SIDE), Image.Resampling.BICUBIC).save(path)


def _train_seed(data: Path, path: Path, steps: int, progress: Progress) -> None:
    pixels = decode(scan_images(data), SIDE, progress=progress)
    task = Classification(pixels, split(pixels.source, 0), (0.5,) * 3, (0.5,) * 3, 0, flip=False)
    space = get_space(SPACE)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        subnet = Subnet(space, plain_arch(SIDE, 1.0, SEED_DEPTHS), len(task.classes)).to(memory_format=torch.channels_last)
    with progress.task("training a seed network from scratch", steps, "steps") as advance:
        trained = train_subnet(subnet, task, TrainSettings(learning_rate=0.1), steps, lambda: advance(1))
    calibrate(trained, (batch for batch, _ in task.batches("train", SIDE, 64)))
    verdict = judge(trained, task, "test")
    progress.note(f"seed network: {verdict.correct} of {verdict.total} test images right")
    write_seed(trained, path, {"input": "RGB, scaled to [-1,1]"})
