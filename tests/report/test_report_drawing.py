"""The picture of a network's blocks."""

from __future__ import annotations

import itertools
import re
import xml.etree.ElementTree as ET
from dataclasses import replace

import pytest

from natdeploy.report.drawing import describe, picture
from natdeploy.space import Arch, Block, get_space
from natdeploy.space.catalog import plain_arch

BLOCKS = get_space("mbv3_large").blocks(plain_arch(224, 1.0, (1, 2, 3, 4, 2, 3)), 1000)
SVG = "{http://www.w3.org/2000/svg}"


def drawn(blocks: list[Block] | tuple[Block, ...], block_ms: list[float] | None = None) -> ET.Element:
    """The picture as a browser reads it."""
    return ET.fromstring(picture(blocks, block_ms))


def boxes(svg: ET.Element, kind: str = "block") -> list[dict[str, float]]:
    found = [each for each in svg.iter("rect") if kind in each.attrib["class"].split()]
    return [{name: float(each.attrib[name]) for name in ("x", "y", "width", "height")} for each in found]


def test_boxes_fill_the_picture_side_by_side() -> None:
    svg = drawn(BLOCKS)
    found = boxes(svg)
    _, _, width, height = map(float, svg.attrib["viewBox"].split())
    assert len(found) == len(BLOCKS)
    assert found[0]["x"] == 0
    assert found[-1]["x"] + found[-1]["width"] == pytest.approx(width, abs=0.2)
    assert all(b["x"] >= a["x"] + a["width"] for a, b in itertools.pairwise(found))
    assert all(each["y"] >= 0 and each["y"] + each["height"] <= height for each in found)
    assert len({each["y"] + each["height"] for each in found}) == 1, "they stand on one line"


def test_widths_follow_channels_and_heights_pixels_by_square_root() -> None:
    found = boxes(drawn(BLOCKS))
    wide = [(block, box) for block, box in zip(BLOCKS, found, strict=True) if block.out_channels <= 400]
    scale = {round(box["width"] / block.out_channels**0.5, 1) for block, box in wide}
    assert max(scale) - min(scale) <= 0.11
    largest = max(block.out_size for block in BLOCKS)
    heights = [max(8.0, 96 * (block.out_size / largest) ** 0.5) for block in BLOCKS]
    assert [box["height"] for box in found] == pytest.approx(heights, abs=0.1)
    huge = replace(BLOCKS[0], size=100 * BLOCKS[0].size)
    assert min(box["height"] for box in boxes(drawn([huge, *BLOCKS]))) == 8, "what has one pixel is still seen"


def test_words_below_a_box() -> None:
    texts = [each.text for each in drawn(BLOCKS).iter("text")]
    first = next(block for block in BLOCKS if block.expands)
    assert f"k{first.kernel}e{first.mid_channels / first.in_channels:.2g}" in texts
    assert texts.count("fc") == texts.count("mix") == 1
    assert [texts[2 * place + 1] for place in range(len(BLOCKS))] == [str(block.out_channels) for block in BLOCKS]


def test_bars_are_latencies() -> None:
    block_ms = [0.1 * (1 + place) for place in range(len(BLOCKS))]
    svg = drawn(BLOCKS, block_ms)
    bars = boxes(svg, "latency")
    assert [bar["height"] / bars[-1]["height"] for bar in bars] == pytest.approx([ms / block_ms[-1] for ms in block_ms], abs=0.01)
    assert "100" in [each.text for each in svg.iter("text")], "microseconds"
    assert boxes(drawn(BLOCKS), "latency") == []
    assert boxes(drawn(BLOCKS, [0.0] * len(BLOCKS)), "latency") == [], "nothing to compare"
    assert float(drawn(BLOCKS).attrib["viewBox"].split()[3]) < float(svg.attrib["viewBox"].split()[3])


def test_latencies_have_to_be_of_the_blocks() -> None:
    with pytest.raises(IndexError):
        picture(BLOCKS, [0.1])


def test_a_block_in_words() -> None:
    block = next(block for block in BLOCKS if block.expands and block.squeeze and block.residual)
    words = describe(replace(block, dilation=2), 0.0123)
    assert words.startswith(f"mbconv: {block.in_channels} to {block.out_channels} channels; {block.size} to {block.out_size} px")
    for part in ("squeeze-and-excitation", "dilation 2", "residual", "12.3 µs alone, predicted"):
        assert part in words
    assert "px" not in describe(BLOCKS[-1])
    titles = [each.text for each in drawn(BLOCKS).iter("title")]
    assert titles == [describe(block) for block in BLOCKS]


def test_a_smallest_network_is_drawn() -> None:
    space = get_space("demo")
    blocks = space.blocks(space.decode(space.lower), 2)
    svg = drawn(blocks)
    assert len(boxes(svg)) == len(blocks)
    assert re.fullmatch(rf"{len(blocks)} blocks from \d+ px to 2 outputs", svg.attrib["aria-label"])
    assert Arch.parse(str(space.decode(space.lower))).resolution == blocks[0].size
