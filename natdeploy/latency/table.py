"""Latency tables: what was measured of a space on a target, with everything needed to judge and repeat it.

Three files a table: `<slug>.csv` (blocks), `<slug>.subnets.csv` (whole networks) and `<slug>.toml` (provenance, and what failed);
a fourth, `<slug>.prior.csv`, where blocks of another target stand in for those not measured.
"""

from __future__ import annotations

import csv
import io
import json
import math
import re
import tomllib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import PydanticCustomError

from natdeploy.errors import DamagedFileError, NatdeployError
from natdeploy.files import write_atomic
from natdeploy.hardware.measure import UNSTABLE
from natdeploy.invalid import faults
from natdeploy.latency.blocks import block_key, parse_block
from natdeploy.space import Arch, Block, SearchSpace

Role = Literal["fit", "test"]

FORMAT = 2
"""Of the files. Format 1, which does not say so itself, had neither origin nor failures; it is read as well."""

_BLOCK_COLUMNS = ("block", "latency_ms", "p50_ms", "n", "processes", "unstable")
_SUBNET_COLUMNS = ("arch", "role", "latency_ms", "p50_ms", "n", "processes", "unstable")
_REMEDY = "restore it or measure the target again with `natdeploy profile`"


@dataclass(frozen=True)
class Timing:
    """What a row says about time. What an imported row does not tell is None.

    Attributes:
        latency_ms: what a run takes while nothing else wants the machine (see hardware.measure: a network's `latency_ms`, a
            block's `floor_ms`, both freed from drift by the reference); of an imported row, what its file calls latency.
        p50_ms: median wall time as it was.
        n: timed runs.
        processes: fresh processes they were spread over.
        unstable: measurements of it differ by more than 3 %: the medians of its processes, or rows that were pooled.
    """

    latency_ms: float
    p50_ms: float | None
    n: int | None
    processes: int | None
    unstable: bool | None


@dataclass(frozen=True)
class BlockRow:
    block: Block
    timing: Timing


@dataclass(frozen=True)
class SubnetRow:
    """A whole network; `role` says whether a predictor may be fitted on it or only judged by it."""

    arch: Arch
    role: Role
    timing: Timing


class Origin(BaseModel):
    """How the rows came here.

    Attributes:
        kind: measured by natdeploy, or imported from files of another tool.
        format: of those files.
        licence: of those files, where it is known.
        utc: when they were imported.
        assumed: what the files do not say and the rows take for granted, in words.
        files: SHA-256 by name: of imported files, or of the block rows of tables that were merged.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["measured", "imported"] = "measured"
    format: str | None = None
    licence: str | None = None
    utc: str | None = None
    assumed: tuple[str, ...] = ()
    files: dict[str, str] = {}


class Provenance(BaseModel):
    """Where a table comes from. Of an imported table, what is not known is None; a measured one knows all but what a system hides.

    Attributes:
        prior: target, runtime version and time of the table whose blocks are this one's prior.
        reference_drift: by how much the reference's latency changed while the table was measured, 0.1 is 10 %.
        quality: of the predictor that was fitted when the table was measured (latency.predictor.Quality).
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    format: int = Field(FORMAT, ge=1)
    device: str
    runtime: str | None = None
    runtime_version: str | None = None
    provider: str | None = None
    delegate: str | None = None
    precision: str | None = None
    threads: int | None = None
    batch: int | None = None
    space: str
    classes: int | None = None
    reference: str | None = None
    reference_ms: float | None = None
    reference_drift: float | None = None
    harness: str | None = None
    tool_version: str
    utc: str | None = None
    cpu: str | None = None
    cores: int | None = None
    memory_mb: int | None = None
    os: str | None = None
    governor: str | None = None
    temperature_c: float | None = None
    waiting_counted: bool | None = None
    measured_s: float | None = None
    prior: str | None = None
    origin: Origin = Origin()
    block_settings: dict[str, float] | None = None
    subnet_settings: dict[str, float] | None = None
    quality: dict[str, float] | None = None

    @model_validator(mode="after")
    def _measured_is_known(self) -> Provenance:
        if self.origin.kind == "measured" and self.unknown:
            raise PydanticCustomError("missing", "{name}: field required", {"name": self.unknown[0]})
        return self

    @property
    def unknown(self) -> tuple[str, ...]:
        """Names of what an imported table does not know and a measured one would."""
        return tuple(name for name in type(self).model_fields if name not in _MAY_LACK and getattr(self, name) is None)

    def mismatches(self, facts: Mapping[str, Any], runtime_version: str) -> tuple[str, ...]:
        """In words, what differs between the machine that was measured and this one; empty if latencies may be compared."""
        pairs = {
            "processor": (self.cpu, facts["cpu"]),
            "number of cores": (self.cores, facts["cores"]),
            "governor": (self.governor, facts["governor"]),
            f"{self.runtime or 'runtime'} version": (self.runtime_version, runtime_version),
        }
        return tuple(
            f"{name} was {'unknown' if then is None else then}, is {now}" for name, (then, now) in pairs.items() if then != now
        )


