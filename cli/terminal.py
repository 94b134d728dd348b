"""What a person or a program at the terminal sees. Results go to standard output, everything else to standard error."""

from __future__ import annotations

import json
import logging
import os
import textwrap
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from natdeploy.errors import EXIT_INTERRUPTED, NatdeployError
from natdeploy.logs import ROOT, WARNINGS
from natdeploy.progress import Progress

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress as Bars
    from rich.table import Table


WIDTH = 80
"""Columns that every terminal has."""


class RichProgress:
    """Bars with the time that is left, each replaced by one line when its task is done.

    Notes and those lines are log messages, so they reach the screen and the run's log file alike.
    """

    def __init__(self, bars: Bars) -> None:
        self._bars = bars

    @contextmanager
    def task(self, name: str, total: int, unit: str) -> Iterator[Callable[[int], None]]:
        bar = self._bars.add_task(name, total=total, unit=unit)
        start, done = time.monotonic(), 0

        def advance(count: int) -> None:
            nonlocal done
            done += count
            self._bars.advance(bar, count)

        try:
            yield advance
        finally:
            self._bars.remove_task(bar)
        # Some tasks end before their total, because what is left would not help.
        units = unit.removesuffix("s") if done == 1 else unit
        ROOT.info("%s: %d %s in %s", name, done, units, duration(time.monotonic() - start))

    def note(self, message: str) -> None:
        ROOT.info("%s", message)


class _Screen(logging.Handler):
    """Log messages above the bars: plain lines, warnings and errors marked as such."""

    def __init__(self, console: Console, level: int) -> None:
        super().__init__(level)
        self._console = console

    def emit(self, record: logging.LogRecord) -> None:
        prefix = f"{record.levelname.lower()}: " if record.levelno >= logging.WARNING else ""
        style = {logging.WARNING: "yellow", logging.ERROR: "red", logging.DEBUG: "dim"}.get(record.levelno)
        self._console.print(prefix + self.format(record), style=style, markup=False, highlight=False, soft_wrap=True)


@contextmanager
def session(
    *, as_json: bool = False, verbose: bool = False, quiet: bool = False, no_progress: bool = False, run: Path | None = None
) -> Iterator[Progress]:
    """Everything around a verb's work: bars and log on the screen, errors as one sentence with their exit code.

    Args:
        as_json: write errors as JSON.
        verbose: show debug messages and what libraries warn of.
        quiet: show warnings and errors only.
        no_progress: draw no bars.
        run: folder from which an interrupted verb can go on.

    Raises:
        typer.Exit: the work ended early; what there is to say has been said.
    """
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars

    console = Console(stderr=True)
    screen = _Screen(console, logging.DEBUG if verbose else logging.WARNING if quiet else logging.INFO)
    level = ROOT.level
    ROOT.setLevel(logging.DEBUG)
    ROOT.propagate = False  # onnxruntime's quantiser gives the root logger a handler, which would print every message again
    ROOT.addHandler(screen)
    logging.captureWarnings(True)
    if verbose:
        WARNINGS.addHandler(screen)
    bars = Bars(
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=16),
        MofNCompleteColumn(),
        TextColumn("{task.fields[unit]}"),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=quiet or no_progress or not console.is_interactive or "CI" in os.environ,
    )
    try:
        with bars:
            yield RichProgress(bars)
        return
    except NatdeployError as error:
        message, exit_code = str(error), error.exit_code
    except KeyboardInterrupt:
        message, exit_code = f"interrupted; {_how_to_go_on(run)}", EXIT_INTERRUPTED
    except BrokenPipeError:  # whoever read our output has seen enough
        raise
    except OSError as error:
        ROOT.debug("details", exc_info=True)
        message, exit_code = f"{error.filename or 'the system'}: {error.strerror or error}", NatdeployError.exit_code
    finally:
        ROOT.removeHandler(screen)
        WARNINGS.removeHandler(screen)
        ROOT.setLevel(level)
        ROOT.propagate = True
        logging.captureWarnings(False)
    write_error(message, exit_code, as_json=as_json)
    raise typer.Exit(exit_code)


def _how_to_go_on(run: Path | None) -> str:
    if run is None:
        return "run the same command again"
    if not (run / "run.sqlite").is_file():
        return "nothing was saved yet"
    return f"state saved; continue with `natdeploy resume {run}`"


def echo_wrapped(text: str, indent: int = 0) -> None:
    """A sentence in lines of at most 80 columns, those after the first indented; a longer word, such as a path, stays whole."""
    lines = textwrap.wrap(text, WIDTH, subsequent_indent=" " * indent, break_long_words=False, break_on_hyphens=False)
    typer.echo("\n".join(lines))


def print_table(table: Table) -> None:
    """A table on standard output, whatever names stand in it: `[b]` and `:x:` are no markup there."""
    from rich.console import Console

    Console(markup=False, emoji=False).print(table)


def write_error(message: str, exit_code: int, *, as_json: bool) -> None:
    """Says on standard error what is wrong."""
    if as_json:
        typer.echo(json.dumps({"error": message, "exit_code": exit_code}), err=True)
    else:
        typer.secho(f"error: {message}", fg="red", err=True)


def write_json(value: Any) -> None:
    typer.echo(json.dumps(value, indent=2, allow_nan=False))


def duration(seconds: float) -> str:
    """`0.8 s`, `42 s`, `3 min 20 s`, `2 h 5 min`."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    if (whole := round(seconds)) < 60:
        return f"{whole} s"
    if (minutes := whole // 60) < 60:
        return f"{minutes} min {whole % 60} s"
    return f"{minutes // 60} h {minutes % 60} min"
