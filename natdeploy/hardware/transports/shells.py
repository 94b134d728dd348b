"""The shell of a device, by each way there: how a script is started, how a file travels, and what a failure means."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from natdeploy.errors import DeviceError, DeviceLostError
from natdeploy.hardware.device import Device

_ANSWER_S = 30
"""Seconds in which adb's own questions are answered, starting its server included."""


class Files(Protocol):
    """How files travel, where not through a script's own standard input and output."""

    def push(self, local: Path, remote: str) -> None:
        """Copies a file there. Raises DeviceError."""

    def pull(self, remote: str, local: Path) -> None:
        """Copies a file here. Raises DeviceError."""


class Shell(Protocol):
    """A POSIX shell on a device.

    Attributes:
        base: parent of private folders; '' lets the device choose.
        files: the way's own means for files, where it has some.
        patience_s: seconds without a heartbeat after which the device gives a connection up; 0 where it sees every end.
        reads: scripts see the end of their standard input.
    """

    base: str
    files: Files | None
    patience_s: int
    reads: bool

    def argv(self, script: str, *arguments: str, first: bool = False) -> list[str]:
        """The program to start here that runs a script there; the first one of a connection carries the others."""

    def explain(self, words: str) -> str:
        """What the last words of a failed way mean, and what to do."""

    def close(self) -> None:
        """Forgets the way."""


def quote(word: str) -> str:
    """What a login shell turns back into the word. Unlike shlex.quote's, fish reads it as POSIX shells do."""
    special = {"'": '"' + "'" + '"', "\\": r'"\\"'}
    return "".join(special.get(part, f"'{part}'") for part in re.findall(r"[^'\\]+|['\\]", word)) or "''"


def _line(script: str, arguments: Sequence[str]) -> str:
    """What a login shell turns back into the script and its arguments."""
    return "exec " + " ".join(map(quote, ["sh", "-c", script, "natdeploy", *arguments]))


def last_line(words: str) -> str:
    """What a program said last."""
    lines = [line.strip() for line in words.splitlines() if line.strip()]
    return lines[-1] if lines else "it said nothing"


def _run(argv: Sequence[str], timeout_s: float | None = None) -> tuple[int, str]:
    """Exit status of a program here, and everything it said."""
    done = subprocess.run(
        list(argv),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=timeout_s,
        check=False,
    )
    return done.returncode, done.stdout.decode(errors="replace")


class LocalShell:
    """This machine's."""

    files: Files | None = None
    patience_s = 0
    reads = True

    def __init__(self, device: Device) -> None:
        self.base = device.folder or tempfile.gettempdir()

    def argv(self, script: str, *arguments: str, first: bool = False) -> list[str]:
        return ["sh", "-c", script, "natdeploy", *arguments]

    def explain(self, words: str) -> str:
        return last_line(words)

    def close(self) -> None:
        pass


_SSH_TROUBLE = (
    (
        "IDENTIFICATION HAS CHANGED",
        "its host key is not the one on record, so the connection is refused: it may be another machine; if you know that the key "
        "was changed, forget the old one with `ssh-keygen -R {host}` and connect once by hand (`ssh {address}`)",
    ),
    ("Host key verification failed", "its host key is not known here; connect once by hand (`ssh {address}`) and check it"),
    (
        "Permission denied (",
        "it does not accept your key; install it there with `ssh-copy-id {address}`, and try `ssh {address}`",
    ),
    ("Connection refused", "nothing answers at its ssh port; start sshd there, or correct the port"),
    ("Could not resolve hostname", "there is no machine of that name; correct the address"),
    ("timed out", "it does not answer; is it on, and in this network?"),
    ("No route to host", "it does not answer; is it on, and in this network?"),
    ("unreachable", "there is no way to its network; is this machine connected?"),
)


class SshShell:
    """Another machine's, by the system's ssh and all that the user has configured there.

    The first program of a connection is its master: the others go through its socket without another handshake. Host keys are
    checked as the user's configuration has it, and nothing is ever asked.
    """

    files: Files | None = None
    patience_s = 90
    reads = True

    def __init__(self, device: Device) -> None:
        if shutil.which("ssh") is None:
            raise DeviceError("ssh is not installed here; install it (Debian: apt install openssh-client)")
        if device.address is None:
            raise DeviceError(f"device {device.name} has no address; give user@host in its file")
        self.base = device.folder or ""
        self._address = device.address
        self._config = device.ssh_config
        # A socket's path may have some hundred bytes, which a temporary folder on macOS nearly fills.
        self._folder = tempfile.mkdtemp(prefix="nd-", dir="/tmp" if os.access("/tmp", os.W_OK) else None)

    def argv(self, script: str, *arguments: str, first: bool = False) -> list[str]:
        options = {
            "BatchMode": "yes",
            "ClearAllForwardings": "yes",
            "ConnectTimeout": "15",
            "ControlMaster": "yes" if first else "no",
            "ControlPath": f"{self._folder}/%C",
            "ControlPersist": "no",
            "LogLevel": "ERROR",
            "PermitLocalCommand": "no",
            "RemoteCommand": "none",
            "RequestTTY": "no",
            "ServerAliveCountMax": "4",
            "ServerAliveInterval": "15",
        }
        config = ["-F", str(self._config.expanduser())] if self._config else []
        return [
            "ssh",
            *config,
            *(f"-o{name}={value}" for name, value in options.items()),
            "--",
            self._address,
            _line(script, arguments),
        ]

    def explain(self, words: str) -> str:
        found = next((meaning for sign, meaning in _SSH_TROUBLE if sign in words), None)
        # Debian's ssh names the host as its key is recorded, which may be by number and port.
        recorded = re.search(r'-R "([^"]+)"', words)
        host = recorded[1] if recorded else self._address.rpartition("@")[2]
        return found.format(host=host, address=self._address) if found else f"ssh: {last_line(words)}"

    def close(self) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)


