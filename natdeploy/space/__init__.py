"""Which architectures exist: spaces, architectures, their codec and their analytic cost."""

from natdeploy.space.arch import Arch, Layer
from natdeploy.space.blocks import Block
from natdeploy.space.cost import BlockSum, Cost, cost
from natdeploy.space.dense import HEAD_KINDS, PIXEL_KINDS, HeadKind, HeadSpec, input_size
from natdeploy.space.detectors import DETECTOR_KINDS, DetectorKind
from natdeploy.space.load import get_space, load_space, plain_space, space_toml
from natdeploy.space.nat_code import nat_text, parse_nat
from natdeploy.space.space import FIRST_SLOT, Genotypes, SearchSpace, Stage

__all__ = [
    "DETECTOR_KINDS",
    "FIRST_SLOT",
    "HEAD_KINDS",
    "PIXEL_KINDS",
    "Arch",
    "Block",
    "BlockSum",
    "Cost",
    "DetectorKind",
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
