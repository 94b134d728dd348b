"""A connection to a device: the guard that answers for it there, files, and programs."""

from __future__ import annotations

import getpass
import logging
import os
import queue
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from importlib import resources
from pathlib import Path
from types import TracebackType
from typing import IO, Protocol, Self
from urllib.parse import quote as percent
from urllib.parse import unquote

from natdeploy.errors import DeviceError, DeviceLostError
from natdeploy.files import write_atomic
from natdeploy.hardware.device import Device, Setting
from natdeploy.hardware.transports.shells import Shell, last_line, quote

_log = logging.getLogger(__name__)

BOOT_ID = "/proc/sys/kernel/random/boot_id"
"""File that Linux and Android fill anew at every boot."""

_STDERR_LINES = 5

_GUARD_S = 120
"""Seconds in which the guard says its next word: a power mode of a Jetson takes several to change."""

_KILL_S = 10
"""Seconds in which a device kills what it was told to; after that it is left to the guard."""

_PROBE_S = 20
"""Seconds in which a device says whether it is still there."""

_GRACE_S = 5
"""Seconds in which a program here ends by itself after what it waited for has ended there."""

# Whatever a login shell's own files print comes before the first mark, so it is never taken for ours.
_FRAME = r"""
mark=$1 session=$2 boot=$3
shift 3
if [ -d "$session/files" ]; then
  printf '\n%s begin\n' "$mark"
  (
    BODY
  )
  printf '\n%s end %s\n' "$mark" "$?"
else
  printf '\n%s gone %s\n' "$mark" "$(cat "$boot")"
fi
"""

_PUSH = """
cat >"$session/files/$1.part" || exit
"""

_ARRIVED = """
cd "$session/files" && [ "$(wc -c <"$1.part")" -eq "$2" ] && mv -f "./$1.part" "./$1"
"""

_NO_FILE = 44

_FOUND = f"""
[ -f "$session/files/$1" ] || exit {_NO_FILE}
"""

_PULL = f"""{_FOUND}
cat <"$session/files/$1"
"""

# The program enters itself in the list that the guard kills by, so it never runs unlisted; where the session is over it cannot.
# One thread a library is the runtime's business; numpy's and OpenMP's helpers would only spin beside it.
_RUN = """
cd "$session/files" || exit
cores=$1
shift
[ -z "$cores" ] || set -- taskset "$cores" "$@"
export OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 MKL_NUM_THREADS=1
own_group=
if command -v setsid >/dev/null; then own_group=setsid; fi
$own_group sh -c 'echo $$ >"$0/pids/$$" && exec "$@"' "$session" "$@" </dev/null 2>"$session/stderr" &
wait $!
status=$?
rm -f "$session/pids/$!"
exit $status
"""

_KILL = """
for pid in $(ls "$session/pids"); do kill -9 "-$pid" || kill -9 "$pid"; done 2>/dev/null
"""

_LAST_WORDS = 'tail -n 50 "$session/stderr"'

_BOOT = r"""
printf '\n%s boot %s\n' "$1" "$(cat "$2")"
"""


class ProgramError(DeviceError):
    """A program ran on the device and failed there, as against a device that cannot be reached."""


class Transport(Protocol):
    """A private folder on a device. Programs are argument lists, never shell text; names are relative to the folder.

    Attributes:
        python: interpreter there; None where there is none.
        settings: what became of each of the device's settings: `changed`, or `left alone: ` and why.
    """

    @property
    def python(self) -> str | None: ...

    @property
    def settings(self) -> Mapping[str, str]: ...

    def push(self, local: Path, name: str) -> None:
        """Copies a file of this machine to the device. It is there whole or not at all."""

    def pull(self, name: str, local: Path) -> None:
        """Copies a file of the device to this machine. Raises DeviceError where there is none."""

    def run(self, argv: Sequence[str], *, silence_s: float, on_line: Callable[[str], None]) -> None:
        """Runs a program in the folder and hands on every line of its standard output.

        If `on_line` raises, Ctrl-C included, the program is killed, and all that it started.

        Raises:
            ProgramError: it failed; the message ends with its last words.
            TimeoutError: it said nothing for `silence_s` seconds and was killed.
            DeviceLostError: the connection was cut, or the device restarted.
        """


