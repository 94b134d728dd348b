"""What our files say of a dense head, which its tensors do not tell whole."""

from __future__ import annotations

from dataclasses import replace
from typing import cast

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from natdeploy.errors import UsageError
from natdeploy.invalid import faults
from natdeploy.space import HeadKind, HeadSpec, SearchSpace

HEAD = "head"
"""Metadata of files whose network has a dense head."""


class StatedHead(BaseModel):
    """A dense head, and what it makes of the stages in front of it.

    Attributes:
        kind: as in `HeadSpec`.
        channels: as in `HeadSpec`.
        rates: as in `HeadSpec`.
        classes: that it tells apart.
        output_stride: of the space.
        aspect: width of the images that it learned from to their height.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: str
    channels: int
    rates: tuple[int, ...]
    classes: int = Field(ge=1)
    output_stride: int | None
    aspect: float

    @classmethod
    def of(cls, space: SearchSpace, classes: int) -> StatedHead | None:
        """The head of a space; None of one that classifies."""
        spec = space.dense
        if spec is None:
            return None
        return cls(
            kind=spec.kind,
            channels=spec.channels,
            rates=spec.rates,
            classes=classes,
            output_stride=space.output_stride,
            aspect=space.aspect,
        )

    @classmethod
    def parse(cls, text: str) -> StatedHead:
        """What `model_dump_json` wrote.

        Raises:
            UsageError: it is something else.
        """
        try:
            return cls.model_validate_json(text)
        except ValidationError as error:
            first = faults(error)[0]
            raise UsageError(f"{first.place}: {first.reason}" if first.place else first.reason) from None

    def on(self, space: SearchSpace) -> SearchSpace:
        """A space of backbones with this head.

        Raises:
            UsageError: there is no such head, or it has no place there.
        """
        spec = HeadSpec(cast(HeadKind, self.kind), self.channels, self.rates)
        return replace(space, dense=spec, output_stride=self.output_stride, aspect=self.aspect)
