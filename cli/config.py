"""Files of `--config`: the settings of a search."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from natdeploy.errors import UsageError

if TYPE_CHECKING:
    from pydantic import BaseModel

    from natdeploy.pipeline import SearchConfig


def read_config(path: Path | None, options: Mapping[str, Any], head: Mapping[str, Any] | None = None) -> SearchConfig:
    """The settings of a file, if there is one, with the options of the command line over them.

    Args:
        path: TOML, its keys the fields of SearchConfig; paths in it are relative to the working directory.
        options: by the same names; others are left aside.
        head: settings of the table of that name that the command line gives.

    Raises:
        UsageError: the file cannot be read, or a setting is unknown, missing or impossible.
    """
    from pydantic import ValidationError

    from natdeploy.invalid import faults
    from natdeploy.pipeline import SearchConfig

    settings = {} if path is None else _read_toml(path)
    settings |= {name: value for name, value in options.items() if name in SearchConfig.model_fields}
    if head:
        settings["head"] = {**settings.get("head", {}), **head}
    if "data" not in settings:
        raise UsageError("no images are given; name their folder with --data")
    settings.setdefault("out", Path("runs") / Path(settings["data"]).resolve().name)
    try:
        return SearchConfig.model_validate(settings)
    except ValidationError as error:
        first = faults(error)[0]
        name = first.place
        if first.kind == "extra_forbidden":
            known = ", ".join(_settings_beside(first.location, SearchConfig))
            raise UsageError(f"{path} has an unknown setting {name!r}; known are {known}") from None
        if not name:  # settings that are possible one by one
            raise UsageError(first.reason) from None
        raise UsageError(f"{name} = {first.value!r} is not possible: {first.reason}") from None


def _settings_beside(location: Sequence[int | str], model: type[BaseModel]) -> Iterable[str]:
    """Names of the settings of the table that a setting is in."""
    for name in location[:-1]:
        annotation = model.model_fields[str(name)].annotation
        model = next(each for each in (*get_args(annotation), annotation) if hasattr(each, "model_fields"))
    return model.model_fields


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} is not valid TOML: {error}") from None
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}") from None
