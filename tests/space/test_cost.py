"""Blocks and cost: against the papers, against the sum over blocks, and against torch."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from natdeploy.errors import UsageError
from natdeploy.space import Block, BlockSum, SearchSpace, cost, get_space
from natdeploy.space.catalog import DEMO, MBV2, OFA_MBV3, OFA_RESOLUTIONS, SPACES, plain_arch
from natdeploy.space.space import make_divisible
from natdeploy.supernet.subnet import SqueezeExcite, Subnet

MOBILENET_V2 = plain_arch(224, 1.0, (1, 2, 3, 4, 3, 3, 1))

spaces = st.sampled_from(list(SPACES.values()))
seeds = st.integers(0, 2**32 - 1)
fast = settings(deadline=None, max_examples=40)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def test_mobilenet_v2_costs_what_the_paper_says() -> None:
    """3.4 M parameters and 300 M multiply-adds at 224 px (arXiv 1801.04381, table 4); 3,504,872 is torchvision's exact count."""
    found = cost(MBV2, [MOBILENET_V2])
    assert found.params[0] == 3_504_872
    assert found.macs[0] == 300_774_272


@pytest.mark.parametrize(
    ("width", "resolution", "smallest", "largest"),
    [
        (1.0, 192, (3.411, 89.84), (7.665, 417.29)),
        (1.0, 224, (3.411, 121.28), (7.665, 566.17)),
        (1.0, 256, (3.411, 157.55), (7.665, 737.95)),
        (1.2, 192, (4.602, 142.83), (10.702, 621.27)),
        (1.2, 224, (4.602, 193.08), (10.702, 843.10)),
        (1.2, 256, (4.602, 251.05), (10.702, 1099.06)),
    ],
)
def test_the_ends_of_nats_space_cost_what_once_for_alls_networks_do(
    width: float, resolution: int, smallest: tuple[float, float], largest: tuple[float, float]
) -> None:
    """Millions of parameters and multiply-accumulates, counted on the networks that once-for-all's code builds."""
    space = OFA_MBV3.restrict(widths=[width], resolutions=[resolution])
    found = cost(space, np.stack([space.lower, space.upper]))
    np.testing.assert_allclose(found.params / 1e6, [smallest[0], largest[0]], atol=0.0005)
    np.testing.assert_allclose(found.macs / 1e6, [smallest[1], largest[1]], atol=0.005)


def test_once_for_alls_own_resolutions_are_a_restriction() -> None:
    space = OFA_MBV3.restrict(resolutions=OFA_RESOLUTIONS)
    assert (space.resolutions[0], space.resolutions[-1], len(space.resolutions)) == (128, 224, 25)


@pytest.mark.parametrize(("name", "output_stride"), [*((name, None) for name in SPACES), ("mbv2", 16), ("mbv3_large", 8)])
def test_cost_is_what_torch_computes(name: str, output_stride: int | None) -> None:
    """Parameters of the static network, and what hooks count in its forward pass, at small and at odd resolutions."""
    space = replace(get_space(name), output_stride=output_stride)
    space = space.restrict(resolutions=(32, 44), widths=(*space.widths, 0.35))
    for arch in space.decode_all(space.sample(4, rng(1))):
        subnet = Subnet(space, arch, 7).eval()
        macs, written = counted(subnet, torch.zeros(1, 3, arch.resolution, arch.resolution))
        found = cost(space, [arch], 7)
        assert found.params[0] == sum(parameter.numel() for parameter in subnet.parameters())
        assert found.macs[0] == macs
        assert found.activation_bytes[0] == 4 * written


def counted(network: nn.Module, x: Tensor) -> tuple[int, int]:
    """Multiply-accumulates, and elements of the feature maps that are written once normalisation and activation are fused."""
    macs = written = 0

    def count(module: nn.Module, _: object, output: Tensor) -> None:
        nonlocal macs, written
        written += output.numel()
        if isinstance(module, nn.Conv2d):
            macs += output.numel() * module.in_channels // module.groups * module.kernel_size[0] ** 2
        elif isinstance(module, nn.Linear):
            macs += output.numel() * module.in_features

    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear | nn.AdaptiveAvgPool2d | SqueezeExcite):
            module.register_forward_hook(count)
    with torch.inference_mode():
        network(x)
    return macs, written


@given(spaces, seeds)
@fast
def test_genotypes_cost_what_their_architectures_do(space: SearchSpace, seed: int) -> None:
    genotypes = space.sample(5, rng(seed))
    by_genotype, by_arch = cost(space, genotypes, 3), cost(space, space.decode_all(genotypes), 3)
    for name in ("params", "macs", "activation_bytes"):
        np.testing.assert_array_equal(getattr(by_genotype, name), getattr(by_arch, name))


def test_no_architectures_cost_nothing_and_foreign_ones_are_refused() -> None:
    assert cost(MBV2, []).params.shape == (0,)
    with pytest.raises(UsageError, match="space demo"):
        cost(DEMO, [MOBILENET_V2])


@given(spaces, seeds)
@fast
def test_cost_by_look_up_equals_the_sum_over_blocks(space: SearchSpace, seed: int) -> None:
    archs = space.decode_all(space.sample(5, rng(seed)))
    found = cost(space, archs, classes=7)
    for row, arch in enumerate(archs):
        blocks = space.blocks(arch, 7)
        assert found.macs[row] == sum(block.macs for block in blocks)
        assert found.params[row] == sum(block.params for block in blocks)
        assert found.activation_bytes[row] == sum(block.activation_bytes for block in blocks)


@given(spaces, seeds)
@fast
def test_blocks_fit_each_other(space: SearchSpace, seed: int) -> None:
    for arch in space.decode_all(space.sample(3, rng(seed))):
        blocks = space.blocks(arch, 5)
        for block, following in pairwise(blocks):
            size = 1 if block.kind in {"head", "mix"} else block.out_size
            assert (block.out_channels, size) == (following.in_channels, following.size)
        assert blocks[-1].out_channels == 5


def test_every_block_is_asked_for_once() -> None:
    seen: list[Block] = []

    def value(blocks: object) -> list[float]:
        assert isinstance(blocks, list)
        seen.extend(blocks)
        return [1.0] * len(blocks)

    total = BlockSum(DEMO, value, 10)
    assert len(seen) == len(set(seen))
    archs = DEMO.decode_all(DEMO.sample(20, rng()))
    assert total(DEMO.encode_all(archs)).tolist() == [len(DEMO.blocks(arch, 10)) for arch in archs]


@pytest.mark.parametrize(
    ("wanted", "rounded"), [(32 * 0.35, 16), (16 * 0.35, 8), (64 * 0.35, 24), (96 * 0.35, 32), (17, 16), (4, 8)]
)
def test_make_divisible_rounds_to_eight_and_loses_a_tenth_at_most(wanted: float, rounded: int) -> None:
    assert make_divisible(wanted) == rounded
    assert rounded >= 0.9 * wanted
