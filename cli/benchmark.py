"""`natdeploy benchmark`: model files, timed on a target."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from natdeploy.errors import DeviceError, UnstableError

from .options import Json, NoProgress, Quiet, Verbose
from .terminal import session, write_json

if TYPE_CHECKING:
    from rich.table import Table

    from natdeploy.pipeline import BenchmarkResult
    from natdeploy.pipeline.timings import ModelTimes, Section

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
    mode: Annotated[
        Literal["latency", "throughput"],
        typer.Option(help="Latency of one request at a time, or images a second of as many as the target runs best."),
    ] = "latency",
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
    compare: Annotated[
        Path | None,
        typer.Option(metavar="FILE", dir_okay=False, help="Earlier --out file: how much faster or slower, and whether really."),
    ] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Measure again what the run holds from the same files already.")] = False,
    strict: Annotated[bool, typer.Option("--strict", help="End with exit code 6 when a measurement is unstable.")] = False,
    as_json: Json = False,
    no_progress: NoProgress = False,
    verbose: Verbose = False,
    quiet: Quiet = False,
) -> None:
    """Time networks on a target: a run's, exported ones, or any model files.

    In several fresh processes, where models take turns with a reference. Shown are p50 and p90 beside what was predicted, the
    memory that a model takes, the energy of a run where the device counts it, and what speaks against a number.

    \b
    Example:
      natdeploy benchmark runs/flowers --target host
      natdeploy benchmark mine.onnx other.onnx --shape 1x3x224x224 --out times.json
      natdeploy benchmark mine.onnx --compare times.json
    """
    with session(as_json=as_json, verbose=verbose, quiet=quiet, no_progress=no_progress) as progress:
        from natdeploy import pipeline

        result = pipeline.benchmark(
            paths,
            target=target,
            out=out,
            progress=progress,
            mode=mode,
            arch=arch,
            compare_with=compare,
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
    from rich.console import Console

    console = Console()
    for section in result.sections:
        console.print(_latency_table(section) if result.mode == "latency" else _throughput_table(section))
        for how in dict.fromkeys(model.throughput.how for model in section.models if model.throughput is not None):
            typer.echo(how)
    for name, (letter, meaning) in MARKS.items():
        if any(getattr(model.flags, name) for model in result.models):
            typer.echo(f"{letter}: {meaning}")
    for found in result.agreements:
        ranks = "" if found.spearman is None else f", Spearman {found.spearman:.3f}"
        typer.echo(
            f"predicted against measured {found.measured} of {found.n} nets on {found.target}: {found.within_5:.0%} within 5 %, "
            f"{found.within_10:.0%} within 10 %, mean error {found.mape:.1%}{ranks}"
        )
    for remark in result.remarks:
        typer.echo(remark)
    if result.comparison is not None:
        typer.echo(f"\nagainst {result.comparison.other}:")
        for pair in result.comparison.pairs:
            typer.echo(f"  {_short(pair.name)}: {pair.verdict}")
        for difference in result.comparison.differences:
            typer.echo(f"  not the same: {difference}")


def _latency_table(section: Section) -> Table:
    from natdeploy.report.tables import ESTIMATED, milliseconds, quantity

    energy = any(model.energy is not None for model in section.models)
    headers = ["p50\nms", "p90\nms", "mean\nms", "runs", "pred.\nms", "file\nMB", "mem.\nMB", *(["net\nmJ"] if energy else [])]
    table = _table(section, headers)
    for model in section.models:
        latency = model.latency
        assert latency is not None
        estimated = ESTIMATED if model.estimated and model.predicted_ms is not None else ""
        table.add_row(
            _short(model.name),
            model.precision,
            milliseconds(latency.p50_ms),
            milliseconds(latency.p90_ms),
            milliseconds(latency.mean_ms),
            str(latency.n),
            estimated + milliseconds(model.predicted_ms),
            f"{model.size_mb:.1f}",
            quantity(None if model.memory is None else model.memory.model_mb),
            *([quantity(None if model.energy is None else model.energy.net_mj)] if energy else []),
            _marks(model),
        )
    return table


def _throughput_table(section: Section) -> Table:
    table = _table(section, ["images\na second", "runs", "file\nMB"])
    for model in section.models:
        rate = model.throughput
        assert rate is not None
        table.add_row(
            _short(model.name), model.precision, f"{rate.images_per_s:.1f}", str(rate.n), f"{model.size_mb:.1f}", _marks(model)
        )
    return table


def _table(section: Section, headers: list[str]) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1), collapse_padding=True, title=section.target)
    table.add_column("model", overflow="fold")
    table.add_column("", no_wrap=True)
    for header in headers:
        table.add_column(header, justify="right", no_wrap=True)
    table.add_column("")
    return table


def _short(name: str) -> str:
    """A file with its folder's name."""
    return "/".join(Path(name).parts[-2:])


def _marks(model: ModelTimes) -> str:
    return "".join(letter for name, (letter, _) in MARKS.items() if getattr(model.flags, name))
