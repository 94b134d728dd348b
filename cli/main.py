"""The `natdeploy` command. Nothing here or in the verbs' files imports a heavy library before a verb runs."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from natdeploy._version import __version__

from .benchmark import benchmark
from .demo import demo
from .devices import devices
from .doctor import doctor
from .export import export
from .predict import predict
from .profile import profile
from .report import report
from .resume import resume
from .search import search
from .serve import serve
from .supernet import supernet
from .tables import tables
from .terminal import write_error

app = typer.Typer(
    name="natdeploy", no_args_is_help=True, add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False
)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"natdeploy {__version__}")
        raise typer.Exit


@app.callback()
def _natdeploy(
    *,
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """From a pretrained network, your images and a latency budget to deployable files.

    Searched, adapted and timed on the real target.
    """


for verb in (search, resume, export, benchmark, report, serve, profile, predict, doctor, demo):
    app.command()(verb)
app.add_typer(devices, name="devices")
app.add_typer(supernet, name="supernet")
app.add_typer(tables, name="tables")


def main() -> None:
    """Entry point of the `natdeploy` command."""
    if "--json" not in sys.argv[1:]:
        app()
        return
    try:
        sys.exit(app(standalone_mode=False))
    except typer.TyperException as error:  # a wrong option, before any verb could see that JSON is wanted
        write_error(error.format_message(), error.exit_code, as_json=True)
        sys.exit(error.exit_code)
