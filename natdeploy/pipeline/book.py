"""What was measured on a target so far, kept process by process: a device that goes away takes nothing along that it has done."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, ClassVar, Generic, NamedTuple, Protocol, TypeVar

from natdeploy.files import write_atomic
from natdeploy.hardware.book import changed


class _Dataclass(Protocol):
    __dataclass_fields__: ClassVar[dict[str, Any]]


_Record = TypeVar("_Record", bound=_Dataclass)


class Keeper(NamedTuple):
    """Where JSON values are kept by name; what was not kept is None."""

    load: Callable[[str], Any]
    save: Callable[[str, Any], None]


NOWHERE = Keeper(lambda name: None, lambda name, value: None)


def file_keeper(path: Path) -> Keeper:
    """A JSON file, which is there once something is kept."""

    def everything() -> dict[str, Any]:
        try:
            held = json.loads(path.read_text())
        except (OSError, ValueError):  # none yet; it holds nothing but what can be measured again
            return {}
        return held if isinstance(held, dict) else {}

    return Keeper(
        lambda name: everything().get(name),
        lambda name, value: write_atomic(path, json.dumps({**everything(), name: value}, allow_nan=False).encode()),
    )


class SavedBook(Generic[_Record]):
    """Records of some models on a target, all of them by the same settings and beside the same reference.

    Args:
        keeper: where it is.
        name: under which.
        kind: of the records, a dataclass of JSON values and tuples of them.
        key: all that the records depend on but the models; a book with another key is empty.
        digests: of the models by id; records of a model that has changed are not known any more.
        prefix: of ids, which the book leaves out: a model may have it or not.
    """

    def __init__(
        self,
        keeper: Keeper,
        name: str,
        kind: type[_Record],
        key: Mapping[str, Any],
        digests: Mapping[str, str],
        *,
        prefix: str = "",
    ) -> None:
        saved = keeper.load(name)
        self._keeper, self._name, self._kind = keeper, name, kind
        self._digests, self._names = digests, {model: model.removeprefix(prefix) for model in digests}
        self._saved = saved if isinstance(saved, dict) and saved.get("key") == key else _empty(key)

    def __contains__(self, model: str) -> bool:
        return model in self._digests

    @property
    def environment(self) -> Mapping[str, Any]:
        environment: Mapping[str, Any] = self._saved["environment"]
        return environment

    def known(self, process: int) -> Mapping[str, _Record]:
        names = [each.name for each in fields(self._kind)]
        return {
            model: self._kind(**{name: tuple(each) if isinstance(each := value[name], list) else each for name in names})
            for model, value in self._entries(f"process {process}").items()
        }

    def keep(self, process: int, records: Mapping[str, _Record], environment: Mapping[str, Any]) -> None:
        self._saved["environment"] = dict(environment)
        self._add(f"process {process}", {name: asdict(each) for name, each in records.items()})

    def forget(self) -> None:
        self._saved = _empty(self._saved["key"])
        self._keeper.save(self._name, self._saved)

    def notes(self, what: str) -> Mapping[str, Any]:
        """JSON values by model that `note` added."""
        return {name: value["value"] for name, value in self._entries(what).items()}

    def note(self, what: str, name: str, value: Any) -> None:
        """Adds something else that was measured of a model, a JSON value."""
        self._add(what, {name: {"value": value}})

    def _entries(self, what: str) -> Mapping[str, Any]:
        entries = self._saved["entries"].get(what, {})
        found = {model: entries.get(name) for model, name in self._names.items()}
        return {model: value for model, value in found.items() if value is not None and value["digest"] == self._digests[model]}

    def _add(self, what: str, values: Mapping[str, Mapping[str, Any]]) -> None:
        entries = self._saved["entries"].setdefault(what, {})
        entries.update({self._names[model]: {"digest": self._digests[model], **value} for model, value in values.items()})
        self._keeper.save(self._name, self._saved)


class JointBook(Generic[_Record]):
    """Books as one, for models that are measured in turns and kept in several places.

    Args:
        books: of different models; one that was written elsewhere than the first is emptied.
    """

    def __init__(self, books: Sequence[SavedBook[_Record]]) -> None:
        self._books = books
        for book in books:
            if changed(self.environment, book.environment):
                book.forget()

    @property
    def environment(self) -> Mapping[str, Any]:
        return next((book.environment for book in self._books if book.environment), {})

    def known(self, process: int) -> Mapping[str, _Record]:
        return _merged(book.known(process) for book in self._books)

    def keep(self, process: int, records: Mapping[str, _Record], environment: Mapping[str, Any]) -> None:
        for book in self._books:
            if own := {name: each for name, each in records.items() if name in book}:
                book.keep(process, own, environment)

    def forget(self) -> None:
        for book in self._books:
            book.forget()

    def notes(self, what: str) -> Mapping[str, Any]:
        return _merged(book.notes(what) for book in self._books)

    def note(self, what: str, name: str, value: Any) -> None:
        (book,) = (book for book in self._books if name in book)
        book.note(what, name, value)


def _merged(mappings: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    return {name: value for mapping in mappings for name, value in mapping.items()}


def _empty(key: Mapping[str, Any]) -> dict[str, Any]:
    return {"key": dict(key), "environment": {}, "entries": {}}
