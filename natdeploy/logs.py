"""The log file of a run: what happened, when, in UTC."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

ROOT = logging.getLogger("natdeploy")
"""Parent of every room's logger."""

WARNINGS = logging.getLogger("py.warnings")
"""Where `logging.captureWarnings` sends what libraries warn of."""


class _File(logging.FileHandler):
    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 (logging's name)
        """A line that a full disk refuses is lost; what matters is in the store, which does complain."""


@contextmanager
def log_to(path: Path) -> Iterator[None]:
    """Appends every message of natdeploy to a file while the context is open, and the traceback of what ends it early."""
    handler = _File(path, encoding="utf-8")
    formatter = logging.Formatter("%(asctime)s %(levelname)-7s %(name)s: %(message)s", "%Y-%m-%dT%H:%M:%SZ")
    formatter.converter = time.gmtime
    handler.setFormatter(formatter)
    level = ROOT.level
    ROOT.setLevel(logging.DEBUG)
    ROOT.addHandler(handler)
    WARNINGS.addHandler(handler)
    try:
        yield
    except BaseException:
        ROOT.debug("stopped", exc_info=True)
        raise
    finally:
        ROOT.removeHandler(handler)
        WARNINGS.removeHandler(handler)
        ROOT.setLevel(level)
        with suppress(OSError):  # closing writes what the disk refused before
            handler.close()
