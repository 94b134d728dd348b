"""`natdeploy benchmark`: exported nets, timed on a target."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from natdeploy.errors import UnstableError

from .options import Json, NoProgress, Quiet, Run, Verbose
from .results import show_nets
from .terminal import session


def benchmark(
    run: Run,
    *,
    target: Annotated[
        str | None,
        typer.Option(metavar="TARGET", help="Device, optionally with a runtime: host/onnxruntime.", show_default="the run's own"),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(metavar="FILE", dir_okay=False, help="JSON file for the raw times and the environment."),
    ] = None,
    strict: Annotated[bool, typer.Option("--strict", help="End with exit code 6 when a measurement is unstable.")] = False,
    as_json: Json = False,
    no_progress: NoProgress = False,
    verbose: Verbose = False,
    quiet: Quiet = False,
) -> None:
    """Time a run's exported networks on a target.

    One image at a time, in several fresh processes that take turns with a reference model. Shown are p50 and p90 with the
    number of runs, beside what was predicted.

    \b
    Example:
      natdeploy benchmark runs/flowers --target host
    """
    with session(as_json=as_json, verbose=verbose, quiet=quiet, no_progress=no_progress) as progress:
        from natdeploy import pipeline

        nets = pipeline.benchmark(run, target=target, out=out, progress=progress)
        show_nets(nets, as_json=as_json)
        unstable = [net.id for net in nets if net.unstable]
        if strict and unstable:
            raise UnstableError(f"the latency of {', '.join(unstable)} is unstable; leave the machine alone and measure again")
