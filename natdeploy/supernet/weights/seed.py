"""Pretrained networks, and how we write them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from natdeploy.space import Arch, SearchSpace
from natdeploy.supernet.layers import Padding
from natdeploy.supernet.subnet import Subnet
from natdeploy.supernet.weights.files import write_file
from natdeploy.supernet.weights.formats import COUNTER
from natdeploy.supernet.weights.head import HEAD, StatedHead

SUPERNET = "supernet"
"""Metadata `holds` of files in which every architecture of a space shares the weights."""


@dataclass(frozen=True)
class Seed:
    """A pretrained network.

    Attributes:
        arch: what it is; its resolution is what the file states, else 224 px, or the nearest to it in the space.
        space: that it is an architecture of, with the seed's own channels, and its dense head if it has one.
        classes: outputs of its classifier or dense head; 0 where it has none.
        state: name in a `Subnet` of the architecture -> tensor, fp32, without counters of batches.
        norm_eps: added to the variance of batch normalisation.
        padding: of its convolutions of stride 2, None where the file does not say.
        source: name of the file it came from.
        sha256: of that file.
        metadata: what the file says about itself.
        format: whose names the file uses.
        supernet: whether the weights are shared by all architectures of the space. `arch` is the largest of them then, and `state`
            holds the supernet's kernel transformations, where it has them, as well.
    """

    arch: Arch
    space: SearchSpace
    classes: int
    state: Mapping[str, Tensor]
    norm_eps: float
    padding: Padding | None
    source: str
    sha256: str
    metadata: Mapping[str, str]
    format: str = "natdeploy"
    supernet: bool = False

    @property
    def kernel_transforms(self) -> bool:
        """Whether smaller kernels are learned maps of larger ones."""
        return any(".transforms." in name for name in self.state)


def write_seed(subnet: Subnet, path: Path, metadata: Mapping[str, str] | None = None) -> None:
    """Writes a subnet's weights as safetensors under our own names; `read_seed` gives them back.

    The file states space, architecture, dense head, padding and epsilon itself; `metadata` adds to that, for example how images are
    normalised.

    Raises:
        NatdeployError: the file cannot be written.
    """
    known = stated(subnet.space, subnet.classes, subnet.padding, subnet.norm_eps) | {"arch": str(subnet.arch)}
    write_file(path, without_counters(subnet.state_dict()), {**(metadata or {}), **known})


def stated(space: SearchSpace, classes: int, padding: Padding, norm_eps: float) -> dict[str, str]:
    """What our own files say about themselves; channels are read from the tensors."""
    head = StatedHead.of(space, classes)
    return {
        "space": re.sub(r"_c\d+(_\d+){2,}$", "", space.name),
        "padding": padding,
        "norm_eps": f"{norm_eps:g}",
        **({} if head is None else {HEAD: head.model_dump_json()}),
    }


def without_counters(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in state.items() if not name.endswith(COUNTER)}
