"""`natdeploy search`: adapt and search on the user's images, with the target's latency as an objective."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .config import read_config
from .options import (
    Accelerator,
    AllowEstimate,
    Head,
    HeadChannels,
    Json,
    NoProgress,
    OutputStride,
    Preset,
    Quiet,
    Ray,
    Strategy,
    Table,
    Tables,
    Task,
    Verbose,
    Workers,
    head_settings,
)
from .options import minutes as minutes_of
from .results import show_report
from .terminal import session, write_json

_OBJECTIVES = ["error", "latency"]


def search(
    context: typer.Context,
    *,
    data: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR|NAME",
            help="Image folder: train/ and test/, or one flat folder of classes. Or a data set's name: cifar10, flowers102, ... "
            "For segmentation: images/ and masks/, or CamVid's or Cityscapes' folder. For detection: a COCO file or folder, "
            "or a Pascal VOC folder.",
        ),
    ] = None,
    task: Annotated[Task, typer.Option(help="What is learned.")] = "classification",
    head: Head = None,
    head_channels: HeadChannels = None,
    output_stride: OutputStride = None,
    data_root: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Where data sets lie that are given by name.", show_default="data/ in the user's data folder"
        ),
    ] = None,
    download: Annotated[bool, typer.Option("--download", help="Fetch a data set given by name if it is not there.")] = False,
    target: Annotated[str, typer.Option(metavar="TARGET", help="Device, optionally with a runtime: host/onnxruntime.")] = "host",
    precisions: Annotated[
        str | None,
        typer.Option(
            "--precision",
            metavar="LIST",
            help="Search for the precision of each net as well: fp32,int8. The first is the baseline's.",
            show_default="the target's alone",
        ),
    ] = None,
    seed_weights: Annotated[Path | None, typer.Option(metavar="FILE", help="Pretrained network, .safetensors or .pth.")] = None,
    constraints: Annotated[
        list[str] | None,
        typer.Option("--constraint", metavar="LIMIT", help="What must hold: 'latency<=1.5ms'. Repeatable."),
    ] = None,
    objectives: Annotated[
        list[str],
        typer.Option("--objective", metavar="NAME", help="What to minimise: error, latency, latency@TARGET, macs, params, size."),
    ] = _OBJECTIVES,
    prefer: Annotated[
        str | None,
        typer.Option(metavar="WISH", help="Levels to come near, 'error=5%,latency=1ms': the report names the net that does."),
    ] = None,
    strategy: Annotated[
        Strategy,
        typer.Option(help="How networks are chosen: evolution on a surrogate (NAT), by gradient (FNA), or by chance."),
    ] = "evolution",
    preset: Annotated[Preset, typer.Option(help="Settings to begin from: minutes, as published, or hours.")] = "quick",
    single: Annotated[
        bool, typer.Option("--single", help="Find one network, the most accurate that keeps the constraints, instead of a front.")
    ] = False,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Run folder.", show_default="runs/ and the data folder's name")
    ] = None,
    space: Annotated[str, typer.Option(metavar="SPACE", help="Which architectures there are: a name, or a .toml file.")] = "mbv2",
    rounds: Annotated[
        int | None, typer.Option(metavar="N", help="Rounds of search and adaptation.", show_default="follows from the budget")
    ] = None,
    minutes: Annotated[
        float | None, typer.Option(metavar="N", help="Budget of the whole search.", show_default="follows from the data")
    ] = None,
    finetune_minutes: Annotated[
        float | None,
        typer.Option(
            "--finetune",
            metavar="TIME",
            parser=minutes_of,
            help="Train the nets that stand out alone at the end: 90s, 5min.",
            show_default="none",
        ),
    ] = None,
    warm_start: Annotated[
        list[Path] | None,
        typer.Option(metavar="RUN", help="Finished run on the same space that teaches the surrogate. Repeatable."),
    ] = None,
    accelerator: Annotated[Accelerator, typer.Option(help="Where weights are trained.")] = "auto",
    threads: Annotated[int, typer.Option(metavar="N", help="CPU threads, for training and for the target's runtime.")] = 1,
    seed: Annotated[int, typer.Option(metavar="N", help="Of every random choice.")] = 0,
    strict: Annotated[bool, typer.Option("--strict", help="A damaged image ends the search instead of being skipped.")] = False,
    flip: Annotated[bool, typer.Option("--flip/--no-flip", help="Whether a mirrored image means the same.")] = True,
    ray: Ray = None,
    workers: Workers = None,
    tables: Tables = None,
    table: Table = None,
    allow_estimate: AllowEstimate = False,
    config: Annotated[
        Path | None, typer.Option(metavar="FILE", help="TOML file with any of these settings; the command line's options win.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the plan and what is reachable, and stop.")] = False,
    as_json: Json = False,
    no_progress: NoProgress = False,
    verbose: Verbose = False,
    quiet: Quiet = False,
) -> None:
    """Find networks for your images and your target.

    Adapts a pretrained network to the images while it searches, and shows its plan before it spends anything: budget, splits,
    and whether the constraint can be met. Interrupt it whenever you like; `natdeploy resume` goes on, to the same result.

    \b
    Example:
      natdeploy search --data flowers --seed-weights mobilenet_v2.safetensors \\
          --constraint "latency<=1.5ms" --out runs/flowers
    """
    with session(as_json=as_json, verbose=verbose, quiet=quiet, no_progress=no_progress):
        given = {name: value for name, value in context.params.items() if name != "head" and _is_given(context, name)}
        wanted = read_config(config, given, head=head_settings(head, head_channels, output_stride))
    with session(as_json=as_json, verbose=verbose, quiet=quiet, no_progress=no_progress, run=wanted.out) as progress:
        from natdeploy import pipeline

        if dry_run:
            plan = pipeline.plan(wanted, progress)
            if as_json:
                write_json(plan.to_json())
            else:
                typer.echo("\n".join(plan.text()))
            return
        with pipeline.open_engine(ray, workers=workers) as engine:
            pipeline.search(wanted, progress=progress, engine=engine)
        result = pipeline.report(wanted.out)
    show_report(result, as_json=as_json)


def _is_given(context: typer.Context, option: str) -> bool:
    """Whether an option was typed; the others leave the file's setting, or the default, as it is."""
    source = context.get_parameter_source(option)
    return source is not None and source.name == "COMMANDLINE"
