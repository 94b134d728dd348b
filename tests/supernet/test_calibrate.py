"""Recalibrated statistics against a second implementation that keeps every layer's inputs and goes over them twice."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from natdeploy.space import Arch, SearchSpace, get_space
from natdeploy.supernet import Subnet, Supernet, calibrate

DEMO = get_space("demo")
ARCH = Arch.parse("r16-w1-k3e1-k5e6.k3e3-k3e6-k5e3")
MBV3 = get_space("mbv3_large").restrict(widths=(0.25,))
SQUEEZED = Arch.parse("r64-w0.25-k3e1-k3e4-k5e3.k5e3-k3e6.k3e2.3-k3e6-k5e6.k7e3")


class Recording(nn.Module):
    """Normalises by the batch, written out, and keeps its inputs."""

    def __init__(self, norm: nn.BatchNorm2d) -> None:
        super().__init__()
        self.norm = norm
        self.inputs: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        self.inputs.append(x)
        mean, variance = moments(x)
        factor = self.norm.weight / (variance + self.norm.eps).sqrt()
        return (x - mean[:, None, None]) * factor[:, None, None] + self.norm.bias[:, None, None]


def moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance of every channel, in two passes."""
    values = x.transpose(0, 1).flatten(1)
    mean = values.sum(1) / values.shape[1]
    return mean, (values - mean[:, None]).square().sum(1) / values.shape[1]


@torch.no_grad()
def brute_force(network: nn.Module, batches: list[Tensor]) -> list[tuple[Tensor, Tensor]]:
    """Mean and variance of every layer, in the order of `modules()`, by a copy of the network in double precision."""
    network = copy.deepcopy(network).double()
    recorders = []
    for parent in list(network.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.BatchNorm2d):
                recorders.append(Recording(child))
                setattr(parent, name, recorders[-1])
    for batch in batches:
        network(batch.double())
    total = sum(map(len, batches))
    return [
        (
            sum((len(x) * moments(x)[0] for x in recorder.inputs), torch.zeros(())) / total,
            sum((len(x) * moments(x)[1] for x in recorder.inputs), torch.zeros(())) / total,
        )
        for recorder in recorders
    ]


def norms(network: nn.Module) -> list[nn.BatchNorm2d]:
    return [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]


def worst(network: nn.Module, expected: list[tuple[Tensor, Tensor]]) -> float:
    """The largest error of a mean, in standard deviations, or of a variance, as a share, in all layers."""
    errors = [torch.zeros(1)]
    for norm, (mean, variance) in zip(norms(network), expected, strict=True):
        assert norm.running_mean is not None and norm.running_var is not None
        errors += [(norm.running_mean - mean).abs() / variance.sqrt(), (norm.running_var - variance).abs() / variance]
    return float(torch.cat([error.double() for error in errors]).max())


def subnet_of(space: SearchSpace, arch: Arch) -> Subnet:
    return Supernet(space, 5, width=arch.width).extract(arch)


@pytest.fixture
def subnet() -> Subnet:
    return subnet_of(DEMO, ARCH)


def images(resolution: int, sizes: tuple[int, ...] = (8, 4, 3)) -> list[Tensor]:
    """Batches of unequal size whose means and contrasts differ, so that nothing cancels."""
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(n, 3, resolution, resolution, generator=generator) * n + 1 for n in sizes]


@pytest.fixture
def batches() -> list[Tensor]:
    return images(16)


@pytest.mark.parametrize(("space", "arch"), [(DEMO, ARCH), (MBV3, SQUEEZED)], ids=["demo", "mbv3_large"])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=["contiguous", "channels_last"])
def test_statistics_are_those_of_two_passes(space: SearchSpace, arch: Arch, memory_format: torch.memory_format) -> None:
    network, given = subnet_of(space, arch), images(arch.resolution)
    expected = brute_force(network, given)
    assert (
        len(expected) == len(norms(network)) == 2 + sum(3 if layer.expansion > 1 else 2 for stage in arch.stages for layer in stage)
    )
    single, double = network.to(memory_format=memory_format), copy.deepcopy(network).double().to(memory_format=memory_format)
    calibrate(single, (batch.to(memory_format=memory_format) for batch in given))
    calibrate(double, (batch.double().to(memory_format=memory_format) for batch in given))
    assert worst(single, expected) < 1e-4
    assert worst(double, expected) < 1e-11


