"""What was timed on a target so far, kept process by process: a device that goes away takes nothing along that it has done."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, fields
from typing import Any

from natdeploy.hardware.bench import Round


class SavedBook:
    """Times of some models on a target, all of them by the same settings and beside the same reference.

    Args:
        load: what was saved; None where nothing was.
        save: a JSON value.
        key: all that the times depend on but the models; a book with another key is empty.
        digests: of the models by id; times of a model that has changed are not known any more.
    """

    def __init__(
        self, load: Callable[[], Any], save: Callable[[Any], None], key: Mapping[str, Any], digests: Mapping[str, str]
    ) -> None:
        saved = load()
        self._save, self._digests = save, digests
        self._saved = saved if saved is not None and saved["key"] == key else _empty(key)

    @property
    def environment(self) -> Mapping[str, Any]:
        environment: Mapping[str, Any] = self._saved["environment"]
        return environment

    def known(self, process: int) -> Mapping[str, Round]:
        return {name: _round(value) for name, value in self._entries(f"process {process}").items()}

    def keep(self, process: int, rounds: Mapping[str, Round], environment: Mapping[str, Any]) -> None:
        self._saved["environment"] = dict(environment)
        self._add(f"process {process}", {name: asdict(each) for name, each in rounds.items()})

    def forget(self) -> None:
        self._saved = _empty(self._saved["key"])
        self._save(self._saved)

    def notes(self, what: str) -> Mapping[str, Any]:
        """JSON values by model that `note` added."""
        return {name: value["value"] for name, value in self._entries(what).items()}

    def note(self, what: str, name: str, value: Any) -> None:
        """Adds something else that was measured of a model, a JSON value."""
        self._add(what, {name: {"value": value}})

    def _entries(self, what: str) -> Mapping[str, Any]:
        entries = self._saved["entries"].get(what, {})
        return {name: value for name, value in entries.items() if value["digest"] == self._digests.get(name)}

    def _add(self, what: str, values: Mapping[str, Mapping[str, Any]]) -> None:
        entries = self._saved["entries"].setdefault(what, {})
        entries.update({name: {"digest": self._digests[name], **value} for name, value in values.items()})
        self._save(self._saved)


def _empty(key: Mapping[str, Any]) -> dict[str, Any]:
    return {"key": dict(key), "environment": {}, "entries": {}}


def _round(value: Mapping[str, Any]) -> Round:
    listed: dict[str, Any] = {each.name: value[each.name] for each in fields(Round)}
    return Round(**listed | {name: tuple(each) for name, each in listed.items() if isinstance(each, list)})
