"""Latency tables brought in: from other tools, from other machines, and from earlier versions of natdeploy."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from natdeploy._version import __version__
from natdeploy.errors import UsageError
from natdeploy.files import write_atomic
from natdeploy.latency.importers import IMPORTERS
from natdeploy.latency.table import FORMAT, Origin, Provenance, Table, read_table, strangers, write_table
from natdeploy.pipeline.profile import space_folder, tables_folder
from natdeploy.pipeline.tables import FOLDER, Place, sha256, space_of, table_file
from natdeploy.space import SearchSpace, get_space

NATDEPLOY = "natdeploy"
FORMATS = (*IMPORTERS, NATDEPLOY)
"""What `tables_import` reads."""

_NAME = re.compile(r"[a-z0-9][a-z0-9_]*")


@dataclass(frozen=True)
class TableImport:
    """What became of files.

    Attributes:
        name: of the table.
        folder: of its files.
        slug: beginning of their names.
        written: False for a trial.
        entries: found in the files.
        rows: blocks.
        subnets: whole networks.
        left_out: names of entries that are no row, by reason.
        assumed: what the files do not say and the rows take for granted.
        unknown: names of what is not known of the measurement.
        format: of the files that were read, where they were natdeploy's own.
    """

    name: str
    folder: Path
    slug: str
    written: bool
    entries: int
    rows: int
    subnets: int
    left_out: Mapping[str, tuple[str, ...]]
    assumed: tuple[str, ...]
    unknown: tuple[str, ...]
    format: int | None = None


def tables_import(
    files: Sequence[Path],
    *,
    format: str,
    device: str | None = None,
    space: str | None = None,
    width: float | None = None,
    runtime: str | None = None,
    runtime_version: str | None = None,
    precision: str | None = None,
    threads: int | None = None,
    licence: str | None = None,
    tables: Path | None = None,
    dry_run: bool = False,
) -> tuple[TableImport, ...]:
    """Brings tables in: natdeploy's own, one a file, or all files of another tool as one.

    Args:
        files: to read.
        format: one of FORMATS.
        device: whose latencies they are; natdeploy's own say so themselves.
        space: whose blocks to take; natdeploy's own have it in the name of their folder.
        width: channel multiplier; the space's first by default.
        runtime: what ran the blocks, if it is known; this and the following are for files that do not say so.
        runtime_version: of it.
        precision: that it computed in.
        threads: that it ran on.
        licence: of the files.
        tables: folder of tables; the user's own by default.
        dry_run: read and tell, but write nothing.

    Raises:
        UsageError: device or space is missing or unknown, nothing in the files is a block of the space, or there is such a table.
        DamagedFileError: a file does not hold what it should; the message names the place.
    """
    said = {"runtime": runtime, "runtime_version": runtime_version, "precision": precision, "threads": threads}
    said = {name: value for name, value in said.items() if value is not None}
    if format not in FORMATS:
        raise UsageError(f"there is no format {format!r}; choose one of {', '.join(FORMATS)}")
    for what, name in (("device", device), ("runtime", runtime), ("precision", precision)):
        if name is not None and _NAME.fullmatch(name) is None:
            raise UsageError(f"{name!r} cannot be the name of a {what}; give lower-case letters, digits and _")
    chosen = None
    if space is not None:
        named = get_space(space)
        chosen = named.restrict(widths=(width or named.widths[0],))
    folder = tables_folder(tables)
    if format == NATDEPLOY:
        if said or licence:
            raise UsageError("a table of natdeploy says itself what it was measured with; leave out what the files know")
        return tuple(_import_own(table_file(path), device, chosen, folder, dry_run=dry_run) for path in files)
    if len({path.resolve() for path in files}) < len(files):
        raise UsageError("a file is given twice; give each once")
    if device is None or chosen is None:
        raise UsageError(f"{format} files do not say whose latencies they hold; give --device and --space")
    return (_import_foreign(files, chosen, folder, format=format, device=device, said=said, licence=licence, dry_run=dry_run),)


def _import_own(source: Place, device: str | None, space: SearchSpace | None, tables: Path, *, dry_run: bool) -> TableImport:
    """A table of natdeploy's own, of any version, written anew in today's format; raw samples come along."""
    table = read_table(source.folder, source.slug)
    if space is None and FOLDER.fullmatch(source.folder.name) is None:
        raise UsageError(f"the folder of {source.toml} does not tell the space, as {table.provenance.space}-w1 would; give --space")
    known = space or space_of(source.folder)
    if known is not None:
        if known.name != table.provenance.space:
            raise UsageError(f"{source.toml} is a table of space {table.provenance.space}, not of {known.name}")
        if others := strangers(table, known):
            raise UsageError(
                f"{source.csv} is not of space {known.name} at width {known.widths[0]:g}: {len(others)} of its "
                f"{len(table.blocks)} blocks are not, such as {others[0]}"
            )
    p = table.provenance
    place = Place(tables / (device or p.device) / (space_folder(space) if space else source.folder.name), source.slug)
    origin = p.origin.model_copy(update={"files": {**p.origin.files, source.csv.name: sha256(source.csv)}})
    written = Table(
        table.blocks,
        table.subnets,
        p.model_copy(update={"device": device or p.device, "origin": origin, "format": FORMAT}),
        table.failures,
    )
    _write_new(place, written, dry_run=dry_run)
    if not dry_run:
        for journal in source.folder.glob(f"{source.slug}.*measurements.jsonl"):
            write_atomic(place.folder / journal.name, journal.read_bytes())
    counts = (len(table.blocks) + len(table.subnets), len(table.blocks), len(table.subnets))
    return TableImport(place.name, place.folder, place.slug, not dry_run, *counts, {}, origin.assumed, p.unknown, p.format)


def _import_foreign(
    files: Sequence[Path],
    space: SearchSpace,
    tables: Path,
    *,
    format: str,
    device: str,
    said: Mapping[str, Any],
    licence: str | None,
    dry_run: bool,
) -> TableImport:
    """One table of all files of another tool."""
    found = IMPORTERS[format](files, space)
    if not found.rows:
        why = ", ".join(f"{len(names)}: {reason}" for reason, names in found.left_out.items()) or "they are empty"
        raise UsageError(
            f"nothing in the files is a block of {space.name} at width {space.widths[0]:g} ({why}); give another --space or --width"
        )
    classes = {row.block.out_channels for row in found.rows if row.block.kind == "classifier"}
    assumed = (*found.assumed, *((f"{', '.join(said)} as told at the import",) if said else ()))
    provenance = Provenance(
        device=device,
        space=space.name,
        classes=classes.pop() if len(classes) == 1 else None,
        tool_version=__version__,
        origin=Origin(
            kind="imported",
            format=format,
            licence=licence,
            utc=datetime.now(UTC).isoformat(timespec="seconds"),
            assumed=assumed,
            files={_short(path, files): sha256(path) for path in files},
        ),
        **said,
    )
    threads = f"{provenance.threads}t" if provenance.threads else None
    slug = "-".join(filter(None, (provenance.runtime or format, provenance.precision, threads)))
    place = Place(tables / device / space_folder(space), slug)
    _write_new(place, Table(found.rows, (), provenance), dry_run=dry_run)
    return TableImport(
        place.name,
        place.folder,
        slug,
        not dry_run,
        found.entries,
        len(found.rows),
        0,
        found.left_out,
        assumed,
        provenance.unknown,
    )


def _short(path: Path, files: Sequence[Path]) -> str:
    """Name of a file without the folders above it, but for what tells it from others; a table is read on other machines."""
    same = [each for each in files if each.name == path.name]
    return path.name if len(same) == 1 else "/".join(path.absolute().parts[-2:])


def _write_new(place: Place, table: Table, *, dry_run: bool) -> None:
    if place.toml.exists():
        raise UsageError(f"there is a table {place.name} already, in {place.folder}; remove it or give another --device")
    if not dry_run:
        write_table(place.folder, place.slug, table)
