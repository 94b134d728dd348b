"""Latency tables as things to find, look at, put together and compare."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from difflib import get_close_matches
from pathlib import Path
from statistics import median
from typing import Any

from natdeploy.errors import DamagedFileError, DeviceError, UsageError
from natdeploy.hardware.device import device_names, host_facts, load_device
from natdeploy.hardware.runtimes import RUNTIMES, installed_version
from natdeploy.latency.blocks import block_key
from natdeploy.latency.compare import TOLERANCE, TableDiff, diff_tables, merge_tables
from natdeploy.latency.table import Table, read_table, strangers, write_table
from natdeploy.pipeline.profile import SHIPPED, tables_folder
from natdeploy.space import SearchSpace
from natdeploy.space.blocks import KINDS
from natdeploy.space.catalog import SPACES

_SUFFIXES = (".subnets.csv", ".csv", ".toml")
FOLDER = re.compile(r"(?P<space>[a-z0-9_]+?)(?P<digest>-[0-9a-f]{8})?-w(?P<width>\d+(?:\.\d+)?)")
"""Form of the name that `space_folder` gives."""

_PART = re.compile(r"[a-z0-9][a-z0-9_.+-]*")


@dataclass(frozen=True)
class Place:
    """Where a table's files lie.

    Attributes:
        folder: of them; its name tells the space and width, its parent's the device.
        slug: beginning of their names.
        shipped: whether they came with natdeploy.
    """

    folder: Path
    slug: str
    shipped: bool = False

    @property
    def name(self) -> str:
        """`DEVICE/SPACE/SLUG`."""
        return f"{self.folder.parent.name}/{self.folder.name}/{self.slug}"

    @property
    def csv(self) -> Path:
        return self.folder / f"{self.slug}.csv"

    @property
    def toml(self) -> Path:
        return self.folder / f"{self.slug}.toml"


@dataclass(frozen=True)
class TableLine:
    """One table of a list.

    Attributes:
        name: `DEVICE/SPACE/SLUG`.
        shipped: whether it came with natdeploy.
        folder: of its files.
        target: device, runtime and its version, precision and threads, as far as they are known.
        space: and width.
        origin: `measured`, or `imported` and from which format.
        format: of its files.
        rows: blocks.
        subnets: whole networks.
        failures: blocks and networks that gave no latency.
        age_days: since it was measured; None where that is not known.
        quality: of the predictor fitted when it was measured, if it is known.
        why_not: why it cannot be used on this machine; None where it can.
    """

    name: str
    shipped: bool
    folder: Path
    target: str
    space: str
    origin: str
    format: int
    rows: int
    subnets: int
    failures: int
    age_days: float | None
    quality: Mapping[str, float] | None
    why_not: str | None


@dataclass(frozen=True)
class Rows:
    """Rows of one kind and their latencies."""

    rows: int
    min_ms: float
    median_ms: float
    max_ms: float


@dataclass(frozen=True)
class TableDetails:
    """All about one table.

    Attributes:
        line: as in the list.
        provenance: of the table, without what is not known.
        unknown: names of what is not known.
        kinds: rows by kind of block, and of networks by role.
        unstable: names of rows that are.
        failures: reason by name.
        strangers: blocks that are not of the table's space; None where the space is not at hand.
    """

    line: TableLine
    provenance: Mapping[str, Any]
    unknown: tuple[str, ...]
    kinds: Mapping[str, Rows]
    unstable: tuple[str, ...]
    failures: Mapping[str, str]
    strangers: tuple[str, ...] | None


@dataclass(frozen=True)
class TableMerge:
    """A table made of two: where it lies, its rows, and how many of them both had."""

    name: str
    folder: Path
    slug: str
    rows: int
    subnets: int
    common: int
    unstable: int


def tables_list(tables: Path | None = None) -> tuple[tuple[TableLine, ...], tuple[str, ...]]:
    """The user's tables and those that ship, by name; and what is wrong with those that cannot be read."""
    lines, problems = [], []
    for place in _places(tables):
        try:
            lines.append(_line(place, read_table(place.folder, place.slug)))
        except DamagedFileError as error:
            problems.append(str(error))
    return tuple(lines), tuple(problems)