_MAY_LACK = frozenset({"delegate", "prior", "reference_drift", "memory_mb", "governor", "temperature_c", "quality"})
"""What even a measured table may not know: some systems hide it, and a predictor is fitted later."""


@dataclass(frozen=True)
class Table:
    """Rows, where they come from, and why there are no others.

    Attributes:
        failures: reason by block key or architecture, of everything that was tried and gave no latency.
        prior: blocks of another target (`provenance.prior`), from which a predictor takes what was not measured here.
    """

    blocks: tuple[BlockRow, ...]
    subnets: tuple[SubnetRow, ...]
    provenance: Provenance
    failures: Mapping[str, str] = field(default_factory=dict)
    prior: tuple[BlockRow, ...] = ()

    def with_prior(self, other: Table) -> Table:
        """This table, with the blocks of another target as prior."""
        p = other.provenance
        source = f"{p.device}/{p.runtime}-{p.precision}-{p.threads}t, {p.runtime_version}, {p.utc}"
        return replace(self, prior=other.blocks, provenance=self.provenance.model_copy(update={"prior": source}))


def pool(timings: Sequence[Timing]) -> Timing:
    """One row from several measurements of the same thing on the same target: means weighted by their runs."""
    if len(timings) == 1:
        return timings[0]
    weights = [timing.n or 1 for timing in timings]
    latencies = [timing.latency_ms for timing in timings]
    medians = [timing.p50_ms for timing in timings if timing.p50_ms is not None]
    return Timing(
        latency_ms=_mean(latencies, weights),
        p50_ms=_mean(medians, weights) if len(medians) == len(timings) else None,
        n=_sum([timing.n for timing in timings]),
        processes=_sum([timing.processes for timing in timings]),
        unstable=any(timing.unstable for timing in timings) or max(latencies) > (1 + UNSTABLE) * min(latencies),
    )


def _mean(values: Sequence[float], weights: Sequence[float]) -> float:
    return sum(value * weight for value, weight in zip(values, weights, strict=True)) / sum(weights)


def _sum(counts: Sequence[int | None]) -> int | None:
    known = [count for count in counts if count is not None]
    return sum(known) if len(known) == len(counts) else None


class SpaceBlocks:
    """Tells whether a block is of a space, whatever its size and the number of classes: one table serves all of them.

    Args:
        space: of the widths in question.
    """

    def __init__(self, space: SearchSpace) -> None:
        self._families: set[Block] = set()
        for resolution, width in product(space.resolutions[:1], space.widths):
            self._families.update(map(_family, space.fixed_blocks(resolution, width, classes=1)))
            for slot, (stage, _) in enumerate(space.slots):
                codes = range(1, len(space.stages[stage].choices) + 1)
                self._families.update(_family(space.slot_block(slot, code, resolution, width)) for code in codes)

    def __contains__(self, block: Block) -> bool:
        return _family(block) in self._families


def _family(block: Block) -> Block:
    answers = block.kind == "classifier" or block.dense
    return replace(block, size=0, wide=0, out_channels=0 if answers else block.out_channels)


