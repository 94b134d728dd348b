"""Recalibrated statistics against a brute-force second implementation."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from natdeploy.space import Arch, get_space
from natdeploy.supernet import Subnet, Supernet, calibrate

DEMO = get_space("demo")
ARCH = Arch.parse("r16-w1-k3e1-k5e6.k3e3-k3e6-k5e3")


class Recording(nn.Module):
    """Normalises by the batch, written out in double precision, and keeps what it saw."""

    def __init__(self, norm: nn.BatchNorm2d) -> None:
        super().__init__()
        self.scale, self.shift = norm.weight.detach().double(), norm.bias.detach().double()
        self.seen: list[tuple[int, Tensor, Tensor]] = []

    def forward(self, x: Tensor) -> Tensor:
        values = x.double().transpose(0, 1).flatten(1)
        mean = values.sum(1) / values.shape[1]
        variance = (values - mean[:, None]).square().sum(1) / values.shape[1]
        self.seen.append((len(x), mean, variance))
        factor = self.scale / (variance + 1e-5).sqrt()
        return ((x.double() - mean[:, None, None]) * factor[:, None, None] + self.shift[:, None, None]).float()


def brute_force(network: nn.Module, batches: list[Tensor]) -> list[tuple[Tensor, Tensor]]:
    network = copy.deepcopy(network)
    recorders = []
    for parent in list(network.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.BatchNorm2d):
                recorders.append(Recording(child))
                setattr(parent, name, recorders[-1])
    with torch.no_grad():
        for batch in batches:
            network(batch)
    total = sum(map(len, batches))
    return [(sum(n * mean for n, mean, _ in r.seen) / total, sum(n * var for n, _, var in r.seen) / total) for r in recorders]


@pytest.fixture
def subnet() -> Subnet:
    return Supernet(DEMO, 5).extract(ARCH)


@pytest.fixture
def batches() -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(n, 3, 16, 16, generator=generator) * n + 1 for n in (8, 4, 3)]


def test_statistics_are_the_weighted_averages(subnet: Subnet, batches: list[Tensor]) -> None:
    expected = brute_force(subnet, batches)
    weights = {name: parameter.clone() for name, parameter in subnet.named_parameters()}
    calibrate(subnet, iter(batches))
    norms = [module for module in subnet.modules() if isinstance(module, nn.BatchNorm2d)]
    assert len(norms) == len(expected) == 16
    for norm, (mean, variance) in zip(norms, expected, strict=True):
        assert norm.running_mean is not None and norm.running_var is not None
        torch.testing.assert_close(norm.running_mean.double(), mean, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(norm.running_var.double(), variance, atol=1e-5, rtol=1e-4)
        assert norm.momentum == 0.1 and not norm._forward_hooks
    assert not any(module.training for module in subnet.modules())
    assert all(torch.equal(parameter, weights[name]) for name, parameter in subnet.named_parameters())


def test_one_batch_is_evaluated_as_it_was_trained(subnet: Subnet, batches: list[Tensor]) -> None:
    with torch.no_grad():
        trained = copy.deepcopy(subnet).train()(batches[0])
        calibrate(subnet, batches[:1])
        torch.testing.assert_close(subnet(batches[0]), trained, atol=1e-4, rtol=1e-4)


def test_no_batches_are_refused(subnet: Subnet) -> None:
    with pytest.raises(ValueError, match="at least one batch"):
        calibrate(subnet, [])


def test_a_failing_source_of_images_leaves_no_traces(subnet: Subnet, batches: list[Tensor]) -> None:
    def broken() -> Iterator[Tensor]:
        yield batches[0]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        calibrate(subnet, broken())
    norms = [module for module in subnet.modules() if isinstance(module, nn.BatchNorm2d)]
    assert all(norm.momentum == 0.1 and not norm._forward_hooks and not norm.training for norm in norms)
