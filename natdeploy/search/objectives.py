"""What a search minimises, and what must hold.

Arrays of objective values are (n, m): one row an architecture, one column an objective, all minimised. A NaN is allowed in the
column of errors alone, where it means that the architecture could not be evaluated.
Units are fixed: error is a share in 0..1, latency milliseconds, macs and params plain counts, size megabytes, energy millijoules.
Latency and energy may be of several targets: `latency@pixel4/tflite`.
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
    "size": {"kb": 1e-3, "mb": 1.0, "gb": 1e3},
    "energy": {"uj": 1e-3, "mj": 1.0, "j": 1e3},
}
"""Of every kind of cheap objective: the units a value may be written in, lower case, and what one of them is worth."""
_SHOWN = {"latency": "ms", "size": "MB", "energy": "mJ"}
_PER_TARGET = ("latency", "energy")

NAMES = (ERROR, *_UNITS)
KNOWN = f"{', '.join(NAMES)}, or {' or '.join(f'{kind}@TARGET' for kind in _PER_TARGET)} of one target of several"
_NAME = r"[A-Za-z]+(?:@[^\s<=,]+)?"
_QUANTITY = r"(?P<number>\d+(?:\.\d*)?(?:[eE][+-]?\d+)?)\s*(?P<unit>[A-Za-z%]*)"
_CONSTRAINT = re.compile(rf"\s*(?P<name>{_NAME})\s*<=\s*{_QUANTITY}\s*")
_LEVEL = re.compile(rf"\s*(?P<name>{_NAME})\s*=\s*{_QUANTITY}\s*")


def kind_of(name: str) -> str:
    """What an objective measures: `latency` of `latency@pixel4`.

    Raises:
        UsageError: there is no such objective; the message lists those there are.
    """
    kind, at, target = name.partition("@")
    if kind not in NAMES or (at and (kind not in _PER_TARGET or not target)):
        raise UsageError(f"there is no objective {name!r}; choose among {KNOWN}")
    return kind


@dataclass(frozen=True)
class Constraint:
    """An upper bound that every chosen architecture keeps.

    Attributes:
        objective: what is bounded; not the error, which is known only after evaluation.
        bound: in the fixed unit of the objective.
        unit: the one the user wrote, for messages.
    """

    objective: str
    bound: float
    unit: str

    def __str__(self) -> str:
        return f"{self.objective}<={self.bound / _UNITS[kind_of(self.objective)][self.unit.lower()]:.12g}{self.unit}"


def parse_constraint(text: str) -> Constraint:
    """Reads a bound such as `latency<=1.5ms`, `latency@pixel4<=20ms`, `macs<=100M`, `params<=3M`, `size<=5MB` or `energy<=3mJ`.

    Raises:
        UsageError: another form, an unknown objective or unit, or a bound that is not positive.
    """
    match = _CONSTRAINT.fullmatch(text)
    if match is None:
        raise UsageError(f"{text!r} is no constraint; write it like latency<=1.5ms, latency@pixel4<=20ms, macs<=100M or size<=5MB")
    if kind_of(match["name"]) == ERROR:
        raise UsageError(f"'error' cannot be constrained; choose one of {', '.join(_UNITS)}")
    return Constraint(match["name"], _quantity(match, text), match["unit"])


def parse_level(text: str) -> tuple[str, float]:
    """Reads a level to aspire to, such as `error=5%` or `latency=1.5ms`: the objective, and the value in its fixed unit.

    Raises:
        UsageError: another form, an unknown objective or unit, or a level that is not positive.
    """
    match = _LEVEL.fullmatch(text)
    if match is None:
        raise UsageError(f"{text!r} is no level to aspire to; write it like error=5% or latency=1.5ms")
    return match["name"], _quantity(match, text)


def _quantity(match: re.Match[str], text: str) -> float:
    kind, unit = kind_of(match["name"]), match["unit"]
    worth = {"": 1.0, "%": 0.01} if kind == ERROR else _UNITS[kind]
    if unit.lower() not in worth:
        known = " or ".join(repr(known) for known in worth if known)
        raise UsageError(f"{text!r} needs a unit of {kind}: {known}{' or none' if '' in worth else ''}")
    value = float(match["number"]) * worth[unit.lower()]
    if not 0 < value < math.inf:
        raise UsageError(f"the value of {text!r} must be a positive number")
    return value


def show(name: str, value: float) -> str:
    """A value with its unit, as messages print it."""
    kind = kind_of(name)
    if kind == ERROR:
        return f"{100 * value:.1f} %"
    if kind in _SHOWN:
        return f"{value:.3g} {_SHOWN[kind]}"
    scale, letter = next((scale, letter) for scale, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k"), (0.0, "")) if value >= scale)
    return f"{value / (scale or 1.0):.3g}{letter}"


def by_precision(functions: Sequence[CheapObjective]) -> CheapObjective:
    """Of the functions for one precision each, that of the precision in which each genotype ends.

    Args:
        functions: of genotypes (n, arch_variables), in the order of the space's precisions.
    """

    def value(genotypes: Genotypes) -> Floats:
        result = np.empty(len(genotypes))
        for code, function in enumerate(functions):
            rows = genotypes[:, -1] == code
            result[rows] = function(np.ascontiguousarray(genotypes[rows, :-1]))
        return result

    return value


@dataclass(frozen=True)
class Objectives:
    """What is minimised, and how the part that needs no network is computed.

    Attributes:
        names: of the objectives, `error` first; the columns of every array of values.
        cheap: name -> its function, for every objective and every constraint but the error.
        loss: what the precision of each genotype adds to the error of its network; None adds nothing.

    Raises:
        UsageError: an unknown or repeated name, the error not first, or nothing beside it.
    """

    names: tuple[str, ...]
    cheap: Mapping[str, CheapObjective]
    loss: CheapObjective | None = None

    def __post_init__(self) -> None:
        for name in self.names:
            kind_of(name)
        if len(set(self.names)) < max(2, len(self.names)) or self.names[0] != ERROR:
            raise UsageError(f"objectives are error and at least one of {', '.join(_UNITS)}, each once, error first")
        missing = [name for name in self.names[1:] if name not in self.cheap]
        if missing:
            raise UsageError(f"objective {missing[0]} has no function that computes it")

    def values(self, genotypes: Genotypes, errors: npt.ArrayLike) -> Floats:
        """Values (n, m) of architectures (n, variables) whose networks have these errors (n,), NaN where one is not known.

        Raises:
            NatdeployError: another objective is not a number.
        """
        own = np.asarray(errors, dtype=np.float64)
        lost = own if self.loss is None else own + self.loss(genotypes)
        columns = [lost, *(self.cheap[name](genotypes) for name in self.names[1:])]
        values: Floats = np.stack(columns, axis=1)
        wrong = ~np.isfinite(values)
        wrong[:, 0] = np.isinf(values[:, 0])
        if wrong.any():
            row, column = np.argwhere(wrong)[0]
            raise NatdeployError(
                f"{self.names[column]} of genotype {genotypes[row].tolist()} is {values[row, column]}, not a number"
            )
        return values

    def violations(self, genotypes: Genotypes, constraints: Sequence[Constraint]) -> Floats:
        """By how much each bound is exceeded, as a share of the bound, (n, constraints); 0 where it holds.

        Raises:
            UsageError: nothing computes what a constraint bounds.
        """
        unknown = [each for each in constraints if each.objective not in self.cheap]
        if unknown:
            raise UsageError(
                f"nothing computes {unknown[0].objective}, which {unknown[0]} bounds; bound one of {', '.join(self.cheap)}"
            )
        exceeded = [self.cheap[each.objective](genotypes) / each.bound - 1.0 for each in constraints]
        return np.maximum(np.stack(exceeded, axis=1), 0.0) if exceeded else np.zeros((len(genotypes), 0))

    def violation(self, genotypes: Genotypes, constraints: Sequence[Constraint]) -> Floats:
        """Sum of the violations, (n,); 0 exactly where the architecture is feasible."""
        total: Floats = self.violations(genotypes, constraints).sum(axis=1)
        return total