def tables_show(table: str, tables: Path | None = None) -> TableDetails:
    """All about one table.

    Args:
        table: `DEVICE/SPACE/SLUG`, or the path of one of its files.
        tables: folder of tables; the user's own by default.

    Raises:
        UsageError: there is none.
        DamagedFileError: its files do not hold what they should.
    """
    place = _find(table, tables)
    found = read_table(place.folder, place.slug)
    kinds: dict[str, list[float]] = {
        kind: [row.timing.latency_ms for row in found.blocks if row.block.kind == kind] for kind in KINDS
    }
    for role in ("fit", "test"):
        kinds[f"networks, {role}"] = [row.timing.latency_ms for row in found.subnets if row.role == role]
    named = [*((block_key(row.block), row.timing) for row in found.blocks), *((str(row.arch), row.timing) for row in found.subnets)]
    space = space_of(place.folder)
    return TableDetails(
        line=_line(place, found),
        provenance=found.provenance.model_dump(mode="json", exclude_none=True),
        unknown=found.provenance.unknown,
        kinds={kind: Rows(len(ms), min(ms), median(ms), max(ms)) for kind, ms in kinds.items() if ms},
        unstable=tuple(name for name, timing in named if timing.unstable),
        failures=found.failures,
        strangers=None if space is None else strangers(found, space),
    )


def tables_merge(first: str, second: str, out: str, *, tolerance: float = TOLERANCE, tables: Path | None = None) -> TableMerge:
    """Makes one table of two that were measured on the same target.

    Args:
        first: a table, as in `tables_show`; its reference gives the scale.
        second: another.
        out: name or path of the result; it may be one of the two.
        tolerance: how far rows of both may differ after division by the reference, as a fraction.
        tables: folder of tables; the user's own by default.

    Raises:
        UsageError: the tables are not of the same target, rows of both differ, or `out` is a table already.
        DamagedFileError: files do not hold what they should.
    """
    places = [_find(name, tables) for name in (first, second)]
    one, other = (read_table(place.folder, place.slug) for place in places)
    if places[0].folder.name != places[1].folder.name:
        raise UsageError(f"the tables cannot be merged: one is of {places[0].folder.name}, the other of {places[1].folder.name}")
    target = _new_place(out, tables)
    if target.toml.exists() and not any(_same(target, place) for place in places):
        raise UsageError(f"there is a table {out} already; give another --out")
    sources = {
        f"{place.name} of {table.provenance.utc}": sha256(place.csv) for place, table in zip(places, (one, other), strict=True)
    }
    merged = merge_tables(one, other, sources, tolerance)
    write_table(target.folder, target.slug, merged)
    common = len(one.blocks) + len(other.blocks) - len(merged.blocks) + len(one.subnets) + len(other.subnets) - len(merged.subnets)
    timings = [*(row.timing for row in merged.blocks), *(row.timing for row in merged.subnets)]
    unstable = sum(bool(timing.unstable) for timing in timings)
    return TableMerge(target.name, target.folder, target.slug, len(merged.blocks), len(merged.subnets), common, unstable)


def tables_diff(first: str, second: str, tables: Path | None = None) -> tuple[TableDiff, Mapping[str, tuple[Any, Any]]]:
    """Where two tables differ: in their rows, and in what is known of their measurement.

    Args:
        first: a table, as in `tables_show`.
        second: another.
        tables: folder of tables; the user's own by default.

    Raises:
        UsageError: there is no such table.
        DamagedFileError: files do not hold what they should.
    """
    one, other = (read_table(place.folder, place.slug) for place in (_find(name, tables) for name in (first, second)))
    mine, theirs = (table.provenance.model_dump(mode="json", exclude={"quality", "origin"}) for table in (one, other))
    return diff_tables(one, other), {name: (mine[name], theirs[name]) for name in mine if mine[name] != theirs[name]}


# ---- where tables lie


