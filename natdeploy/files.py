"""Files that are there whole or not at all."""

from __future__ import annotations

import errno
import os
import tempfile
from contextlib import suppress
from pathlib import Path

from natdeploy.errors import NatdeployError

REMEDY = "make room on the disk or the folder writable"


def require_writable(path: Path) -> None:
    """Tries whether a file can be written, before the work that it is to hold; folders above it are made.

    Raises:
        NatdeployError: it cannot.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}."):
            pass
    except OSError as error:
        raise NatdeployError(f"{path} cannot be written ({error.strerror}); {REMEDY}") from error


def write_atomic(path: Path, data: bytes, remedy: str = REMEDY) -> None:
    """Writes a file by way of a temporary one beside it; folders above it are made.

    After this the file holds all of `data`, even if the power fails; or, on an error, what it held before.

    Args:
        path: of the file.
        data: all of it.
        remedy: what the error tells the user to do.

    Raises:
        NatdeployError: it cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise NatdeployError(f"{path} cannot be written ({error.strerror}); {remedy}") from error