class Session:
    """A transport by way of a device's shell. It is a context: the guard begins with it, and cleans up at its end.

    Entering raises DeviceLostError where the device cannot be reached, refuses us, or is in use.
    """

    def __init__(self, device: Device, shell: Shell) -> None:
        self._device, self._shell = device, shell
        self.python = sys.executable if device.transport == "local" else device.python
        self.settings: dict[str, str] = {}
        self._mark = f"natdeploy-{secrets.token_hex(8)}"
        self._over = threading.Event()

    def __enter__(self) -> Self:
        device = self._device
        # This machine is shared, with us as with everyone, as long as nothing is changed on it.
        exclusive = device.transport != "local" or bool(device.settings)
        arguments = [
            self._mark,
            self._shell.base,
            secrets.token_hex(8),
            str(int(exclusive)),
            str(self._shell.patience_s),
            f"{getpass.getuser()}@{socket.gethostname()} (process {os.getpid()})",
            BOOT_ID,
            *(word for setting in device.settings for word in _words(setting)),
        ]
        self._errors = tempfile.TemporaryFile()
        self._guard = _start(self._shell.argv(_guard_script(), *arguments, first=True), subprocess.PIPE, self._errors)
        self._said = _read(self._guard)
        try:
            self._boot, self._pid, self._folder = self._ready()
        except BaseException:
            self._close_input()
            self._end()
            raise
        if self._shell.patience_s:
            threading.Thread(target=self._beat, daemon=True).start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if not self._shell.reads and self._guard.poll() is None:
            self._loose('kill -TERM "$1"', self._pid)
        else:
            self._close_input()
        self._end()

    def push(self, local: Path, name: str) -> None:
        name, size = _plain(name), str(local.stat().st_size)
        if self._shell.files is not None:
            try:
                self._shell.files.push(local, f"{self._folder}/files/{name}.part")
            except DeviceError as error:
                raise self._trouble(f"{name} did not arrive", str(error)) from error
            self._ask_well(_ARRIVED, name, size, what=f"{name} did not arrive whole")
        else:
            with local.open("rb") as source:
                self._ask_well(_PUSH + _ARRIVED, name, size, what=f"{name} did not arrive whole", stdin=source)

    def pull(self, name: str, local: Path) -> None:
        name, files = _plain(name), self._shell.files
        status, content, words = self._ask(_PULL if files is None else _FOUND, name)
        if status == _NO_FILE:
            raise DeviceError(f"the program left no file {name}; run it again")
        if status != 0:
            raise self._trouble(f"{name} cannot be read", words)
        if files is None:
            write_atomic(local, content)
            return
        part = local.with_name(f".{local.name}.{os.getpid()}")
        try:
            files.pull(f"{self._folder}/files/{name}", part)
            part.replace(local)
        finally:
            part.unlink(missing_ok=True)

    def run(self, argv: Sequence[str], *, silence_s: float, on_line: Callable[[str], None]) -> None:
        self._alive()
        cores = f"{sum(1 << core for core in self._device.cores):x}" if self._device.cores else ""
        with tempfile.TemporaryFile() as errors:
            program = _start(self._framed(_RUN, cores, *argv), subprocess.DEVNULL, errors)
            try:
                status = self._follow(_read(program), silence_s, on_line)
            except BaseException:
                with suppress(DeviceError, TimeoutError):
                    self._ask(_KILL, limit_s=_KILL_S)
                raise
            finally:
                _stop(program)
            if status is None:
                raise self._lost(_content(errors))
        if status != 0:
            raise self._failure(argv[0], status)

    def _ready(self) -> tuple[str, str, str]:
        """Id of the device's boot, the guard's number there, and the private folder."""
        name = self._device.name
        try:
            while (line := _next(self._said, _GUARD_S)) is not None:
                kind, text = self._ours(line)
                key, _, why = text.partition(" ")
                match kind:
                    case "ready":
                        boot, pid, folder = text.split(" ", 2)
                        return boot, pid, folder
                    case "changed":
                        self.settings[unquote(key)] = "changed"
                    case "left":
                        self.settings[unquote(key)] = f"left alone: {why or 'it failed'}"
                    case "unlocked":
                        _log.warning("%s has no flock, so nothing keeps a second natdeploy from using it at the same time", name)
                    case "held":
                        raise DeviceLostError(f"{name} is in use by {text or 'another natdeploy'}; wait for that to end, or end it")
                    case "fail":
                        raise self._trouble("no private folder can be made", text)
        except TimeoutError as error:
            raise DeviceLostError(f"{name} let us in but said nothing for {_GUARD_S} s; restart it") from error
        raise DeviceLostError(f"{name} cannot be reached: {self._shell.explain(_content(self._errors))}")

    def _ours(self, line: bytes) -> tuple[str, str]:
        """First word and rest of what follows our mark; nothing where a line is not ours."""
        mark, _, text = line.decode(errors="replace").partition(" ")
        kind, _, rest = text.partition(" ")
        return (kind, rest) if mark == self._mark else ("", "")

    def _beat(self) -> None:
        assert self._guard.stdin is not None
        while not self._over.wait(self._shell.patience_s / 6):
            try:
                self._guard.stdin.write(b"\n")
                self._guard.stdin.flush()
            except (OSError, ValueError):  # cut, or closed this moment
                return

    def _close_input(self) -> None:
        self._over.set()
        assert self._guard.stdin is not None
        with suppress(OSError):
            self._guard.stdin.close()

    def _end(self) -> None:
        """Hears what the guard could not put back, once it cleans up."""
        try:
            while (line := _next(self._said, _GUARD_S)) is not None:
                kind, text = self._ours(line)
                if kind == "stuck":
                    key, _, why = text.partition(" ")
                    _log.warning("%s: %s could not be put back: %s", self._device.name, unquote(key), why)
        except TimeoutError:
            _log.warning("%s did not say whether everything there was put back", self._device.name)
        finally:
            self._close_input()
            _stop(self._guard)
            self._errors.close()

    def _alive(self) -> None:
        if self._guard.poll() is not None:
            raise self._lost(_content(self._errors))

    def _framed(self, script: str, *arguments: str) -> list[str]:
        return self._shell.argv(_FRAME.replace("BODY", script), self._mark, self._folder, BOOT_ID, *arguments)

    def _ask(
        self, script: str, *arguments: str, stdin: IO[bytes] | int = subprocess.DEVNULL, limit_s: float | None = None
    ) -> tuple[int, bytes, str]:
        """Exit status, output and last words of a script that ends by itself."""
        self._alive()
        with tempfile.TemporaryFile() as errors:
            program = _start(self._framed(script, *arguments), stdin, errors)
            try:
                output, _ = program.communicate(timeout=limit_s)
            except subprocess.TimeoutExpired as error:
                raise TimeoutError from error
            finally:
                _stop(program)
            words = _content(errors)
        _, _, rest = output.partition(f"\n{self._mark} begin\n".encode())
        content, end, status = rest.rpartition(f"\n{self._mark} end ".encode())
        if end:
            return int(status), content, words
        for line in output.splitlines():
            kind, text = self._ours(line)
            if kind == "gone":
                raise self._gone(text)
        raise self._lost(words)

    def _ask_well(self, script: str, *arguments: str, what: str, stdin: IO[bytes] | int = subprocess.DEVNULL) -> None:
        status, _, words = self._ask(script, *arguments, stdin=stdin)
        if status != 0:
            raise self._trouble(what, words)

    def _follow(self, said: queue.Queue[bytes | None], silence_s: float, on_line: Callable[[str], None]) -> int | None:
        """Hands on a program's lines; its exit status, or None where the connection ended first."""
        begun = blank = False
        while (line := _next(said, silence_s)) is not None:
            kind, text = self._ours(line)
            if kind == "begin":
                begun = True
            elif kind == "end":
                return int(text)
            elif kind == "gone":
                raise self._gone(text)
            elif begun:
                if blank:
                    on_line("")
                blank = not line  # the frame's own line break before its mark, unless more follows
                if not blank:
                    on_line(line.decode(errors="replace"))
        return None

    def _failure(self, program: str, status: int) -> ProgramError:
        """What an exit status means, with the program's last words."""
        _, output, _ = self._ask(_LAST_WORDS)
        lines = [line for line in output.decode(errors="replace").splitlines() if line.strip()]
        words = " | ".join(lines[-_STDERR_LINES:]) or "it said nothing"
        device, name = self._device.name, Path(program).name
        if status == 127:
            return ProgramError(
                f"{device} has no program {program} ({words}); install it, or correct its path in the device's file"
            )
        if status == 128 + signal.SIGKILL:
            return ProgramError(
                f"{name} was killed on {device} (signal 9), most likely because its memory ran out; close what else runs there, "
                f"or use a smaller model: {words}"
            )
        return ProgramError(f"{name} ended with code {status}: {words}")

    def _trouble(self, what: str, words: str) -> DeviceError:
        device = self._device.name
        if "No space left" in words:
            return DeviceError(f"{device} has no space left for a private folder; free some, or name another `folder` in its file")
        return DeviceError(f"{what} on {device}: {last_line(words)}")

    def _gone(self, boot: str) -> DeviceLostError:
        device = self._device.name
        if boot != self._boot:
            return DeviceLostError(f"{device} restarted meanwhile; run the command again")
        return DeviceLostError(f"the private folder on {device} was removed meanwhile; run the command again")

    def _loose(self, script: str, *arguments: str) -> tuple[bytes, str]:
        """Output and last words of a script that needs no session; nothing where the device does not answer."""
        with tempfile.TemporaryFile() as errors:
            program = _start(self._shell.argv(script, *arguments), subprocess.DEVNULL, errors)
            output = b""
            try:
                output, _ = program.communicate(timeout=_PROBE_S)
            except subprocess.TimeoutExpired:
                pass
            finally:
                _stop(program)
            return output, _content(errors)

    def _lost(self, words: str) -> DeviceLostError:
        """What has become of the device, now that the connection has ended by itself."""
        output, now = self._loose(_BOOT, self._mark, BOOT_ID)
        found = [text for kind, text in map(self._ours, output.splitlines()) if kind == "boot"]
        if found and found[0] != self._boot:
            return self._gone(found[0])
        if found:
            return DeviceLostError(f"the connection to {self._device.name} was cut ({last_line(words)}); run the command again")
        return DeviceLostError(
            f"the connection to {self._device.name} was cut, and it cannot be reached: {self._shell.explain(now)}"
        )


