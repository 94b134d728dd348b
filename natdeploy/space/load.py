"""Spaces by name, or from a user's own file, which docs/spaces.md describes."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from dataclasses import MISSING, fields, replace
from pathlib import Path
from typing import Any, TypeVar, cast, get_type_hints

from pydantic import BaseModel, ConfigDict, ValidationError, create_model

from natdeploy.errors import UsageError
from natdeploy.invalid import faults
from natdeploy.space.catalog import NAMES, SPACES
from natdeploy.space.space import SearchSpace, Stage

_Data = TypeVar("_Data", Stage, SearchSpace)


def get_space(name_or_path: str) -> SearchSpace:
    """A shipped space by name, or any other by the path of its .toml file.

    Raises:
        UsageError: there is none, or its file does not describe a space.
    """
    if name_or_path.endswith(".toml"):
        return load_space(Path(name_or_path))
    if name_or_path not in SPACES:
        raise UsageError(f"there is no space {name_or_path!r}; choose one of {', '.join(NAMES)}, or give the path of a .toml file")
    return SPACES[name_or_path]


def load_space(path: Path) -> SearchSpace:
    """A space from a TOML file: the fields of SearchSpace as keys, and a `[[stages]]` table of the fields of Stage for each stage.

    Raises:
        UsageError: the file cannot be read, a key is unknown, missing or of the wrong type, a value is impossible, two choices of
            a layer are the same network, or a shipped space has that name.
    """
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"space file {path} is no TOML: {error}") from error
    except OSError as error:
        raise UsageError(f"space file {path} cannot be read: {error.strerror}") from error
    tables = values.pop("stages", None)
    if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
        raise UsageError(f"space file {path}: it needs a table [[stages]] for each stage")
    stages = tuple(_build(Stage, table, f"space file {path}, stage {number}") for number, table in enumerate(tables))
    space = _build(SearchSpace, values, f"space file {path}", stages=stages, **_TASK_AND_SEARCH)
    for number, stage in enumerate(space.stages):
        for width in space.widths:
            for place in range(min(2, stage.max_depth)):
                blocks = {space.layer_block(number, place, layer, space.resolutions[0], width) for layer in stage.choices}
                if len(blocks) < len(stage.choices):
                    raise UsageError(
                        f"space file {path}, stage {number}: two of expansions {list(stage.expansions)} give layers of the same "
                        f"channels at width {width:g}, which are rounded to multiples of 8; leave one of them out"
                    )
    if space != SPACES.get(space.name, space):
        raise UsageError(f"space file {path}: name {space.name!r} is that of a shipped space, which differs; choose another one")
    return space


_TASK_AND_SEARCH: Mapping[str, Any] = {"precisions": (), "output_stride": None, "dense": None, "aspect": 1.0}
"""Fields that are no keys of a space's file, for a search or a task sets them; as they are where neither does."""
_NOT_KEYS = ("stages", *_TASK_AND_SEARCH)
"""The first has tables of its own."""


def plain_space(space: SearchSpace) -> SearchSpace:
    """The same architectures as a file has them, without what a search or a task adds."""
    return replace(space, **_TASK_AND_SEARCH)


def space_toml(space: SearchSpace) -> str:
    """The file that `load_space` reads as this space's architectures; the same for equal spaces."""
    parts = [_toml(space), *(f"\n[[stages]]\n{_toml(stage)}" for stage in space.stages)]
    return "".join(parts)


def _toml(data: SearchSpace | Stage) -> str:
    # Strings, numbers, booleans and lists of them are written the same in JSON and in TOML.
    values = {each.name: _whole(getattr(data, each.name)) for each in fields(data) if each.name not in _NOT_KEYS}
    return "".join(f"{name} = {json.dumps(value)}\n" for name, value in values.items())


def _whole(value: Any) -> Any:
    """Whole numbers without a point, so that equal spaces have equal files."""
    if isinstance(value, tuple):
        return [_whole(each) for each in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _build(kind: type[_Data], values: Mapping[str, Any], where: str, **ready: Any) -> _Data:
    """A dataclass from the values of a TOML table; `ready` fields are not the table's."""
    try:
        # As JSON, because strict validation would refuse TOML's lists as tuples.
        checked = _model(kind, frozenset(ready)).model_validate_json(json.dumps(values, default=str))
        return kind(**dict(checked), **ready)
    except ValidationError as error:
        # A misspelt key is unknown and missing at once; the first says more.
        first = min(faults(error), key=lambda each: each.kind != "extra_forbidden")
        key = first.place
        known = [each.name for each in fields(kind) if each.name not in ready]
        if first.kind == "extra_forbidden":
            raise UsageError(f"{where}: there is no key {key!r}; choose among {', '.join(known)}") from None
        if first.kind == "missing":
            raise UsageError(f"{where}: {key} is missing") from None
        raise UsageError(f"{where}: {key} = {first.value!r}: {first.reason}") from None
    except UsageError as error:
        raise UsageError(f"{where}: {error}") from None


def _model(kind: type[_Data], without: frozenset[str]) -> type[BaseModel]:
    """A strict schema of the dataclass's own fields, types and defaults."""
    types = get_type_hints(kind)
    wanted = {each.name: each for each in fields(kind) if each.name not in without}
    schema = {name: (types[name], ... if each.default is MISSING else each.default) for name, each in wanted.items()}
    config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)
    return cast(type[BaseModel], create_model(kind.__name__, __config__=config, **schema))  # type: ignore[call-overload]
