"""Judging one architecture with the supernet's weights: extract, recalibrate BatchNorm, run the images."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from natdeploy.space import Arch
from natdeploy.stopwatch import timed
from natdeploy.supernet import Subnet, Supernet, calibrate
from natdeploy.tasks import SplitName, Tally, Targets, Task
from natdeploy.tasks import total as summed

BATCH = 64
"""Images at once when nothing is trained."""


@dataclass(frozen=True)
class Verdict:
    """A network, tried on images it does not learn from.

    Attributes:
        metric: of the task, 0..1: accuracy, or mean intersection over union.
        total: images it saw.
        loss: mean over the images.
        seconds: that extraction, calibration and images took.
    """

    metric: float
    total: int
    loss: float
    seconds: float

    @property
    def correct(self) -> int:
        """Images it got right, where the metric is their share."""
        return round(self.metric * self.total)


def calibrated_subnet(supernet: Supernet, arch: Arch, task: Task) -> Subnet:
    """The network of an architecture with BatchNorm statistics of its own, from the calibration images, in evaluation mode."""
    device = next(supernet.parameters()).device
    with timed("judging: extraction"):
        subnet = supernet.extract(arch).to(memory_format=torch.channels_last)
    with timed("judging: BatchNorm pass"):
        calibrate(subnet, (images.to(device) for images, _ in _read(task.batches("calibration", arch.resolution, BATCH))))
    return subnet


def _read(batches: Iterator[tuple[Tensor, Targets]]) -> Iterator[tuple[Tensor, Targets]]:
    while True:
        with timed("images"):
            batch = next(batches, None)
        if batch is None:
            return
        yield batch


@torch.inference_mode()
def judge(subnet: Subnet, task: Task, split: SplitName, limit: int | None = None) -> Verdict:
    """A network in evaluation mode on the images of a split, or on the first `limit` of a fixed order of them."""
    device = next(subnet.parameters()).device
    batches = _read(task.batches(split, subnet.arch.resolution, BATCH, limit))
    with timed("judging: forward passes"):
        return verdict_of(task, ((subnet(images.to(device)).cpu(), targets) for images, targets in batches))


def verdict_of(task: Task, answers: Iterable[tuple[Tensor, Targets]]) -> Verdict:
    """What a network's answers (b, ...) to the batches of a split are worth, as they come."""
    start = time.perf_counter()
    tallies, total, loss = list[Tally](), 0, 0.0
    for outputs, targets in answers:
        tallies.append(task.tally(outputs, targets))
        loss += float(task.loss(outputs, targets)) * len(outputs)
        total += len(outputs)
    return Verdict(task.metric(summed(tallies)), total, loss / total, time.perf_counter() - start)


def judge_arch(supernet: Supernet, arch: Arch, task: Task, split: SplitName, limit: int | None = None) -> Verdict | str:
    """One architecture on the images of a split; or, where torch cannot compute it, why."""
    start = time.perf_counter()
    try:
        verdict = judge(calibrated_subnet(supernet, arch, task), task, split, limit)
    except RuntimeError as error:  # of torch: out of memory, a kernel that the machine lacks
        return " ".join(str(error).split())
    if not math.isfinite(verdict.loss):
        return f"its loss is {verdict.loss}"
    return replace(verdict, seconds=time.perf_counter() - start)
