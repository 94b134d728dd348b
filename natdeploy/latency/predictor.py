"""Latency of blocks and of whole architectures, learned from a table.

One regression (`regression.py`) learns from whole networks and from blocks that ran alone: both are sums of the same costs, but
only networks are cold in the caches, and only blocks pay each for a call and for crossing their boundary. Every choice is made, and
the interval taken, by what held-out networks say. A network is a sum over its blocks, so populations are predicted by look-up.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import xgboost
from pydantic import BaseModel, ConfigDict, ValidationError
from scipy import sparse
from scipy.stats import kendalltau, spearmanr
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from natdeploy.errors import DamagedFileError, UsageError
from natdeploy.files import write_atomic
from natdeploy.invalid import faults
from natdeploy.latency.blocks import TILES, Floats, Parts, amounts, depthwise_of, parts_of
from natdeploy.latency.regression import LEAST, SMALLEST_MS, Regression, RegressionState, count_parts
from natdeploy.latency.table import BlockRow, Provenance, Role, Table
from natdeploy.space import Arch, Block, BlockSum, Genotypes, SearchSpace

BLOCK_WEIGHT = 1 / 30
"""What all blocks that ran alone weigh together, where all whole networks together weigh 1: a third to a hundredth do alike."""

PRIOR_WEIGHT = 1 / 1000
"""The same of blocks of another target: they decide what networks leave open, and lead astray where they weigh more."""

_TILES_GAIN = 0.9
"""Costs by tiles must bring the cross-validated error below this share of the error without them; several sizes are tried."""


@dataclass(frozen=True)
class Quality:
    """How well a predictor does on whole networks that it has not seen.

    Attributes:
        n: networks.
        within_5: fraction predicted within 5 % of what was measured.
        within_10: fraction within 10 %.
        mape: mean absolute relative error.
        spearman: rank correlation.
        kendall: rank correlation.
        coverage: fraction whose latency lay within the interval, which is meant to hold 0.9 of them.
    """

    n: int
    within_5: float
    within_10: float
    mape: float
    spearman: float
    kendall: float
    coverage: float


def quality_text(quality: Quality) -> str:
    """One line for people."""
    q = quality
    return (
        f"{q.n} unseen networks: within 5 % {q.within_5:.0%}, within 10 % {q.within_10:.0%}, mean error {q.mape:.1%}, "
        f"Spearman {q.spearman:.3f}, Kendall {q.kendall:.3f}, in the interval {q.coverage:.0%}"
    )


@dataclass(frozen=True)
class Prediction:
    """Of architectures, each (n,).

    Attributes:
        latency_ms: predicted.
        low_ms: lower end of the interval.
        high_ms: upper end.
        known: False where a block's kind, kernel, stride, activation or squeeze-and-excitation was never measured, or its size or
            channels lie outside of what was.
    """

    latency_ms: Floats
    low_ms: Floats
    high_ms: Floats
    known: npt.NDArray[np.bool_]


class MadeFor(BaseModel):
    """What a predictor learned from; its numbers hold for nothing else. What an imported table does not tell is None."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    device: str
    space: str
    runtime: str | None
    runtime_version: str | None
    provider: str | None
    precision: str | None
    threads: int | None
    utc: str | None

    @classmethod
    def of(cls, provenance: Provenance) -> MadeFor:
        return cls(**{name: getattr(provenance, name) for name in cls.model_fields})

    def differences(self, other: MadeFor) -> tuple[str, ...]:
        """In words, why a predictor for this cannot speak for the other; empty if it can."""
        pairs = ((name, getattr(self, name), getattr(other, name)) for name in type(self).model_fields if name != "utc")
        return tuple(f"{name.replace('_', ' ')} was {then}, is {now}" for name, then, now in pairs if then != now)


