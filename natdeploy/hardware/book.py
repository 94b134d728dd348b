"""What was measured before on the same target in the same way, and is not measured again."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Generic, Protocol, TypeVar

from natdeploy.hardware.device import Target
from natdeploy.progress import Progress

_Record = TypeVar("_Record")
_Result = TypeVar("_Result")

DECIDES = ("harness", "runtime", "runtime_version", "provider", "threads", "cpu", "cores", "affinity", "governor", "os")
"""Facts of an environment that times depend on."""


class Book(Protocol[_Record]):
    """Records of models, process by process: times of runs, or counts of requests."""

    @property
    def environment(self) -> Mapping[str, Any]:
        """In which it was written; empty where there is nothing."""

    def known(self, process: int) -> Mapping[str, _Record]:
        """By candidate, the records of a process."""

    def keep(self, process: int, records: Mapping[str, _Record], environment: Mapping[str, Any]) -> None:
        """Adds records to those of a process."""

    def forget(self) -> None:
        """Drops everything."""


class Blank(Generic[_Record]):
    """Nothing is known, and nothing is kept."""

    environment: Mapping[str, Any] = {}

    def known(self, process: int) -> Mapping[str, _Record]:
        return {}

    def keep(self, process: int, records: Mapping[str, _Record], environment: Mapping[str, Any]) -> None:
        pass

    def forget(self) -> None:
        pass


class ChangedError(Exception):
    """The target is another than it was when the book was written; the message says in what."""


def changed(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """In what two environments differ that times depend on, in words; what one of them does not tell is no difference."""
    differ = [name for name in DECIDES if name in old and name in new and old[name] != new[name]]
    return [f"{name} was {old[name]} and is {new[name]}" for name in differ]


def add_to(book: Book[_Record], process: int, records: Mapping[str, _Record], environment: Mapping[str, Any]) -> None:
    """Keeps records, if they were measured where the others were.

    Raises:
        ChangedError: they were not.
    """
    if differences := changed(book.environment, environment):
        raise ChangedError(", ".join(differences))
    book.keep(process, records, environment)


def anew_if_changed(measure: Callable[[], _Result], book: Book[Any], target: Target, progress: Progress) -> _Result:
    """What `measure` gives, which goes on from the book; all of it measured now, where the target turns out to have changed."""
    try:
        return measure()
    except ChangedError as changes:
        progress.note(f"{target} is not what it was ({changes}), so that everything is measured again")
        book.forget()
        return measure()
