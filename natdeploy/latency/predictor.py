"""Latency of blocks and of whole architectures, learned from a table.

Two models share the analytic columns of `blocks.work`, whose costs are never negative (non-negative least squares on relative
errors). The block model adds what a block pays for running alone, and XGBoost on the log-ratio that is left over. The network
model is fitted to whole networks and, as a prior that weighs little, to the blocks; it pays once for the call, and for caches that
are cold within a network. It stays a sum over blocks, so whole populations are predicted by look-up.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import xgboost
from pydantic import BaseModel, ConfigDict, ValidationError
from scipy.optimize import nnls
from scipy.stats import kendalltau, spearmanr

from natdeploy.errors import DamagedFileError, UsageError
from natdeploy.latency.blocks import Floats, Parts, boundary, cold, parts_of, work, work_names
from natdeploy.latency.table import BlockRow, Provenance, Role, Table
from natdeploy.space import Arch, Block, BlockSum, Genotypes, SearchSpace

FOLDS = 5
MIN_FIT = 5
"""Fewest whole networks that a network model is fitted to."""

NETWORK_WEIGHTS = (3.0, 10.0, 30.0, 100.0)
"""What all whole networks together weigh, in units of all blocks together; cross-validation chooses."""

COVERAGE = 0.9
"""Share of architectures whose latency the interval of a prediction is meant to hold."""

_BOOSTER_GAIN = 0.95
"""A booster must bring the cross-validated error below this share of the error without it."""

_XGBOOST = {"max_depth": 3, "eta": 0.05, "subsample": 0.8, "colsample_bytree": 0.5, "min_child_weight": 3, "nthread": 1, "seed": 0}
_ROUNDS = 150


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


class BlockModel:
    """Latency of blocks that run alone.

    Args:
        parts: what was measured and has columns of its own.
        weights: cost of each column, ms.
        booster: of the log-ratio to that sum, or None where it does not help.
    """

    def __init__(self, parts: Parts, weights: Floats, booster: xgboost.Booster | None) -> None:
        self.parts, self.weights, self.booster = parts, weights, booster

    @classmethod
    def fit(cls, blocks: Sequence[Block], latency_ms: Floats) -> BlockModel:
        """Fits the sum, and the booster where cross-validation says that it helps."""
        parts = parts_of(blocks)
        columns = _alone(blocks, parts)
        fold = np.arange(len(blocks)) % FOLDS
        plain, boosted = np.empty((2, len(blocks)))
        for held_out in (fold == k for k in range(FOLDS)):
            weights = _relative_nnls(columns[~held_out], latency_ms[~held_out])
            booster = _boost(columns[~held_out], _sum(columns[~held_out], weights), latency_ms[~held_out])
            plain[held_out] = _sum(columns[held_out], weights)
            boosted[held_out] = plain[held_out] * _ratio(booster, columns[held_out], plain[held_out])
        weights = _relative_nnls(columns, latency_ms)
        helps = _log_error(boosted, latency_ms) < _BOOSTER_GAIN * _log_error(plain, latency_ms)
        return cls(parts, weights, _boost(columns, _sum(columns, weights), latency_ms) if helps else None)

    def predict(self, blocks: Sequence[Block]) -> Floats:
        """Milliseconds (blocks,)."""
        return _sum(_alone(blocks, self.parts), self.weights) * self.ratio(blocks)

    def ratio(self, blocks: Sequence[Block]) -> Floats:
        """How many times slower than their columns say blocks are, (blocks,)."""
        if self.booster is None:
            return np.ones(len(blocks))
        columns = _alone(blocks, self.parts)
        return _ratio(self.booster, columns, _sum(columns, self.weights))


@dataclass(frozen=True)
class NetworkModel:
    """Latency of whole networks: a call, and a share a block.

    Attributes:
        weights: ms a column of `work`, then of `cold`.
        call_ms: once a network.
        boosted: a block's columns are multiplied by the block model's ratio first.
        spread: half width of the interval, as a log-ratio; infinite where no network tells.
        error: mean absolute log-ratio to networks that were held out of the fit by cross-validation; likewise.
    """

    weights: Floats
    call_ms: float
    boosted: bool
    spread: float
    error: float

    def shares(self, blocks: Sequence[Block], model: BlockModel) -> Floats:
        """What each block adds to a network, ms, (blocks,)."""
        shares: Floats = _within(blocks, model, self.boosted) @ self.weights
        return shares


class LatencyPredictor:
    """Predicts what a table's target needs for blocks and architectures it was not measured with."""

    def __init__(
        self, block_model: BlockModel, network_model: NetworkModel, ranges: _Ranges, quality: Quality | None, made_for: MadeFor
    ) -> None:
        self._blocks, self._network, self._ranges = block_model, network_model, ranges
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
        if table.prior and len(nets["fit"]) >= MIN_FIT:
            blocks, block_ms = _with_prior(blocks, block_ms, table.prior, nets["fit"], net_ms["fit"])
        if len(blocks) < FOLDS or (not imported and (len(nets["fit"]) < MIN_FIT or len(nets["test"]) < 2)):
            raise UsageError(
                f"the table has {len(table.blocks)} blocks, {len(nets['fit'])} networks to learn from and {len(nets['test'])} to "
                f"judge by; a predictor needs {FOLDS}, {MIN_FIT} and 2: measure again with `natdeploy profile`"
            )
        block_model = BlockModel.fit(blocks, block_ms)
        made_for = MadeFor.of(table.provenance)
        ranges = _Ranges.of([*blocks, *(block for net in nets["fit"] for block in net)])
        if imported:
            return cls(block_model, _sum_of_blocks(block_model), ranges, None, made_for)
        network_model = _fit_network(blocks, block_ms, nets["fit"], net_ms["fit"], block_model)
        predicted = np.array([network_model.call_ms + network_model.shares(net, block_model).sum() for net in nets["test"]])
        quality = judge(predicted, net_ms["test"], network_model.spread)
        return cls(block_model, network_model, ranges, quality, made_for)

    @property
    def error(self) -> float:
        """Mean relative error of networks held out of the fit by cross-validation: known before any is set apart to judge by."""
        return self._network.error

    def predict_blocks(self, blocks: Sequence[Block]) -> Floats:
        """Latency of blocks that run alone, ms, (blocks,). Their sum is not a network's latency."""
        return self._blocks.predict(blocks)

    def total(self, space: SearchSpace, classes: int) -> Callable[[Genotypes], Floats]:
        """The function from genotypes (n, variables) to whole-network latency in ms, (n,)."""
        shares = BlockSum(space, lambda blocks: self._network.shares(blocks, self._blocks), classes)
        return lambda genotypes: shares(genotypes) + self._network.call_ms

    def terms(self, space: SearchSpace, classes: int, resolution: int, width: float) -> tuple[float, Floats]:
        """What gradient-based search differentiates: the latency, ms, of all that is fixed at a resolution and width, and what each
        code of each slot adds, (slots, codes). The expected latency of a mixture is fixed + (probabilities * added).sum(), linear
        in its probabilities (FBNet, Wu et al. 2019, equation 3), and equal to `predict` where they are 0 and 1.
        """
        shares = BlockSum(space, lambda blocks: self._network.shares(blocks, self._blocks), classes)
        fixed, added = shares.terms(space.resolutions.index(resolution), space.widths.index(width))
        return fixed + self._network.call_ms, added

    def predict(self, space: SearchSpace, archs: Sequence[Arch], classes: int) -> Prediction:
        """Latency of architectures, with an interval meant to hold 90 % of them."""
        genotypes = space.encode_all(archs)
        latency_ms = self.total(space, classes)(genotypes)
        strange = BlockSum(space, lambda blocks: [float(not self._ranges.holds(block)) for block in blocks], classes)
        factor = np.exp(self._network.spread)
        return Prediction(latency_ms, latency_ms / factor, latency_ms * factor, strange(genotypes) == 0)

    def save(self, path: Path) -> None:
        """Writes JSON, replacing an older file atomically."""
        booster = self._blocks.booster
        state = _State(
            format=_FORMAT,
            made_for=self.made_for,
            parts=self._blocks.parts,
            block_weights=tuple(self._blocks.weights.tolist()),
            booster=None if booster is None else bytes(booster.save_raw("json")).decode(),
            network_weights=tuple(self._network.weights.tolist()),
            call_ms=self._network.call_ms,
            boosted=self._network.boosted,
            spread=_finite(self._network.spread),
            error=_finite(self._network.error),
            ranges=self._ranges,
            quality=None if self.quality is None else asdict(self.quality),
        )
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            temporary.write_text(state.model_dump_json(indent=1))
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)

    @classmethod
    def load(cls, path: Path) -> LatencyPredictor:
        """Reads what `save` wrote.

        Raises:
            DamagedFileError: the file is missing or holds something else.
        """
        try:
            state = _State.model_validate_json(path.read_bytes())
            booster = None if state.booster is None else xgboost.Booster(model_file=bytearray(state.booster.encode()))
            block_weights, network_weights = np.array(state.block_weights), np.array(state.network_weights)
            columns = work([], state.parts).shape[1]
            if (len(block_weights), len(network_weights)) != (columns + 3, columns + 2):
                raise ValueError("its weights do not fit its columns")
            known = state.quality
            quality = known and Quality(n=int(known["n"]), **{name: value for name, value in known.items() if name != "n"})
        except FileNotFoundError as error:
            raise DamagedFileError(f"there is no predictor {path}; fit it again from its table") from error
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"])) or "the file"
            raise DamagedFileError(
                f"{path} is no predictor: {where}: {first['msg'].lower()}; fit it again from its table"
            ) from error
        except (ValueError, KeyError, TypeError, xgboost.core.XGBoostError) as error:
            raise DamagedFileError(f"{path} is damaged; fit the predictor again from its table") from error
        spread, held_out = (math.inf if each is None else each for each in (state.spread, state.error))
        network = NetworkModel(network_weights, state.call_ms, state.boosted, spread, held_out)
        return cls(BlockModel(state.parts, block_weights, booster), network, state.ranges, quality or None, state.made_for)