class LatencyPredictor:
    """Predicts what a table's target needs for blocks and architectures it was not measured with.

    Args:
        regression: of samples whose parts are described by `blocks.amounts`.
        parts: what was measured and has columns of its own.
        summed: a network is as long as its blocks that run alone, which is all that a table without networks can say.
        ranges: what was measured.
        quality: on networks that it has not seen; None where there are none.
        made_for: what its numbers hold for.
    """

    def __init__(
        self,
        regression: Regression,
        parts: Parts,
        *,
        summed: bool,
        ranges: _Ranges,
        quality: Quality | None,
        made_for: MadeFor,
    ) -> None:
        self._regression, self._parts, self._summed, self._ranges = regression, parts, summed, ranges
        self.quality = quality
        self.made_for = made_for

    @classmethod
    def fit(cls, table: Table, space: SearchSpace) -> LatencyPredictor:
        """Learns from a table's blocks and its networks with role `fit`, and judges itself by those with role `test`.

        Args:
            table: measured; or imported, then the predictor is the sum of its blocks, and nothing tells how good that is. If it has
                a prior, those blocks of another target stand in for blocks not measured here, and networks tell how the two differ.
            space: the one it was measured of.

        Raises:
            UsageError: the table holds too little.
        """
        classes = table.provenance.classes or 0  # not known of imported tables, which have no networks
        nets = {role: [space.blocks(row.arch, classes) for row in table.subnets if row.role == role] for role in _ROLES}
        net_ms = {role: np.array([row.timing.latency_ms for row in table.subnets if row.role == role]) for role in _ROLES}
        imported = table.provenance.origin.kind == "imported" and not table.subnets
        blocks, block_ms = _columns(table.blocks)
        weights = np.full(len(blocks), BLOCK_WEIGHT / max(1, len(blocks)))
        if table.prior and len(nets["fit"]) >= LEAST:
            others, other_ms = _slowed_down(table.prior, nets["fit"], net_ms["fit"], set(blocks))
            blocks, block_ms = [*blocks, *others], np.r_[block_ms, other_ms]
            weights = np.r_[weights, np.full(len(others), PRIOR_WEIGHT / max(1, len(others)))]
        if len(blocks) < LEAST or (not imported and (len(nets["fit"]) < LEAST or len(nets["test"]) < 2)):
            raise UsageError(
                f"the table has {len(table.blocks)} blocks, {len(nets['fit'])} networks to learn from and {len(nets['test'])} to "
                f"judge by; a predictor needs {LEAST}, {LEAST} and 2: measure again with `natdeploy profile`"
            )
        known = [*blocks, *(block for net in nets["fit"] for block in net)]

        def fit(parts: Parts) -> Regression:
            if imported:
                return _fit_blocks(blocks, block_ms, parts)
            # Matrices of a few hundred rows: several threads of linear algebra gain nothing, and wait for each other by the
            # minute where another program has one of the cores.
            with threadpool_limits(1):
                return _fit(blocks, block_ms, weights, nets["fit"], net_ms["fit"], parts=parts)

        parts = parts_of(known)
        regression, found = fit(parts), {tile: fit(replace(parts, tile=tile)) for tile in TILES}
        best = min(found, key=lambda tile: found[tile].error)
        if found[best].error < _TILES_GAIN * regression.error:
            parts, regression = replace(parts, tile=best), found[best]
        made_for = MadeFor.of(table.provenance)
        predictor = cls(regression, parts, summed=imported, ranges=_Ranges.of(known), quality=None, made_for=made_for)
        if not imported:
            archs = [row.arch for row in table.subnets if row.role == "test"]
            predicted = predictor.total(space, classes)(space.encode_all(archs))
            predictor.quality = judge(predicted, net_ms["test"], predictor.spread)
        return predictor

    @property
    def spread(self) -> float:
        """Half width of the interval of networks, as a log-ratio; infinite where no network tells."""
        return math.inf if self._summed else self._regression.spread

    @property
    def error(self) -> float:
        """Mean absolute log-ratio to networks held out of the fit by cross-validation: known before any is set apart to judge by.
        Infinite where no network tells.
        """
        return math.inf if self._summed else self._regression.error

    def predict_blocks(self, blocks: Sequence[Block]) -> Floats:
        """Latency of blocks that run alone, ms, (blocks,). Their sum is not a network's latency."""
        alone = amounts(blocks, self._parts, alone=True)
        # What the booster of a measured table knows, it knows of networks.
        return self._regression.predict(None, alone) if self._summed else self._regression.sums(None, alone)

    def total(self, space: SearchSpace, classes: int) -> Callable[[Genotypes], Floats]:
        """The function from genotypes (n, variables) to whole-network latency in ms, (n,)."""
        call_ms, sums = self._sums(space, classes)
        if self._summed or self._regression.booster is None:
            return lambda genotypes: np.maximum(call_ms + sums(genotypes), SMALLEST_MS)
        totals = BlockSum(space, self._within, classes)
        return lambda genotypes: self._regression.boost(call_ms + sums(genotypes), totals(genotypes))

    def terms(self, space: SearchSpace, classes: int, resolution: int, width: float) -> tuple[float, Floats]:
        """What gradient-based search differentiates: the latency, ms, of all that is fixed at a resolution and width, and what each
        code of each slot adds, (slots, codes). The expected latency of a mixture is fixed + (probabilities * added).sum(), linear
        in its probabilities (FBNet, Wu et al. 2019, equation 3). Where they are 0 and 1 it equals `predict`, but for the factor of
        a booster, which is of whole networks, if cross-validation kept one.
        """
        call_ms, sums = self._sums(space, classes)
        fixed, added = sums.terms(space.resolutions.index(resolution), space.widths.index(width))
        return call_ms + fixed, added

    def predict(self, space: SearchSpace, archs: Sequence[Arch], classes: int) -> Prediction:
        """Latency of architectures, with an interval meant to hold 90 % of them."""
        genotypes = space.encode_all(archs)
        latency_ms = self.total(space, classes)(genotypes)
        strange = BlockSum(space, lambda blocks: [float(not self._ranges.holds(block)) for block in blocks], classes)
        factor = np.exp(self.spread)
        return Prediction(latency_ms, latency_ms / factor, latency_ms * factor, strange(genotypes) == 0)

    def _sums(self, space: SearchSpace, classes: int) -> tuple[float, BlockSum]:
        """What a network takes once, ms, and what its blocks add."""
        if self._summed:
            return 0.0, BlockSum(space, self.predict_blocks, classes)
        return self._regression.call_ms, BlockSum(space, lambda blocks: self._regression.parts(self._within(blocks)), classes)

    def _within(self, blocks: Sequence[Block]) -> Floats:
        return amounts(blocks, self._parts, alone=False)

    def save(self, path: Path) -> None:
        """Writes JSON, replacing an older file atomically."""
        state = _State(
            format=_FORMAT,
            made_for=self.made_for,
            parts=self._parts,
            regression=self._regression.state(),
            summed=self._summed,
            ranges=self._ranges,
            quality=None if self.quality is None else asdict(self.quality),
        )
        write_atomic(path, state.model_dump_json(indent=1).encode())

    @classmethod
    def load(cls, path: Path) -> LatencyPredictor:
        """Reads what `save` wrote.

        Raises:
            DamagedFileError: the file is missing or holds something else.
        """
        try:
            state = _State.model_validate_json(path.read_bytes())
            regression = Regression.of(state.regression)
            if len(regression.prices) != amounts([], state.parts, alone=False).shape[1]:
                raise ValueError("its prices do not fit its columns")
            known = state.quality
            quality = known and Quality(n=int(known["n"]), **{name: value for name, value in known.items() if name != "n"})
        except FileNotFoundError as error:
            raise DamagedFileError(f"there is no predictor {path}; fit it again from its table") from error
        except ValidationError as error:
            first = faults(error)[0]
            where = first.place or "the file"
            raise DamagedFileError(f"{path} is no predictor: {where}: {first.reason}; fit it again from its table") from error
        except (ValueError, KeyError, TypeError, xgboost.core.XGBoostError) as error:
            raise DamagedFileError(f"{path} is damaged; fit the predictor again from its table") from error
        return cls(
            regression, state.parts, summed=state.summed, ranges=state.ranges, quality=quality or None, made_for=state.made_for
        )


