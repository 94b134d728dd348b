"""A network's blocks as a picture: inline SVG in the colours of page.css, readable without JavaScript and on paper.

Every block is a box: as wide as its output has channels, as high as its output has pixels, both by square root, so that a network
whose channels grow tenfold still fits a line. The bar below it is the block's latency where that is known.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from natdeploy.report.markup import Markup, element
from natdeploy.space import Block

_WIDTH = 1080
_GAP = 6
_BOXES = 96
_TEXT = 34
_BARS = 54


def picture(blocks: Sequence[Block], block_ms: Sequence[float] | None) -> Markup:
    """The blocks in the order data flows.

    Args:
        blocks: of one network, at least one.
        block_ms: latency of each, run alone, milliseconds; None where nobody knows.
    """
    # The square root of a classifier's 1000 outputs would leave little for the rest of a small network.
    widths = [math.sqrt(min(block.out_channels, 400)) for block in blocks]
    scale = (_WIDTH - _GAP * (len(blocks) - 1)) / sum(widths)
    largest = math.sqrt(max(block.out_size for block in blocks))
    longest = max(block_ms) if block_ms else 0.0
    left, parts = 0.0, []
    for number, (block, share) in enumerate(zip(blocks, widths, strict=True)):
        width, height = scale * share, max(8.0, _BOXES * math.sqrt(block.out_size) / largest)
        middle, latency_ms = left + width / 2, None if block_ms is None else block_ms[number]
        box = {"x": left, "y": _BOXES - height, "width": width, "height": height}
        kind = "head" if block.dense else block.kind
        parts.append(
            element(
                "g",
                element("title", describe(block, latency_ms)),
                element(
                    "rect",
                    **_numbers(box),
                    rx="3",
                    class_=f"block {kind}{' strided' if block.stride > 1 else ''}",
                ),
                *(_text(middle, _BOXES + 14 + 14 * line, words) for line, words in enumerate(_words(block))),
                _bar(left, width, latency_ms, longest),
            )
        )
        left += width + _GAP
    height = _BOXES + _TEXT + (_BARS if block_ms else 0)
    label = f"{len(blocks)} blocks from {blocks[0].size} px to {blocks[-1].out_channels} outputs"
    # SVG's attributes have capitals, which keyword arguments keep.
    return element("svg", *parts, viewBox=f"0 0 {_WIDTH} {height}", role="img", aria_label=label, class_="blocks")


def describe(block: Block, latency_ms: float | None = None) -> str:
    """One block in words."""
    facts = [f"{block.kind}: {block.in_channels} to {block.out_channels} channels"]
    if block.kind in ("stem", "mbconv"):
        high = " high" if block.wide else ""
        facts.append(f"{block.size} to {block.out_size} px{high}, kernel {block.kernel}, stride {block.stride}")
    if block.expands:
        facts.append(f"expansion {block.mid_channels / block.in_channels:.3g}")
    if block.squeeze:
        facts.append(f"squeeze-and-excitation {block.squeeze}")
    if block.dilation > 1:
        facts.append(f"dilation {block.dilation}")
    if block.residual:
        facts.append("residual")
    if latency_ms is not None:
        facts.append(f"{1000 * latency_ms:.1f} µs alone, predicted")
    return "; ".join(facts)


def _words(block: Block) -> tuple[str, ...]:
    """Two short lines below a box."""
    if block.kind == "mbconv":
        expansion = f"e{block.mid_channels / block.in_channels:.2g}" if block.expands else "e1"
        return f"k{block.kernel}{expansion}", str(block.out_channels)
    return f"k{block.kernel}" if block.kind == "stem" else _SHORT[block.kind], str(block.out_channels)


_SHORT = {"head": "1×1", "mix": "mix", "classifier": "fc", "deeplabv3": "aspp", "lraspp": "lr", "lraspp_low": "1×1"}
_SHORT |= {"ssdlite": "ssd", "ssdlite_low": "ssd", "retinanet": "fpn", "retinanet_level": "fpn"}


def _bar(left: float, width: float, latency_ms: float | None, longest: float) -> Markup:
    if latency_ms is None or longest <= 0:
        return Markup()
    height = (_BARS - 16) * max(latency_ms, 0.0) / longest
    bottom = _BOXES + _TEXT + _BARS
    box = {"x": left, "y": bottom - height, "width": width, "height": height}
    return Markup(
        element("rect", **_numbers(box), class_="latency")
        + _text(left + width / 2, bottom - height - 3, f"{1000 * latency_ms:.3g}")
    )


def _text(x: float, y: float, words: str) -> Markup:
    return element("text", words, **_numbers({"x": x, "y": y}))


def _numbers(values: dict[str, float]) -> dict[str, str]:
    return {name: f"{value:.1f}" for name, value in values.items()}