_ADB_TROUBLE = (
    ("no devices", "adb knows no device; plug it in and allow USB debugging (`adb devices` lists it)"),
    ("more than one device", "adb knows several devices; give the serial of one (`adb devices`) in the device's file"),
    ("unauthorized", "it does not trust this computer yet; unlock it and allow USB debugging there"),
    ("failed to authenticate", "it does not trust this computer yet; unlock it and allow USB debugging there"),
    ("authorizing", "it does not trust this computer yet; unlock it and allow USB debugging there"),
    ("offline", "adb has it as offline; plug it in anew, or `adb reconnect`"),
    ("not found", "adb knows no such device; `adb devices` lists those it knows"),
    ("failed to connect", "it does not answer; is it on, in this network, and `adb tcpip 5555` done over USB?"),
    ("unable to connect", "it does not answer; is it on, in this network, and `adb tcpip 5555` done over USB?"),
    ("cannot connect to daemon", "adb's server does not start; try `adb start-server`"),
)


# A client of adb that forwards no input does not see its end either: this ends it then, and with it what it runs there.
_WATCHED = """
exec 3<&0
"$@" </dev/null 3<&- &
client=$!
{ while read -r _; do :; done; kill "$client"; } <&3 >/dev/null 2>&1 &
watcher=$!
wait "$client"
status=$?
kill "$watcher" 2>/dev/null
exit $status
"""


class AdbShell:
    """An Android device's, by the system's adb.

    Up to Android 6 `adb shell` is a terminal; there `adb exec-out` is the way that passes bytes as they are, but no input.
    """

    patience_s = 0  # adbd closes its programs' input when the client or the cable goes

    def __init__(self, device: Device) -> None:
        if shutil.which("adb") is None:
            raise DeviceError("adb is not installed here; install it (Debian: apt install adb)")
        self.base = device.folder or "/data/local/tmp"
        self.files: Files | None = self
        self._name = device.name
        self._to = ["-s", device.address] if device.address else []
        if device.address and re.fullmatch(r"(\[.+\]|[^:]+):\d+", device.address):
            self._dial(device.address)
        state = self._state()
        if state != "device":
            raise DeviceLostError(f"{self._name} cannot be reached: {self.explain(state)}")
        self.reads = "shell_v2" in self._adb([*self._to, "features"]).split()

    def _dial(self, address: str) -> None:
        """Connects over the network. What adb still takes for a connection may have died meanwhile, so that one is made anew."""
        for attempt in (1, 2):
            answer = self._adb(["connect", address])
            if "connected to" not in answer:
                raise DeviceLostError(f"{self._name} cannot be reached: {self.explain(answer)}")
            if attempt == 2 or self._state() == "device":
                return
            self._adb(["disconnect", address])

    def _state(self) -> str:
        """`device` where all is well."""
        return self._adb([*self._to, "get-state"])

    def _adb(self, argv: Sequence[str]) -> str:
        """Everything that adb said."""
        try:
            done = subprocess.run(
                ["adb", *argv],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                timeout=_ANSWER_S,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise DeviceLostError(f"{self._name} cannot be reached: adb does not answer; try `adb kill-server`") from error
        return done.stdout.decode(errors="replace").strip()

    def argv(self, script: str, *arguments: str, first: bool = False) -> list[str]:
        line = _line(script, arguments)
        if self.reads:
            return ["adb", *self._to, "shell", line]
        client = ["adb", *self._to, "exec-out", line]
        return ["sh", "-c", _WATCHED, "natdeploy", *client] if first else client

    def push(self, local: Path, remote: str) -> None:
        self._copy("push", str(local.absolute()), remote)

    def pull(self, remote: str, local: Path) -> None:
        self._copy("pull", remote, str(local.absolute()))

    def _copy(self, *argv: str) -> None:
        status, words = _run(["adb", *self._to, *argv])
        if status != 0:
            raise DeviceError(self.explain(words))

    def explain(self, words: str) -> str:
        found = next((meaning for sign, meaning in _ADB_TROUBLE if sign in words), None)
        errors = [line for line in words.splitlines() if "error" in line]  # a summary may follow
        return found or last_line("\n".join(errors) or words)

    def close(self) -> None:
        pass
