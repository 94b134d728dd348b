"""Latency tables: what was measured of a space on a target, with everything needed to judge and repeat it.

Three files a table: `<slug>.csv` (blocks), `<slug>.subnets.csv` (whole networks) and `<slug>.toml` (provenance).
"""

from __future__ import annotations

import csv
import io
import json
import math
import os
import tomllib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from natdeploy.errors import DamagedFileError, NatdeployError
from natdeploy.latency.blocks import block_key, parse_block
from natdeploy.space import Arch, Block

Role = Literal["fit", "test"]

_BLOCK_COLUMNS = ("block", "latency_ms", "p50_ms", "n", "processes", "unstable")
_SUBNET_COLUMNS = ("arch", "role", "latency_ms", "p50_ms", "n", "processes", "unstable")
_REMEDY = "restore it or measure the target again with `natdeploy profile`"


@dataclass(frozen=True)
class Timing:
    """What a row says about time.

    Attributes:
        latency_ms: what a run takes while nothing else wants the machine (see hardware.measure: a network's `latency_ms`, a
            block's `floor_ms`, both freed from drift by the reference).
        p50_ms: median wall time as it was.
        n: timed runs.
        processes: fresh processes they were spread over.
        unstable: the processes' medians differ by more than 3 %.
    """

    latency_ms: float
    p50_ms: float
    n: int
    processes: int
    unstable: bool


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


class Provenance(BaseModel):
    """Where a table comes from."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    device: str
    runtime: str
    runtime_version: str
    provider: str
    precision: str
    threads: int
    batch: int
    space: str
    classes: int
    reference: str
    reference_ms: float
    harness: str
    tool_version: str
    utc: str
    cpu: str
    cores: int
    memory_mb: int | None
    os: str
    governor: str | None
    temperature_c: float | None
    waiting_counted: bool
    measured_s: float
    block_settings: dict[str, float]
    subnet_settings: dict[str, float]

    def mismatches(self, facts: Mapping[str, Any], runtime_version: str) -> tuple[str, ...]:
        """In words, what differs between the machine that was measured and this one; empty if latencies may be compared."""
        pairs = {
            "processor": (self.cpu, facts["cpu"]),
            "number of cores": (self.cores, facts["cores"]),
            "governor": (self.governor, facts["governor"]),
            f"{self.runtime} version": (self.runtime_version, runtime_version),
        }
        return tuple(f"{name} was {then}, is {now}" for name, (then, now) in pairs.items() if then != now)


@dataclass(frozen=True)
class Table:
    blocks: tuple[BlockRow, ...]
    subnets: tuple[SubnetRow, ...]
    provenance: Provenance


def write_table(folder: Path, slug: str, table: Table) -> None:
    """Writes the three files, rows in a stable order, each file replaced atomically; the provenance last."""
    folder.mkdir(parents=True, exist_ok=True)
    blocks = [(block_key(row.block), *_timing_cells(row.timing)) for row in sorted(table.blocks, key=lambda row: row.block)]
    subnets = [
        (str(row.arch), row.role, *_timing_cells(row.timing))
        for row in sorted(table.subnets, key=lambda row: (row.role, row.arch.resolution, str(row.arch)))
    ]
    _replace(folder / f"{slug}.csv", _csv_text(_BLOCK_COLUMNS, blocks))
    _replace(folder / f"{slug}.subnets.csv", _csv_text(_SUBNET_COLUMNS, subnets))
    _replace(folder / f"{slug}.toml", _toml_text(table.provenance.model_dump(exclude_none=True)))


def read_table(folder: Path, slug: str) -> Table:
    """Reads what `write_table` wrote.

    Raises:
        DamagedFileError: a file is missing or holds something else; the message names file, line and reason.
    """
    provenance = _read_provenance(folder / f"{slug}.toml")
    blocks = _read_rows(folder / f"{slug}.csv", _BLOCK_COLUMNS, lambda cells: BlockRow(parse_block(cells["block"]), _timing(cells)))
    subnets = _read_rows(
        folder / f"{slug}.subnets.csv",
        _SUBNET_COLUMNS,
        lambda cells: SubnetRow(Arch.parse(cells["arch"]), _role(cells["role"]), _timing(cells)),
    )
    return Table(blocks, subnets, provenance)


def _timing_cells(timing: Timing) -> tuple[str, ...]:
    t = timing
    return (repr(t.latency_ms), repr(t.p50_ms), str(t.n), str(t.processes), "yes" if t.unstable else "no")


def _timing(cells: Mapping[str, str]) -> Timing:
    latency_ms, p50_ms = float(cells["latency_ms"]), float(cells["p50_ms"])
    if not (0 < latency_ms < math.inf and 0 < p50_ms < math.inf):
        raise ValueError("a latency must be positive and finite")
    if cells["unstable"] not in {"yes", "no"}:
        raise ValueError(f"unstable must be yes or no, not {cells['unstable']!r}")
    return Timing(latency_ms, p50_ms, int(cells["n"]), int(cells["processes"]), cells["unstable"] == "yes")


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
    rows = []
    for number, cells in enumerate(lines[1:], start=2):
        try:
            rows.append(parse(dict(zip(columns, cells, strict=True))))
        except (ValueError, NatdeployError) as error:
            raise DamagedFileError(f"{path}, line {number}: {error}; {_REMEDY}") from error
    return tuple(rows)


def _read_provenance(path: Path) -> Provenance:
    try:
        values = tomllib.loads(_text(path))
        optional = {
            name: None for name, field in Provenance.model_fields.items() if type(None) in getattr(field.annotation, "__args__", ())
        }
        return Provenance.model_validate(optional | values)
    except tomllib.TOMLDecodeError as error:
        raise DamagedFileError(f"{path}: {error}; {_REMEDY}") from error
    except ValidationError as error:
        first = error.errors()[0]
        raise DamagedFileError(f"{path}: {'.'.join(map(str, first['loc']))}: {first['msg'].lower()}; {_REMEDY}") from error


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except FileNotFoundError as error:
        raise DamagedFileError(f"{path} is missing; {_REMEDY}") from error
    except UnicodeDecodeError as error:
        raise DamagedFileError(f"{path} is no text; {_REMEDY}") from error


def _csv_text(columns: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(rows)
    return buffer.getvalue()


def _toml_text(values: Mapping[str, Any]) -> str:
    """TOML of a flat mapping with tables one level deep; JSON's strings, numbers and booleans are TOML's too."""
    flat = [f"{key} = {json.dumps(value)}" for key, value in values.items() if not isinstance(value, dict)]
    for key, value in values.items():
        if isinstance(value, dict):
            flat += ["", f"[{key}]", *(f"{name} = {json.dumps(each)}" for name, each in value.items())]
    return "\n".join(flat) + "\n"


def _replace(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_text(text)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
