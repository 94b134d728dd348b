"""Ways to a device: put a file there, run a program there, get a file back."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager

from natdeploy.hardware.device import Device
from natdeploy.hardware.transports.session import ProgramError, Session, Transport
from natdeploy.hardware.transports.shells import AdbShell, LocalShell, Shell, SshShell

__all__ = ["ProgramError", "Transport", "connect"]

_SHELLS: Mapping[str, Callable[[Device], Shell]] = {"local": LocalShell, "ssh": SshShell, "adb": AdbShell}


@contextmanager
def connect(device: Device) -> Iterator[Transport]:
    """The way to a device, and a private folder there. Its settings are changed; at the end all is as it was before.

    Raises:
        DeviceError: it cannot be reached, refuses us, or is in use; the message says what to do.
    """
    with closing(_SHELLS[device.transport](device)) as shell, Session(device, shell) as session:
        yield session
