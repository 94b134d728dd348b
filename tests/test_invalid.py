"""Faults that pydantic finds, in our words."""

from __future__ import annotations

import pytest
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from natdeploy.invalid import Fault, faults


class Inner(BaseModel):
    model_config = ConfigDict(extra="forbid")

    sizes: list[int] = Field(default=[1], min_length=1)


class Outer(BaseModel):
    inner: Inner = Inner()
    low: int = 0
    high: int = 1

    @model_validator(mode="after")
    def _ordered(self) -> Outer:
        if self.low > self.high:
            raise ValueError("Low lies above high; swap them")
        return self


def found(values: object) -> list[Fault]:
    with pytest.raises(ValidationError) as caught:
        Outer.model_validate(values)
    return faults(caught.value)


def test_a_fault_says_where_it_is_and_what() -> None:
    (fault,) = found({"inner": {"sizes": [1, "two"]}})
    assert (fault.place, fault.location, fault.value) == ("inner.sizes.1", ("inner", "sizes", 1), "two")
    assert fault.reason.startswith("input should be a valid integer")


def test_an_unknown_key_is_told_by_its_kind() -> None:
    (fault,) = found({"inner": {"size": 1}})
    assert (fault.place, fault.kind) == ("inner.size", "extra_forbidden")


def test_our_own_reason_comes_without_the_librarys_words_and_values_that_clash_have_no_place() -> None:
    (fault,) = found({"low": 2})
    assert (fault.place, fault.reason) == ("", "low lies above high; swap them")


def test_all_faults_are_found() -> None:
    assert [fault.place for fault in found({"low": "a", "high": "b"})] == ["low", "high"]