_ROLES: tuple[Role, ...] = ("fit", "test")
_FORMAT: Literal["natdeploy latency predictor 3"] = "natdeploy latency predictor 3"

_Range = tuple[int, int]


class _Ranges(BaseModel):
    """What was measured: kinds with kernel and stride, kinds with activation and whether there is squeeze-and-excitation, and for
    each kind of block the smallest and largest of its numbers.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    convolutions: frozenset[tuple[str, int, int]]
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


def _convolution(block: Block) -> tuple[str, int, int]:
    return block.kind, block.kernel, block.stride


def _style(block: Block) -> tuple[str, str, bool]:
    return block.kind, block.activation, block.squeeze > 0


def _numbers(block: Block) -> tuple[int, int, int, int]:
    return block.size, block.in_channels, block.mid_channels, block.out_channels


class _State(BaseModel):
    """A predictor's file."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    format: Literal["natdeploy latency predictor 3"]
    made_for: MadeFor
    parts: Parts
    block_weights: tuple[float, ...]
    booster: str | None
    network_weights: tuple[float, ...]
    call_ms: float
    boosted: bool
    spread: float | None
    error: float | None
    ranges: _Ranges
    quality: dict[str, float] | None


def _finite(value: float) -> float | None:
    """JSON has no infinity."""
    return value if math.isfinite(value) else None


