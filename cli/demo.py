"""`natdeploy demo`: the whole flow in a few minutes, offline."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .options import Json, NoProgress, Quiet, Verbose
from .results import show_report
from .terminal import session


def demo(
    *,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Run folder.")] = Path("runs/demo"),
    as_json: Json = False,
    no_progress: NoProgress = False,
    verbose: Verbose = False,
    quiet: Quiet = False,
) -> None:
    """Run the whole flow on data that is already here.

    Handwritten digits that ship with scikit-learn, and a small space: a few minutes, no network. Interrupted, the same
    command goes on.

    \b
    Example:
      natdeploy demo
    """
    with session(as_json=as_json, verbose=verbose, quiet=quiet, no_progress=no_progress) as progress:
        from natdeploy import pipeline

        pipeline.demo(out, progress)
        result = pipeline.report(out)
    show_report(result, as_json=as_json)
