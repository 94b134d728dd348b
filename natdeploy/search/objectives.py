"""What a search minimises, and what must hold.

Arrays of objective values are (n, m): one row an architecture, one column an objective, all minimised; NaN is an error.
Units are fixed: error is a share in 0..1, latency milliseconds, macs and params plain counts.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from natdeploy.errors import NatdeployError, UsageError
from natdeploy.space import Genotypes

Floats = npt.NDArray[np.float64]
CheapObjective = Callable[[Genotypes], Floats]
"""Genotypes (n, variables) -> values (n,), exact or predicted, without touching a network."""

ERROR = "error"
_COUNTS = {"": 1.0, "k": 1e3, "m": 1e6, "g": 1e9}
_UNITS: Mapping[str, Mapping[str, float]] = {
    "latency": {"us": 1e-3, "ms": 1.0, "s": 1e3},
    "macs": _COUNTS,
    "params": _COUNTS,
}
"""Of every cheap objective: the units a bound may be written in, lower case, and what one of them is worth."""

NAMES = (ERROR, *_UNITS)
_CONSTRAINT = re.compile(r"\s*(?P<name>\w+)\s*<=\s*(?P<number>\d+(?:\.\d*)?(?:[eE][+-]?\d+)?)\s*(?P<unit>[A-Za-z]*)\s*")


@dataclass(frozen=True)
class Constraint:
    """An upper bound that every chosen architecture keeps.

    Attributes:
        objective: what is bounded; not the error, which is known only after evaluation.
        bound: milliseconds for latency, a count for macs and params.
        unit: the one the user wrote, for messages.
    """

    objective: str
    bound: float
    unit: str

    def __str__(self) -> str:
        return f"{self.objective}<={self.bound / _UNITS[self.objective][self.unit.lower()]:.12g}{self.unit}"


def parse_constraint(text: str) -> Constraint:
    """Reads a bound such as `latency<=1.5ms`, `macs<=100M` or `params<=3M`.

    Raises:
        UsageError: another form, an unknown objective or unit, or a bound that is not positive.
    """
    match = _CONSTRAINT.fullmatch(text)
    if match is None:
        raise UsageError(f"{text!r} is no constraint; write it like latency<=1.5ms, macs<=100M or params<=3M")
    name, unit = match["name"], match["unit"]
    if name not in _UNITS:
        raise UsageError(f"{name!r} cannot be constrained; choose one of {', '.join(_UNITS)}")
    if unit.lower() not in _UNITS[name]:
        known = " or ".join(repr(known) for known in _UNITS[name] if known)
        raise UsageError(f"{text!r} needs a unit of {name}: {known}{' or none' if '' in _UNITS[name] else ''}")
    bound = float(match["number"]) * _UNITS[name][unit.lower()]
    if not 0 < bound < math.inf:
        raise UsageError(f"the bound of {text!r} must be a positive number")
    return Constraint(name, bound, unit)


def show(name: str, value: float) -> str:
    """A value with its unit, as messages print it."""
    if name == ERROR:
        return f"{100 * value:.1f} %"
    if name == "latency":
        return f"{value:.3g} ms"
    scale, letter = next((scale, letter) for scale, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k"), (0.0, "")) if value >= scale)
    return f"{value / (scale or 1.0):.3g}{letter}"


@dataclass(frozen=True)
class Objectives:
    """What is minimised, and how the part that needs no network is computed.

    Attributes:
        names: of the objectives, `error` first; the columns of every array of values.
        cheap: name -> its function, for every objective and every constraint but the error.

    Raises:
        UsageError: an unknown or repeated name, the error not first, or nothing beside it.
    """

    names: tuple[str, ...]
    cheap: Mapping[str, CheapObjective]

    def __post_init__(self) -> None:
        unknown = [name for name in self.names if name not in NAMES]
        if unknown:
            raise UsageError(f"there is no objective {unknown[0]!r}; choose among {', '.join(NAMES)}")
        if len(set(self.names)) < max(2, len(self.names)) or self.names[0] != ERROR:
            raise UsageError(f"objectives are error and at least one of {', '.join(_UNITS)}, each once, error first")
        missing = [name for name in self.names[1:] if name not in self.cheap]
        if missing:
            raise UsageError(f"objective {missing[0]} has no function that computes it")

    def values(self, genotypes: Genotypes, errors: npt.ArrayLike) -> Floats:
        """Values (n, m) of architectures (n, variables) with these errors (n,).

        Raises:
            NatdeployError: one of them is not a number.
        """
        columns = [np.asarray(errors, dtype=np.float64), *(self.cheap[name](genotypes) for name in self.names[1:])]
        values: Floats = np.stack(columns, axis=1)
        if not np.isfinite(values).all():
            row, column = np.argwhere(~np.isfinite(values))[0]
            raise NatdeployError(
                f"{self.names[column]} of genotype {genotypes[row].tolist()} is {values[row, column]}, not a number"
            )
        return values

    def violations(self, genotypes: Genotypes, constraints: Sequence[Constraint]) -> Floats:
        """By how much each bound is exceeded, as a share of the bound, (n, constraints); 0 where it holds."""
        exceeded = [self.cheap[each.objective](genotypes) / each.bound - 1.0 for each in constraints]
        return np.maximum(np.stack(exceeded, axis=1), 0.0) if exceeded else np.zeros((len(genotypes), 0))

    def violation(self, genotypes: Genotypes, constraints: Sequence[Constraint]) -> Floats:
        """Sum of the violations, (n,); 0 exactly where the architecture is feasible."""
        total: Floats = self.violations(genotypes, constraints).sum(axis=1)
        return total
