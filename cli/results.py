"""How verbs show nets."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import typer

from natdeploy.stopwatch import share_of_passes

from .terminal import echo_wrapped, print_table, write_json

if TYPE_CHECKING:
    from natdeploy.pipeline import ReportResult
    from natdeploy.report import Pick
    from natdeploy.store import FileRecord, NetRecord


def show_report(result: ReportResult, *, as_json: bool) -> None:
    """The front with the nets that stand out, and where the page is."""
    if as_json:
        write_json(result.summary)
        return
    if result.standing:
        echo_wrapped(result.standing)
    if result.nets:
        print_nets(result.nets, result.picks, result.metric)
    for pick in result.picks:
        echo_wrapped(f"{pick.rule:8} {pick.reason}", indent=9)
    typer.echo()
    echo_wrapped(f"time: {_shares(result.seconds)}", indent=6)
    if (spent := result.adaptation) is not None:
        typer.echo(f"adaptation: architecture {spent.architecture_s:.0f} s, parameters {spent.parameters_s:.0f} s")
    typer.echo(f"report: {result.page}")


def _shares(seconds: Mapping[str, float]) -> str:
    """Where the time went, longest first, in the parts of which the page shows parts in turn."""
    total, parts = sum(seconds.values()), defaultdict[str, float](float)
    for stage, own in seconds.items():
        parts[stage.partition(":")[0]] += own
    shares = (f"{part} {100 * own / total:.1f} %" for part, own in sorted(parts.items(), key=lambda each: -each[1]) if own)
    passes = share_of_passes(seconds)
    told = [] if passes is None else [f"forward and backward passes {100 * passes:.0f} % of what is not profiling or measuring"]
    return "; ".join([f"{total:.0f} s", ", ".join(shares), *told]) if total else "0 s"


def show_files(files: Sequence[FileRecord], *, as_json: bool) -> None:
    """Files with what was found when they were checked."""
    if as_json:
        from natdeploy.report import file_json

        write_json([file_json(file) for file in files])
        return
    for file in files:
        what = f"{file.format} {file.precision}"
        typer.echo(f"{file.id}  {what:15} {_checked(file)}")
        echo_wrapped(f"  {file.path}" if file.refused is None else f"  refused: {file.refused}", indent=2)


def _checked(file: FileRecord) -> str:
    """Its size and how it does, within a line of 80 columns."""
    parts = [] if file.size_mb is None else [f"{file.size_mb:.2f} MB"]
    if file.test_accuracy is not None:
        parts.append(f"test {100 * file.test_accuracy:.1f} %")
    if file.agreement is not None:
        parts.append(f"as torch {100 * file.agreement:.1f} %")
    return ", ".join(parts)


def print_nets(nets: Sequence[NetRecord], picks: Sequence[Pick], metric: str = "accuracy") -> None:
    from natdeploy.report import front_table

    print_table(front_table(nets, picks, metric))