def _places(tables: Path | None) -> Iterator[Place]:
    """The user's tables, then those that ship, each by name."""
    for root, shipped in ((tables_folder(tables), False), (SHIPPED, True)):
        for path in sorted(root.glob("*/*/*.toml")):
            if not any(part.startswith(".") for part in path.relative_to(root).parts):
                yield Place(path.parent, path.stem, shipped)


def _find(name: str, tables: Path | None) -> Place:
    if name.endswith(_SUFFIXES):
        return table_file(Path(name))
    known = {place.name: place for place in reversed(list(_places(tables)))}
    if name in known:
        return known[name]
    near = get_close_matches(name, known, n=1)
    hint = f"did you mean {near[0]}?" if near else "`natdeploy tables list` shows those there are"
    raise UsageError(f"there is no table {name}; {hint}")


def table_file(path: Path) -> Place:
    """The table that a file belongs to."""
    suffix = next((suffix for suffix in _SUFFIXES if path.name.endswith(suffix)), None)
    if suffix is None:
        raise UsageError(f"{path} is no file of a table; give the .csv or the .toml")
    place = Place(path.absolute().parent, path.name.removesuffix(suffix))
    if not place.toml.is_file() and not place.csv.is_file():
        raise UsageError(f"there is no table {path}")
    return place


def _new_place(name: str, tables: Path | None) -> Place:
    """Where a table of that name or path would lie."""
    suffix = next((suffix for suffix in _SUFFIXES if name.endswith(suffix)), None)
    if suffix is not None:
        path = Path(name).absolute()
        return Place(path.parent, path.name.removesuffix(suffix))
    parts = name.split("/")
    if len(parts) != 3 or FOLDER.fullmatch(parts[1]) is None or not all(map(_PART.fullmatch, parts)):
        raise UsageError(f"{name!r} names no table; expected DEVICE/SPACE-wWIDTH/SLUG, or a path that ends with .csv")
    return Place(tables_folder(tables) / parts[0] / parts[1], parts[2])


def _same(one: Place, other: Place) -> bool:
    return (one.folder.resolve(), one.slug) == (other.folder.resolve(), other.slug)


def space_of(folder: Path) -> SearchSpace | None:
    """The space that a folder's name tells; None where it is not one that ships."""
    match = FOLDER.fullmatch(folder.name)
    if match is None or match["digest"] or match["space"] not in SPACES:
        return None
    return SPACES[match["space"]].restrict(widths=(float(match["width"]),))


def sha256(path: Path) -> str:
    """Digest of a file, in hexadecimal digits."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


# ---- what is said about them


def _line(place: Place, table: Table) -> TableLine:
    p = table.provenance
    runtime = f"{p.runtime} {p.runtime_version or ''}".strip() if p.runtime else "runtime unknown"
    threads = f"{p.threads} thread{'' if p.threads == 1 else 's'}" if p.threads else None
    return TableLine(
        name=place.name,
        shipped=place.shipped,
        folder=place.folder,
        target=", ".join(filter(None, (p.device, runtime, p.precision, threads))),
        space=place.folder.name,
        origin=p.origin.kind if p.origin.format is None else f"{p.origin.kind} from {p.origin.format}",
        format=p.format,
        rows=len(table.blocks),
        subnets=len(table.subnets),
        failures=len(table.failures),
        age_days=_age_days(p.utc),
        quality=p.quality,
        why_not=_why_not(table),
    )


def _age_days(utc: str | None) -> float | None:
    try:
        then = datetime.fromisoformat(utc) if utc else None
    except ValueError:
        return None
    if then is None:
        return None
    return (datetime.now(UTC) - (then if then.tzinfo else then.replace(tzinfo=UTC))).total_seconds() / 86400


def _why_not(table: Table) -> str | None:
    p = table.provenance
    if not table.subnets:
        return "it has no whole networks, and without them a network's latency cannot be predicted"
    if p.device not in device_names():
        return f"no device {p.device} is known here"
    if load_device(p.device).transport != "local":
        return None
    if p.runtime is None or p.runtime not in RUNTIMES:
        return f"there is no runtime {p.runtime or 'of unknown name'}"
    try:
        return "; ".join(p.mismatches(host_facts(), installed_version(RUNTIMES[p.runtime]))) or None
    except DeviceError as error:
        return str(error)
