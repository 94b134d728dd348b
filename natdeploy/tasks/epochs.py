"""The order in which training images are seen: one permutation after the other, each to be had without those before it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from natdeploy.tasks.data import Indices


class Epochs:
    """An endless sequence of epochs, each a permutation of its own.

    Args:
        indices: of the training images.
        seed: of the permutations.
    """

    def __init__(self, indices: Indices, seed: Sequence[int]) -> None:
        self._indices, self._seed = indices, tuple(seed)
        self._known: dict[int, Indices] = {}

    def __call__(self, start: int, count: int) -> Indices:
        """Images `start` to `start + count` of the sequence, (count,)."""
        length = len(self._indices)
        epochs = range(start // length, (start + count - 1) // length + 1)
        # A permutation of a million takes as long as a training step, so those in use are kept.
        self._known = {epoch: self._epoch(epoch) for epoch in epochs}
        sequence = np.concatenate([self._known[epoch] for epoch in epochs])
        first = start - epochs[0] * length
        return sequence[first : first + count]

    def _epoch(self, epoch: int) -> Indices:
        known = self._known.get(epoch)
        return np.random.default_rng([*self._seed, epoch]).permutation(self._indices) if known is None else known