def _alone(blocks: Sequence[Block], parts: Parts) -> Floats:
    """Columns of blocks that run alone: their work, what crosses their boundary, and one call each."""
    return np.hstack([work(blocks, parts), boundary(blocks), np.ones((len(blocks), 1))])


def _within(blocks: Sequence[Block], model: BlockModel, boosted: bool) -> Floats:
    """Columns of blocks within a network: their work and what is cold."""
    columns = np.hstack([work(blocks, model.parts), cold(blocks)])
    return columns * model.ratio(blocks)[:, None] if boosted else columns


def _columns(rows: Sequence[BlockRow]) -> tuple[list[Block], Floats]:
    return [row.block for row in rows], np.array([row.timing.latency_ms for row in rows])


def _with_prior(
    blocks: Sequence[Block], block_ms: Floats, prior: Sequence[BlockRow], nets: Sequence[Sequence[Block]], net_ms: Floats
) -> tuple[list[Block], Floats]:
    """Blocks of another target beside those of this one, slowed down by as much as the median network is slower here."""
    others, other_ms = _columns(prior)
    there = BlockModel.fit(others, other_ms)
    ratio = float(np.median(net_ms / np.array([there.predict(net).sum() for net in nets])))
    kept = [i for i, block in enumerate(others) if block not in set(blocks)]
    return [*blocks, *(others[i] for i in kept)], np.r_[block_ms, ratio * other_ms[kept]]


def _sum_of_blocks(model: BlockModel) -> NetworkModel:
    """A network as the sum of blocks that ran alone, which is all that tables without networks can say; of its error, nothing is
    known.
    """
    columns = len(work_names(model.parts))
    weights = np.r_[model.weights[:columns], np.zeros(2)]
    return NetworkModel(weights, 0.0, model.booster is not None, math.inf, math.inf)


