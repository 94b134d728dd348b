"""Every shipped space, with its own kind of seed, is a starting point for every dense head."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from natdeploy.runtimes import ort
from natdeploy.space import HEAD_KINDS, HeadKind, HeadSpec, SearchSpace, cost, get_space
from natdeploy.space.catalog import SPACES
from natdeploy.supernet import Subnet, Supernet, calibrate, remap

CLASSES, WIDTH, SIDE = 3, 0.25, 64


def small(name: str) -> SearchSpace:
    """A shipped space at a width, depth and resolution that a test can afford."""
    space = get_space(name)
    stages = tuple(replace(stage, min_depth=1, max_depth=min(2, stage.max_depth)) for stage in space.stages)
    return replace(space, resolutions=(SIDE,), widths=(WIDTH,), stages=stages)


def noise(n: int) -> Tensor:
    return torch.randn(n, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))


def seed_of(space: SearchSpace) -> Subnet:
    """A network that classifies, any of the space, with statistics of some images."""
    torch.manual_seed(0)
    network = Subnet(space, space.decode(space.sample(1, np.random.default_rng(5))[0]), 7)
    calibrate(network, [noise(4)])
    return network.eval()


def counted(network: nn.Module, x: Tensor) -> int:
    """Multiply-accumulates of convolutions, by hooks."""
    macs = 0

    def count(module: nn.Conv2d, _: object, output: Tensor) -> None:
        nonlocal macs
        macs += output[0].numel() * module.weight[0].numel()

    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(count)
    network(x)
    return macs


@pytest.mark.parametrize("kind", HEAD_KINDS)
@pytest.mark.parametrize("name", SPACES)
@torch.no_grad()
def test_a_classification_seed_starts_any_dense_task(name: str, kind: HeadKind, tmp_path: Path) -> None:
    plain = small(name)
    space = replace(plain, dense=HeadSpec(kind, 16, rates=(1, 2)))
    seed, x = seed_of(plain), noise(1)
    supernet = Supernet(space, CLASSES, width=WIDTH, generator=torch.Generator().manual_seed(1))
    report = remap(seed, supernet)
    supernet.eval()

    # Every stage gives what it gave the seed, and only the head is new.
    alone, mine, theirs = supernet.extract(seed.arch), x, x
    for ours, other in zip((alone.stem, *alone.stages), (seed.stem, *seed.stages), strict=True):
        mine, theirs = ours(mine), other(theirs)
        torch.testing.assert_close(mine, theirs, atol=1e-4, rtol=1e-4)
    assert {each.split(".")[0] for each in report.unused} == {"head", "classifier", *(["mix"] if plain.mix_channels else [])}
    assert {each.split(".")[0] for each in report.unmapped} <= {"classifier", "stages"}

    arch = space.decode(space.sample(1, np.random.default_rng(1))[0])
    subnet = supernet.extract(arch)
    answer = subnet(x)
    assert answer.shape == subnet.output_shape
    torch.testing.assert_close(answer, supernet(x, arch), atol=1e-4, rtol=1e-4)
    found = cost(space, [arch], CLASSES)
    assert found.params[0] == sum(parameter.numel() for parameter in subnet.parameters())
    assert found.macs[0] == counted(subnet, x)
    ort.convert(subnet, x, tmp_path / "net.onnx", dynamic_size=False)
    (there,) = ort.run(ort.load(tmp_path / "net.onnx", tuple(x.shape), 1, "fp32", "cpu"), [x.numpy()])
    np.testing.assert_allclose(there, answer.numpy(), atol=1e-4, rtol=1e-3)