_ROLES: tuple[Role, ...] = ("fit", "test")
_FORMAT: Literal["natdeploy latency predictor 4"] = "natdeploy latency predictor 4"

_Range = tuple[int, int]
_Convolution = tuple[str, int, int] | tuple[str, int, int, int]


class _Ranges(BaseModel):
    """What was measured: kinds with kernel, stride and any dilation, kinds with activation and whether there is
    squeeze-and-excitation, and for each kind of block the smallest and largest of its numbers.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    convolutions: frozenset[_Convolution]
    styles: frozenset[tuple[str, str, bool]]
    limits: dict[str, tuple[_Range, _Range, _Range, _Range]]

    @classmethod
    def of(cls, blocks: Sequence[Block]) -> _Ranges:
        numbers: dict[str, list[tuple[int, int, int, int]]] = {}
        for block in blocks:
            numbers.setdefault(block.kind, []).append(_numbers(block))
        limits = {}
        for kind, rows in numbers.items():
            size, inputs, mid, outputs = ((min(column), max(column)) for column in zip(*rows, strict=True))
            # A classifier of fewer classes than any measured costs less than the least of them, which is next to nothing.
            limits[kind] = (size, inputs, mid, (1, outputs[1]) if kind == "classifier" else outputs)
        return cls(convolutions=frozenset(map(_convolution, blocks)), styles=frozenset(map(_style, blocks)), limits=limits)

    def holds(self, block: Block) -> bool:
        if _convolution(block) not in self.convolutions or _style(block) not in self.styles:
            return False
        return all(low <= number <= high for number, (low, high) in zip(_numbers(block), self.limits[block.kind], strict=True))


def _convolution(block: Block) -> _Convolution:
    return block.kind, *depthwise_of(block)


def _style(block: Block) -> tuple[str, str, bool]:
    return block.kind, block.activation, block.squeeze > 0


def _numbers(block: Block) -> tuple[int, int, int, int]:
    return block.size, block.in_channels, block.mid_channels, block.out_channels


class _State(BaseModel):
    """A predictor's file."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    format: Literal["natdeploy latency predictor 4"]
    made_for: MadeFor
    parts: Parts
    regression: RegressionState
    summed: bool
    ranges: _Ranges
    quality: dict[str, float] | None