def _fit_network(
    blocks: Sequence[Block], block_ms: Floats, nets: Sequence[Sequence[Block]], net_ms: Floats, model: BlockModel
) -> NetworkModel:
    """Fits all costs at once to whole networks and blocks; cross-validation over networks chooses their weight and the booster."""
    # Folds go round in the order of latency, so that each holds small and large networks.
    fold = np.argsort(np.argsort(net_ms, kind="stable"), kind="stable") % FOLDS
    best: tuple[float, bool, float, Floats] | None = None
    for boosted, weight in product((False, True) if model.booster is not None else (False,), NETWORK_WEIGHTS):
        prior, rows = _rows(blocks, nets, model, boosted)
        out_of_fold = np.empty(len(nets))
        for held_out in (fold == k for k in range(FOLDS)):
            costs = _joint_nnls(prior, block_ms, rows[~held_out], net_ms[~held_out], weight)
            out_of_fold[held_out] = rows[held_out] @ costs
        error = _log_error(out_of_fold, net_ms)
        if best is None or error < best[0]:
            best = (error, boosted, weight, out_of_fold)
    assert best is not None
    _, boosted, weight, out_of_fold = best
    prior, rows = _rows(blocks, nets, model, boosted)
    costs = _joint_nnls(prior, block_ms, rows, net_ms, weight)
    size = rows.shape[1] - 3
    # Split conformal: with n residuals the ceil((n + 1) c)-th smallest covers a new one with probability c.
    residuals = np.sort(np.abs(np.log(out_of_fold / net_ms)))
    spread = float(residuals[min(len(nets), int(np.ceil((len(nets) + 1) * COVERAGE))) - 1])
    return NetworkModel(costs[:size], float(costs[-1]), boosted, spread, float(residuals.mean()))


def _rows(blocks: Sequence[Block], nets: Sequence[Sequence[Block]], model: BlockModel, boosted: bool) -> tuple[Floats, Floats]:
    """Columns of blocks and of networks in one system: work, cold (networks alone), boundary (blocks alone), call."""
    alone = _within(blocks, model, boosted)
    alone[:, -2:] = 0
    prior = np.hstack([alone, boundary(blocks), np.ones((len(blocks), 1))])
    sums = np.array([_within(net, model, boosted).sum(axis=0) for net in nets])
    return prior, np.hstack([sums, np.zeros((len(nets), 2)), np.ones((len(nets), 1))])


def _joint_nnls(prior: Floats, block_ms: Floats, rows: Floats, net_ms: Floats, weight: float) -> Floats:
    """Costs from blocks and networks; the networks weigh `weight` times what the blocks do."""
    scale = np.sqrt(weight * len(block_ms) / len(net_ms))
    return _nnls(
        np.vstack([prior / block_ms[:, None], scale * rows / net_ms[:, None]]),
        np.r_[np.ones(len(block_ms)), np.full(len(net_ms), scale)],
    )


def _sum(columns: Floats, weights: Floats) -> Floats:
    """Costs added up, ms. Where all of them are 0, next to nothing, whose logarithm exists."""
    return np.maximum(columns @ weights, 1e-6)


def _relative_nnls(columns: Floats, latency_ms: Floats) -> Floats:
    """Costs >= 0 with the least sum of squared relative errors."""
    return _nnls(columns / latency_ms[:, None], np.ones(len(latency_ms)))


def _nnls(matrix: Floats, target: Floats) -> Floats:
    # Columns differ by nine orders of magnitude, which the solver's tolerance does not bear.
    scale = np.linalg.norm(matrix, axis=0)
    scale[scale == 0] = 1
    costs: Floats = nnls(matrix / scale, target)[0] / scale
    return costs


def _seen_by_booster(columns: Floats, latency_ms: Floats) -> xgboost.DMatrix:
    return xgboost.DMatrix(np.column_stack([np.log(latency_ms), np.log1p(columns)]), nthread=1)


def _boost(columns: Floats, latency_ms: Floats, measured_ms: Floats) -> xgboost.Booster:
    """Learns the log-ratio of what was measured to what the sum says."""
    data = _seen_by_booster(columns, latency_ms)
    data.set_label(np.log(measured_ms / latency_ms))
    return xgboost.train(_XGBOOST, data, _ROUNDS)


def _ratio(booster: xgboost.Booster, columns: Floats, latency_ms: Floats) -> Floats:
    return np.exp(booster.predict(_seen_by_booster(columns, latency_ms)).astype(np.float64))


def _log_error(predicted: Floats, measured: Floats) -> float:
    return float(np.abs(np.log(predicted / measured)).mean())


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
