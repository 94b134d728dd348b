"""Copies of modules without torch's constructors, whose time goes into initial values and bookkeeping of attributes."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from natdeploy.supernet.layers import ElasticConv, crop

_HOOKS = tuple(name for name, value in vars(nn.Module()).items() if isinstance(value, OrderedDict))
"""Tables in which torch keeps the hooks of a module."""
_TABLES = (*_HOOKS, "_parameters", "_buffers", "_modules", "_non_persistent_buffers_set")


@dataclass(frozen=True)
class Mould:
    """What modules of one form have in common: everything but their tensors, hooks and parts."""

    kind: type[nn.Module]
    attributes: dict[str, Any]
    parameters: tuple[tuple[str, torch.Size | None], ...]
    buffers: tuple[tuple[str, torch.Size], ...]
    parts: tuple[tuple[str, Mould], ...]

    @classmethod
    def of(cls, module: nn.Module) -> Mould:
        """The form of a module that has no hooks; its tensors may be on the meta device."""
        return cls(
            kind=type(module),
            attributes={**vars(module), **dict.fromkeys(_TABLES)},  # every copy has tables of its own
            parameters=tuple((name, None if tensor is None else tensor.shape) for name, tensor in module._parameters.items()),
            buffers=tuple((name, tensor.shape) for name, tensor in module._buffers.items() if tensor is not None),
            parts=tuple((name, cls.of(part)) for name, part in module._modules.items() if part is not None),
        )

    def cast(self, source: nn.Module, filters: Tensor | None = None) -> nn.Module:
        """A module of this form with copies of the weights of a larger one; parts are matched by name.

        `filters`, if given, take the place of the source's `weight`. Call it without gradients.
        """
        module = object.__new__(self.kind)
        state = vars(module)
        state.update(self.attributes)
        for name in _HOOKS:
            state[name] = OrderedDict()
        parameters: dict[str, Tensor | None] = {}
        buffers: dict[str, Tensor] = {}
        parts: dict[str, nn.Module] = {}
        state.update(_parameters=parameters, _buffers=buffers, _modules=parts, _non_persistent_buffers_set=set())
        for name, shape in self.parameters:
            if shape is None:
                parameters[name] = None
                continue
            copy = _copy(cast(Tensor, source._parameters[name]) if filters is None else filters, shape)
            copy.requires_grad = True
            copy.__class__ = nn.Parameter  # its constructor would make another tensor
            parameters[name] = copy
        for name, shape in self.buffers:
            buffers[name] = _copy(cast(Tensor, source._buffers[name]), shape)
        for name, part in self.parts:
            # An activation, which the source may compute without a module, has nothing to copy.
            larger = cast(nn.Module, source._modules.get(name, source))
            made = _transformed(source, part) if name == "conv" and isinstance(source, ElasticConv) else None
            parts[name] = part.cast(larger, made)
        return module


def _transformed(elastic: ElasticConv, conv: Mould) -> Tensor | None:
    """The filters that kernel transformations make for a smaller convolution, if there are any."""
    shape = dict(conv.parameters)["weight"]
    return elastic.weight(*shape[:3]) if elastic.transformed and shape else None


def _copy(tensor: Tensor, shape: torch.Size) -> Tensor:
    """As `crop`, in memory of its own and in the tensor's memory format."""
    if tensor.shape == shape:
        return tensor.clone()
    if len(shape) == 1:
        return tensor.narrow_copy(0, 0, shape[0])  # half the time of a view and its clone
    return crop(tensor, shape).clone()
