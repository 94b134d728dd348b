"""Statistics of batch normalisation for one subnet: those of the supernet serve every architecture and so fit none."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn


def calibrate(network: nn.Module, batches: Iterable[Tensor]) -> None:
    """Sets the running statistics of every BatchNorm2d to averages over `batches`; weights stay as they are.

    Once-for-all's scheme (arXiv 1908.09791, its code): all layers at once, each normalising by the batch it sees, so that every
    layer sees the inputs it would see if all statistics before it were right. Means and biased variances of the batches are
    averaged in double precision, weighted by their images. Leaves the network in evaluation mode.

    Takes a sixth longer than inference on the same images: normalising writes over its input, which pays for much of the pass over
    it that the statistics take. Training mode, which leaves the input alone, takes a third longer (docs/remap.md).

    Args:
        network: a `Subnet`, or any module whose BatchNorm2d layers alone use what they are given.
        batches: images (n, 3, r, r), preprocessed as for evaluation, on the network's device.

    Raises:
        ValueError: there are no batches.
    """
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    sums = [torch.zeros(2, norm.num_features, dtype=torch.float64, device=norm.weight.device) for norm in norms]
    total = 0
    network.eval()
    try:
        for norm, into in zip(norms, sums, strict=True):
            vars(norm)["forward"] = _normaliser(norm, into)  # hides the method of the class
        with torch.no_grad():
            for batch in batches:
                network(batch)
                total += len(batch)
    finally:
        for norm in norms:
            vars(norm).pop("forward", None)
    if total == 0:
        raise ValueError("calibration needs at least one batch of images")
    for norm, summed in zip(norms, sums, strict=True):
        mean, variance = norm.running_mean, norm.running_var
        assert mean is not None and variance is not None
        mean.copy_(summed[0] / total)
        variance.copy_(summed[1] / total)


def _normaliser(norm: nn.BatchNorm2d, sums: Tensor) -> Callable[[Tensor], Tensor]:
    """Normalises a batch by its mean and biased variance, in place, and adds them, times its images, to `sums` (2, channels)."""

    def forward(x: Tensor) -> Tensor:
        mean, variance = torch.batch_norm_update_stats(x, None, None, 0.0)  # without running statistics to update
        sums.add_(torch.stack([mean, variance]), alpha=len(x))
        scale = norm.weight / (variance + norm.eps).sqrt()
        shift = norm.bias - mean * scale
        return torch.addcmul(shift.view(-1, 1, 1), x, scale.view(-1, 1, 1), out=x)

    return forward
