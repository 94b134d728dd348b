"""`natdeploy serve`: the runs of a folder in a browser."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from natdeploy.logs import ROOT

from .options import Json, Quiet, Verbose
from .terminal import session, write_json


def serve(
    runs: Annotated[Path, typer.Argument(metavar="RUNS_DIR", help="Folder of run folders, or one run folder.")],
    *,
    port: Annotated[int, typer.Option(metavar="N", min=0, max=65535, help="Port to listen on; 0 takes a free one.")] = 8765,
    host: Annotated[
        str, typer.Option(metavar="ADDRESS", help="Address to listen on; any but this machine's own shows the runs to others.")
    ] = "127.0.0.1",
    as_json: Json = False,
    verbose: Verbose = False,
    quiet: Quiet = False,
) -> None:
    """Show the runs of a folder in a browser, live, and compare them.

    Each run has the page that `natdeploy report` writes, which follows a search while it goes on. Nothing is written, and a
    search is not disturbed. Ctrl-C ends it.

    \b
    Example:
      natdeploy serve runs
    """
    with session(as_json=as_json, verbose=verbose, quiet=quiet, no_progress=True):
        from natdeploy import pipeline
        from natdeploy.report.server import is_loopback

        with pipeline.serve(runs, host=host, port=port) as server:
            shown = f"[{host}]" if ":" in host else host
            address = f"http://{shown}:{server.server_address[1]}/"
            if not is_loopback(host):
                ROOT.warning(
                    "whoever can reach this machine at %s can see all runs in %s, without a password and unencrypted; leave out "
                    "--host to show them to this machine alone",
                    address,
                    runs,
                )
            if as_json:
                write_json({"address": address, "runs": str(runs)})
            else:
                typer.echo(f"The runs in {runs} are shown at {address}; Ctrl-C ends this.")
            try:
                server.serve_forever()
            except KeyboardInterrupt:  # the way to end it, not a failure
                return
