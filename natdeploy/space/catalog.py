"""The spaces that ship with natdeploy."""

from __future__ import annotations

from collections.abc import Sequence

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

OFA_MBV3 = SearchSpace(
    name="ofa_mbv3",
    resolutions=tuple(range(192, 257, 4)),
    widths=(1.0, 1.2),
    stem_channels=16,
    stem_stride=2,
    stages=(
        Stage(16, 1, 1, 1, (3,), (1,), "relu"),
        Stage(24, 2, 2, 4, (3, 5, 7), (3, 4, 6), "relu"),
        Stage(40, 2, 2, 4, (3, 5, 7), (3, 4, 6), "relu", squeeze=True),
        Stage(80, 2, 2, 4, (3, 5, 7), (3, 4, 6), "hswish"),
        Stage(112, 1, 2, 4, (3, 5, 7), (3, 4, 6), "hswish", squeeze=True),
        Stage(160, 2, 2, 4, (3, 5, 7), (3, 4, 6), "hswish", squeeze=True),
    ),
    head_channels=960,
    stem_activation="hswish",
    head_activation="hswish",
    narrow_head=True,
    mix_channels=1280,
)
"""NAT's space (arXiv 2005.05859): once-for-all's MobileNetV3 (arXiv 1908.09791) at NAT's resolutions and both widths.

Once-for-all itself was trained at 128 to 224 px: `OFA_MBV3.restrict(resolutions=OFA_RESOLUTIONS)`.
"""

OFA_RESOLUTIONS = tuple(range(128, 225, 4))

MBV3_LARGE = SearchSpace(
    name="mbv3_large",
    resolutions=tuple(range(64, 225, 8)),
    widths=(1.0,),
    stem_channels=16,
    stem_stride=2,
    stages=(
        Stage(16, 1, 1, 1, (3,), (1,), "relu"),
        Stage(24, 2, 1, 4, (3, 5, 7), (3, 4), "relu"),
        Stage(40, 2, 1, 4, (3, 5, 7), (2, 3), "relu", squeeze=True),
        Stage(80, 2, 1, 4, (3, 5, 7), (2.3, 2.5, 6), "hswish"),
        Stage(112, 1, 1, 4, (3, 5, 7), (3, 6), "hswish", squeeze=True),
        Stage(160, 2, 1, 4, (3, 5, 7), (3, 6), "hswish", squeeze=True),
    ),
    head_channels=960,
    stem_activation="hswish",
    head_activation="hswish",
    narrow_head=True,
    mix_channels=1280,
    mix_bias=True,
)
"""MobileNetV3-Large (arXiv 1905.02244) as torchvision and timm have it, made elastic around its own expansions."""

PROXYLESS = SearchSpace(
    name="proxyless",
    resolutions=tuple(range(64, 225, 8)),
    widths=(1.0,),
    stem_channels=32,
    stem_stride=2,
    stages=(
        Stage(16, 1, 1, 1, (3,), (1,)),
        Stage(24, 2, 1, 4),
        Stage(40, 2, 1, 4),
        Stage(80, 2, 1, 4),
        Stage(96, 1, 1, 4),
        Stage(192, 2, 1, 4),
        Stage(320, 1, 1, 1),
    ),
    head_channels=1280,
    narrow_head=True,
    first_residual=False,
)
"""ProxylessNAS (arXiv 1812.00332)."""

SPACES = {space.name: space for space in (MBV2, OFA_MBV3, MBV3_LARGE, PROXYLESS, DEMO)}
NAMES = tuple(SPACES)


def plain_arch(resolution: int, width: float, depths: Sequence[int], *, kernel: int = 3, expansion: int = 6) -> Arch:
    """A conventional MobileNetV2-like network: expansion 1 in its first stage, one kernel and one expansion in all others.

    `plain_arch(224, 1.0, (1, 2, 3, 4, 3, 3, 1))` is MobileNetV2.
    """
    layers = [Layer(kernel, 1)] + [Layer(kernel, expansion)] * (len(depths) - 1)
    return Arch(resolution, width, tuple((layer,) * depth for layer, depth in zip(layers, depths, strict=True)))
