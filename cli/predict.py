"""`natdeploy predict`: what architectures take on a target that was profiled."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from .options import AllowEstimate, Aspect, Head, HeadChannels, Json, OutputStride, Quiet, Table, Tables, Verbose, dense_head
from .terminal import session, write_json


def predict(
    archs: Annotated[list[str], typer.Argument(metavar="ARCH...", help="Such as r128-w1-k3e1-k3e6.k5e3, or a code of NAT's.")],
    *,
    target: Annotated[str, typer.Option(metavar="TARGET", help="Device, optionally with a runtime: host/onnxruntime.")] = "host",
    space: Annotated[str, typer.Option(metavar="SPACE", help="Of the architectures: a name, or a .toml file.")] = "mbv2",
    classes: Annotated[int, typer.Option(metavar="N", min=1, help="Outputs of the classifier, or of a dense head.")] = 1000,
    head: Head = None,
    head_channels: HeadChannels = None,
    output_stride: OutputStride = None,
    shape: Aspect = None,
    tables: Tables = None,
    table: Table = None,
    allow_estimate: AllowEstimate = False,
    as_json: Json = False,
    verbose: Verbose = False,
    quiet: Quiet = False,
) -> None:
    """Predict the latency of architectures on a target that was profiled.

    Each with an interval meant to hold 90 % of architectures. A guess is said to be one: where a block of the architecture lies
    outside what was measured.

    \b
    Example:
      natdeploy predict "08|0|1100 1440 5510 5220 8877" --space ofa_mbv3 --target host/onnxruntime
    """
    with session(as_json=as_json, verbose=verbose, quiet=quiet) as progress:
        from natdeploy import pipeline

        found, quality = pipeline.predict(
            archs,
            target,
            space=space,
            classes=classes,
            head=dense_head(head, head_channels, output_stride),
            aspect=shape or 1.0,
            tables=tables,
            table=table,
            allow_estimate=allow_estimate,
            progress=progress,
        )
    if as_json:
        write_json({"predictions": [asdict(each) for each in found], "quality": quality and asdict(quality)})
        return
    for each in found:
        guess = (
            "estimated from the device's specification sheet, not measured"
            if each.estimated
            else "outside of what was measured: a guess"
        )
        note = "" if each.known else f"  {guess}"
        interval = "" if each.low_ms is None or each.high_ms is None else f" ({each.low_ms:.3f} to {each.high_ms:.3f})"
        mark = "~" if each.estimated else ""
        typer.echo(f"{mark}{each.latency_ms:.3f} ms{interval}  {each.macs / 1e6:.1f}M MACs  {each.arch}{note}")
    if quality:
        typer.echo(
            f"such predictions of {quality.n} nets that were measured were within 5 % for {quality.within_5:.0%} and within 10 % "
            f"for {quality.within_10:.0%} of them"
        )
