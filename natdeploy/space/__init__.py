"""Which architectures exist: spaces, architectures, their codec and their analytic cost."""

from natdeploy.space.arch import Arch, Layer
from natdeploy.space.blocks import Block
from natdeploy.space.cost import BlockSum, Cost, cost
from natdeploy.space.dense import HEAD_KINDS, HeadKind, HeadSpec, input_size
from natdeploy.space.load import get_space, load_space, plain_space, space_toml
from natdeploy.space.nat_code import nat_text, parse_nat
from natdeploy.space.space import FIRST_SLOT, Genotypes, SearchSpace, Stage

__all__ = [
    "FIRST_SLOT",
    "HEAD_KINDS",
    "Arch",
    "Block",
    "BlockSum",
    "Cost",
    "Genotypes",
    "HeadKind",
    "HeadSpec",
    "Layer",
    "SearchSpace",
    "Stage",
    "cost",
    "get_space",
    "input_size",
    "load_space",
    "nat_text",
    "parse_nat",
    "plain_space",
    "space_toml",
]
