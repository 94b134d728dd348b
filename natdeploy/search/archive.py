"""The architectures evaluated so far, and who of them is best.

Values are (n, m), minimised. A row dominates another that it is no worse than in every column and better than in at least one.
"""

from __future__ import annotations

from collections.abc import Sequence

import moocore  # type: ignore[import-untyped]
import numpy as np
import numpy.typing as npt

from natdeploy.search.objectives import Constraint, Floats, Objectives
from natdeploy.space import Arch, Genotypes, SearchSpace

Indices = npt.NDArray[np.int64]

EXACT_OBJECTIVES = 6
"""With more, the exact hypervolume of a few hundred points takes minutes."""
DIRECTIONS = 65536
"""Of the approximation; on 340 random points of 6 objectives it is 0.1 % off, in 30 ms."""


def non_dominated(values: Floats) -> npt.NDArray[np.bool_]:
    """Which rows (n,) no other row dominates."""
    return np.asarray(ranks(values) == 0)


def ranks(values: Floats) -> Indices:
    """Front that each row (n,) belongs to: 0 is non-dominated, 1 is so once those are gone, and so on (NSGA-II, Deb 2002)."""
    return np.asarray(moocore.pareto_rank(values) if len(values) else [], dtype=np.int64)


def crowding(values: Floats) -> Floats:
    """Distance (n,) between the neighbours of each row, summed over scaled objectives; infinite at the ends (NSGA-II, Deb 2002)."""
    distance = np.zeros(len(values))
    for column in values.T:
        order = np.argsort(column, kind="stable")
        span = column[order[-1]] - column[order[0]]
        distance[order[[0, -1]]] = np.inf
        if span > 0:
            distance[order[1:-1]] += (column[order[2:]] - column[order[:-2]]) / span
    return distance


def hypervolume(values: Floats, reference: Floats) -> float:
    """Volume that rows (n, m) dominate within the box below `reference` (m,).

    Exact up to six objectives; with more, approximated from a fixed set of directions (Deng and Zhang 2019, as moocore has it), the
    same in every run.
    """
    inside = values[(values < reference).all(axis=1)]
    if not len(inside):
        return 0.0
    if values.shape[1] <= EXACT_OBJECTIVES:
        return float(moocore.hypervolume(inside, ref=reference))
    return float(moocore.hv_approx(inside, ref=reference, nsamples=DIRECTIONS))


