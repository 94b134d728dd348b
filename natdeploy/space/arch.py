"""One architecture: canonical by construction, with a text form that goes into file names and back."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from natdeploy.errors import UsageError

_TEXT = re.compile(r"r(?P<r>\d+)-w(?P<w>\d+(?:\.\d+)?)(?P<stages>(?:-k\d+e\d+(?:\.\d+)?(?:\.k\d+e\d+(?:\.\d+)?)*)+)")
_LAYER = re.compile(r"k(\d+)e(\d+(?:\.\d+)?)")


@dataclass(frozen=True)
class Layer:
    """The choices of one MBConv layer: side of its depthwise kernel, and how many times it expands its input channels."""

    kernel: int
    expansion: float


@dataclass(frozen=True)
class Arch:
    """One architecture of a space.

    Only layers that exist are held, so equal networks are equal objects: a skipped layer has no place to keep information.

    Attributes:
        resolution: side of the square input image, px.
        width: channel multiplier.
        stages: the layers of every stage, first to last.
    """

    resolution: int
    width: float
    stages: tuple[tuple[Layer, ...], ...]

    @property
    def depths(self) -> tuple[int, ...]:
        return tuple(len(stage) for stage in self.stages)

    @cached_property
    def id(self) -> str:
        """Ten hexadecimal digits that stay the same over versions and machines."""
        return hashlib.sha256(str(self).encode()).hexdigest()[:10]

    def __str__(self) -> str:
        stages = "-".join(".".join(f"k{layer.kernel}e{layer.expansion:g}" for layer in stage) for stage in self.stages)
        return f"r{self.resolution}-w{self.width:g}-{stages}"

    @classmethod
    def parse(cls, text: str) -> Arch:
        """Reads what `str(arch)` writes.

        Raises:
            UsageError: the text has another form.
        """
        match = _TEXT.fullmatch(text)
        if match is None:
            raise UsageError(f"{text!r} is no architecture; expected a text like r128-w1-k3e1-k3e6.k5e3")
        stages = tuple(tuple(Layer(int(k), float(e)) for k, e in _LAYER.findall(stage)) for stage in match["stages"][1:].split("-"))
        return cls(int(match["r"]), float(match["w"]), stages)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Arch:
        """Reads the form that once-for-all and NAT write: `ks`, `e` (one number a layer), `d` (layers a stage), `r`, `w`.

        The lists hold either the layers that exist or every slot (each stage padded to the same length).

        Raises:
            UsageError: the lists do not fit each other.
        """
        kernels: Sequence[int] = values["ks"]
        expansions: Sequence[float] = values["e"]
        depths: Sequence[int] = values["d"]
        if len(kernels) != len(expansions):
            raise UsageError(f"ks has {len(kernels)} entries and e has {len(expansions)}; they must have one each a layer")
        total, count = len(kernels), len(depths)
        if total == sum(depths):
            starts = [sum(depths[:i]) for i in range(count)]
        elif count and total % count == 0 and max(depths) <= total // count:
            starts = [i * (total // count) for i in range(count)]
        else:
            raise UsageError(f"{total} layers do not fit depths {list(depths)}, neither compact nor padded")
        stages = tuple(
            tuple(Layer(int(kernels[i]), float(expansions[i])) for i in range(start, start + depth))
            for start, depth in zip(starts, depths, strict=True)
        )
        return cls(int(values["r"]), float(values.get("w", 1.0)), stages)
