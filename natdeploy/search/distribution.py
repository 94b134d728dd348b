"""Which architectures the supernet is trained with: the categorical distribution of the archive's best (NAT, arXiv 2005.05859).

NAT draws every slot alone, "skipped" included, and so loses the depths of its archive. Here resolution, width, every stage's depth
and what a slot holds if it is filled are variables of their own, and the depths decide which slots are used, so that depths stay as
they are and everything drawn is canonical.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt

from natdeploy.search.objectives import Floats
from natdeploy.space import FIRST_SLOT, Genotypes, SearchSpace

Columns = npt.NDArray[np.int64]


class Distribution(Protocol):
    def sample(self, n: int, rng: np.random.Generator) -> Genotypes:
        """Random canonical genotypes (n, variables)."""


@dataclass(frozen=True, eq=False)
class Marginals:
    """Independent categorical distributions.

    Attributes:
        space: of the architectures.
        probabilities: of every variable: resolution, width, the depth of every elastic stage, the choice of every slot.
    """

    space: SearchSpace
    probabilities: tuple[Floats, ...]

    @classmethod
    def from_genotypes(cls, space: SearchSpace, genotypes: Genotypes, smoothing: float) -> Marginals:
        """Frequencies among canonical genotypes (n, variables), n >= 1.

        Args:
            space: of the genotypes.
            genotypes: whose frequencies are taken.
            smoothing: share of a uniform distribution mixed in, 0..1, so that nothing is given up for good.
        """
        columns, counts = _variables(space, genotypes)
        return cls(space, tuple(_frequencies(column, count, smoothing) for column, count in zip(columns.T, counts, strict=True)))

    def sample(self, n: int, rng: np.random.Generator) -> Genotypes:
        """Random canonical genotypes (n, variables)."""
        drawn = [rng.choice(len(probability), n, p=probability) for probability in self.probabilities]
        return _genotypes(self.space, np.stack(drawn, axis=1))


@dataclass(frozen=True, eq=False)
class Pairs:
    """A Chow-Liu tree: every variable depends on at most one other, chosen so that the dependencies kept are the strongest.

    A dependency is kept if its likelihood gains more than its parameters cost by Schwarz's criterion (BIC), so that what chance
    shows among so many pairs is left out; without any, this is `Marginals`. What a slot holds is compared where it is filled.

    Attributes:
        space: of the architectures.
        order: (variable, the one it depends on or None), parents first.
        tables: of every step of `order`, (values of the parent or 1, values of the variable): conditional probabilities.
    """

    space: SearchSpace
    order: tuple[tuple[int, int | None], ...]
    tables: tuple[Floats, ...]

    @classmethod
    def from_genotypes(cls, space: SearchSpace, genotypes: Genotypes, smoothing: float) -> Pairs:
        """The tree of canonical genotypes (n, variables), n >= 1; arguments are those of `Marginals.from_genotypes`.

        A row of a table counts one sample of the variable's own frequencies beside those it has, so that a value of the parent
        that was seen once decides nothing.
        """
        columns, counts = _variables(space, genotypes)
        gain = np.zeros((len(counts), len(counts)))
        for one in range(len(counts)):
            for other in range(one):
                gain[one, other] = gain[other, one] = _dependence(_together(columns, counts, one, other), len(genotypes))
        order = _strongest_tree(gain)
        tables = []
        for variable, parent in order:
            own = _frequencies(columns[:, variable], counts[variable], 0.0)
            seen = np.zeros((1, counts[variable])) if parent is None else _together(columns, counts, parent, variable)
            conditional = (seen + own) / (seen.sum(axis=1, keepdims=True) + 1)
            tables.append((1 - smoothing) * conditional + smoothing / counts[variable])
        return cls(space, order, tuple(tables))

    def sample(self, n: int, rng: np.random.Generator) -> Genotypes:
        """Random canonical genotypes (n, variables)."""
        drawn = np.zeros((n, len(self.order)), dtype=np.int64)
        for (variable, parent), table in zip(self.order, self.tables, strict=True):
            rows = table[drawn[:, parent]] if parent is not None else np.repeat(table, n, axis=0)
            below = rows.cumsum(axis=1)[:, :-1] < rng.random((n, 1))
            drawn[:, variable] = below.sum(axis=1)
        return _genotypes(self.space, drawn)


def follow(
    kind: Literal["archive", "pairs", "uniform"], space: SearchSpace, genotypes: Genotypes, smoothing: float
) -> Distribution:
    """The distribution that training follows: of genotypes (n, variables), n >= 1, or of everything alike, depths balanced."""
    if kind == "pairs":
        return Pairs.from_genotypes(space, genotypes, smoothing)
    return Marginals.from_genotypes(space, genotypes, 1.0 if kind == "uniform" else smoothing)


def _variables(space: SearchSpace, genotypes: Genotypes) -> tuple[Columns, list[int]]:
    """Values (n, k) of the k variables, -1 in a slot that is not filled, and how many values each can have."""
    columns, counts = [genotypes[:, 0], genotypes[:, 1]], [len(space.resolutions), len(space.widths)]
    for number, part in space.elastic:
        stage = space.stages[number]
        columns.append((genotypes[:, part] > 0).sum(axis=1) - stage.min_depth)
        counts.append(len(stage.depths))
    for slot, (number, _) in enumerate(space.slots):
        columns.append(genotypes[:, FIRST_SLOT + slot] - 1)
        counts.append(len(space.stages[number].choices))
    return np.stack(columns, axis=1), counts


def _genotypes(space: SearchSpace, columns: Columns) -> Genotypes:
    """Canonical genotypes (n, variables) of values (n, k), whatever stands in slots that are not filled."""
    stages = {number: index for index, (number, _) in enumerate(space.elastic)}
    first_slot = 2 + len(stages)
    slots = [
        np.where(place < space.stages[number].min_depth + columns[:, 2 + stages[number]], 1 + columns[:, first_slot + slot], 0)
        for slot, (number, place) in enumerate(space.slots)
    ]
    return np.stack([columns[:, 0], columns[:, 1], *slots], axis=1).astype(np.int64)


def _frequencies(values: Columns, count: int, smoothing: float) -> Floats:
    """Probabilities (count,) of values (n,), of which negative ones are left out; uniform where none is there."""
    seen = np.bincount(values[values >= 0], minlength=count).astype(np.float64)
    share = seen / seen.sum() if seen.any() else np.full(count, 1 / count)
    mixed: Floats = (1 - smoothing) * share + smoothing / count
    return mixed


def _together(columns: Columns, counts: Sequence[int], one: int, other: int) -> Floats:
    """How often values of two variables come together, (values of one, values of the other), where both have any."""
    seen = np.zeros((counts[one], counts[other]))
    both = (columns[:, one] >= 0) & (columns[:, other] >= 0)
    np.add.at(seen, (columns[both, one], columns[both, other]), 1.0)
    return seen


def _dependence(seen: Floats, samples: int) -> float:
    """Log-likelihood (nats) that the dependency gains, mutual information times samples, less what BIC asks for its parameters.

    `seen` may be of few of the samples; the price is that of all, for three rows that differ agree on anything.
    """
    total = seen.sum()
    if total == 0:
        return 0.0
    rows, columns = seen.sum(axis=1), seen.sum(axis=0)
    filled = seen > 0
    information = (seen[filled] * np.log(total * seen[filled] / np.outer(rows, columns)[filled])).sum()
    parameters = (np.count_nonzero(rows) - 1) * (np.count_nonzero(columns) - 1)
    return float(information - parameters * np.log(samples) / 2)


def _strongest_tree(gain: Floats) -> tuple[tuple[int, int | None], ...]:
    """Maximum spanning forest of the positive gains (k, k), by Prim: (variable, parent or None), parents first."""
    best, parent = np.zeros(len(gain)), np.full(len(gain), -1)
    left = list(range(len(gain)))
    order: list[tuple[int, int | None]] = []
    while left:
        variable = max(left, key=lambda each: best[each])
        left.remove(variable)
        order.append((variable, int(parent[variable]) if parent[variable] >= 0 else None))
        closer = gain[variable] > best
        best, parent = np.where(closer, gain[variable], best), np.where(closer, variable, parent)
    return tuple(order)
