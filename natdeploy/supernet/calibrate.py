"""Statistics of batch normalisation for one subnet: those of the supernet serve every architecture and so fit none."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn


def calibrate(network: nn.Module, batches: Iterable[Tensor]) -> None:
    """Sets the running statistics of every BatchNorm2d to averages over `batches`; weights stay as they are.

    Once-for-all's scheme (arXiv 1908.09791, its code): all layers at once, each normalising by the batch it sees, so that every
    layer sees the inputs it would see if all statistics before it were right. Means and biased variances of the batches are
    averaged in double precision, weighted by their images. Leaves the network in evaluation mode.

    Args:
        network: a `Subnet`, or any module with BatchNorm2d layers.
        batches: images (n, 3, r, r), preprocessed as for evaluation, on the network's device.

    Raises:
        ValueError: there are no batches.
    """
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    sums: dict[nn.Module, Tensor] = {
        norm: torch.zeros(2, norm.num_features, dtype=torch.float64, device=norm.weight.device) for norm in norms
    }
    momenta = [norm.momentum for norm in norms]

    def add(norm: nn.Module, inputs: tuple[Tensor], _: Tensor) -> None:
        # At momentum 1 the running statistics are those of the batch just seen, the variance divided by (count - 1).
        mean, variance = _statistics(norm)
        images, channels = inputs[0].shape[:2]
        count = inputs[0].numel() // channels
        sums[norm] += images * torch.stack([mean.double(), variance.double() * ((count - 1) / count)])

    hooks = [norm.register_forward_hook(add) for norm in norms]
    total = 0
    network.train()
    try:
        for norm in norms:
            norm.momentum = 1.0
        with torch.no_grad():
            for batch in batches:
                network(batch)
                total += len(batch)
    finally:
        network.eval()
        for norm, momentum, hook in zip(norms, momenta, hooks, strict=True):
            norm.momentum = momentum
            hook.remove()
    if total == 0:
        raise ValueError("calibration needs at least one batch of images")
    for norm in norms:
        for stored, value in zip(_statistics(norm), sums[norm] / total, strict=True):
            stored.copy_(value)


def _statistics(norm: nn.Module) -> tuple[Tensor, Tensor]:
    """Running mean and variance, (channels,) each."""
    assert isinstance(norm, nn.BatchNorm2d) and norm.running_mean is not None and norm.running_var is not None
    return norm.running_mean, norm.running_var
