"""Options that several verbs share."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Literal

import typer

Accelerator = Literal["auto", "cpu", "cuda"]
Preset = Literal["quick", "paper", "thorough"]
Strategy = Literal["evolution", "gradient", "random"]

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
