"""Mixtures of all architectures of a supernet, which gradient-based search differentiates (DARTS, arXiv 1806.09055).

The layers of a stage are a prefix of its slots, so a slot has two questions: does the stage end before it, and if not, what is in
it. A mixture answers both by chance, independently of all other slots that are reached; what leaves a stage is the expectation
over its depths. So every architecture has one probability, and skipping a slot in the middle is no other way to say it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from natdeploy.space import SearchSpace
from natdeploy.supernet.layers import ElasticMBConv
from natdeploy.supernet.network import Supernet


@dataclass(frozen=True, eq=False)
class Mixture:
    """A distribution over the architectures of a space at one resolution and width.

    Attributes:
        ends: (slots,), probability that the stage ends before the slot, given that it did not end earlier; 0 in slots that every
            architecture fills.
        holds: (slots, codes), probability of each choice (code - 1) of a slot that is filled; rows add up to 1.
    """

    ends: Tensor
    holds: Tensor

    @classmethod
    def of(cls, space: SearchSpace, logits: Tensor, allowed: Tensor | None = None) -> Mixture:
        """By a softmax in every slot over its codes, of which 0 ends the stage.

        Args:
            space: of the architectures.
            logits: (slots, 1 + codes).
            allowed: (slots, 1 + codes), codes that are left; those that the space has by default. Each slot has one beside 0.
        """
        logits = logits.masked_fill(~(codes_of(space, logits.device) if allowed is None else allowed), -torch.inf)
        return cls(logits.softmax(dim=1)[:, 0], logits[:, 1:].softmax(dim=1))

    def reached(self, space: SearchSpace) -> Tensor:
        """Probability that a slot is filled, (slots,)."""
        stays, parts = 1 - self.ends, []
        for _, columns in stages_of(space):
            parts.append(stays[columns].cumprod(0))
        return torch.cat(parts)

    def expected(self, space: SearchSpace, fixed: float, added: Tensor) -> Tensor:
        """Expectation () of a sum over blocks: `fixed`, and what each code of each slot adds, (slots, 1 + codes).

        `BlockSum.terms` and `LatencyPredictor.terms` give the two.
        """
        return fixed + (self.reached(space) * (self.holds * added[:, 1:]).sum(dim=1)).sum()


def codes_of(space: SearchSpace, device: torch.device | None = None) -> Tensor:
    """Which codes the slots of a space may have, (slots, 1 + codes): 0 where the stage may end there, and those of its choices."""
    codes = max(len(space.stages[stage].choices) for stage, _ in space.slots)
    allowed = torch.zeros(len(space.slots), 1 + codes, dtype=torch.bool)
    for slot, (stage, place) in enumerate(space.slots):
        allowed[slot, 0] = place >= space.stages[stage].min_depth
        allowed[slot, 1 : 1 + len(space.stages[stage].choices)] = True
    return allowed.to(device)


def stages_of(space: SearchSpace) -> list[tuple[int, slice]]:
    """(stage, its slots) of every stage that leaves a choice."""
    start, result = 0, []
    for number, _ in space.elastic:
        depth = space.stages[number].max_depth
        result.append((number, slice(start, start + depth)))
        start += depth
    return result


def mixed(supernet: Supernet, x: Tensor, mixture: Mixture, *, recompute: bool = False) -> Tensor:
    """Logits of images x, as `Supernet.forward`, under a mixture instead of an architecture. Choices of probability 0 cost nothing.

    Args:
        supernet: in training mode: a mixture has no statistics of its own.
        x: (n, 3, h, w).
        mixture: on the device of x.
        recompute: what is within a layer is not kept for the gradient, but computed anew (arXiv 1604.06174): less memory, and a
            third more time.
    """
    space = supernet.space
    columns = dict(stages_of(space))
    may_end, may_hold = mixture.ends.tolist(), mixture.holds.tolist()  # asked for at once: accelerators are waited for once

    def run(number: int, modules: Sequence[ElasticMBConv], x: Tensor) -> Tensor:
        stage = space.stages[number]
        if number not in columns:
            for module in modules:
                x = module(x, stage.choices[0])
            return x
        slots = columns[number]
        ends, holds = mixture.ends[slots].to(x.dtype), mixture.holds[slots]
        ended: Tensor | None = None
        left = torch.ones((), dtype=x.dtype, device=x.device)
        for place, module in enumerate(modules):
            slot = slots.start + place
            if may_end[slot] > 0:
                part = left * ends[place] * x
                ended = part if ended is None else ended + part
                left = left * (1 - ends[place])
            codes = [code for code, share in enumerate(may_hold[slot]) if share > 0]
            layers, shares = [stage.choices[code] for code in codes], [holds[place, code] for code in codes]
            x = checkpoint(module.mix, x, layers, shares, use_reentrant=False) if recompute else module.mix(x, layers, shares)
        return x if ended is None else ended + left * x

    return supernet.through(x, run)
