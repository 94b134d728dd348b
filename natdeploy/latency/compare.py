"""Two latency tables: whether their rows may stand side by side, made into one, and where they differ.

Latencies of the same target at different times differ by a factor that the reference network shows. Both tables timed it, so the
rows of the second are multiplied by what the reference took in the first over what it took in the second.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np

from natdeploy.errors import UsageError
from natdeploy.latency.blocks import block_key
from natdeploy.latency.table import BlockRow, Origin, Provenance, SubnetRow, Table, Timing, pool

TOLERANCE = 0.05
"""Rows of one thing on one target that differ by more are not both right."""

SAME = {
    "device": "device",
    "runtime": "runtime",
    "runtime_version": "version of the runtime",
    "provider": "delegate",
    "precision": "precision",
    "threads": "number of threads",
    "batch": "batch size",
    "harness": "harness",
    "waiting_counted": "way to count waiting",
    "cpu": "processor",
    "cores": "number of cores",
    "governor": "governor",
    "space": "space",
    "classes": "number of classes",
    "reference": "reference network",
}
"""What rows of one table have in common, and how it is called."""

_Key = TypeVar("_Key", bound=Hashable)


def mixture(one: Mapping[str, object], other: Mapping[str, object]) -> str | None:
    """In words, what forbids rows of two origins to stand in one table; None where nothing does.

    Args:
        one: provenance or environment, by the names of `Provenance`; what is not in both is not compared.
        other: the same of the other rows.
    """
    for name, words in SAME.items():
        if name in one and name in other and one[name] != other[name]:
            return f"the {words} is {one[name]} in one and {other[name]} in the other"
    return None


@dataclass(frozen=True)
class Difference:
    """A row that two tables have. `ratio` is what the second says over what the first says, freed from the reference's drift."""

    name: str
    first_ms: float
    second_ms: float
    ratio: float


@dataclass(frozen=True)
class TableDiff:
    """Where two tables differ.

    Attributes:
        only_first: names of rows that the second lacks.
        only_second: names of rows that the first lacks.
        reference_ratio: what the reference took in the second over what it took in the first; None where it is not the same.
        common: rows of both, the most different first: farthest from the median ratio.
        ratios: minimum, 5th, 50th and 95th percentile and maximum of their ratios; None without any.
    """

    only_first: tuple[str, ...]
    only_second: tuple[str, ...]
    reference_ratio: float | None
    common: tuple[Difference, ...]
    ratios: tuple[float, float, float, float, float] | None


def diff_tables(first: Table, second: Table) -> TableDiff:
    """Compares blocks and networks by name. The tables may be of different targets."""
    mine, theirs = _timings(first), _timings(second)
    reference_ratio = _reference_ratio(first.provenance, second.provenance)
    common = [_difference(name, mine[name], theirs[name], reference_ratio or 1.0) for name in mine if name in theirs]
    if not common:
        return TableDiff(tuple(mine), tuple(theirs), reference_ratio, (), None)
    low, p5, middle, p95, high = (float(each) for each in np.percentile([each.ratio for each in common], (0, 5, 50, 95, 100)))
    common.sort(key=lambda each: (-abs(np.log(each.ratio / middle)), each.name))
    return TableDiff(
        tuple(name for name in mine if name not in theirs),
        tuple(name for name in theirs if name not in mine),
        reference_ratio,
        tuple(common),
        (low, p5, middle, p95, high),
    )


