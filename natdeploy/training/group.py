"""What several processes that train one model together have to agree on: one average a step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor


class ShardGroup(Protocol):
    """Processes that train copies of one model, each with shards of its own of every batch."""

    @property
    def rank(self) -> int:
        """Of this process, 0..size - 1."""

    @property
    def size(self) -> int:
        """Number of processes."""

    def average(self, tensors: Sequence[Tensor]) -> None:
        """Replaces each tensor, in place, by its mean over all processes, which call this with tensors of the same shapes."""


class TorchGroup:
    """The processes of torch.distributed's default group, which is initialised already (by torchrun, Ray Train or by hand).

    Two processes get exactly half of the sum, whatever the order; with more, the order of the sum is the backend's, and the last
    bits with it.
    """

    def __init__(self) -> None:
        self.rank = torch.distributed.get_rank()
        self.size = torch.distributed.get_world_size()

    @torch.no_grad()
    def average(self, tensors: Sequence[Tensor]) -> None:
        """One all-reduce of all tensors, laid one behind the other; they have one type and one device."""
        flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
        torch.distributed.all_reduce(flat)
        flat /= self.size
        parts = torch.split(flat, [tensor.numel() for tensor in tensors])
        for tensor, part in zip(tensors, parts, strict=True):
            tensor.copy_(part.view(tensor.shape))
