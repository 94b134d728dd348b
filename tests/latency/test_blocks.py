"""Block keys go to text and back."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from natdeploy.errors import UsageError
from natdeploy.latency.blocks import block_key, input_shape, parse_block
from natdeploy.latency.plan import space_blocks
from natdeploy.space import Block, get_space
from natdeploy.space.blocks import ACTIVATIONS, KINDS
from natdeploy.space.catalog import NAMES

NUMBERS = st.integers(1, 10_000)


@st.composite
def blocks(draw: st.DrawFn) -> Block:
    """Any block: residual only where shapes allow one, biases only of linear layers, the classifier's always there."""
    kind = draw(st.sampled_from(KINDS))
    channels = draw(NUMBERS)
    out_channels = draw(st.one_of(st.just(channels), NUMBERS))
    stride = draw(st.integers(1, 3))
    return Block(
        kind,
        draw(NUMBERS),
        channels,
        draw(NUMBERS),
        out_channels,
        draw(NUMBERS),
        stride,
        activation=draw(st.sampled_from(ACTIVATIONS)),
        squeeze=draw(st.integers(0, 100)),
        residual=kind == "mbconv" and stride == 1 and channels == out_channels and draw(st.booleans()),
        bias=kind == "classifier" or (kind == "mix" and draw(st.booleans())),
        dilation=draw(st.sampled_from((1, 2, 4))),
    )


@given(blocks())
@settings(deadline=None)
def test_key_round_trip(block: Block) -> None:
    assert parse_block(block_key(block)) == block


@pytest.mark.parametrize("name", NAMES)
def test_blocks_of_a_space_have_keys_of_their_own(name: str) -> None:
    found = space_blocks(get_space(name), 10)
    assert [parse_block(block_key(block)) for block in found] == found


def test_key_is_readable() -> None:
    assert block_key(Block("mbconv", 112, 16, 96, 24, 3, 2)) == "mbconv-112x16-m96-o24-k3-s2"
    residual = Block("mbconv", 14, 80, 480, 80, 5, 1, "hswish", squeeze=120, residual=True)
    assert block_key(residual) == "mbconv-14x80-m480-o80-k5-s1-se120-hswish"
    assert block_key(replace(residual, residual=False)) == "mbconv-14x80-m480-o80-k5-s1-se120-hswish-plain"
    dilated = replace(residual, dilation=2)
    assert block_key(dilated) == "mbconv-14x80-m480-o80-k5-s1-d2-se120-hswish"
    assert block_key(Block("mix", 1, 960, 960, 1280, 1, 1, "hswish", bias=True)) == "mix-1x960-m960-o1280-k1-s1-hswish-bias"


def test_keys_of_older_tables_mean_what_they_meant() -> None:
    assert parse_block("mbconv-56x24-m144-o24-k3-s1").residual, "MobileNetV2 adds the input wherever the shapes allow it"
    assert not parse_block("mbconv-112x16-m96-o24-k3-s2").residual
    assert parse_block("classifier-1x1280-m1280-o10-k1-s1").bias
    mbv2 = space_blocks(get_space("mbv2"), 10)
    assert all(block_key(block).count("-") == 5 for block in mbv2), "MobileNetV2 needs no suffix"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "mbconv",
        "conv-1x2-m3-o4-k5-s6",
        "mbconv-112x16-m96-o24-k3-s2 ",
        "mbconv-112x16-m96-o24-k3-s-2",
        "mbconv-0112x16-m96-o24-k3-s2",
        "mbconv-112x16-m96-o24-k3-s2-tanh",
        "mbconv-112x16-m96-o24-k3-s2-relu6",
        "mbconv-112x16-m96-o24-k3-s2-se0",
        "mbconv-112x16-m96-o24-k3-s2-hswish-se24",
        "mbconv-112x16-m96-o24-k3-s2-plain",
        "mbconv-112x16-m96-o24-k3-s2-d1",
        "mbconv-112x16-m96-o24-k3-s1-se24-d2",
        "mbconv-112x16-m96-o24-k3-s2-bias",
        "classifier-1x1280-m1280-o10-k1-s1-bias",
    ],
)
def test_other_texts_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match="is no block"):
        parse_block(text)


@pytest.mark.parametrize("name", NAMES)
def test_input_shapes_follow_each_other(name: str) -> None:
    space = get_space(name)
    largest = space.blocks(space.decode(space.upper), 7)
    shapes = [input_shape(block) for block in largest]
    assert shapes[0] == (1, 3, space.resolutions[-1], space.resolutions[-1])
    for block, following in zip(largest[:-1], shapes[1:], strict=True):
        size = (block.out_size, block.out_size) if block.kind in {"stem", "mbconv"} else ()
        assert following == (1, block.out_channels, *size)