def merge_tables(first: Table, second: Table, sources: Mapping[str, str], tolerance: float = TOLERANCE) -> Table:
    """One table of two that were measured on the same target.

    Rows of both are pooled. A network that a predictor may learn from in one of them is not judged by in the result. What failed in
    one and was measured in the other did not fail.

    Args:
        first: gives the scale.
        second: its rows are normalised by the reference.
        sources: SHA-256 of the tables' files by name, for the origin.
        tolerance: how far rows of both may differ, as a fraction.

    Raises:
        UsageError: they are not of the same target, or rows differ; the message names them.
    """
    mine, theirs = first.provenance, second.provenance
    for provenance in (mine, theirs):
        if provenance.unknown:
            missing = SAME.get(provenance.unknown[0], provenance.unknown[0])
            raise UsageError(
                f"the {missing} of an imported table is not known, so it cannot be merged; import all its files at once instead"
            )
    why = mixture(mine.model_dump(), theirs.model_dump())
    ratio = _reference_ratio(mine, theirs)
    if why or ratio is None:
        raise UsageError(f"the tables cannot be merged: {why or 'no reference network was timed in both'}")
    scaled = _scaled(second, 1 / ratio)
    apart = [each for each in diff_tables(first, second).common if abs(each.ratio - 1) > tolerance]
    if apart:
        shown = ", ".join(f"{each.name} {each.first_ms:.4g} and {each.second_ms:.4g} ms" for each in apart[:3])
        raise UsageError(
            f"the tables cannot be merged: {len(apart)} rows differ by more than {tolerance:.0%} after division by the reference's "
            f"latency ({shown}{', ...' if len(apart) > 3 else ''}); measure again, or allow more with --tolerance"
        )
    blocks = _pooled([(row.block, row.timing) for row in (*first.blocks, *scaled.blocks)])
    subnets = _pooled([(row.arch, row.timing) for row in (*first.subnets, *scaled.subnets)])
    learned = {row.arch for row in (*first.subnets, *second.subnets) if row.role == "fit"}
    rows = (
        tuple(BlockRow(block, timing) for block, timing in blocks.items()),
        tuple(SubnetRow(arch, "fit" if arch in learned else "test", timing) for arch, timing in subnets.items()),
    )
    measured = {*map(block_key, blocks), *map(str, subnets)}
    failures = {name: reason for name, reason in {**second.failures, **first.failures}.items() if name not in measured}
    return Table(*rows, _merged_provenance(mine, theirs, sources), failures)


def _timings(table: Table) -> dict[str, Timing]:
    blocks = {block_key(row.block): row.timing for row in sorted(table.blocks, key=lambda row: row.block)}
    return blocks | {str(row.arch): row.timing for row in sorted(table.subnets, key=lambda row: str(row.arch))}


def _reference_ratio(first: Provenance, second: Provenance) -> float | None:
    same = first.reference is not None and (first.reference, first.classes) == (second.reference, second.classes)
    if not same or first.reference_ms is None or second.reference_ms is None:
        return None
    return second.reference_ms / first.reference_ms


def _difference(name: str, first: Timing, second: Timing, reference_ratio: float) -> Difference:
    return Difference(name, first.latency_ms, second.latency_ms, second.latency_ms / first.latency_ms / reference_ratio)


def _scaled(table: Table, factor: float) -> Table:
    """The same rows in the reference's milliseconds of another table; their wall times stay what they were."""
    blocks = tuple(replace(row, timing=replace(row.timing, latency_ms=row.timing.latency_ms * factor)) for row in table.blocks)
    subnets = tuple(replace(row, timing=replace(row.timing, latency_ms=row.timing.latency_ms * factor)) for row in table.subnets)
    return replace(table, blocks=blocks, subnets=subnets)


def _pooled(rows: Iterable[tuple[_Key, Timing]]) -> dict[_Key, Timing]:
    found: dict[_Key, list[Timing]] = {}
    for key, timing in rows:
        found.setdefault(key, []).append(timing)
    return {key: pool(timings) for key, timings in found.items()}


def _merged_provenance(mine: Provenance, theirs: Provenance, sources: Mapping[str, str]) -> Provenance:
    """The first table's, with what both took together. Settings say how long a row was measured at least."""
    return mine.model_copy(
        update={
            "utc": max(filter(None, (mine.utc, theirs.utc))),
            "measured_s": (mine.measured_s or 0) + (theirs.measured_s or 0),
            "block_settings": _least([mine.block_settings, theirs.block_settings]),
            "subnet_settings": _least([mine.subnet_settings, theirs.subnet_settings]),
            "origin": Origin(kind="measured", files={**mine.origin.files, **theirs.origin.files, **sources}),
            "quality": None,
        }
    )


def _least(settings: Sequence[Mapping[str, float] | None]) -> dict[str, float]:
    known = [each for each in settings if each is not None]
    return {name: min(each[name] for each in known) for name in known[0] if all(name in each for each in known)}
