"""Analytic cost of architectures, and the one mechanism that adds anything up block by block."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
import numpy.typing as npt

from natdeploy.space.arch import Arch
from natdeploy.space.blocks import Block
from natdeploy.space.space import FIRST_SLOT, Genotypes, SearchSpace

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Cost:
    """Per architecture, each (n,)."""

    params: Floats
    macs: Floats
    activation_bytes: Floats


class BlockSum:
    """A quantity that is the sum over an architecture's blocks, looked up for whole arrays of genotypes at once.

    What a slot holds depends on its code, the resolution and the width alone, so a space has a few thousand blocks however many
    architectures it has: every value is computed once, and an architecture costs one look-up a slot.

    Args:
        space: whose genotypes will be asked about.
        values: blocks -> one value each, (blocks,).
        classes: outputs of the classifier.
    """

    def __init__(self, space: SearchSpace, values: Callable[[Sequence[Block]], npt.ArrayLike], classes: int) -> None:
        slots: dict[tuple[int, int, int, int], Block] = {}
        fixed: dict[tuple[int, int], tuple[Block, ...]] = {}
        for (r, resolution), (w, width) in product(enumerate(space.resolutions), enumerate(space.widths)):
            fixed[r, w] = space.fixed_blocks(resolution, width, classes)
            for slot, (stage, _) in enumerate(space.slots):
                for code in range(1, len(space.stages[stage].choices) + 1):
                    slots[r, w, slot, code] = space.slot_block(slot, code, resolution, width)
        distinct = sorted({*slots.values(), *(block for blocks in fixed.values() for block in blocks)})
        value = dict(zip(distinct, np.asarray(values(distinct), dtype=np.float64), strict=True))
        codes = int(space.upper[FIRST_SLOT:].max()) + 1
        self._slots: Floats = np.zeros((len(space.resolutions), len(space.widths), len(space.slots), codes))
        self._fixed: Floats = np.zeros((len(space.resolutions), len(space.widths)))
        for place, block in slots.items():
            self._slots[place] = value[block]
        for where, blocks in fixed.items():
            self._fixed[where] = sum(value[block] for block in blocks)

    def __call__(self, genotypes: Genotypes) -> Floats:
        """Totals (n,) of canonical genotypes (n, variables)."""
        r, w = genotypes[:, 0], genotypes[:, 1]
        slots = np.arange(genotypes.shape[1] - FIRST_SLOT)
        total: Floats = self._fixed[r, w] + self._slots[r[:, None], w[:, None], slots, genotypes[:, FIRST_SLOT:]].sum(axis=1)
        return total


def cost(space: SearchSpace, archs: Sequence[Arch], classes: int = 1000) -> Cost:
    """Parameters, multiply-accumulates and bytes of fp32 activations of each architecture."""
    genotypes = space.encode_all(archs)
    return Cost(
        params=BlockSum(space, lambda blocks: [block.params for block in blocks], classes)(genotypes),
        macs=BlockSum(space, lambda blocks: [block.macs for block in blocks], classes)(genotypes),
        activation_bytes=BlockSum(space, lambda blocks: [block.activation_bytes for block in blocks], classes)(genotypes),
    )
