"""What pydantic finds wrong with values from outside, in words for a person."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError


@dataclass(frozen=True)
class Fault:
    """One thing that is wrong.

    Attributes:
        location: keys and positions that lead to the value; empty where several values do not go together.
        reason: what is wrong, beginning with a small letter.
        value: that is wrong.
        kind: pydantic's name for the fault, such as `extra_forbidden`.
    """

    location: tuple[int | str, ...]
    reason: str
    value: Any
    kind: str

    @property
    def place(self) -> str:
        """The location as one word, `adapt.train.batch_size`."""
        return ".".join(map(str, self.location))


def faults(error: ValidationError) -> list[Fault]:
    """All that is wrong, at least one."""
    found = []
    for each in error.errors():
        reason = each["msg"].removeprefix("Value error, ")
        found.append(Fault(each["loc"], reason[:1].lower() + reason[1:], each["input"], each["type"]))
    return found
