"""`natdeploy report`: what a run came to."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .options import Json, Quiet, Run, Verbose
from .results import show_report
from .terminal import session


def report(
    run: Run,
    *,
    csv: Annotated[
        Path | None, typer.Option("--csv", metavar="FILE", help="Also write every evaluated architecture to this CSV file.")
    ] = None,
    as_json: Json = False,
    verbose: Verbose = False,
    quiet: Quiet = False,
) -> None:
    """Show what a run came to, and write its page.

    The page is one HTML file that needs no network: the front, the nets that stand out, and where every number comes from.

    \b
    Example:
      natdeploy report runs/flowers
    """
    with session(as_json=as_json, verbose=verbose, quiet=quiet):
        from natdeploy import pipeline

        result = pipeline.report(run)
        if csv is not None:
            pipeline.write_archive(run, csv)
    show_report(result, as_json=as_json)