def _columns(rows: Sequence[BlockRow]) -> tuple[list[Block], Floats]:
    return [row.block for row in rows], np.array([row.timing.latency_ms for row in rows])


def _fit_blocks(blocks: Sequence[Block], block_ms: Floats, parts: Parts) -> Regression:
    """Of blocks that run alone, and nothing else."""
    return Regression.fit(None, amounts(blocks, parts, alone=True), block_ms)


def _fit(
    blocks: Sequence[Block],
    block_ms: Floats,
    block_weights: Floats,
    nets: Sequence[Sequence[Block]],
    net_ms: Floats,
    *,
    parts: Parts,
) -> Regression:
    """Of networks, with blocks that ran alone as a prior that weighs little."""
    within, counts = count_parts(nets)
    rows = np.vstack([amounts(within, parts, alone=False), amounts(blocks, parts, alone=True)])
    return Regression.fit(
        sparse.block_diag([counts, sparse.eye_array(len(blocks))], format="csr"),
        rows,
        np.r_[net_ms, block_ms],
        weights=np.r_[np.full(len(nets), 1 / len(nets)), block_weights],
        judged=np.arange(len(nets) + len(blocks)) < len(nets),
    )


def _slowed_down(
    prior: Sequence[BlockRow], nets: Sequence[Sequence[Block]], net_ms: Floats, known: set[Block]
) -> tuple[list[Block], Floats]:
    """Blocks of another target that are not known here, slowed down by as much as the median network is slower here."""
    others, other_ms = _columns(prior)
    within, counts = count_parts(nets)
    parts = parts_of([*others, *within])
    there = _fit_blocks(others, other_ms, parts)
    ratio = float(np.median(net_ms / (counts @ there.predict(None, amounts(within, parts, alone=True)))))
    kept = [i for i, block in enumerate(others) if block not in known]
    return [others[i] for i in kept], ratio * other_ms[kept]


def judge(predicted: Floats, measured: Floats, spread: float) -> Quality:
    """Quality of predictions (n,) of what was measured (n,); `spread` is the half width of the interval, as a log-ratio."""
    error = np.abs(predicted / measured - 1)
    return Quality(
        n=len(error),
        within_5=float((error <= 0.05).mean()),
        within_10=float((error <= 0.10).mean()),
        mape=float(error.mean()),
        spearman=float(spearmanr(predicted, measured)[0]),
        kendall=float(kendalltau(predicted, measured)[0]),
        coverage=float((np.abs(np.log(predicted / measured)) <= spread).mean()),
    )
