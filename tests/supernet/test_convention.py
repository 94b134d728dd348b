"""Input conventions of the two real seeds, both of TensorFlow origin, and of one made to be of another."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from natdeploy.space import get_space
from natdeploy.supernet import Seed, Supernet, calibrate, choose_input, read_seed, remap, write_seed

MBV2 = get_space("mbv2")
HALF = (0.5, 0.5, 0.5)


@pytest.fixture(scope="module")
def small(shared: Path) -> Seed:
    """At 128 instead of 224 px, to be quick; the conventions can still be told apart."""
    seed = read_seed(shared / "weights/mobilenet_v2_0.35_imagenet_backbone.safetensors", MBV2)
    return replace(seed, arch=replace(seed.arch, resolution=128))


def test_what_the_file_states_is_believed(small: Seed) -> None:
    chosen = choose_input(small, torch.zeros(0, 3, 224, 224))  # no image is looked at
    assert (chosen.mean, chosen.std, chosen.padding) == (HALF, HALF, "same")
    assert "states [-1,1], padding same" in chosen.evidence


def test_what_the_file_leaves_open_is_measured(shared: Path, photos: Tensor) -> None:
    seed = read_seed(shared / "weights/mobilenet_v2_imagenet.safetensors", MBV2)  # states its scaling, not its padding
    chosen = choose_input(seed, photos[:12])
    assert (chosen.mean, chosen.std, chosen.padding) == (HALF, HALF, "same")
    assert "on 12 images" in chosen.evidence and "[-1,1] symmetric 0.0" in chosen.evidence


def test_scaling_and_padding_are_both_measured(small: Seed, photos: Tensor, tmp_path: Path) -> None:
    silent = replace(small, metadata={}, padding=None)
    chosen = choose_input(silent, photos[:16])
    assert (chosen.mean, chosen.padding) == (HALF, "same")

    # The same weights, their statistics made anew on other photos under torchvision's conventions.
    supernet = Supernet(MBV2, 2, width=0.35)
    remap(small, supernet)
    subnet = supernet.extract(small.arch)
    mean, std = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1), torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
    calibrate(subnet, [(F.interpolate(photos[16:], 128, mode="bilinear", antialias=True) - mean) / std])
    write_seed(subnet, tmp_path / "seed.safetensors")
    other = replace(read_seed(tmp_path / "seed.safetensors", MBV2), metadata={}, padding=None)
    chosen = choose_input(other, photos[:16])
    assert (chosen.mean[0], chosen.padding) == (0.485, "symmetric")
