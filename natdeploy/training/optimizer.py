"""Momentum SGD for shared weights: what a step does not use, it does not move."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn


class SharedSGD:
    """SGD with Nesterov momentum and weight decay, as torch's, that leaves alone every element whose gradient is exactly zero.

    A step of a supernet uses slices of most tensors; the rest gets a gradient of zero, not none. Plain SGD would go on moving the
    rest by its old momentum and shrink it by weight decay, so that large channels and outer kernel rings waste away while small
    subnets train. Here neither they nor their momentum change until a step uses them again.

    Args:
        parameters: trained; those of one dimension (scales, shifts, biases) are not decayed (arXiv 1807.11205).
        momentum: Nesterov's, 0..1.
        weight_decay: L2, added to the gradient.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], *, momentum: float, weight_decay: float) -> None:
        self.parameters = list(parameters)
        self.momentum, self.weight_decay = momentum, weight_decay
        self.velocity: dict[nn.Parameter, Tensor] = {}

    def zero_grad(self) -> None:
        for parameter in self.parameters:
            parameter.grad = None

    @torch.no_grad()
    def step(self, learning_rate: float) -> None:
        """Moves every parameter that has a gradient."""
        for parameter in self.parameters:
            gradient = parameter.grad
            if gradient is None:
                continue
            velocity = self.velocity.get(parameter)
            if velocity is None:
                velocity = self.velocity[parameter] = torch.zeros_like(parameter)
            unused = gradient == 0
            if parameter.ndim > 1:
                gradient = gradient.add(parameter, alpha=self.weight_decay)
            faster = gradient.add(velocity, alpha=self.momentum)
            move = gradient.add(faster, alpha=self.momentum).masked_fill_(unused, 0)
            torch.where(unused, velocity, faster, out=velocity)
            parameter.sub_(move, alpha=learning_rate)
