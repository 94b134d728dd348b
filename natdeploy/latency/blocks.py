"""What a latency predictor sees of a block, and the text a table names it by."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod

import numpy as np
import numpy.typing as npt

from natdeploy.errors import UsageError
from natdeploy.space import Block
from natdeploy.space.blocks import ACTIVATIONS, KINDS
from natdeploy.space.dense import dense_cost

Floats = npt.NDArray[np.float64]

VECTOR = 16
"""Channels that a processor handles at once (fp32 in AVX-512): a group that is not full costs as much as a full one."""

TILES = (4, 5, 6, 7, 8)
"""Positions that a processor handles at once in a convolution for which a runtime has no depthwise kernel: it computes the general
one instead, channel by channel, and a tile that is not full costs as much as a full one. XNNPACK has depthwise kernels of up to 25
taps; a 7x7 convolution goes over 7 positions at once with AVX-512, over 4 to 6 on other processors.
"""

_LINEAR = frozenset({"mix", "classifier"})
"""Kinds behind the pooling."""

_DEFAULT_ACTIVATION = "relu6"
_KEY = re.compile(
    rf"(?P<kind>{'|'.join(KINDS)})-(\d+)x(\d+)-m(\d+)-o(\d+)-k(\d+)-s(\d+)(?:-w(?P<wide>\d+))?"
    r"(?:-l(?P<low>\d+))?(?:-r(?P<rates>\d+(?:\.\d+)*))?"
    rf"(?:-d(?P<dilation>\d+))?(?:-se(?P<squeeze>\d+))?(?:-(?P<activation>{'|'.join(ACTIVATIONS)}))?(?P<plain>-plain)?(?P<bias>-bias)?"
)


def block_key(block: Block) -> str:
    """`mbconv-112x16-m96-o24-k3-s2`: kind, size x input channels, mid and output channels, kernel, stride.

    What MobileNetV2 does not have follows, in this order: `-w160` a width that is not the size, `-l8` the stride of LR-ASPP's low
    features, `-r6.12.18` the rates of ASPP, `-d2` a dilated kernel, `-se24` squeeze-and-excitation with so many hidden channels, an
    activation other than relu6, `-plain` an mbconv without residual although its shape allows one, `-bias` a mix with one.
    """
    b = block
    parts = [f"{b.kind}-{b.size}x{b.in_channels}-m{b.mid_channels}-o{b.out_channels}-k{b.kernel}-s{b.stride}"]
    if b.wide:
        parts.append(f"w{b.wide}")
    if b.low_stride:
        parts.append(f"l{b.low_stride}")
    if b.rates:
        parts.append(f"r{'.'.join(map(str, b.rates))}")
    if b.dilation != 1:
        parts.append(f"d{b.dilation}")
    if b.squeeze:
        parts.append(f"se{b.squeeze}")
    if b.activation != _DEFAULT_ACTIVATION:
        parts.append(b.activation)
    if _may_be_residual(b) and not b.residual:
        parts.append("plain")
    if b.kind == "mix" and b.bias:
        parts.append("bias")
    return "-".join(parts)


def parse_block(key: str) -> Block:
    """Reads what `block_key` writes.

    Raises:
        UsageError: the text has another form.
    """
    match = _KEY.fullmatch(key)
    if match is None:
        raise UsageError(f"{key!r} is no block; expected a text like mbconv-112x16-m96-o24-k3-s2")
    kind = next(each for each in KINDS if each == match["kind"])
    size, inputs, mid, outputs, kernel, stride = (int(number) for number in match.groups()[1:7])
    block = Block(
        kind,
        size,
        inputs,
        mid,
        outputs,
        kernel,
        stride,
        activation=next(each for each in ACTIVATIONS if each == (match["activation"] or _DEFAULT_ACTIVATION)),
        squeeze=int(match["squeeze"] or 0),
        bias=kind == "classifier" or match["bias"] is not None,
        dilation=int(match["dilation"] or 1),
        wide=int(match["wide"] or 0),
        low_stride=int(match["low"] or 0),
        rates=tuple(map(int, match["rates"].split("."))) if match["rates"] else (),
    )
    block = replace(block, residual=_may_be_residual(block) and match["plain"] is None)
    if block_key(block) != key:
        raise UsageError(f"{key!r} is no block; written as {block_key(block)} it would be one")
    return block


def _may_be_residual(block: Block) -> bool:
    return block.kind == "mbconv" and block.stride == 1 and block.in_channels == block.out_channels


def input_shape(block: Block) -> tuple[int, ...]:
    """Shape of the block's input, batch 1."""
    if block.kind in _LINEAR:
        return 1, block.in_channels
    # A dense head's size is that of the image; what enters it is smaller by its stride.
    stride = block.stride if block.dense else 1
    return 1, block.in_channels, -(-block.size // stride), -(-(block.wide or block.size) // stride)


def resizes(block: Block) -> bool:
    """Whether one file of a block serves all sizes. A part of a dense head that answers for every pixel has the image's inside."""
    return not (block.dense and block.kind != "lraspp_low")


def family(block: Block) -> Block:
    """What is the same for blocks that one file serves: all but the size."""
    return replace(block, size=0, wide=0) if resizes(block) else block


Depthwise = tuple[int, int] | tuple[int, int, int]
"""Kernel, stride and, where it is not 1, dilation of a depthwise convolution. Each has a column of its own: kernels differ in kind,
not in amount.
"""


@dataclass(frozen=True)
class Parts:
    """What occurs among measured blocks and has a cost of its own; `work` has columns for these alone.

    Attributes:
        depthwise: the convolutions, sorted.
        squeeze: whether there is squeeze-and-excitation.
        hswish: whether there is this activation, which runtimes do not fuse into the convolution as they do relu and relu6.
        tile: one of `TILES` where depthwise convolutions cost by full tiles, too; else 1.
        dense: whether there is a head of a dense task.
    """

    depthwise: tuple[Depthwise, ...]
    squeeze: bool
    hswish: bool
    tile: int = 1
    dense: bool = False


def parts_of(blocks: Sequence[Block]) -> Parts:
    """What occurs among blocks."""
    return Parts(
        depthwise=tuple(sorted({depthwise_of(block) for block in blocks if block.kind == "mbconv"})),
        squeeze=any(block.squeeze for block in blocks),
        hswish=any(block.activation == "hswish" for block in blocks),
        dense=any(block.dense for block in blocks),
    )


def work_names(parts: Parts) -> tuple[str, ...]:
    """Names of the columns of `work`."""
    units = ("macs", "tiles") if parts.tile > 1 else ("macs",)
    depthwise = (f"{_depthwise_name(each)} {unit}" for each in parts.depthwise for unit in units)
    kinds = (*(_SQUEEZE if parts.squeeze else ()), *(_HSWISH if parts.hswish else ()), *(_DENSE if parts.dense else ()))
    return (*_WORK, *kinds, *depthwise)


def depthwise_of(block: Block) -> Depthwise:
    """Of an mbconv; of other blocks the same of their own convolution."""
    return (block.kernel, block.stride) if block.dilation == 1 else (block.kernel, block.stride, block.dilation)


def _depthwise_name(depthwise: Depthwise) -> str:
    return " ".join(["depthwise", *(f"{letter}{number}" for letter, number in zip("ksd", depthwise, strict=False))])


_WORK = (
    "stem macs",
    "expand macs",
    "project macs",
    "head macs",
    "linear macs",
    "expand weights",
    "project weights",
    "head weights",
    "depthwise rows",
    "depthwise row taps",
    "layers",
)
_SQUEEZE = ("squeeze elements", "squeeze weights", "squeezes")
_HSWISH = ("hswish elements",)
_DENSE = ("dense depthwise macs", "dense pointwise macs", "dense weights", "dense elements", "resized elements", "dense parts")


def work(blocks: Sequence[Block], parts: Parts) -> Floats:
    """What a block makes the processor do, (blocks, columns): amounts whose costs add up.

    Multiply-accumulates by kind of convolution, weights to be read, rows of the depthwise convolution (each has a start-up cost,
    and one more for every kernel row) and its tiles, and the layer itself. Squeeze-and-excitation goes over the depthwise output
    twice (mean, product), and has weights and a start-up cost; hswish goes over every output it follows; a dense head's parts have
    columns of their own, for nothing else interpolates. What is not among `parts` has no column.
    """
    names = work_names(parts)
    rows = np.zeros((len(blocks), len(names)))
    column = {name: i for i, name in enumerate(names)}
    for row, b in zip(rows, blocks, strict=True):
        inputs, mid, outputs = (-(-channels // VECTOR) * VECTOR for channels in (b.in_channels, b.mid_channels, b.out_channels))
        positions = b.out_positions
        activated = positions * outputs
        if b.dense:
            if parts.dense:
                cost = dense_cost(b)
                amount = (cost.depthwise_macs, cost.pointwise_macs, cost.weights, cost.elements, cost.resized, 1)
                row[[column[name] for name in _DENSE]] = amount
        elif b.kind == "stem":
            row[column["stem macs"]] = positions * b.kernel**2 * b.in_channels * outputs
        elif b.kind == "head":
            row[column["head macs"]] = positions * inputs * outputs
            row[column["head weights"]] = inputs * outputs
        elif b.kind in _LINEAR:
            row[column["linear macs"]] = b.in_channels * b.out_channels
        else:
            activated = positions * mid
            if b.expands:
                activated += b.in_positions * mid
                row[column["expand macs"]] = b.in_positions * inputs * mid
                row[column["expand weights"]] = inputs * mid
            if (depthwise := depthwise_of(b)) in parts.depthwise:
                name = _depthwise_name(depthwise)
                row[column[f"{name} macs"]] = positions * b.kernel**2 * mid
                if parts.tile > 1:
                    row[column[f"{name} tiles"]] = -(-positions // parts.tile) * b.mid_channels
            row[column["depthwise rows"]] = b.out_size * mid
            row[column["depthwise row taps"]] = b.out_size * b.kernel * mid
            row[column["project macs"]] = positions * mid * outputs
            row[column["project weights"]] = mid * outputs
            row[column["layers"]] = 1
            if b.squeeze and parts.squeeze:
                row[column["squeeze elements"]] = positions * mid
                row[column["squeeze weights"]] = mid * b.squeeze
                row[column["squeezes"]] = 1
        if b.activation == "hswish" and parts.hswish:
            row[column["hswish elements"]] = activated
    return rows


def boundary(blocks: Sequence[Block]) -> Floats:
    """Elements of input and output, (blocks, 2): a block that runs alone pays for bringing them into the runtime's own layout."""
    inputs = [prod(input_shape(b)) if b.kind not in _LINEAR else 0 for b in blocks]
    return np.column_stack([inputs, list(map(_answers, blocks))]).astype(np.float64).reshape(-1, 2)


def _answers(block: Block) -> int:
    """Elements that a block gives, one value a channel apart."""
    if block.dense:
        return block.in_positions * block.out_channels
    return block.out_positions * block.out_channels if block.kind in {"stem", "mbconv"} else 0


def cold(blocks: Sequence[Block]) -> Floats:
    """Weights and bytes of activations, (blocks, 2): within a network, other blocks have pushed them out of the near caches."""
    return np.array([[b.params, b.activation_bytes] for b in blocks], dtype=np.float64).reshape(-1, 2)


def amounts(blocks: Sequence[Block], parts: Parts, *, alone: bool) -> Floats:
    """All that a latency is regressed on, (blocks, columns), none negative: work, and what is cold within a network or crosses the
    boundary of a block that runs alone.
    """
    inside, outside = cold(blocks), boundary(blocks)
    return np.hstack([work(blocks, parts), *((np.zeros_like(inside), outside) if alone else (inside, np.zeros_like(outside)))])
