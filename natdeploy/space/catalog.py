"""The spaces that ship with natdeploy."""

from __future__ import annotations

from collections.abc import Sequence

from natdeploy.errors import UsageError
from natdeploy.space.arch import Arch, Layer
from natdeploy.space.space import SearchSpace, Stage

MBV2 = SearchSpace(
    name="mbv2",
    resolutions=tuple(range(64, 225, 8)),
    widths=(1.0,),
    stem_channels=32,
    stem_stride=2,
    stages=(
        Stage(16, 1, 1, 1, kernels=(3,), expansions=(1,)),
        Stage(24, 2, 1, 4),
        Stage(32, 2, 1, 4),
        Stage(64, 2, 1, 4),
        Stage(96, 1, 1, 4),
        Stage(160, 2, 1, 4),
        Stage(320, 1, 1, 1),
    ),
    head_channels=1280,
)
"""MobileNetV2 (arXiv 1801.04381) made elastic as FNA does for detection: up to 4 layers in the five middle stages."""

DEMO = SearchSpace(
    name="demo",
    resolutions=(16, 24, 32),
    widths=(1.0,),
    stem_channels=16,
    stem_stride=1,
    stages=(
        Stage(16, 1, 1, 1, kernels=(3,), expansions=(1,)),
        Stage(24, 2, 1, 2, kernels=(3, 5)),
        Stage(32, 2, 1, 3, kernels=(3, 5)),
        Stage(48, 2, 1, 2, kernels=(3, 5)),
    ),
    head_channels=128,
)
"""A small relative of `mbv2` for 32 px images, which a laptop searches in minutes."""

_SPACES = {space.name: space for space in (MBV2, DEMO)}
NAMES = tuple(_SPACES)


def get_space(name: str) -> SearchSpace:
    """A shipped space by name.

    Raises:
        UsageError: there is none of that name.
    """
    if name not in _SPACES:
        raise UsageError(f"there is no space {name!r}; choose one of {', '.join(NAMES)}")
    return _SPACES[name]


def plain_arch(resolution: int, width: float, depths: Sequence[int], *, kernel: int = 3, expansion: int = 6) -> Arch:
    """A conventional MobileNetV2-like network: expansion 1 in its first stage, one kernel and one expansion in all others.

    `plain_arch(224, 1.0, (1, 2, 3, 4, 3, 3, 1))` is MobileNetV2.
    """
    layers = [Layer(kernel, 1)] + [Layer(kernel, expansion)] * (len(depths) - 1)
    return Arch(resolution, width, tuple((layer,) * depth for layer, depth in zip(layers, depths, strict=True)))
