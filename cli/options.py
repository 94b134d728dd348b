"""Options that several verbs share."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

if TYPE_CHECKING:
    from natdeploy.pipeline.config import HeadSettings

Accelerator = Literal["auto", "cpu", "cuda"]
Preset = Literal["quick", "paper", "thorough"]
Strategy = Literal["evolution", "gradient", "random"]
Task = Literal["classification", "segmentation", "detection"]
HeadKind = Literal["lraspp", "deeplabv3", "ssdlite", "retinanet"]

Run = Annotated[Path, typer.Argument(metavar="RUN", help="Run folder that `natdeploy search` wrote.")]
Tables = Annotated[
    Path | None, typer.Option("--tables", metavar="DIR", help="Folder of latency tables.", show_default="the user's own")
]
Table = Annotated[
    Path | None,
    typer.Option("--table", metavar="FILE", help="Latency table to use, its .csv or .toml, instead of looking for one."),
]
AllowEstimate = Annotated[
    bool,
    typer.Option("--allow-estimate", help="Where there is no table, take the device's specification sheet; every number says so."),
]


def names(texts: Iterable[str]) -> tuple[str, ...]:
    """Names of a list such as onnx,tflite, or of an option given several times."""
    return tuple(name for text in texts for name in map(str.strip, text.split(",")) if name)


_UNITS = {"s": 1 / 60, "sec": 1 / 60, "min": 1.0, "m": 1.0, "h": 60.0}


def minutes(text: str) -> float:
    """Minutes of a time such as 10min, 90s or 1.5h; a bare number is minutes."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([a-z]*)", text.strip())
    unit = _UNITS.get(match[2] or "min") if match else None
    if match is None or unit is None or not float(match[1]):
        raise typer.BadParameter(f"{text!r} is no time; write it like 10min, 90s or 1.5h")
    return float(match[1]) * unit


def aspect(text: str) -> float:
    """Width to height of a text such as 4:3, 240x180 or 1.333."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)(?:[:x](\d+(?:\.\d+)?))?", text.strip())
    value = float(match[1]) / float(match[2] or 1) if match and float(match[2] or 1) else 0.0
    if not value:
        raise typer.BadParameter(f"{text!r} is no shape of images; write it like 4:3, 240x180 or 1.333")
    return value


Head = Annotated[
    HeadKind | None,
    typer.Option(
        "--head", help="Head of a dense task.", show_default="a classifier; lraspp for segmentation, ssdlite for detection"
    ),
]
HeadChannels = Annotated[
    int | None,
    typer.Option("--head-channels", metavar="N", min=1, help="Of every branch of the head.", show_default="as published"),
]
OutputStride = Annotated[
    int | None,
    typer.Option(
        "--output-stride",
        metavar="N",
        min=1,
        help="By which the stages make the image smaller at most; later strides become dilations.",
        show_default="16",
    ),
]
Aspect = Annotated[
    float | None,
    typer.Option(
        "--aspect",
        metavar="W:H",
        parser=aspect,
        help="Width of a dense task's images to their height: 4:3, 240x180.",
        show_default="a square",
    ),
]


def head_settings(kind: HeadKind | None, channels: int | None, output_stride: int | None) -> dict[str, Any]:
    """The settings of a head that are given, by their names in a configuration."""
    given = {"kind": kind, "channels": channels, "output_stride": output_stride}
    return {name: value for name, value in given.items() if value is not None}


def dense_head(kind: HeadKind | None, channels: int | None, output_stride: int | None) -> HeadSettings | None:
    """The head of a dense task; None of classification."""
    from natdeploy.pipeline.config import HeadSettings

    given = head_settings(kind, channels, output_stride)
    if given and kind is None:
        raise typer.BadParameter("--head-channels and --output-stride are of a head; name it with --head")
    return HeadSettings.model_validate(given) if given else None


Ray = Annotated[
    str | None,
    typer.Option(
        metavar="ADDRESS", help="Train and judge on a Ray cluster: local, auto or HOST:PORT.", show_default="this process"
    ),
]
Workers = Annotated[
    int | None, typer.Option(metavar="N", min=1, help="Processes of the Ray cluster to use.", show_default="all it has room for")
]
Json = Annotated[bool, typer.Option("--json", help="Write JSON: the result to standard output, errors to standard error.")]
NoProgress = Annotated[bool, typer.Option("--no-progress", help="Draw no progress bars.")]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Say more.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Say only what is wrong.")]
