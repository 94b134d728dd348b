"""Which architectures of a front to take, and why, in a sentence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from natdeploy.errors import UsageError
from natdeploy.search.objectives import ERROR, Floats, show

RULES = ("knee", "best", "fastest")


@dataclass(frozen=True)
class Choice:
    """One architecture of a front.

    Attributes:
        index: its row.
        id: its id.
        rule: `knee`, `best`, `fastest` or `id`.
        reason: one sentence.
    """

    index: int
    id: str
    rule: str
    reason: str


def choose(values: Floats, names: Sequence[str], ids: Sequence[str], which: str, labels: Mapping[str, str] | None = None) -> Choice:
    """The architecture of a front that a rule or an id means.

    `knee` is the best trade-off: leaving it for any other of the front costs the most for what is gained, in shares of the front's
    ranges. High trade-off points (Rachmawati and Srinivasan 2009) as in NSGANetV2 compare with a neighbourhood only; here it
    is the whole front, because fronts are short and two neighbours may differ by no more than the noise of a small data set.

    Args:
        values: (n, m) of a front, n >= 1, minimised.
        names: of the m objectives.
        ids: of the n architectures.
        which: `knee`, `best` (least error), `fastest` (least latency, or the first objective beside the error where latency is
            none), or the beginning of an id.
        labels: what the reason calls objectives, where that is not their name.

    Raises:
        UsageError: no id begins so, or several do.
    """
    shown = dict(zip(names, names, strict=True)) | dict(labels or {})
    if which == "knee":
        tradeoff = _tradeoffs(values)
        index = int(np.lexsort((values[:, 0], -tradeoff))[0])
        how = f"every other costs at least {tradeoff[index]:.2g} times what it gains" if len(values) > 1 else "it is the only one"
    elif which in RULES:
        column = list(names).index(ERROR if which == "best" else next(each for each in ("latency", *names[1:]) if each in names))
        index = int(np.lexsort((*values.T[::-1], values[:, column]))[0])
        how = f"none has less {shown[names[column]]}"
    else:
        matches = [row for row, each in enumerate(ids) if each.startswith(which)]
        if len(matches) != 1:
            found = f"begins {len(matches)} ids" if matches else "begins no id"
            raise UsageError(f"{which!r} {found} of the front; choose {', '.join(RULES)} or one of {', '.join(ids)}")
        index, which, how = matches[0], "id", "as asked for"
    what = ", ".join(f"{shown[name]} {show(name, value)}" for name, value in zip(names, values[index], strict=True))
    return Choice(index, ids[index], which, f"{ids[index]} has {what}: {how}")


def _tradeoffs(values: Floats) -> Floats:
    """Of every row (n,): the least ratio of loss to gain in going to any other row, objectives scaled to the front's range."""
    span = np.ptp(values, axis=0)
    points = (values - values.min(axis=0)) / np.where(span > 0, span, 1.0)
    step = points - points[:, None]
    loss, gain = np.maximum(step, 0).sum(axis=2), np.maximum(-step, 0).sum(axis=2)
    ratios: Floats = np.divide(loss, gain, out=np.full_like(loss, np.inf), where=gain > 0).min(axis=1)
    return ratios
