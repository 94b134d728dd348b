"""Channels in the order of their importance, so that smaller expansions, which take the first, keep the best (once-for-all)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from natdeploy.space.space import mid_channels
from natdeploy.supernet.network import Supernet

PROJECT = "project.conv.weight"


@torch.no_grad()
def sort_channels(supernet: Supernet, expansions: Sequence[float] = ()) -> None:
    """Sorts, in place, the channels between expansion and projection, and the hidden ones of squeeze-and-excitation.

    Architectures that use all channels of a layer compute what they did; others get more important channels than before. The
    importance of a channel is the L1 norm of the weights that it is projected by, or expanded by in squeeze-and-excitation
    (once-for-all's re-organisation, arXiv 1908.09791).

    Args:
        supernet: changed.
        expansions: that are in use already and keep the channels they have: channels are sorted between their bounds alone.
    """
    state = supernet.state_dict()
    for number, stage in enumerate(supernet.space.stages):
        for place in range(stage.max_depth):
            prefix = f"stages.{number}.{place}."
            layer = {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
            if "expand.conv.weight" not in layer:
                continue  # its mid channels are the channels that come in, whose order is not its own
            channels = layer["expand.conv.weight"].shape[:2]
            bounds = sorted({0, channels[0], *(mid_channels(channels[1], expansion) for expansion in expansions)})
            for name, tensor in by_importance(layer, bounds).items():
                layer[name].copy_(tensor)


def by_importance(layer: Mapping[str, Tensor], bounds: Sequence[int], importance: Tensor | None = None) -> dict[str, Tensor]:
    """The tensors of a layer that computes the same, its mid channels sorted between the bounds, as copies.

    Args:
        layer: name in an MBConv layer that expands -> tensor.
        bounds: first and last of them 0 and the number of mid channels.
        importance: of the mid channels; the L1 norm of the weights that project them unless given.
    """
    if importance is None:
        importance = layer[PROJECT].abs().sum((0, 2, 3))
    parts = (start + importance[start:end].argsort(descending=True, stable=True) for start, end in pairwise(bounds))
    order = torch.cat(list(parts))
    result = dict(layer)
    for name, tensor in layer.items():
        if tensor.ndim and not name.startswith(("project.", "squeeze.reduce.")) and ".transforms." not in name:
            result[name] = tensor[order]
    result[PROJECT] = layer[PROJECT][:, order]
    if "squeeze.expand.weight" in layer:
        weight = result["squeeze.expand.weight"]
        hidden = weight.abs().sum((0, 2, 3)).argsort(descending=True, stable=True)
        result["squeeze.expand.weight"] = weight[:, hidden]
        result["squeeze.reduce.weight"] = layer["squeeze.reduce.weight"][:, order][hidden]
        result["squeeze.reduce.bias"] = layer["squeeze.reduce.bias"][hidden]
    return result
