"""Analytic cost of architectures, and the one mechanism that adds anything up block by block."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
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
        values: blocks -> one value each, (blocks,), or several at once, (blocks, m).
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
        found = np.asarray(values(distinct), dtype=np.float64)
        value, several = dict(zip(distinct, found, strict=True)), found.shape[1:]
        shape = (len(space.resolutions), len(space.widths), len(space.slots), int(space.upper[FIRST_SLOT:].max(initial=0)) + 1)
        in_slots, in_fixed = np.zeros((*shape, *several)), np.zeros((*shape[:2], *several))
        for place, block in slots.items():
            in_slots[place] = value[block]
        for where, blocks in fixed.items():
            in_fixed[where] = np.sum([value[block] for block in blocks], axis=0)
        # Flat, with the row of each slot beside it: a look-up is then one addition and one gather.
        self._slots: Floats = in_slots.reshape(-1, *several)
        self._fixed: Floats = in_fixed.reshape(-1, *several)
        self._widths, self._rows = shape[1], np.arange(shape[2]) * shape[3]
        self._stride = shape[2] * shape[3]

    def terms(self, resolution: int, width: int) -> tuple[float, Floats]:
        """The sum taken apart, for one resolution and width (their codes): what every architecture has, and what each code of each
        slot adds, (slots, codes); code 0, a skipped slot, adds 0. The expectation over a distribution of codes is linear in its
        probabilities: fixed + (probabilities * added).sum().
        """
        where = resolution * self._widths + width
        rows = self._slots[where * self._stride : (where + 1) * self._stride]
        return float(self._fixed[where]), rows.reshape(len(self._rows), -1).copy()

    def __call__(self, genotypes: Genotypes) -> Floats:
        """Totals (n,), or (n, m), of canonical genotypes (n, variables); a precision in them plays no part."""
        where = genotypes[:, 0] * self._widths + genotypes[:, 1]
        places = genotypes[:, FIRST_SLOT : FIRST_SLOT + len(self._rows)] + self._rows + (where * self._stride)[:, None]
        total: Floats = self._fixed[where]
        for column in places.T:  # slot by slot: all at once would take many times the memory of the result
            total += self._slots[column]
        return total


def cost(space: SearchSpace, archs: Sequence[Arch] | Genotypes, classes: int = 1000) -> Cost:
    """Parameters, multiply-accumulates and bytes of fp32 activations of each architecture, exactly.

    The same for a single block are its own attributes: `[block.macs for block in space.blocks(arch, classes)]`.

    Args:
        space: of the architectures.
        archs: as objects, or, much faster, as canonical genotypes (n, variables).
        classes: outputs of the classifier.

    Raises:
        UsageError: an architecture is not of the space.
    """
    genotypes = archs if isinstance(archs, np.ndarray) else space.encode_all(archs)
    params, macs, activation_bytes = _sums(space, classes)
    return Cost(params(genotypes), macs(genotypes), activation_bytes(genotypes))


@lru_cache(maxsize=16)
def _sums(space: SearchSpace, classes: int) -> tuple[BlockSum, BlockSum, BlockSum]:
    """Building the look-ups takes longer than asking them about thousands of architectures."""
    return (
        BlockSum(space, lambda blocks: [block.params for block in blocks], classes),
        BlockSum(space, lambda blocks: [block.macs for block in blocks], classes),
        BlockSum(space, lambda blocks: [block.activation_bytes for block in blocks], classes),
    )
