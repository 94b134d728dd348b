"""Which architectures the supernet is trained with: the categorical distribution of the archive's best (NAT, arXiv 2005.05859)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from natdeploy.search.objectives import Floats
from natdeploy.space import Genotypes, SearchSpace


@dataclass(frozen=True, eq=False)
class Distribution:
    """Independent categorical distributions of resolution, width, every stage's depth, and what a slot holds if it is filled.

    NAT draws every slot alone, "skipped" included, and so loses the depths of its archive; with the depth drawn first, they stay.

    Attributes:
        space: of the architectures.
        resolution: (resolutions,) probabilities, as all that follow.
        width: (widths,).
        depths: of every stage that leaves a choice, (max_depth - min_depth + 1,).
        choices: of every slot, (choices of its stage,).
    """

    space: SearchSpace
    resolution: Floats
    width: Floats
    depths: tuple[Floats, ...]
    choices: tuple[Floats, ...]

    @classmethod
    def from_genotypes(cls, space: SearchSpace, genotypes: Genotypes, smoothing: float) -> Distribution:
        """Frequencies among canonical genotypes (n, variables), n >= 1.

        Args:
            space: of the genotypes.
            genotypes: whose frequencies are taken.
            smoothing: share of a uniform distribution mixed in, 0..1, so that nothing is given up for good.
        """

        def frequencies(values: Genotypes, count: int) -> Floats:
            seen = np.bincount(values, minlength=count) / len(values) if len(values) else np.full(count, 1 / count)
            mixed: Floats = (1 - smoothing) * seen + smoothing / count
            return mixed

        depths, choices = [], []
        for number, part in space.elastic:
            stage, codes = space.stages[number], genotypes[:, part]
            depths.append(frequencies((codes > 0).sum(axis=1) - stage.min_depth, stage.max_depth - stage.min_depth + 1))
            choices += [frequencies(column[column > 0] - 1, len(stage.choices)) for column in codes.T]
        return cls(
            space,
            frequencies(genotypes[:, 0], len(space.resolutions)),
            frequencies(genotypes[:, 1], len(space.widths)),
            tuple(depths),
            tuple(choices),
        )

    def sample(self, n: int, rng: np.random.Generator) -> Genotypes:
        """Random canonical genotypes (n, variables)."""
        resolution = rng.choice(len(self.resolution), n, p=self.resolution)
        width = rng.choice(len(self.width), n, p=self.width)
        depths = {
            number: self.space.stages[number].min_depth + rng.choice(len(probability), n, p=probability)
            for (number, _), probability in zip(self.space.elastic, self.depths, strict=True)
        }
        slots = [
            np.where(place < depths[stage], 1 + rng.choice(len(probability), n, p=probability), 0)
            for (stage, place), probability in zip(self.space.slots, self.choices, strict=True)
        ]
        return self.space.repair(np.stack([resolution, width, *slots], axis=1))
