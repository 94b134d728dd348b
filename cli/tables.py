"""`natdeploy tables`: what is measured, brought in from elsewhere, put together and compared."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from .options import Json, Quiet, Tables, Verbose
from .terminal import session, write_json

if TYPE_CHECKING:
    from collections.abc import Sequence

    from natdeploy.pipeline import TableDetails, TableImport, TableLine

tables = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Look at latency tables, import, merge and compare them.")

Table = Annotated[str, typer.Argument(metavar="TABLE", help="DEVICE/SPACE/SLUG as `tables list` shows, or the path of its .csv.")]
Other = Annotated[str, typer.Argument(metavar="OTHER", help="The second table.")]

SHOWN = 5
"""Names of a long list that people want to see."""


@tables.command("list")
def list_(*, tables: Tables = None, as_json: Json = False, verbose: Verbose = False, quiet: Quiet = False) -> None:
    """Show the tables there are.

    Your own and those that ship: of which target and space, how many blocks and nets, how old, how well they predict, and whether
    they can be used on this machine.

    \b
    Example:
      natdeploy tables list
    """
    with session(as_json=as_json, verbose=verbose, quiet=quiet):
        from natdeploy import pipeline

        lines, problems = pipeline.tables_list(tables)
    if as_json:
        write_json({"tables": [_line_json(line) for line in lines], "damaged": problems})
        return
    if not lines and not problems:
        typer.echo("there is no table; `natdeploy profile` measures one")
    for line in lines:
        typer.echo(_line(line))
    for problem in problems:
        typer.echo(f"damaged: {problem}")


@tables.command()
def show(table: Table, *, tables: Tables = None, as_json: Json = False, verbose: Verbose = False, quiet: Quiet = False) -> None:
    """Show where a table comes from and what it holds.

    \b
    Example:
      natdeploy tables show host/mbv2-w1/onnxruntime-fp32-1t
    """
    with session(as_json=as_json, verbose=verbose, quiet=quiet):
        from natdeploy import pipeline

        found = pipeline.tables_show(table, tables)
    if as_json:
        write_json({**asdict(found), "line": _line_json(found.line)})
    else:
        _show(found)


@tables.command("import")
def import_(
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help="Files of one format; all of them make one table.")],
    *,
    format: Annotated[
        Literal["ofa", "nn-meter", "natdeploy"],
        typer.Option(help="Of the files: once-for-all's look-up tables, nn-Meter's kernels, or a table of natdeploy."),
    ],
    device: Annotated[
        str | None, typer.Option(metavar="NAME", help="Device that was measured.", show_default="as natdeploy's own table says")
    ] = None,
    space: Annotated[
        str | None,
        typer.Option(metavar="SPACE", help="Whose blocks to take: a name, or a .toml file.", show_default="that of its folder"),
    ] = None,
    width: Annotated[
        float | None, typer.Option(metavar="W", min=0.1, help="Channel multiplier.", show_default="the space's first")
    ] = None,
    runtime: Annotated[str | None, typer.Option(metavar="NAME", help="What ran the blocks, if you know.")] = None,
    runtime_version: Annotated[str | None, typer.Option(metavar="V", help="Its version, if you know.")] = None,
    precision: Annotated[str | None, typer.Option(metavar="P", help="What it computed in, if you know.")] = None,
    threads: Annotated[int | None, typer.Option(metavar="N", min=1, help="How many it ran on, if you know.")] = None,
    licence: Annotated[str | None, typer.Option(metavar="NAME", help="Licence of the files, if you know.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be imported, and write nothing.")] = False,
    tables: Tables = None,
    as_json: Json = False,
    verbose: Verbose = False,
    quiet: Quiet = False,
) -> None:
    """Bring in latencies that others measured.

    Entries that are whole blocks of the space become rows; all others are counted and named. What the files do not say stays
    unknown.

    \b
    Example:
      natdeploy tables import 224_lookup_table.yaml --format ofa --device note10 --space ofa_mbv3 --width 1.2
    """
    with session(as_json=as_json, verbose=verbose, quiet=quiet):
        from natdeploy import pipeline

        results = pipeline.tables_import(
            files,
            format=format,
            device=device,
            space=space,
            width=width,
            runtime=runtime,
            runtime_version=runtime_version,
            precision=precision,
            threads=threads,
            licence=licence,
            tables=tables,
            dry_run=dry_run,
        )
    if as_json:
        write_json([{**asdict(result), "folder": str(result.folder)} for result in results])
        return
    for result in results:
        _show_import(result)


@tables.command()
def merge(
    table: Table,
    other: Other,
    *,
    out: Annotated[str, typer.Option(metavar="TABLE", help="Result: a name like TABLE's, or a path ending with .csv.")],
    tolerance: Annotated[
        float, typer.Option(metavar="X", min=0, max=1, help="How far rows of both may differ, as a fraction.")
    ] = 0.05,
    tables: Tables = None,
    as_json: Json = False,
    verbose: Verbose = False,
    quiet: Quiet = False,
) -> None:
    """Make one table of two of the same target.

    Rows of the second are brought to the first one's scale by the reference network that both timed. Rows of both are pooled if
    they agree; if they do not, nothing is written.

    \b
    Example:
      natdeploy tables merge host/mbv2-w1/onnxruntime-fp32-1t night.csv --out host/mbv2-w1/onnxruntime-fp32-1t
    """
    with session(as_json=as_json, verbose=verbose, quiet=quiet):
        from natdeploy import pipeline

        result = pipeline.tables_merge(table, other, out, tolerance=tolerance, tables=tables)
    if as_json:
        write_json({**asdict(result), "folder": str(result.folder)})
        return
    typer.echo(
        f"{result.rows} blocks and {result.subnets} nets, {result.common} of them measured in both, {result.unstable} unstable"
    )
    typer.echo(f"table: {result.folder / result.slug}.csv")


@tables.command()
def diff(
    table: Table, other: Other, *, tables: Tables = None, as_json: Json = False, verbose: Verbose = False, quiet: Quiet = False
) -> None:
    """Compare two tables.

    Ratios are the second table's latency over the first one's, divided by the same of their reference network if it is the same.

    \b
    Example:
      natdeploy tables diff host/mbv2-w1/onnxruntime-fp32-1t host/mbv2-w1/openvino-fp32-1t
    """
    with session(as_json=as_json, verbose=verbose, quiet=quiet):
        from natdeploy import pipeline

        found, measured = pipeline.tables_diff(table, other, tables)
    if as_json:
        write_json({**asdict(found), "measured": measured})
        return
    for name, (one, two) in measured.items():
        typer.echo(f"{name:16} {one} | {two}")
    _names("only in the first", found.only_first)
    _names("only in the second", found.only_second)
    if found.reference_ratio is not None:
        typer.echo(f"reference: {found.reference_ratio:.3f} times what it took in the first")
    if found.ratios is None:
        typer.echo("no row is in both")
        return
    low, p5, middle, p95, high = found.ratios
    typer.echo(
        f"{len(found.common)} rows in both: ratio {middle:.3f}, 90 % in {p5:.3f} to {p95:.3f}, all in {low:.3f} to {high:.3f}"
    )
    for row in found.common[:SHOWN]:
        typer.echo(f"  {row.name}  {row.first_ms:.4g} ms, {row.second_ms:.4g} ms, ratio {row.ratio:.3f}")


def _line_json(line: TableLine) -> dict[str, object]:
    return {**asdict(line), "folder": str(line.folder), "usable": line.why_not is None}


def _line(line: TableLine) -> str:
    age = "age unknown" if line.age_days is None else f"{line.age_days:.0f} days old"
    quality = f"within 5 % {line.quality['within_5']:.0%}, within 10 % {line.quality['within_10']:.0%}" if line.quality else None
    usable = "usable here" if line.why_not is None else f"not usable here: {line.why_not}"
    failures = f"{line.failures} failed" if line.failures else None
    parts = (line.target, line.origin, f"{line.rows} blocks, {line.subnets} nets", failures, age, quality, usable)
    return f"{line.name}{' (ships)' if line.shipped else ''}: {'; '.join(part for part in parts if part)}"


def _show(found: TableDetails) -> None:
    typer.echo(_line(found.line))
    if found.line.format == 1:
        typer.echo("format 1, of an earlier natdeploy; `natdeploy tables import --format natdeploy` writes it anew")
    for name, value in found.provenance.items():
        if name == "origin":
            for key, each in value.items():
                if each:
                    typer.echo(f"{f'origin {key}':18} {', '.join(each) if isinstance(each, list | dict) else each}")
        elif isinstance(value, dict):
            typer.echo(f"{name:18} {', '.join(f'{key} {each:g}' for key, each in value.items())}")
        else:
            typer.echo(f"{name:18} {value}")
    if found.unknown:
        typer.echo(f"{'not known':18} {', '.join(found.unknown)}")
    for kind, rows in found.kinds.items():
        typer.echo(f"{kind:18} {rows.rows:4d} rows, {rows.min_ms:.4g} to {rows.max_ms:.4g} ms, median {rows.median_ms:.4g} ms")
    _names("unstable", found.unstable)
    typer.echo(f"failed: {len(found.failures)}")
    for name, reason in found.failures.items():
        typer.echo(f"  {name}: {reason}")
    if found.strangers is None:
        typer.echo("its space does not ship, so its blocks are not checked against it")
    elif found.strangers:
        _names("no blocks of its space", found.strangers)


def _show_import(result: TableImport) -> None:
    verb = "imported" if result.written else "would be imported"
    typer.echo(f"{result.entries} entries: {result.rows} blocks and {result.subnets} nets {verb}")
    if result.format is not None:
        typer.echo(f"read as format {result.format} of natdeploy's tables")
    for reason, names in result.left_out.items():
        _names(f"left out, {reason}", names)
    for each in result.assumed:
        typer.echo(f"assumed: {each}")
    if result.unknown:
        typer.echo(f"not known: {', '.join(result.unknown)}")
    typer.echo(f"table: {result.folder / result.slug}.csv")


def _names(what: str, names: Sequence[str]) -> None:
    shown = ", ".join(names[:SHOWN]) + (", ..." if len(names) > SHOWN else "")
    typer.echo(f"{what}: {len(names)}{f' ({shown})' if names else ''}")
