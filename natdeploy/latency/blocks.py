"""What a latency predictor sees of a block, and the text a table names it by."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from natdeploy.errors import UsageError
from natdeploy.space import Block
from natdeploy.space.blocks import KINDS

Floats = npt.NDArray[np.float64]

VECTOR = 16
"""Channels that a processor handles at once (fp32 in AVX-512): a group that is not full costs as much as a full one."""

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


Depthwise = tuple[int, int]
"""Kernel and stride of a depthwise convolution. Each pair is a column of its own: kernels differ in kind, not in amount."""


def depthwise_kinds(blocks: Sequence[Block]) -> tuple[Depthwise, ...]:
    """The pairs that occur, sorted."""
    return tuple(sorted({(block.kernel, block.stride) for block in blocks if block.kind == "mbconv"}))


def work_names(kinds: Sequence[Depthwise]) -> tuple[str, ...]:
    """Names of the columns of `work`."""
    return (*_WORK, *(f"depthwise k{kernel} s{stride} macs" for kernel, stride in kinds))


_WORK = (
    "stem macs",
    "expand macs",
    "project macs",
    "head macs",
    "classifier macs",
    "expand weights",
    "project weights",
    "head weights",
    "depthwise rows",
    "depthwise row taps",
    "layers",
)


def work(blocks: Sequence[Block], kinds: Sequence[Depthwise]) -> Floats:
    """What a block makes the processor do, (blocks, columns): amounts whose costs add up.

    Multiply-accumulates by kind of convolution, weights to be read, rows of the depthwise convolution (each has a start-up cost,
    and one more for every kernel row), and the layer itself. A kernel and stride that is not among `kinds` has no column.
    """
    rows = np.zeros((len(blocks), len(_WORK) + len(kinds)))
    column = {name: i for i, name in enumerate(work_names(kinds))}
    for row, b in zip(rows, blocks, strict=True):
        inputs, mid, outputs = (-(-channels // VECTOR) * VECTOR for channels in (b.in_channels, b.mid_channels, b.out_channels))
        positions = b.out_size**2
        if b.kind == "stem":
            row[column["stem macs"]] = positions * b.kernel**2 * b.in_channels * outputs
        elif b.kind == "head":
            row[column["head macs"]] = positions * inputs * outputs
            row[column["head weights"]] = inputs * outputs
        elif b.kind == "classifier":
            row[column["classifier macs"]] = b.in_channels * b.out_channels
        else:
            if b.expands:
                row[column["expand macs"]] = b.size**2 * inputs * mid
                row[column["expand weights"]] = inputs * mid
            if (b.kernel, b.stride) in kinds:
                row[column[f"depthwise k{b.kernel} s{b.stride} macs"]] = positions * b.kernel**2 * mid
            row[column["depthwise rows"]] = b.out_size * mid
            row[column["depthwise row taps"]] = b.out_size * b.kernel * mid
            row[column["project macs"]] = positions * mid * outputs
            row[column["project weights"]] = mid * outputs
            row[column["layers"]] = 1
    return rows


def boundary(blocks: Sequence[Block]) -> Floats:
    """Elements of input and output, (blocks, 2): a block that runs alone pays for bringing them into the runtime's own layout."""
    inputs = [b.size**2 * b.in_channels if b.kind != "classifier" else 0 for b in blocks]
    outputs = [b.out_size**2 * b.out_channels if b.kind in {"stem", "mbconv"} else 0 for b in blocks]
    return np.column_stack([inputs, outputs]).astype(np.float64).reshape(-1, 2)


def cold(blocks: Sequence[Block]) -> Floats:
    """Weights and bytes of activations, (blocks, 2): within a network, other blocks have pushed them out of the near caches."""
    return np.array([[b.params, b.activation_bytes] for b in blocks], dtype=np.float64).reshape(-1, 2)
