"""Static networks: plain modules, the blocks of the space, and its count of parameters."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from natdeploy.space import SearchSpace, cost, get_space
from natdeploy.supernet import Padding, Subnet, Supernet, build_block

MBV2, DEMO = get_space("mbv2"), get_space("demo")
PLAIN = (nn.Conv2d, nn.BatchNorm2d, nn.ReLU6, nn.ZeroPad2d, nn.AdaptiveAvgPool2d, nn.Flatten, nn.Linear)


@pytest.mark.parametrize("space", [DEMO, MBV2.restrict(widths=(0.35, 1.0, 1.4))])
def test_parameters_are_those_the_cost_model_counts(space: SearchSpace) -> None:
    archs = space.decode_all(space.sample(8, np.random.default_rng(0)))
    with torch.device("meta"):
        counts = [sum(p.numel() for p in Subnet(space, arch, 11).parameters()) for arch in archs]
    assert counts == cost(space, archs, 11).params.tolist()


@pytest.mark.parametrize("padding", ["symmetric", "same"])
def test_blocks_chain_to_the_network(padding: Padding) -> None:
    arch = DEMO.decode(DEMO.sample(1, np.random.default_rng(0))[0])
    x = torch.randn(2, 3, arch.resolution, arch.resolution, generator=torch.Generator().manual_seed(0))
    for block in DEMO.blocks(arch, 5):
        module = build_block(block, padding).eval()
        assert sum(parameter.numel() for parameter in module.parameters()) == block.params
        x = module(x)
        size = (block.out_size, block.out_size) if block.kind in {"stem", "mbconv"} else ()
        assert x.shape == (2, block.out_channels, *size)


def test_modules_are_plain_and_pad_only_where_asymmetric() -> None:
    arch = MBV2.decode(MBV2.upper)  # 224 px: the stem and the four stages of stride 2 see even sizes
    for padding, expected in (("symmetric", 0), ("same", 5)):
        leaves = [module for module in Subnet(MBV2, arch, 5, padding).modules() if not list(module.children())]
        assert all(isinstance(leaf, PLAIN) for leaf in leaves)
        assert sum(isinstance(leaf, nn.ZeroPad2d) for leaf in leaves) == expected


def test_names_are_those_of_the_supernet() -> None:
    arch = DEMO.decode(DEMO.upper)
    subnet, supernet = Subnet(DEMO, arch, 5).state_dict(), Supernet(DEMO, 5).state_dict()
    assert {name: tensor.shape for name, tensor in subnet.items()} == {name: tensor.shape for name, tensor in supernet.items()}
