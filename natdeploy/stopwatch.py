"""Where the time of this process goes, by parts of the work.

Parts may lie within each other: the inner one's seconds are its own and not the outer one's, so that all parts add up to the time
that was spent in any. On accelerators that compute while Python goes on, a part's seconds are those until it waits for a result.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

PASSES = frozenset({"forward and backward", "architecture", "forward passes", "BatchNorm pass"})
"""Stages of parts (`training: forward and backward`) in which networks see images and nothing else is done."""
ON_TARGET = frozenset({"profiling", "measuring the front"})
"""Parts that take place on the target, as long as its measurement protocol asks for, whatever trains."""

_seconds: dict[str, float] = {}
_open: list[str] = []
_since = 0.0


def _switch() -> None:
    """Books the seconds since the last switch to the innermost open part."""
    global _since  # noqa: PLW0603 (one process has one clock)
    now = time.perf_counter()
    if _open:
        _seconds[_open[-1]] = _seconds.get(_open[-1], 0.0) + now - _since
    _since = now


@contextmanager
def timed(part: str) -> Iterator[None]:
    """Counts the time within to a part."""
    _switch()
    _open.append(part)
    try:
        yield
    finally:
        _switch()
        _open.pop()


def take() -> dict[str, float]:
    """Seconds of every part since the last call, those of open ones up to now."""
    _switch()
    taken = dict(_seconds)
    _seconds.clear()
    return taken


def share_of_passes(seconds: Mapping[str, float]) -> float | None:
    """Forward and backward passes as a share, 0 to 1, of the seconds of all parts but those on the target; None without any."""
    own = {part: spent for part, spent in seconds.items() if part not in ON_TARGET}
    total = sum(own.values())
    return sum(spent for part, spent in own.items() if part.partition(": ")[2] in PASSES) / total if total else None
