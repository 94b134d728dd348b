"""Which architectures of a front to take, and why, in a sentence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from natdeploy.errors import InfeasibleError, UsageError
from natdeploy.search.objectives import Constraint, Floats, kind_of, parse_constraint, parse_level, show

RULES = ("knee", "best", "fastest")


@dataclass(frozen=True)
class Choice:
    """One architecture of a front.

    Attributes:
        index: its row.
        id: its id.
        rule: `knee`, `best`, `fastest`, `levels`, `bounds` or `id`.
        reason: one sentence.
    """

    index: int
    id: str
    rule: str
    reason: str


def choose(values: Floats, names: Sequence[str], ids: Sequence[str], which: str, labels: Mapping[str, str] | None = None) -> Choice:
    """The architecture of a front that a rule, a preference or an id means.

    `knee` is the best trade-off: leaving it for any other of the front costs the most for what is gained, in shares of the front's
    ranges. High trade-off points (Rachmawati and Srinivasan 2009) as in NSGANetV2 compare with a neighbourhood only; here it
    is the whole front, because fronts are short and two neighbours may differ by no more than the noise of a small data set.

    Args:
        values: (n, m) of a front, n >= 1, minimised.
        names: of the m objectives.
        ids: of the n architectures.
        which: `knee`, `best` (least error), `fastest` (least latency, or the first objective beside the error where latency is
            none); levels to aspire to such as `error=5%,latency=1.5ms`; bounds to keep such as `latency<=1.5ms,size<=5MB`, within
            which the least error is taken; or the beginning of an id.
        labels: what the reason calls objectives, where that is not their name.

    Raises:
        UsageError: no id begins so, or several do; a level or a bound that cannot be read, or is of no objective of the front.
        InfeasibleError: nothing on the front keeps the bounds.
    """
    shown = dict(zip(names, names, strict=True)) | dict(labels or {})
    if which == "knee":
        tradeoff = _tradeoffs(values)
        index = int(np.lexsort((values[:, 0], -tradeoff))[0])
        how = f"every other costs at least {tradeoff[index]:.2g} times what it gains" if len(values) > 1 else "it is the only one"
    elif which in RULES:
        column = 0 if which == "best" else speed_column(names)
        index = int(np.lexsort((*values.T[::-1], values[:, column]))[0])
        how = f"none has less {shown[names[column]]}"
    elif "<=" in which:
        index, how = _within_bounds(values, names, shown, [parse_constraint(text) for text in which.split(",")])
        which = "bounds"
    elif "=" in which:
        levels = [parse_level(text) for text in which.split(",")]
        index, how = _nearest_to_levels(values, names, shown, dict(levels))
        which = "levels"
    else:
        matches = [row for row, each in enumerate(ids) if each.startswith(which)]
        if len(matches) != 1:
            found = f"begins {len(matches)} ids" if matches else "begins no id"
            raise UsageError(
                f"{which!r} {found} of the front; choose {', '.join(RULES)}, levels like error=5%,latency=1.5ms, bounds like "
                f"latency<=1.5ms, or one of {', '.join(ids)}"
            )
        index, which, how = matches[0], "id", "as asked for"
    what = ", ".join(f"{shown[name]} {show(name, value)}" for name, value in zip(names, values[index], strict=True))
    return Choice(index, ids[index], which, f"{ids[index]} has {what}: {how}")


def speed_column(names: Sequence[str]) -> int:
    """The column that speed is read from."""
    return next((column for column, name in enumerate(names) if kind_of(name) == "latency"), 1)


def _column(names: Sequence[str], name: str) -> int:
    if name not in names:
        raise UsageError(f"{name} is no objective of this front; it has {', '.join(names)}")
    return list(names).index(name)


def _within_bounds(values: Floats, names: Sequence[str], shown: Mapping[str, str], bounds: Sequence[Constraint]) -> tuple[int, str]:
    """The row of least error that keeps the bounds, and why."""
    kept = np.ones(len(values), dtype=np.bool_)
    for bound in bounds:
        kept &= values[:, _column(names, bound.objective)] <= bound.bound
    asked = " and ".join(f"{shown[bound.objective]}<={show(bound.objective, bound.bound)}" for bound in bounds)
    if not kept.any():
        least = [
            f"{shown[bound.objective]} from {show(bound.objective, values[:, _column(names, bound.objective)].min())}"
            for bound in bounds
        ]
        raise InfeasibleError(f"nothing on the front keeps {asked}; it has {', '.join(least)}: choose a wider bound")
    rows = np.flatnonzero(kept)
    index = int(rows[np.lexsort((*values[rows].T[::-1], values[rows, 0]))[0]])
    return index, f"the least error of the {len(rows)} that keep {asked}"


def _nearest_to_levels(
    values: Floats, names: Sequence[str], shown: Mapping[str, str], levels: Mapping[str, float]
) -> tuple[int, str]:
    """The row that exceeds its levels least, or stays below them most, and why.

    Achievement scalarising (Wierzbicki 1980): the largest of what exceeds a level, in shares of the front's ranges, and a
    thousandth of the sum over all objectives, which decides between equals.
    """
    columns = [_column(names, name) for name in levels]
    span = np.ptp(values, axis=0)
    points = (values - values.min(axis=0)) / np.where(span > 0, span, 1.0)
    over = (values[:, columns] - list(levels.values())) / np.where(span > 0, span, 1.0)[columns]
    index = int(np.argmin(over.max(axis=1) + 1e-3 * points.sum(axis=1)))
    asked = " and ".join(f"{shown[name]} {show(name, level)}" for name, level in levels.items())
    missed = [
        f"{shown[name]} by {show(name, values[index, _column(names, name)] - level)}"
        for (name, level), more in zip(levels.items(), over[index], strict=True)
        if more > 0
    ]
    return (
        index,
        f"it comes nearest to {asked} and misses {', '.join(missed)}" if missed else f"it reaches {asked} with most to spare",
    )


def _tradeoffs(values: Floats) -> Floats:
    """Of every row (n,): the least ratio of loss to gain in going to any other row, objectives scaled to the front's range."""
    span = np.ptp(values, axis=0)
    points = (values - values.min(axis=0)) / np.where(span > 0, span, 1.0)
    step = points - points[:, None]
    loss, gain = np.maximum(step, 0).sum(axis=2), np.maximum(-step, 0).sum(axis=2)
    ratios: Floats = np.divide(loss, gain, out=np.full_like(loss, np.inf), where=gain > 0).min(axis=1)
    return ratios
