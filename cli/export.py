"""`natdeploy export`: deployable files, each checked against the network it came from."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from natdeploy.errors import AccuracyGateError, UsageError

from .config import read_config
from .options import Json, NoProgress, Quiet, Verbose, names
from .results import show_files
from .terminal import session


def export(
    source: Annotated[Path, typer.Argument(metavar="RUN", help="Run folder that `natdeploy search` wrote; or a file of weights.")],
    *,
    arch: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="knee, best, fastest, front, baseline, an id, 'latency<=1ms' or 'error=5%,latency=1ms'; of weights, the "
            "architecture's text.",
            show_default="knee",
        ),
    ] = None,
    formats: Annotated[
        list[str],
        typer.Option("--format", metavar="LIST", help="onnx, openvino, tflite, tensorrt, or several of them: onnx,tflite."),
    ] = ["onnx"],  # noqa: B006 (typer copies it)
    precisions: Annotated[
        list[str] | None,
        typer.Option(
            "--precision",
            metavar="LIST",
            help="fp32, fp16, int8, or several of them: fp32,int8.",
            show_default="the one the search chose, else fp32",
        ),
    ] = None,
    max_drop: Annotated[
        float, typer.Option("--max-drop", metavar="POINTS", help="Validation accuracy that a file may lose to torch in fp32.")
    ] = 1.0,
    input_: Annotated[
        Literal["nchw", "nhwc", "image", "photo"],
        typer.Option(
            "--input",
            help="What files take: prepared floats in either layout, the bytes of an image of the network's size, or those of a "
            "photo of any size.",
        ),
    ] = "nchw",
    photo_size: Annotated[
        str | None,
        typer.Option("--photo-size", metavar="HxW", help="Of tflite with --input photo: the one size its files take, as 480x640."),
    ] = None,
    nms: Annotated[
        bool,
        typer.Option("--nms", help="Of detection: an ONNX file, too, that answers with objects, non-maximum suppression inside."),
    ] = False,
    strict: Annotated[bool, typer.Option("--strict", help="End with exit code 4 where a file is refused.")] = False,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Of weights: where the files go; a run keeps its own.")] = Path("models"),
    data: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Of weights: images as for a search, to judge files by, for int8 and for --nms.",
            show_default="none",
        ),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Of weights: TOML of a search whose settings of reading images count, as [masks]."),
    ] = None,
    space: Annotated[
        str | None, typer.Option(metavar="NAME", help="Of weights: their space, a name or .toml file.", show_default="recognised")
    ] = None,
    as_json: Json = False,
    no_progress: NoProgress = False,
    verbose: Verbose = False,
    quiet: Quiet = False,
) -> None:
    """Write deployable files of a run's networks, or of a file of weights.

    Each file is run in its own runtime on all validation and test images, compared with torch, and refused where it loses more
    than --max-drop. int8 learns its ranges from images that are used for nothing else.

    \b
    Example:
      natdeploy export runs/flowers --arch knee --format onnx,tflite --precision fp32,int8
      natdeploy export supernet.safetensors --arch r160-w1-k3e1-k3e6.k3e6 --data photos
    """
    with session(as_json=as_json, verbose=verbose, quiet=quiet, no_progress=no_progress) as progress:
        from natdeploy import pipeline
        from natdeploy.export import parse_photo_size

        asked: dict[str, Any] = {
            "formats": names(formats),
            "precisions": names(precisions or ()),
            "max_drop": max_drop,
            "input": input_,
            "photo_size": None if photo_size is None else parse_photo_size(photo_size),
            "progress": progress,
        }
        if source.is_dir() or source.suffix == "":
            if any(each is not None for each in (data, space, config)):
                raise UsageError("--data, --config and --space are for files of weights; a run knows its own")
            files = pipeline.export(source, arch=arch or "knee", nms=nms, **asked)
        else:
            if config is not None and data is None:
                raise UsageError("--config says how images are read; give some with --data")
            # Task and head are those of the weights.
            settings = None if config is None else read_config(config, {"data": data, "task": "classification", "head": None})
            files = pipeline.export_weights(source, out, arch=arch, data=data, space=space, nms=nms, settings=settings, **asked)
        show_files(files, as_json=as_json)
        refused = [file for file in files if file.refused]
        if refused and (strict or len(refused) == len(files)):
            raise AccuracyGateError(f"{len(refused)} of {len(files)} files are refused; the reasons are above")
