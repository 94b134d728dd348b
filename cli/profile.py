"""`natdeploy profile`: a latency table of a device, and how well it predicts."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .options import Aspect, Head, HeadChannels, Json, NoProgress, OutputStride, Quiet, Tables, Verbose, dense_head, minutes
from .terminal import duration, session, write_json

if TYPE_CHECKING:
    from natdeploy.pipeline import ProfileResult


def profile(
    *,
    device: Annotated[str, typer.Option(metavar="DEVICE", help="Name of a known device, or a file that describes one.")] = "host",
    runtime: Annotated[
        str | None, typer.Option(metavar="NAME", help="What runs the nets there.", show_default="the device's first")
    ] = None,
    space: Annotated[str, typer.Option(metavar="SPACE", help="Whose blocks to measure: a name, or a .toml file.")] = "mbv2",
    width: Annotated[
        float | None, typer.Option(metavar="W", min=0.1, help="Channel multiplier.", show_default="the space's first")
    ] = None,
    seed_weights: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Pretrained network whose width and channels the space is to have, as in a search from it."
        ),
    ] = None,
    classes: Annotated[int, typer.Option(metavar="N", min=1, help="Outputs of the classifier, or of a dense head.")] = 1000,
    head: Head = None,
    head_channels: HeadChannels = None,
    output_stride: OutputStride = None,
    shape: Aspect = None,
    precision: Annotated[
        str | None, typer.Option(metavar="NAME", help="fp32, bf16, fp16 or int8.", show_default="the runtime's first")
    ] = None,
    threads: Annotated[int | None, typer.Option(metavar="N", min=1, help="Of the runtime.", show_default="the device's")] = None,
    budget: Annotated[
        float | None,
        typer.Option(metavar="TIME", parser=minutes, help="Of measuring, at most, such as 10min or 90s.", show_default="6min"),
    ] = None,
    source: Annotated[
        str | None,
        typer.Option("--from", metavar="TARGET", help="Start from the table of another target; a few nets tell the difference."),
    ] = None,
    seed: Annotated[int, typer.Option(metavar="N", min=0, help="Of the choice of blocks and nets.")] = 0,
    tables: Tables = None,
    as_json: Json = False,
    no_progress: NoProgress = False,
    verbose: Verbose = False,
    quiet: Quiet = False,
) -> None:
    """Measure a device, so that latency can be predicted.

    Whole networks and blocks of the space are timed and a predictor is fitted to them, until more blocks would not help. Its
    quality is told on whole networks that it has not seen, measured on the same device. Interrupted, or given a larger budget,
    the same command goes on where it was.

    \b
    Example:
      natdeploy profile --device host --runtime onnxruntime
      natdeploy profile --runtime tflite --from host/onnxruntime
      natdeploy profile --runtime openvino --precision bf16 --space ofa_mbv3 --budget 10min
    """
    with session(as_json=as_json, verbose=verbose, quiet=quiet, no_progress=no_progress) as progress:
        from natdeploy import pipeline

        result = pipeline.profile(
            device,
            runtime,
            space=space,
            width=width,
            seed_weights=seed_weights,
            classes=classes,
            head=dense_head(head, head_channels, output_stride),
            aspect=shape or 1.0,
            tables=tables,
            precision=precision,
            threads=threads,
            budget_minutes=budget,
            source=source,
            seed=seed,
            progress=progress,
        )
    if as_json:
        write_json({**asdict(result), "folder": str(result.folder)})
    else:
        _show(result)


def _show(result: ProfileResult) -> None:
    drifts = [f"{drift:.0%}" + (f" on {device}" if len(result.drifts) > 1 else "") for device, drift in result.drifts.items()]
    typer.echo(
        f"{result.rows} blocks and {result.subnets} nets, measured in {duration(result.measuring_s)} "
        f"and converted in {duration(result.converting_s)}; the reference net drifted by {', '.join(drifts)}"
    )
    for name, reason in result.failures.items():
        typer.echo(f"not measured: {name}: {reason}")
    quality = result.quality
    typer.echo(
        f"predicted on {quality.n} unseen nets: within 5 % {quality.within_5:.0%}, within 10 % {quality.within_10:.0%}, "
        f"mean error {quality.mape:.1%}, Spearman {quality.spearman:.3f}, Kendall {quality.kendall:.3f}"
    )
    typer.echo(f"table: {result.folder / result.slug}.csv")
