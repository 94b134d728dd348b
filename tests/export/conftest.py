from __future__ import annotations

import importlib.util
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn

from natdeploy.export import FORMATS, Description, Preprocessing
from natdeploy.space import SearchSpace, get_space
from natdeploy.supernet import Padding, Subnet

CLASSES = 7
MEAN, STD = (0.5, 0.4, 0.3), (0.25, 0.5, 0.2)
NEEDS = {"openvino": ("openvino", "nncf"), "tflite": ("ai_edge_litert", "ai_edge_quantizer")}


@pytest.fixture
def needs() -> Callable[[str], None]:
    """Skips a test where what writes a format is not installed."""

    def check(name: str) -> None:
        missing = [package for package in NEEDS.get(name, ()) if importlib.util.find_spec(package) is None]
        if missing:
            pytest.skip(f"{', '.join(missing)} is missing; pip install 'natdeploy[{FORMATS[name].extra}]'")

    return check


@pytest.fixture(scope="session")
def make_subnet() -> Callable[..., Subnet]:
    """What makes a random architecture with random weights and statistics, in evaluation mode."""

    def make(seed: int, padding: Padding = "symmetric", space: SearchSpace | None = None, norm_eps: float = 1e-5) -> Subnet:
        space = space or get_space("demo")
        torch.manual_seed(seed)
        arch = space.decode(space.sample(1, np.random.default_rng(seed))[0])
        subnet = Subnet(space, arch, CLASSES, padding, norm_eps)
        for module in subnet.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.uniform_(module.weight, 0.8, 1.2)
                nn.init.normal_(module.bias, 0, 0.2)
                module.running_mean = torch.randn(module.num_features) * 0.1
                module.running_var = torch.rand(module.num_features) * 0.3 + 0.1
        return subnet.eval()

    return make


@pytest.fixture(scope="session")
def describe() -> Callable[[Subnet], Description]:
    """What describes a subnet."""

    def make(subnet: Subnet) -> Description:
        return Description(
            arch=str(subnet.arch),
            id=subnet.arch.id,
            space=subnet.space.name,
            params=123_456,
            macs=7_000_000,
            labels=("colt’s foot", "<b>|rose|</b>", "1. *daisy*", "d", "e", "f", "g"),
            preprocessing=preprocessing_of(subnet),
            seed="seed.safetensors",
            seed_sha256="0" * 64,
            versions={"natdeploy": "0.1.0"},
        )

    return make


def preprocessing_of(subnet: Subnet) -> Preprocessing:
    """From images of twice its size; the whole of them is warped for networks that find objects."""
    height, width = subnet.input_shape[2:]
    if height != width:
        return Preprocessing(cut_px=(2 * height, 2 * width), input_px=(height, width), mean=MEAN, std=STD)
    return Preprocessing(square_px=2 * height, size_px=height, mean=MEAN, std=STD, whole=bool(subnet.anchors))


@pytest.fixture(scope="session")
def pictures() -> Callable[[Subnet, int], tuple[torch.Tensor, torch.Tensor]]:
    """What makes n images of a subnet's size, as bytes (n, 3, r, r), and as the network takes them."""

    def make(subnet: Subnet, n: int) -> tuple[torch.Tensor, torch.Tensor]:
        pixels = torch.randint(
            0, 256, (n, 3, *subnet.input_shape[2:]), generator=torch.Generator().manual_seed(1), dtype=torch.uint8
        )
        mean, std = (torch.tensor(each)[:, None, None] for each in (MEAN, STD))
        return pixels, ((pixels / 255 - mean) / std).to(memory_format=torch.channels_last)

    return make
