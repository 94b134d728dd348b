"""Block keys go to text and back."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from natdeploy.errors import UsageError
from natdeploy.latency.blocks import block_key, input_shape, parse_block
from natdeploy.space import Block, get_space
from natdeploy.space.blocks import KINDS

NUMBERS = st.integers(1, 10_000)
BLOCKS = st.builds(Block, st.sampled_from(KINDS), NUMBERS, NUMBERS, NUMBERS, NUMBERS, NUMBERS, NUMBERS)


@given(BLOCKS)
@settings(deadline=None)
def test_key_round_trip(block: Block) -> None:
    assert parse_block(block_key(block)) == block


def test_key_is_readable() -> None:
    assert block_key(Block("mbconv", 112, 16, 96, 24, 3, 2)) == "mbconv-112x16-m96-o24-k3-s2"


@pytest.mark.parametrize(
    "text", ["", "mbconv", "conv-1x2-m3-o4-k5-s6", "mbconv-112x16-m96-o24-k3-s2 ", "mbconv-112x16-m96-o24-k3-s-2"]
)
def test_other_texts_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match="is no block"):
        parse_block(text)


def test_input_shapes_follow_each_other() -> None:
    space = get_space("mbv2")
    blocks = space.blocks(space.decode(space.upper), 7)
    shapes = [input_shape(block) for block in blocks]
    assert shapes[0] == (1, 3, 224, 224)
    assert shapes[-1] == (1, 1280)
    for block, following in zip(blocks[:-2], shapes[1:-1], strict=True):
        assert following == (1, block.out_channels, block.out_size, block.out_size)
