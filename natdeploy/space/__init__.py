"""Which architectures exist: spaces, architectures, their codec and their analytic cost."""

from natdeploy.space.arch import Arch, Layer
from natdeploy.space.blocks import Block
from natdeploy.space.catalog import get_space
from natdeploy.space.cost import BlockSum, Cost, cost
from natdeploy.space.space import Genotypes, SearchSpace, Stage

__all__ = ["Arch", "Block", "BlockSum", "Cost", "Genotypes", "Layer", "SearchSpace", "Stage", "cost", "get_space"]
