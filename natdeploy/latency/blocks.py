"""What a latency predictor sees of a block, and the text a table names it by."""

from __future__ import annotations

import re

import numpy as np
import numpy.typing as npt

from natdeploy.errors import UsageError
from natdeploy.space import Block
from natdeploy.space.blocks import KINDS

Floats = npt.NDArray[np.float64]

_KEY = re.compile(rf"({'|'.join(KINDS)})-(\d+)x(\d+)-m(\d+)-o(\d+)-k(\d+)-s(\d+)")


def block_key(block: Block) -> str:
    """`mbconv-112x16-m96-o24-k3-s2`: kind, size x input channels, mid and output channels, kernel, stride."""
    b = block
    return f"{b.kind}-{b.size}x{b.in_channels}-m{b.mid_channels}-o{b.out_channels}-k{b.kernel}-s{b.stride}"


def parse_block(key: str) -> Block:
    """Reads what `block_key` writes.

    Raises:
        UsageError: the text has another form.
    """
    match = _KEY.fullmatch(key)
    if match is None:
        raise UsageError(f"{key!r} is no block; expected a text like mbconv-112x16-m96-o24-k3-s2")
    kind = next(each for each in KINDS if each == match[1])
    return Block(kind, *(int(number) for number in match.groups()[1:]))


def input_shape(block: Block) -> tuple[int, ...]:
    """Shape of the block's input, batch 1."""
    return (1, block.in_channels) if block.kind == "classifier" else (1, block.in_channels, block.size, block.size)