class Archive:
    """Architectures of one space that were evaluated, in the order they came.

    Where the space leaves a choice of precision, each architecture has a row in every one, and these rows follow each other: its
    network is evaluated once, and `objectives.loss` says what a precision adds.

    Attributes:
        space: theirs.
        objectives: the columns of `values`.
        constraints: what makes an architecture feasible.
        genotypes: (n, variables), canonical and distinct.
        errors: (n,) of the networks themselves, NaN where evaluation failed.
        values: (n, m); column 0 is the error, that of the precision included.
        violation: (n,); 0 where all constraints hold.
    """

    def __init__(self, space: SearchSpace, objectives: Objectives, constraints: Sequence[Constraint] = ()) -> None:
        self.space = space
        self.objectives = objectives
        self.constraints = tuple(constraints)
        self.genotypes: Genotypes = np.empty((0, space.variables), dtype=np.int64)
        self.errors: Floats = np.empty(0)
        self.values: Floats = np.empty((0, len(objectives.names)))
        self.violation: Floats = np.empty(0)
        self._known: set[bytes] = set()

    def __len__(self) -> int:
        return len(self.genotypes)

    @property
    def archs(self) -> list[Arch]:
        return self.space.decode_all(self.genotypes)

    @property
    def ids(self) -> tuple[str, ...]:
        """Of the architectures, each once."""
        return tuple(arch.id for arch in self.archs[:: self.space.options])

    @property
    def failed(self) -> npt.NDArray[np.bool_]:
        """What could not be evaluated, (n,)."""
        return np.isnan(self.errors)

    @property
    def feasible(self) -> npt.NDArray[np.bool_]:
        """What was evaluated and keeps all constraints, (n,)."""
        return np.asarray((self.violation == 0) & ~self.failed)

    def contains(self, genotypes: Genotypes) -> npt.NDArray[np.bool_]:
        """Which of (n, variables) are here already, whatever form they are written in."""
        return np.array([row.tobytes() in self._known for row in self.space.repair(genotypes)], dtype=np.bool_)

    def add(self, genotypes: Genotypes, errors: npt.ArrayLike) -> None:
        """Appends distinct architectures (n, variables) with their errors (n,), in every precision.

        Raises:
            ValueError: one of them is here already.
        """
        canonical = self.space.in_every_precision(self.space.repair(genotypes))
        own = np.repeat(np.asarray(errors, dtype=np.float64), self.space.options)
        keys = {row.tobytes() for row in canonical}
        if len(keys) < len(canonical) or keys & self._known:
            raise ValueError("an archive holds every architecture once")
        self.values = np.concatenate([self.values, self.objectives.values(canonical, own)])
        self.errors = np.concatenate([self.errors, own])
        self.violation = np.concatenate([self.violation, self.objectives.violation(canonical, self.constraints)])
        self.genotypes = np.concatenate([self.genotypes, canonical])
        self._known |= keys

    def replace_errors(self, errors: npt.ArrayLike) -> None:
        """Takes new errors (n,) of all architectures, after the supernet's weights have changed."""
        self.errors = np.array(errors, dtype=np.float64)
        self.values = self.objectives.values(self.genotypes, self.errors)

    def judged(self, rows: Indices, errors: npt.ArrayLike) -> None:
        """Takes errors (k,) of rows as they were found in their precisions, in the place of what the loss says of them."""
        self.values[rows, 0] = errors

    def replace_objectives(self, objectives: Objectives) -> None:
        """Takes other functions for the same objectives, after a predictor was corrected; who is feasible may change.

        Raises:
            ValueError: they are not the same objectives.
        """
        if objectives.names != self.objectives.names:
            raise ValueError(f"an archive of {', '.join(self.objectives.names)} cannot hold {', '.join(objectives.names)}")
        self.objectives = objectives
        self.values = objectives.values(self.genotypes, self.errors)
        self.violation = objectives.violation(self.genotypes, self.constraints)

    def networks(self, rows: Indices) -> Indices:
        """The first row of the architecture of each of `rows`, every one once; `rows` as they are where there is one a network."""
        options = self.space.options
        return rows if options == 1 else np.unique(rows - rows % options)

    def front(self) -> Indices:
        """Rows that are feasible and that no feasible row dominates, fastest (least in column 1) first."""
        rows = np.flatnonzero(self.feasible)
        rows = rows[non_dominated(self.values[rows])]
        return rows[np.argsort(self.values[rows, 1], kind="stable")]

    def contenders(self, noise: npt.ArrayLike) -> Indices:
        """Rows of the front, and those that chance may have thrown off it, fastest first.

        Args:
            noise: (n,) or one number: how far a row's error may lie above the least error of the feasible rows that are as good in
                all other objectives.
        """
        rows = np.flatnonzero(self.feasible)
        errors, others = self.values[rows, 0], self.values[rows, 1:]
        as_good = (others[:, None] <= others).all(axis=2)
        gap = errors - np.where(as_good, errors[:, None], np.inf).min(axis=0, initial=np.inf)
        near = rows[np.flatnonzero(gap <= np.broadcast_to(noise, len(self))[rows])]
        return near[np.argsort(self.values[near, 1], kind="stable")]

    def best(self, n: int) -> Indices:
        """At most `n` feasible rows, best first: by rank, then the least crowded (survival of NSGA-II)."""
        rows = np.flatnonzero(self.feasible)
        values = self.values[rows]
        rank = ranks(values)
        spacing = np.zeros(len(rows))
        for front in range(rank.max(initial=-1) + 1):
            spacing[rank == front] = crowding(values[rank == front])
        return rows[np.lexsort((-spacing, rank))][:n]

    def hypervolume(self, reference: npt.ArrayLike) -> float:
        """Share of the box between zero and `reference` (m,) that the front dominates, 0..1."""
        scaled: Floats = self.values[self.front()] / np.asarray(reference, dtype=np.float64)
        return hypervolume(scaled, np.ones(scaled.shape[1]))
