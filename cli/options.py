"""Options that several verbs share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

Accelerator = Literal["auto", "cpu", "cuda"]

Run = Annotated[Path, typer.Argument(metavar="RUN", help="Run folder that `natdeploy search` wrote.")]
Tables = Annotated[
    Path | None, typer.Option("--tables", metavar="DIR", help="Folder of latency tables.", show_default="the user's own")
]

Json = Annotated[bool, typer.Option("--json", help="Write JSON: the result to standard output, errors to standard error.")]
NoProgress = Annotated[bool, typer.Option("--no-progress", help="Draw no progress bars.")]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Say more.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Say only what is wrong.")]
