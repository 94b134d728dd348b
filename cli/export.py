"""`natdeploy export`: deployable files, each checked against the network it came from."""

from __future__ import annotations

from typing import Annotated

import typer

from .options import Json, NoProgress, Quiet, Run, Verbose
from .results import show_files
from .terminal import session


def export(
    run: Run,
    *,
    arch: Annotated[
        str,
        typer.Option(metavar="NAME", help="knee, best, fastest, front, baseline, an id, 'latency<=1ms' or 'error=5%,latency=1ms'."),
    ] = "knee",
    formats: Annotated[list[str], typer.Option("--format", metavar="NAME", help="File format: `onnx`; repeatable.")] = ["onnx"],  # noqa: B006 (typer copies it)
    as_json: Json = False,
    no_progress: NoProgress = False,
    verbose: Verbose = False,
    quiet: Quiet = False,
) -> None:
    """Write deployable files of a run's networks.

    Each file is compared with torch on real images, and its accuracy is measured again in the runtime that will run it.

    \b
    Example:
      natdeploy export runs/flowers --arch knee --format onnx
    """
    with session(as_json=as_json, verbose=verbose, quiet=quiet, no_progress=no_progress) as progress:
        from natdeploy import pipeline

        files = pipeline.export(run, arch=arch, formats=tuple(formats), progress=progress)
    show_files(files, as_json=as_json)
