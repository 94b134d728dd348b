"""Ways to a device: put a file there, run a program there, get a file back."""

from __future__ import annotations

import os
import queue
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Protocol

from natdeploy.errors import DeviceError
from natdeploy.hardware.device import Device

_STDERR_LINES = 5


class ProgramError(DeviceError):
    """A program ran on the device and failed there, as against a device that cannot be reached."""


class Transport(Protocol):
    """A private folder on a device. Programs are argument lists, never shell text; names are relative to the folder."""

    python: str

    def push(self, local: Path, name: str) -> None:
        """Copies a file of this machine to the device."""

    def pull(self, name: str, local: Path) -> None:
        """Copies a file of the device to this machine. Raises DeviceError where there is none."""

    def run(self, argv: Sequence[str], *, silence_s: float, on_line: Callable[[str], None]) -> None:
        """Runs a program in the folder and hands on every line of its standard output.

        Raises:
            ProgramError: it failed; the message ends with its last words.
            TimeoutError: it said nothing for `silence_s` seconds and was killed.
        """


class LocalTransport:
    """This machine, in a folder of its own."""

    python = sys.executable

    def __init__(self, workdir: Path) -> None:
        self.workdir = workdir

    def push(self, local: Path, name: str) -> None:
        shutil.copyfile(local, self.workdir / name)

    def pull(self, name: str, local: Path) -> None:
        try:
            shutil.copyfile(self.workdir / name, local)
        except FileNotFoundError as error:
            raise DeviceError(f"the program left no file {name}; run it again") from error

    def run(self, argv: Sequence[str], *, silence_s: float, on_line: Callable[[str], None]) -> None:
        with (self.workdir / "stderr.txt").open("w+b") as errors:
            # One thread a library is the runtime's business; numpy's and OpenMP's helpers would only spin beside it.
            environment = os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
            program = subprocess.Popen(
                list(argv),
                cwd=self.workdir,
                env=environment,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                start_new_session=True,
            )
            try:
                for line in _lines(program, silence_s):
                    on_line(line)
                code = program.wait(timeout=silence_s)
            except subprocess.TimeoutExpired as error:
                raise TimeoutError from error
            finally:
                _kill(program)
            if code != 0:
                errors.seek(0)
                last = [line for line in errors.read().decode(errors="replace").splitlines() if line.strip()][-_STDERR_LINES:]
                raise ProgramError(f"{Path(argv[0]).name} ended with code {code}: {' | '.join(last) or 'it said nothing'}")


def _lines(program: subprocess.Popen[str], silence_s: float) -> Iterator[str]:
    """Lines of standard output as they come. Raises TimeoutError after a silence."""
    lines: queue.Queue[str | None] = queue.Queue()

    def read(stream: IO[str]) -> None:
        for line in stream:
            lines.put(line.rstrip("\n"))
        lines.put(None)

    assert program.stdout is not None
    threading.Thread(target=read, args=(program.stdout,), daemon=True).start()
    while True:
        try:
            line = lines.get(timeout=silence_s)
        except queue.Empty as error:
            raise TimeoutError from error
        if line is None:
            return
        yield line


def _kill(program: subprocess.Popen[str]) -> None:
    """Ends the program and what it started, if it still runs."""
    if program.poll() is None:
        os.killpg(program.pid, signal.SIGKILL)
        program.wait()


@contextmanager
def connect(device: Device) -> Iterator[Transport]:
    """The way to a device, and a folder there that is removed at the end."""
    with tempfile.TemporaryDirectory(prefix=f"natdeploy-{device.name}-") as folder:
        yield LocalTransport(Path(folder))