def _guard_script() -> str:
    """The guard without its comments: old adb servers take 4 KB."""
    text = resources.files("natdeploy.hardware.transports").joinpath("guard.sh").read_text("utf-8")
    return "\n".join(line for line in text.splitlines() if not line.lstrip().startswith("#"))


def _words(setting: Setting) -> tuple[str, str, str, str]:
    """Key, and shell text that saves, applies and restores: what the guard is given of a setting."""
    key = percent(setting.name, safe="")
    if setting.file is not None:
        file = quote(setting.file)
        return key, f"cat {file}", f"put {file} {quote(setting.value or '')}", f'put {file} "$state"'
    restore = " ".join('"$state"'.join(map(quote, word.split("{state}"))) for word in setting.restore)
    return (
        key,
        " ".join(map(quote, setting.save)),
        " ".join(map(quote, setting.apply)),
        f"set -f; for state in $state; do :; done; {restore}",
    )


def _plain(name: str) -> str:
    if "/" in name or "\0" in name or name in ("", ".", ".."):
        raise ValueError(f"{name!r} is no file name")
    return name


def _start(argv: Sequence[str], stdin: IO[bytes] | int, errors: IO[bytes]) -> subprocess.Popen[bytes]:
    """A program here that Ctrl-C does not reach: what it does there is ended first."""
    return subprocess.Popen(list(argv), stdin=stdin, stdout=subprocess.PIPE, stderr=errors, start_new_session=True)


def _read(program: subprocess.Popen[bytes]) -> queue.Queue[bytes | None]:
    """Lines of standard output as they come, without their ends; None at its end."""
    lines: queue.Queue[bytes | None] = queue.Queue()
    assert program.stdout is not None

    def read(stream: IO[bytes]) -> None:
        with stream:
            for line in stream:
                lines.put(line.rstrip(b"\r\n"))
        lines.put(None)

    threading.Thread(target=read, args=(program.stdout,), daemon=True).start()
    return lines


def _next(lines: queue.Queue[bytes | None], silence_s: float) -> bytes | None:
    """The next line, or None at the end, however often one asks. Raises TimeoutError after a silence."""
    try:
        line = lines.get(timeout=silence_s)
    except queue.Empty as error:
        raise TimeoutError from error
    if line is None:
        lines.put(None)
    return line


def _content(file: IO[bytes]) -> str:
    file.seek(0)
    return file.read().decode(errors="replace")


def _stop(program: subprocess.Popen[bytes]) -> None:
    """Ends a program of this machine, and what it started, if it does not end by itself."""
    try:
        program.wait(timeout=_GRACE_S)
    except subprocess.TimeoutExpired:
        os.killpg(program.pid, signal.SIGKILL)
        program.wait()
