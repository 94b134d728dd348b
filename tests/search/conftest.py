"""A made-up task: errors that an analytic function of the genotype gives, and a latency that is a sum over blocks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pytest

from natdeploy.search import Objectives, Scores
from natdeploy.space import Arch, BlockSum, Genotypes, SearchSpace, get_space

CLASSES = 12


@dataclass(frozen=True)
class Task:
    """Error falls with the resolution and, ever less, with what each stage holds; larger kernels pay at high resolutions only."""

    space: SearchSpace
    objectives: Objectives

    def error(self, genotypes: Genotypes) -> np.ndarray:
        """Without noise, (n,)."""
        resolution = np.log(np.array(self.space.resolutions)[genotypes[:, 0]] / self.space.resolutions[0])
        gain = 1.2 * resolution
        for number, part in self.space.elastic:
            stage, codes = self.space.stages[number], genotypes[:, part]
            expansions = np.array([0, *(choice.expansion for choice in stage.choices)])[codes]
            kernels = np.array([0, *(choice.kernel for choice in stage.choices)])[codes]
            held = (expansions * (1 + 0.1 * (kernels - 3) * (resolution[:, None] - 0.3))).sum(axis=1)
            gain = gain + (0.2 + 0.15 * (number % 3)) * np.log1p(held / 6)
        return 0.03 + 0.5 * np.exp(-0.6 * gain)

    def evaluate(self, archs: Sequence[Arch], version: int, whole: bool = True) -> Scores:
        """With the noise of a validation set, which belongs to (architecture, version); adaptation lowers all errors a little.

        A part of the images is noisier by half, and its images are harder.
        """
        genotypes = self.space.encode_all(archs)
        draws = np.array([np.random.default_rng([*genotype, version]).standard_normal(2) for genotype in genotypes])
        noise = 0.004 * draws[:, 0] if whole else 0.004 * draws[:, 0] + 0.005 * draws[:, 1] + 0.01
        errors = np.clip(self.error(genotypes) * 0.98**version + noise, 0, 1)
        return Scores(errors, np.full(len(errors), 0.004 if whole else 0.006))


def make_task(space: SearchSpace, names: tuple[str, ...] = ("error", "latency")) -> Task:
    cheap = {
        "latency": BlockSum(space, lambda blocks: [b.macs / 2e8 + b.activation_bytes / 4e7 + 0.005 for b in blocks], CLASSES),
        "macs": BlockSum(space, lambda blocks: [b.macs for b in blocks], CLASSES),
        "params": BlockSum(space, lambda blocks: [b.params for b in blocks], CLASSES),
    }
    for name in names:
        if "@" in name:  # another device, which pays differently for kernels and for being called
            weight = int(name.split("@")[1])
            cheap[name] = BlockSum(
                space, lambda blocks, w=weight: [b.macs / 2e8 * b.kernel**w + 0.002 * w for b in blocks], CLASSES
            )
    return Task(space, Objectives(names, cheap))


@pytest.fixture(scope="session")
def mbv2_task() -> Task:
    return make_task(get_space("mbv2"))


@pytest.fixture(scope="session")
def demo_task() -> Task:
    return make_task(get_space("demo"))


@pytest.fixture(scope="session")
def demo_task_of_three() -> Task:
    return make_task(get_space("demo"), ("error", "latency", "params"))