def test_variances_are_biased_and_batches_count_by_their_images(subnet: Subnet, batches: list[Tensor]) -> None:
    """The first layer's inputs do not depend on statistics, so its own can be written down."""
    calibrate(subnet, batches)
    stem = norms(subnet)[0]
    assert stem.running_mean is not None and stem.running_var is not None
    with torch.no_grad():
        seen = [subnet.stem.conv(batch) for batch in batches]
    pixels = 16 * 16
    torch.testing.assert_close(stem.running_mean, torch.cat(seen).mean((0, 2, 3)), atol=1e-5, rtol=1e-5)
    biased = sum(len(x) * x.var((0, 2, 3), correction=0) for x in seen) / 15
    unbiased = sum(len(x) * x.var((0, 2, 3)) for x in seen) / 15
    unweighted = sum(x.var((0, 2, 3), correction=0) for x in seen) / 3
    torch.testing.assert_close(stem.running_var, biased, atol=0, rtol=1e-5)
    assert float((unbiased / biased - 1).abs().min()) > 0.5 / (8 * pixels) and float((unweighted / biased - 1).abs().min()) > 0.1


def test_only_the_statistics_change(subnet: Subnet, batches: list[Tensor]) -> None:
    before = {name: tensor.clone() for name, tensor in subnet.state_dict().items()}
    calibrate(subnet, batches)
    changed = {name for name, tensor in subnet.state_dict().items() if not torch.equal(tensor, before[name])}
    assert {name.rsplit(".", 1)[1] for name in changed} == {"running_mean", "running_var"}
    assert len(changed) == 2 * len(norms(subnet))
    assert not any(module.training for module in subnet.modules())


def test_one_batch_is_evaluated_as_it_was_trained(subnet: Subnet, batches: list[Tensor]) -> None:
    with torch.no_grad():
        trained = copy.deepcopy(subnet).train()(batches[0])
        calibrate(subnet, batches[:1])
        torch.testing.assert_close(subnet(batches[0]), trained, atol=1e-4, rtol=1e-4)


def test_a_last_batch_of_one_image_on_maps_of_one_pixel() -> None:
    """Such a batch has no variance; training mode refuses it."""
    network = subnet_of(MBV3, SQUEEZED)
    given = images(32, (8, 1))
    expected = brute_force(network, given)
    calibrate(network, given)
    assert worst(network, expected) < 1e-4
    assert bool(torch.isfinite(network(given[1])).all())


def test_the_same_images_give_the_same_statistics(subnet: Subnet, batches: list[Tensor]) -> None:
    """Nothing is left of statistics from before."""
    calibrate(subnet, batches)
    first = [tensor.clone() for tensor in subnet.buffers()]
    calibrate(subnet, [batch + 1 for batch in batches])
    calibrate(subnet, batches)
    assert all(map(torch.equal, first, subnet.buffers()))


def test_no_batches_are_refused(subnet: Subnet) -> None:
    before = [tensor.clone() for tensor in subnet.buffers()]
    with pytest.raises(ValueError, match="at least one batch"):
        calibrate(subnet, [])
    assert all(map(torch.equal, before, subnet.buffers()))


def test_a_failing_source_of_images_leaves_no_traces(subnet: Subnet, batches: list[Tensor]) -> None:
    def broken() -> Iterator[Tensor]:
        yield batches[0]
        raise KeyboardInterrupt

    before = [tensor.clone() for tensor in subnet.buffers()]
    with pytest.raises(KeyboardInterrupt):
        calibrate(subnet, broken())
    assert all(map(torch.equal, before, subnet.buffers()))
    assert not any("forward" in vars(norm) or norm.training for norm in norms(subnet))