def strangers(table: Table, space: SearchSpace) -> tuple[str, ...]:
    """Keys of the table's blocks that are not of the space."""
    known = SpaceBlocks(space)
    return tuple(block_key(row.block) for row in table.blocks if row.block not in known)


def write_table(folder: Path, slug: str, table: Table) -> None:
    """Writes the three files, rows in a stable order, each file replaced atomically; the provenance last."""
    subnets = [
        (str(row.arch), row.role, *_timing_cells(row.timing))
        for row in sorted(table.subnets, key=lambda row: (row.role, row.arch.resolution, str(row.arch)))
    ]
    values = table.provenance.model_copy(update={"format": FORMAT}).model_dump(exclude_none=True)
    values["origin"] = {name: value for name, value in values["origin"].items() if value}
    if "quality" in values:  # correlations of a handful of nets may not exist
        values["quality"] = {name: value for name, value in values["quality"].items() if math.isfinite(value)}
    if table.failures:
        values["failures"] = dict(sorted(table.failures.items()))
    write_atomic(folder / f"{slug}.csv", _csv_text(_BLOCK_COLUMNS, _block_cells(table.blocks)))
    if table.prior:
        write_atomic(folder / f"{slug}.prior.csv", _csv_text(_BLOCK_COLUMNS, _block_cells(table.prior)))
    else:
        (folder / f"{slug}.prior.csv").unlink(missing_ok=True)
    write_atomic(folder / f"{slug}.subnets.csv", _csv_text(_SUBNET_COLUMNS, subnets))
    write_atomic(folder / f"{slug}.toml", "".join(f"{line}\n" for line in _toml_lines(values)).encode())


def read_table(folder: Path, slug: str) -> Table:
    """Reads what `write_table` wrote, now or in an earlier version (`provenance.format` says which).

    Raises:
        DamagedFileError: a file is missing or holds something else; the message names file, line and reason.
    """
    path = folder / f"{slug}.toml"
    provenance, failures = _read_provenance(path)
    blocks = _read_blocks(folder / f"{slug}.csv")
    prior = _read_blocks(folder / f"{slug}.prior.csv") if provenance.prior else ()
    subnets = _read_rows(
        folder / f"{slug}.subnets.csv",
        _SUBNET_COLUMNS,
        lambda cells: SubnetRow(Arch.parse(cells["arch"]), _role(cells["role"]), _timing(cells)),
    )
    for name in failures.keys() & {*(block_key(row.block) for row in blocks), *(str(row.arch) for row in subnets)}:
        raise DamagedFileError(f"{path}: failures: {name} has a row as well; {_REMEDY}")
    return Table(blocks, subnets, provenance, failures, prior)


def _block_cells(rows: Sequence[BlockRow]) -> list[tuple[str, ...]]:
    return [(block_key(row.block), *_timing_cells(row.timing)) for row in sorted(rows, key=lambda row: row.block)]


def _read_blocks(path: Path) -> tuple[BlockRow, ...]:
    return _read_rows(path, _BLOCK_COLUMNS, lambda cells: BlockRow(parse_block(cells["block"]), _timing(cells)))


def _timing_cells(timing: Timing) -> tuple[str, ...]:
    t = timing
    numbers = ("" if number is None else repr(number) for number in (t.latency_ms, t.p50_ms, t.n, t.processes))
    return (*numbers, {True: "yes", False: "no", None: ""}[t.unstable])


def _timing(cells: Mapping[str, str]) -> Timing:
    latency_ms = float(cells["latency_ms"])
    p50_ms = float(cells["p50_ms"]) if cells["p50_ms"] else None
    if not all(0 < each < math.inf for each in (latency_ms, p50_ms) if each is not None):
        raise ValueError("a latency must be positive and finite")
    n, processes = (int(cells[name]) if cells[name] else None for name in ("n", "processes"))
    if not all(each > 0 for each in (n, processes) if each is not None):
        raise ValueError("n and processes must be 1 or more")
    if cells["unstable"] not in {"yes", "no", ""}:
        raise ValueError(f"unstable must be yes or no, not {cells['unstable']!r}")
    return Timing(latency_ms, p50_ms, n, processes, {"yes": True, "no": False, "": None}[cells["unstable"]])


