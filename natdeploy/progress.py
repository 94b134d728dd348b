"""How long work says where it is, without knowing who listens: the command line draws bars, a script may stay silent."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol


class Progress(Protocol):
    def task(self, name: str, total: int, unit: str) -> AbstractContextManager[Callable[[int], None]]:
        """Opens a task of `total` units; the callable it yields advances it by that many."""

    def note(self, message: str) -> None:
        """One line that stays on the screen and in the log."""


class Silent:
    """Shows nothing."""

    @contextmanager
    def task(self, name: str, total: int, unit: str) -> Iterator[Callable[[int], None]]:
        yield lambda _: None

    def note(self, message: str) -> None:
        pass


_: Progress = Silent()
