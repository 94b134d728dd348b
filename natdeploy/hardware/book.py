"""What was measured before on the same target in the same way, and is not measured again."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Generic, Protocol, TypeVar

_Record = TypeVar("_Record")

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


def changed(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """In what two environments differ that times depend on, in words; what one of them does not tell is no difference."""
    differ = [name for name in DECIDES if name in old and name in new and old[name] != new[name]]
    return [f"{name} was {old[name]} and is {new[name]}" for name in differ]
