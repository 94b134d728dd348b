"""A real sshd on loopback, with keys, port and configuration of its own, for as long as a test wants it."""

from __future__ import annotations

import getpass
import os
import shutil
import signal
import socket
import subprocess
import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

PROGRAM = shutil.which("sshd", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")

MISSING = "sshd is not installed (Debian: apt install openssh-server openssh-client)"


def installed() -> bool:
    return PROGRAM is not None and shutil.which("ssh") is not None


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def make_key(path: Path) -> str:
    """Writes a key pair; its public half."""
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", path], check=True)
    return path.with_suffix(".pub").read_text().strip()


class Sshd:
    """Lets the present user in by a key of its own.

    It is a device of its own as far as its temporary folder goes, where private folders and the lock are.

    Args:
        folder: to be made, for all that belongs to it.
        address: its name in the user's configuration.

    Attributes:
        config: file for `ssh -F`, in which that host is this sshd.
        address: that host.
        greeted: another private key of the user's, with which every session says hello before anything else.
    """

    def __init__(self, folder: Path, address: str = "device") -> None:
        self.folder, self.address, self.port = folder, address, free_port()
        (folder / "tmp").mkdir(parents=True)
        self.greeted = folder / "greeted"
        hello = """command="echo 'Welcome to the lab'; echo '{}'; exec /bin/sh -c \\"$SSH_ORIGINAL_COMMAND\\"" """
        (folder / "authorized").write_text(f"{make_key(folder / 'user')}\n{hello}{make_key(self.greeted)}\n")
        (folder / "known_hosts").write_text(f"[127.0.0.1]:{self.port} {make_key(folder / 'host')}\n")
        self.config = self.write_config(folder / "ssh_config")

    def write_config(self, path: Path, **options: str | Path) -> Path:
        """The user's configuration, with further options or other values."""
        written = {
            "HostName": "127.0.0.1",
            "Port": self.port,
            "User": getpass.getuser(),
            "IdentityFile": self.folder / "user",
            "IdentitiesOnly": "yes",
            "IdentityAgent": "none",
            "UserKnownHostsFile": self.folder / "known_hosts",
            "GlobalKnownHostsFile": "/dev/null",
        } | options
        path.write_text(f"Host {self.address}\n" + "".join(f"  {name} {value}\n" for name, value in written.items()))
        return path

    def __enter__(self) -> Self:
        if os.getuid() == 0:  # the empty folder that the package's service would make, and only root's sshd needs
            Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
        (self.folder / "sshd_config").write_text(
            f"ListenAddress 127.0.0.1:{self.port}\n"
            f"HostKey {self.folder / 'host'}\n"
            f"AuthorizedKeysFile {self.folder / 'authorized'}\n"
            "PidFile none\nStrictModes no\nUsePAM no\nPasswordAuthentication no\nKbdInteractiveAuthentication no\n"
            f"PrintMotd no\nSetEnv TMPDIR={self.folder / 'tmp'}\n"
        )
        assert PROGRAM is not None
        with (self.folder / "log").open("wb") as log:
            self.program = subprocess.Popen([PROGRAM, "-D", "-e", "-f", self.folder / "sshd_config"], stderr=log)
        for _ in range(200):
            with suppress(OSError), socket.create_connection(("127.0.0.1", self.port), timeout=1):
                return self
            if self.program.poll() is not None:
                break
            time.sleep(0.02)
        raise AssertionError(f"sshd did not start: {(self.folder / 'log').read_text()}")

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.cut(for_good=True)

    def cut(self, *, for_good: bool = False) -> None:
        """Kills what serves the connections, as a lost link or a crash would end them; new ones are let in, unless for good."""
        serving = [process for child in _children(self.program.pid) for process in (child, *_children(child))]
        if for_good:
            self.program.terminate()
            self.program.wait()
        for process in serving:
            with suppress(OSError):
                if b"sshd" in Path(f"/proc/{process}/cmdline").read_bytes():  # and not what runs in a session
                    os.kill(process, signal.SIGKILL)


def _children(pid: int) -> list[int]:
    with suppress(OSError):
        return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return []
