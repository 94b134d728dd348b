"""`natdeploy benchmark`: model files, timed on a target."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from natdeploy.errors import DeviceError, UnstableError

from .options import Json, NoProgress, Quiet, Verbose
from .terminal import session, write_json

if TYPE_CHECKING:
    from natdeploy.pipeline import BenchmarkResult

MARKS = {
    "unstable": ("u", "unstable, the processes differ by more than 3 %"),
    "few_runs": ("f", "too few runs for a p90"),
    "disturbed": ("d", "disturbed, other processes took more than 5 % of the time"),
    "drifted": ("r", "the reference became slower or faster by more than 10 %"),
    "throttled": ("t", "throttled, the device was held back"),
}
"""What speaks against a number: a letter for the table, and what it means."""


def benchmark(
    paths: Annotated[
        list[Path],
        typer.Argument(metavar="PATH", help="Run folders, exported folders, or any .onnx, .tflite or OpenVINO .xml files."),
    ],
    *,
    target: Annotated[
        str | None,
        typer.Option(
            metavar="TARGET",
            help="Device, optionally with a runtime: host/onnxruntime.",
            show_default="the run's own, or this machine",
        ),
    ] = None,
    arch: Annotated[
        str | None,
        typer.Option(metavar="WHICH", help="Nets of a run, as for export: knee, best, an id, ...", show_default="all exported"),
    ] = None,
    shape: Annotated[
        str | None, typer.Option(metavar="SIZES", help="Shape of the input where a file leaves it open: 1x3x224x224.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(metavar="FILE", dir_okay=False, help="JSON file for every raw time, the flags and the environment."),
    ] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Measure again what the run holds from the same files already.")] = False,
    strict: Annotated[bool, typer.Option("--strict", help="End with exit code 6 when a measurement is unstable.")] = False,
    as_json: Json = False,
    no_progress: NoProgress = False,
    verbose: Verbose = False,
    quiet: Quiet = False,
) -> None:
    """Time networks on a target: a run's, exported ones, or any model files.

    One image at a time, in several fresh processes that take turns with a reference model. Shown are p50 and p90, beside what was
    predicted, and what speaks against a number.

    \b
    Example:
      natdeploy benchmark runs/flowers --target host
      natdeploy benchmark mine.onnx other.onnx --shape 1x3x224x224 --out times.json
    """
    with session(as_json=as_json, verbose=verbose, quiet=quiet, no_progress=no_progress) as progress:
        from natdeploy import pipeline

        result = pipeline.benchmark(
            paths,
            target=target,
            out=out,
            progress=progress,
            arch=arch,
            shape=None if shape is None else pipeline.parse_shape(shape),
            fresh=fresh,
        )
        if as_json:
            write_json(result.summary())
        else:
            _show(result)
        if result.failures:
            raise DeviceError("; ".join(f"{name} does not run: {why}" for name, why in result.failures.items()))
        unstable = [model.name for model in result.models if model.flags.unstable]
        if strict and unstable:
            raise UnstableError(f"the latency of {', '.join(unstable)} is unstable; leave the machine alone and measure again")


def _show(result: BenchmarkResult) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    from natdeploy.report.tables import ESTIMATED, milliseconds

    console = Console()
    for section in result.sections:
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1), collapse_padding=True, title=section.target)
        table.add_column("model", overflow="fold")
        table.add_column("", no_wrap=True)
        for header in ("p50\nms", "p90\nms", "mean\nms", "runs", "pred.\nms", "file\nMB"):
            table.add_column(header, justify="right", no_wrap=True)
        table.add_column("")
        for model in section.models:
            latency = model.latency
            assert latency is not None
            table.add_row(
                "/".join(Path(model.name).parts[-2:]),
                model.precision,
                milliseconds(latency.p50_ms),
                milliseconds(latency.p90_ms),
                milliseconds(latency.mean_ms),
                str(latency.n),
                (ESTIMATED if model.estimated and model.predicted_ms is not None else "") + milliseconds(model.predicted_ms),
                f"{model.size_mb:.1f}",
                "".join(letter for name, (letter, _) in MARKS.items() if getattr(model.flags, name)),
            )
        console.print(table)
    for name, (letter, meaning) in MARKS.items():
        if any(getattr(model.flags, name) for model in result.models):
            typer.echo(f"{letter}: {meaning}")
    for remark in result.remarks:
        typer.echo(remark)
