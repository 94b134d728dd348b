"""`natdeploy resume`: go on with a search that was interrupted."""

from __future__ import annotations

from .options import Json, NoProgress, Quiet, Ray, Run, Verbose, Workers
from .results import show_report
from .terminal import session


def resume(
    run: Run,
    *,
    ray: Ray = None,
    workers: Workers = None,
    as_json: Json = False,
    no_progress: NoProgress = False,
    verbose: Verbose = False,
    quiet: Quiet = False,
) -> None:
    """Go on with an interrupted search.

    It ends with the same result as if nothing had happened. A finished run is left as it is.

    \b
    Example:
      natdeploy resume runs/flowers
    """
    with session(as_json=as_json, verbose=verbose, quiet=quiet, no_progress=no_progress, run=run) as progress:
        from natdeploy import pipeline

        with pipeline.open_engine(ray, workers=workers) as engine:
            pipeline.resume(run, progress, engine)
        result = pipeline.report(run)
    show_report(result, as_json=as_json)
