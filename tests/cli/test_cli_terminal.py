"""What happens around a verb: messages, errors, interruption, the log file."""

from __future__ import annotations

import errno
import json
import logging
import os
import pty
import re
import signal
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import typer

from natdeploy import errors
from natdeploy.cli.terminal import duration, session
from natdeploy.logs import log_to

LOG = logging.getLogger("natdeploy.room")


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(0.84, "0.8 s"), (9.99, "10.0 s"), (42.4, "42 s"), (59.6, "1 min 0 s"), (200, "3 min 20 s"), (7503, "2 h 5 min")],
)
def test_duration(seconds: float, shown: str) -> None:
    assert duration(seconds) == shown


def test_one_is_not_many(capsys: pytest.CaptureFixture[str]) -> None:
    with session() as progress, progress.task("exporting", 1, "files") as advance:
        advance(1)
    assert capsys.readouterr().err == "exporting: 1 file in 0.0 s\n"


@pytest.mark.parametrize(
    ("flags", "shown"),
    [
        ({}, ["noted", "adapt: 3 steps in 0.0 s", "warning: careful"]),
        ({"quiet": True}, ["warning: careful"]),
        ({"verbose": True}, ["noted", "a detail", "adapt: 3 steps in 0.0 s", "warning: careful"]),
    ],
)
def test_what_is_said_how_loudly(flags: dict[str, bool], shown: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with session(**flags) as progress:
        progress.note("noted")
        LOG.debug("a detail")
        with progress.task("adapt", 3, "steps") as advance:
            advance(3)
        LOG.warning("careful")
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.splitlines() == shown


def test_libraries_warn_only_those_who_want_details(capsys: pytest.CaptureFixture[str]) -> None:
    for verbose in (False, True):
        with session(verbose=verbose), warnings.catch_warnings():
            warnings.simplefilter("always")
            logging.captureWarnings(True)
            warnings.warn("old name", FutureWarning, stacklevel=1)
        assert ("FutureWarning: old name" in capsys.readouterr().err) == verbose


def test_a_session_leaves_logging_as_it_was() -> None:
    root = logging.getLogger("natdeploy")
    before = (root.level, list(root.handlers), warnings.showwarning)
    with pytest.raises(typer.Exit), session(verbose=True):
        raise errors.DataError("no images")
    assert (root.level, list(root.handlers), warnings.showwarning) == before


_KINDS = [value for value in vars(errors).values() if isinstance(value, type) and issubclass(value, errors.NatdeployError)]


@pytest.mark.parametrize("kind", _KINDS)
def test_errors_are_one_sentence_and_their_exit_code(kind: type[errors.NatdeployError], capsys: pytest.CaptureFixture[str]) -> None:
    for as_json in (False, True):
        with pytest.raises(typer.Exit) as raised, session(as_json=as_json):
            raise kind("the folder [bold]photos[/] is empty; add images")
        assert raised.value.exit_code == kind.exit_code
        said = capsys.readouterr().err
        if as_json:
            assert json.loads(said) == {"error": "the folder [bold]photos[/] is empty; add images", "exit_code": kind.exit_code}
        else:
            assert said == "error: the folder [bold]photos[/] is empty; add images\n"


def test_what_the_system_refuses_is_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(typer.Exit) as raised, session():
        (tmp_path / "none" / "file").write_text("")
    assert raised.value.exit_code == 1
    assert capsys.readouterr().err == f"error: {tmp_path / 'none' / 'file'}: No such file or directory\n"
    with pytest.raises(typer.Exit), session():
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert capsys.readouterr().err == "error: the system: No space left on device\n"


def test_mistakes_of_ours_are_not_hidden() -> None:
    with pytest.raises(ZeroDivisionError), session():
        _ = 1 / 0


def test_an_interrupted_verb_says_how_to_go_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupt(run: Path | None) -> str:
        with pytest.raises(typer.Exit) as raised, session(run=run):
            raise KeyboardInterrupt
        assert raised.value.exit_code == 130
        return capsys.readouterr().err

    assert interrupt(None) == "error: interrupted; run the same command again\n"
    assert interrupt(tmp_path) == "error: interrupted; nothing was saved yet\n"
    (tmp_path / "run.sqlite").touch()
    assert interrupt(tmp_path) == f"error: interrupted; state saved; continue with `natdeploy resume {tmp_path}`\n"


def test_ctrl_c_ends_with_130(tmp_path: Path) -> None:
    (tmp_path / "run.sqlite").touch()
    script = """
import contextlib, signal, sys, time, types
signal.signal(signal.SIGINT, signal.default_int_handler)  # a test runner in the background hands on that it ignores Ctrl-C
pipeline = types.ModuleType("natdeploy.pipeline")
def resume(run, progress, engine):
    progress.note("working")
    time.sleep(60)
pipeline.resume = resume
pipeline.open_engine = lambda ray, workers: contextlib.nullcontext()
import natdeploy
natdeploy.pipeline = sys.modules["natdeploy.pipeline"] = pipeline
from natdeploy.cli.main import main
main()
"""
    command = [sys.executable, "-c", script, "resume", str(tmp_path)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        assert process.stderr.readline() == "working\n"
        process.send_signal(signal.SIGINT)
        output, said = process.communicate(timeout=30)
    assert process.returncode == 130
    assert output == ""
    assert said == f"error: interrupted; state saved; continue with `natdeploy resume {tmp_path}`\n"


@pytest.mark.parametrize(("ci", "options"), [(None, ""), (None, "no_progress=True"), (None, "quiet=True"), ("true", "")])
def test_bars_are_for_people_at_a_terminal(ci: str | None, options: str) -> None:
    script = f"""
import time
from natdeploy.cli.terminal import session
with session({options}) as progress, progress.task("adapt", 8, "steps") as advance:
    for _ in range(8):
        time.sleep(0.03)
        advance(1)
"""
    environment = {name: value for name, value in os.environ.items() if name not in ("CI", "NO_COLOR")}
    environment |= {"TERM": "xterm", "COLUMNS": "80"}
    if ci is not None:
        environment["CI"] = ci
    terminal, child = pty.openpty()
    try:
        subprocess.run([sys.executable, "-c", script], stderr=child, env=environment, timeout=60, check=True)
        os.close(child)
        shown = os.read(terminal, 65536).decode() if "quiet" not in options else ""
    finally:
        os.close(terminal)
    bars = re.findall(r"adapt .*?/8.*? steps", re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown))
    assert bool(bars) == (ci is None and not options)
    assert ("adapt: 8 steps in" in shown) == ("quiet" not in options)


def test_the_log_file_has_everything_and_why_it_ended(tmp_path: Path) -> None:
    file = tmp_path / "log.txt"
    with session(quiet=True) as progress:
        with log_to(file):
            progress.note("planned")
            LOG.debug("a detail")
        LOG.warning("not for this file")
        with pytest.raises(ZeroDivisionError), log_to(file):
            _ = 1 / 0
    lines = file.read_text().splitlines()
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ INFO    natdeploy: planned", lines[0])
    assert lines[1].endswith("DEBUG   natdeploy.room: a detail")
    assert lines[2].endswith("natdeploy: stopped")
    assert lines[3] == "Traceback (most recent call last):"
    assert lines[-1] == "ZeroDivisionError: division by zero"
    assert not any("not for this file" in line for line in lines)


def test_a_log_line_that_the_disk_refuses_is_lost_quietly(capsys: pytest.CaptureFixture[str]) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("this system has no /dev/full")
    with pytest.raises(OSError, match="No space left"), Path("/dev/full").open("w") as full:
        full.write("x")
    with log_to(Path("/dev/full")):
        LOG.warning("lost")
    assert "Logging error" not in capsys.readouterr().err
