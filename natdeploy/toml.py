"""TOML of JSON values; the standard library reads it and does not write it."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

_LONG = 100
"""Characters from which on a list has a line for each of its values."""

_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")


def toml_text(values: Mapping[str, Any], table: str = "") -> str:
    """The text; keys whose value is None are left out.

    Args:
        values: to write.
        table: dotted name of the table they are in.
    """
    present = {_key(key): value for key, value in values.items() if value is not None}
    lines = [f"[{table}]"] if table else []
    lines += [f"{key} = {_lines(value)}" for key, value in present.items() if not isinstance(value, Mapping)]
    inner = [toml_text(value, f"{table}.{key}" if table else key) for key, value in present.items() if isinstance(value, Mapping)]
    return "\n".join([*lines, *(f"\n{text}" if lines else text for text in inner)])


def _key(key: str) -> str:
    return key if _BARE_KEY.fullmatch(key) else _value(key)


def _lines(value: Any) -> str:
    text = _value(value)
    if isinstance(value, list | tuple) and len(text) > _LONG:
        return "".join(["[\n", *(f"    {_value(each)},\n" for each in value), "]"])
    return text


def _value(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_key(key)} = {_value(entry)}" for key, entry in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_value, value)) + "]"
    # JSON and TOML write numbers, truth values and text alike, but for one character.
    return json.dumps(value, ensure_ascii=False, allow_nan=False).replace("\x7f", "\\u007f")
