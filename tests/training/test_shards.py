"""A step's batch cut into shards: alone, and shared by real processes."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from colours import SEED_ARCH, SPACE, TASK
from safetensors.torch import load_file
from torch import Tensor, nn
from train_shards import train

from natdeploy.errors import UsageError
from natdeploy.supernet import Subnet
from natdeploy.training.loop import Trainer, TrainSettings
from natdeploy.training.plain import Finetuner

PROCESS_SECONDS = 120


def test_two_processes_end_with_the_bits_of_one(tmp_path: Path) -> None:
    """Weights, averages, momenta and the teacher of an adaptation, and of a plain network all but the statistics nobody reads."""
    script, meeting = Path(__file__).with_name("train_shards.py"), tmp_path / "meeting"
    processes = [
        subprocess.Popen(
            [sys.executable, script, str(rank), "2", str(meeting), str(tmp_path / f"{rank}.safetensors")],
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        with torch.random.fork_rng():
            train(None, tmp_path / "alone.safetensors")
        for process in processes:
            _, errors = process.communicate(timeout=PROCESS_SECONDS)
            assert process.returncode == 0, errors
    finally:
        torch.set_num_threads(threads)
        for process in processes:
            process.kill()
            process.wait()
    alone, first, second = (load_file(tmp_path / f"{name}.safetensors") for name in ("alone", "0", "1"))
    assert alone.keys() == first.keys() == second.keys()
    assert [name for name in alone if not torch.equal(alone[name], first[name])] == []
    assert [name for name in alone if not torch.equal(first[name], second[name])] == []
    assert any(name.startswith("adapted.momentum.") for name in alone)
    assert any(name.startswith("adapted.teacher.") for name in alone)


def test_shards_have_the_gradient_of_the_whole_batch_where_nothing_normalises() -> None:
    data = torch.randn(8, 3, generator=torch.Generator().manual_seed(0))

    def weights(shards: int) -> Tensor:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = nn.Linear(3, 1)
        seen: list[tuple[int, slice]] = []

        def losses(step: int, rows: slice) -> Sequence[Tensor]:
            seen.append((step, rows))
            return [model(data[rows]).square().mean(), 0.5 * model(data[rows]).abs().mean()]

        Trainer(model, TrainSettings(batch_size=8, shards=shards), 10).run(2, losses, lambda: None)
        width = 8 // shards
        assert seen == [(step, slice(part * width, (part + 1) * width)) for step in range(2) for part in range(shards)]
        return model.weight.detach()

    whole = weights(1)
    for shards in (2, 4):
        torch.testing.assert_close(weights(shards), whole)


def test_a_shard_is_normalised_by_its_own_images() -> None:
    """One step in two shards is the mean of what two steps' gradients would be, each from half of the batch."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        start = Subnet(SPACE, SEED_ARCH, 2)
    images, labels = TASK.train_batch(0, SEED_ARCH.resolution, 8)
    gradients = []
    for rows in (slice(0, 4), slice(4, 8)):
        start.zero_grad()
        TASK.loss(start(images[rows]), labels[rows]).backward()  # type: ignore[no-untyped-call]
        gradients.append([parameter.grad.clone() for parameter in start.parameters() if parameter.grad is not None])
    settings = TrainSettings(batch_size=8, shards=2, learning_rate=0.1, warmup=0.0, momentum=0.0, weight_decay=0.0, clip=1e9)
    before = [parameter.detach().clone() for parameter in start.parameters()]
    Finetuner(start, TASK, settings, 10).run(1, lambda: None)
    for old, new, one, two in zip(before, start.parameters(), *gradients, strict=True):
        torch.testing.assert_close(new, old - 0.1 * (0.5 * (one + two)) * 0.1, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize(("batch_size", "shards"), [(8, 3), (4, 4), (2, 4)])
def test_shards_that_do_not_fit_are_refused(batch_size: int, shards: int) -> None:
    with pytest.raises(ValueError, match=f"a batch of {batch_size} images cannot be cut into {shards} equal shards"):
        TrainSettings(batch_size=batch_size, shards=shards)


class Alone:
    """One of three processes."""

    rank, size = 0, 3

    def average(self, tensors: Sequence[Tensor]) -> None:
        raise AssertionError("nothing is to be averaged")


def test_shards_that_cannot_be_dealt_out_are_refused() -> None:
    with pytest.raises(UsageError, match=r"2 shards cannot be dealt out evenly to 3 processes; set train\.shards to 3"):
        Trainer(nn.Linear(1, 1), TrainSettings(shards=2), 10, Alone())
