"""Trains as one process of several, or alone: `train_shards.py RANK SIZE MEETING OUT`; MEETING is a file to meet at."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from colours import SEED_ARCH, SPACE, TASK, lesson_of
from safetensors.torch import save_file

from natdeploy.supernet import Subnet, Supernet
from natdeploy.training.adapt import Adapter, AdaptSettings
from natdeploy.training.group import TorchGroup
from natdeploy.training.loop import DivergedError, TrainSettings
from natdeploy.training.plain import Finetuner

SHARDS, STEPS = 2, 6


def train(group: TorchGroup | None, out: Path) -> None:
    """A sandwich with an averaged teacher, then a plain network; their tensors go to a file."""
    settings = TrainSettings(batch_size=8, learning_rate=0.05, shards=SHARDS)
    adapt = AdaptSettings(
        train=settings, head_share=0.2, scheme="sandwich", students=1, teacher="average", teacher_every=2, teacher_images=8
    )
    adapter = Adapter(Supernet(SPACE, 2), adapt, total_steps=STEPS, seed=3, group=group)
    adapter.run(STEPS, lesson_of(SEED_ARCH), lambda: None)
    torch.manual_seed(0)
    tuner = Finetuner(Subnet(SPACE, SEED_ARCH, 2), TASK, settings, STEPS, head_steps=2, group=group)
    tuner.run(STEPS, lambda: None)
    tensors = {f"adapted.{name}": value for name, value in adapter.tensors().items()}
    tensors |= {f"tuned.{name}": value for name, value in tuner.trainer.tensors().items() if not is_statistic(name)}
    save_file({name: value.clone() for name, value in tensors.items()}, out)


def is_statistic(name: str) -> bool:
    """Of a plain network's BatchNorm, which every process keeps of its own shards; it is calibrated before it is used."""
    return "running_" in name or "num_batches" in name


def diverge(group: TorchGroup) -> None:
    """Only the last process sees a bad image; all have to stop at the same step."""
    tuner = Finetuner(Subnet(SPACE, SEED_ARCH, 2), Spoilt(), TrainSettings(batch_size=8, shards=SHARDS), STEPS, group=group)
    try:
        tuner.run(STEPS, lambda: None)
    except DivergedError as error:
        assert (error.step, tuner.trainer.step) == (2, 2)
        return
    raise AssertionError("training went on with a bad image")


class Spoilt(type(TASK)):  # type: ignore[misc]
    """The last image of step 2 is not finite."""

    def train_batch(self, step: int, resolution: int, batch_size: int) -> tuple[torch.Tensor, torch.Tensor]:
        images, labels = super().train_batch(step, resolution, batch_size)
        if step == 2:
            images[-1] = float("nan")
        return images, labels


if __name__ == "__main__":
    rank, size, meeting, out = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], Path(sys.argv[4])
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=size)
    together = TorchGroup()
    train(together, out)
    diverge(together)
    torch.distributed.destroy_process_group()
