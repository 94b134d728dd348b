"""Files that are there whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path

from natdeploy.errors import NatdeployError


def write_atomic(path: Path, data: bytes) -> None:
    """Writes a file by way of a temporary one beside it; folders above it are made.

    Raises:
        NatdeployError: it cannot be written; an existing file stays as it was.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise NatdeployError(
            f"{path} cannot be written ({error.strerror}); make room on the disk or the folder writable"
        ) from error
