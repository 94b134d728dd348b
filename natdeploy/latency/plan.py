"""What to measure of a space, most informative first."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from natdeploy.latency.blocks import family
from natdeploy.space import Arch, Block, BlockSum, Layer, SearchSpace

_SAMPLED = 4000
"""Architectures among which the subnets of a plan are chosen."""


@dataclass(frozen=True)
class Plan:
    """What to measure.

    Attributes:
        space: whose blocks and architectures these are.
        classes: outputs of the classifier.
        blocks: in the order in which they are worth it.
        least: so many of them are measured in any case.
        fit: architectures that a predictor may learn from.
        test: architectures that only judge it.
        reference: the architecture timed beside all of them.
        seed: of all that is left to chance.
    """

    space: SearchSpace
    classes: int
    blocks: tuple[Block, ...]
    least: int
    fit: tuple[Arch, ...]
    test: tuple[Arch, ...]
    reference: Arch
    seed: int


def make_plan(space: SearchSpace, classes: int, *, blocks: int, least: int, fit: int, test: int, seed: int) -> Plan:
    """A plan of so many blocks, fit subnets and test subnets."""
    rng = np.random.default_rng(seed)
    chosen = plan_blocks(space, classes, blocks, rng)
    fit_archs, test_archs = plan_subnets(space, fit, test, rng)
    return Plan(space, classes, tuple(chosen), least, tuple(fit_archs), tuple(test_archs), reference_arch(space), seed)


def plan_blocks(space: SearchSpace, classes: int, rows: int, rng: np.random.Generator) -> list[Block]:
    """Distinct blocks of the space, at most `rows`.

    Blocks that one file serves, which differ in size alone, are a family. Every family comes once, at a random one of its sizes,
    before any comes twice, at the size farthest (as a ratio) from those it has; what every network has comes first: stem, head, mix
    and classifier, or a dense head's parts at every resolution.
    """
    families: dict[Block, list[Block]] = defaultdict(list)
    for block in space_blocks(space, classes):
        families[family(block)].append(block)
    order = list(families.values())
    order = [order[i] for i in rng.permutation(len(order))]
    order.sort(key=lambda blocks: blocks[0].kind == "mbconv")
    chosen: list[Block] = []
    taken: list[list[float]] = [[] for _ in order]
    while len(chosen) < rows and any(order):
        for left, sizes in zip(order, taken, strict=True):
            if not left:
                continue
            if sizes:
                best = max(range(len(left)), key=lambda i: min(abs(np.log(left[i].size) - size) for size in sizes))
            else:
                best = int(rng.integers(len(left)))
            block = left.pop(best)
            sizes.append(float(np.log(block.size)))
            chosen.append(block)
    return chosen[:rows]


def space_blocks(space: SearchSpace, classes: int) -> list[Block]:
    """Every distinct block of the space, sorted."""
    found: list[Block] = []

    def collect(blocks: Sequence[Block]) -> list[float]:
        found.extend(blocks)
        return [0.0] * len(blocks)

    BlockSum(space, collect, classes)
    return found


def plan_subnets(space: SearchSpace, fit: int, test: int, rng: np.random.Generator) -> tuple[list[Arch], list[Arch]]:
    """Architectures to learn from and others to judge by.

    Both are spread evenly over the range of log MACs of random depth-balanced architectures, one from each of fit + test equal
    parts of it, so that neither small nor large networks are forgotten. The smallest and the largest go to `fit`.
    """
    genotypes = np.unique(space.sample(_SAMPLED, rng), axis=0)
    macs = np.log(BlockSum(space, lambda blocks: [block.macs for block in blocks], 1)(genotypes))
    order = np.argsort(macs, kind="stable")
    edges = np.linspace(macs[order[0]], macs[order[-1]], fit + test + 1)
    near = np.abs(macs[None, :] - rng.uniform(edges[:-1], edges[1:])[:, None])
    picks, largest = [int(order[0])], int(order[-1])
    for distance in near[1:-1]:
        distance[[*picks, largest]] = np.inf
        picks.append(int(np.argmin(distance)))
    picks.append(largest)
    inner = 1 + rng.permutation(len(picks) - 2)
    fit_places = sorted([0, len(picks) - 1, *inner[: fit - 2].tolist()])
    archs = space.decode_all(genotypes[picks])
    return [archs[i] for i in fit_places], [archs[i] for i in range(len(archs)) if i not in fit_places]


def reference_arch(space: SearchSpace) -> Arch:
    """The architecture that measurements are compared with: middle resolution and depth, smallest choices."""
    depths = [(stage.min_depth + stage.max_depth) // 2 for stage in space.stages]
    stages = tuple(
        (Layer(stage.kernels[0], stage.expansions[-1]),) * depth for stage, depth in zip(space.stages, depths, strict=True)
    )
    return Arch(space.resolutions[(len(space.resolutions) - 1) // 3], space.widths[0], stages)