def _role(text: str) -> Role:
    if text == "fit":
        return "fit"
    if text == "test":
        return "test"
    raise ValueError(f"role must be fit or test, not {text!r}")


_Row = TypeVar("_Row")


def _read_rows(path: Path, columns: tuple[str, ...], parse: Callable[[Mapping[str, str]], _Row]) -> tuple[_Row, ...]:
    lines = list(csv.reader(_text(path).splitlines()))
    if not lines or tuple(lines[0]) != columns:
        raise DamagedFileError(f"{path}, line 1: the columns must be {','.join(columns)}; {_REMEDY}")
    rows: list[_Row] = []
    seen: dict[str, int] = {}
    for number, cells in enumerate(lines[1:], start=2):
        try:
            if len(cells) != len(columns):
                raise ValueError(f"{len(cells)} cells, not {len(columns)}")
            rows.append(parse(dict(zip(columns, cells, strict=True))))
            if cells[0] in seen:
                raise ValueError(f"{cells[0]} is there already, in line {seen[cells[0]]}")
        except (ValueError, NatdeployError) as error:
            raise DamagedFileError(f"{path}, line {number}: {error}; {_REMEDY}") from error
        seen[cells[0]] = number
    return tuple(rows)


def _read_provenance(path: Path) -> tuple[Provenance, dict[str, str]]:
    try:
        values = tomllib.loads(_text(path))
    except tomllib.TOMLDecodeError as error:
        raise DamagedFileError(f"{path}: {error}; {_REMEDY}") from error
    written = values.setdefault("format", 1)
    if isinstance(written, int) and written > FORMAT:
        raise DamagedFileError(
            f"{path} has format {written} and this natdeploy reads up to {FORMAT}; update natdeploy, the file is of a newer one"
        )
    failures = values.pop("failures", {})
    try:
        if not isinstance(failures, dict) or not all(isinstance(reason, str) for reason in failures.values()):
            raise ValueError("failures: must be a table of reasons")
        for name in failures:
            _parse_name(name)
        return Provenance.model_validate(values), failures
    except ValidationError as error:
        first = faults(error)[0]
        where = f"{first.place}: " if first.place else ""
        raise DamagedFileError(f"{path}: {where}{first.reason}; {_REMEDY}") from error
    except (ValueError, NatdeployError) as error:
        raise DamagedFileError(f"{path}: {error}; {_REMEDY}") from error


def _parse_name(name: str) -> None:
    """Raises UsageError where a name is neither a block's nor an architecture's."""
    if name.startswith("r"):
        Arch.parse(name)
    else:
        parse_block(name)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise DamagedFileError(f"{path} is missing; {_REMEDY}") from error
    except UnicodeDecodeError as error:
        raise DamagedFileError(f"{path} is no text; {_REMEDY}") from error


def _csv_text(columns: Iterable[str], rows: Iterable[Iterable[str]]) -> bytes:
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(rows)
    return buffer.getvalue().encode()


def _toml_lines(values: Mapping[str, Any], above: str = "") -> Iterable[str]:
    """TOML of nested mappings."""
    for key, value in values.items():
        if not isinstance(value, dict):
            yield f"{_toml_key(key)} = {_toml_value(value)}"
    for key, value in values.items():
        if isinstance(value, dict):
            yield from ("", f"[{above}{_toml_key(key)}]", *_toml_lines(value, f"{above}{_toml_key(key)}."))


def _toml_key(key: str) -> str:
    return key if re.fullmatch(r"[A-Za-z0-9_-]+", key) else _toml_value(key)


def _toml_value(value: Any) -> str:
    """JSON's strings, numbers and booleans are TOML's too, but for a control character and what is no character."""
    if isinstance(value, tuple):
        return "".join(["[\n", *(f"    {_toml_value(each)},\n" for each in value), "]"])
    text = json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return text.encode("utf-8", "replace").decode()
