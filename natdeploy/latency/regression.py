"""Latency of samples that are sums of parts: networks of blocks, or blocks alone.

A part is described by `amounts` (p, m) of work, none negative; a sample holds parts so many times, `counts` (n, p). Three stages,
each kept only where cross-validation says that it helps:

1. physics: every amount has a price that is not negative (non-negative least squares on relative errors), and a call costs once;
2. correction: a Gaussian process (Rasmussen and Williams, Gaussian Processes for Machine Learning, 2006) over what a *part* costs
   beyond that, learned although only sums of parts were measured;
3. booster: XGBoost on the log-ratio left over of the *sample*, which sees what no sum over parts can, e.g. a device that waits
   for its host.

The first two are sums over parts, so whole populations are predicted by look-up. Symbols: n samples, p parts, m amounts,
q landmarks.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import asdict, dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import xgboost
from pydantic import BaseModel, ConfigDict
from scipy import sparse
from scipy.linalg import cho_solve, cholesky, solve_triangular
from scipy.optimize import minimize, nnls

from natdeploy.errors import UsageError

Floats = npt.NDArray[np.float64]
_Part = TypeVar("_Part", bound=Hashable)

FOLDS = 10
LEAST = 5
"""Fewest samples that a regression can be judged by."""

COVERAGE = 0.9
"""Share of samples whose latency the interval of a prediction is meant to hold."""

_GAIN = 0.95
"""A stage must bring the cross-validated error below this share of the error without it."""

_LENGTH = 2.0
"""Length scale in units of the root of the number of amounts, whose logarithms have unit variance: 1 to 4 do as well."""

_FLOOR = 0.1
"""`Correction.floor_ms` relative to what a part costs on average."""

_LANDMARKS = 128
"""Most parts that the correction is spanned by."""

_OUTLIER = 3.0
"""Robust standard deviations from which on a sample weighs less."""

SMALLEST_MS = 1e-6
"""A sum is cut off here, so that its logarithm exists."""

_XGBOOST = {"max_depth": 3, "eta": 0.05, "subsample": 0.8, "colsample_bytree": 0.5, "min_child_weight": 3, "nthread": 1, "seed": 0}
_ROUNDS = 150


def count_parts(samples: Sequence[Sequence[_Part]]) -> tuple[list[_Part], sparse.csr_array]:
    """Distinct parts in the order of their first occurrence, and how often each sample holds each, (n, p)."""
    place: dict[_Part, int] = {}
    columns = [place.setdefault(part, len(place)) for sample in samples for part in sample]
    rows = np.repeat(np.arange(len(samples)), [len(sample) for sample in samples])
    counts = sparse.coo_array((np.ones(len(columns)), (rows, columns)), shape=(len(samples), len(place)))
    return list(place), counts.tocsr()  # which adds up what occurs twice


class CorrectionState(BaseModel):
    """A correction as JSON; see `Correction`."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    prices: tuple[float, ...]
    floor_ms: float
    centre: tuple[float, ...]
    scale: tuple[float, ...]
    landmarks: tuple[tuple[float, ...], ...]
    coefficients: tuple[float, ...]


class RegressionState(BaseModel):
    """A regression as JSON; see `Regression`."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    call_ms: float
    prices: tuple[float, ...]
    correction: CorrectionState | None
    booster: str | None
    spread: float
    errors: tuple[float, ...]


@dataclass(frozen=True)
class Correction:
    """What parts cost beyond their price: weighted similarity to landmarks.

    Attributes:
        prices: ms per amount (m,): a part's correction is in proportion to what it costs.
        floor_ms: but no part is so cheap that it cannot be corrected.
        centre: of the logarithms of the amounts (m,).
        scale: of them (m,), times the length scale.
        landmarks: parts as the kernel sees them (q, m).
        coefficients: (q,).
    """

    prices: Floats
    floor_ms: float
    centre: Floats
    scale: Floats
    landmarks: Floats
    coefficients: Floats

    def parts(self, amounts: Floats) -> Floats:
        """Milliseconds (p,)."""
        similar = _matern(_seen(amounts, self.centre, self.scale), self.landmarks)
        corrected: Floats = (amounts @ self.prices + self.floor_ms) * (similar @ self.coefficients)
        return corrected


@dataclass(frozen=True)
class Regression:
    """Latency of sums of parts.

    Attributes:
        call_ms: once a sample.
        prices: ms per amount (m,).
        correction: of parts, or None.
        booster: of samples, or None.
        spread: half width of the interval that holds `COVERAGE` of new samples, as a log-ratio (split conformal).
        errors: cross-validated mean absolute log-ratio after each stage, kept or not.
    """

    call_ms: float
    prices: Floats
    correction: Correction | None
    booster: xgboost.Booster | None
    spread: float
    errors: tuple[float, ...]

    @classmethod
    def fit(
        cls,
        counts: sparse.csr_array | None,
        amounts: Floats,
        latency_ms: Floats,
        *,
        weights: Floats | None = None,
        judged: npt.NDArray[np.bool_] | None = None,
    ) -> Regression:
        """Learns prices, correction and booster.

        Args:
            counts: of parts in samples (n, p); None where every sample is one part.
            amounts: of work in parts (p, m), finite and not negative.
            latency_ms: measured (n,).
            weights: of samples (n,), inverse to the variance of their relative error; all alike where left out.
            judged: samples (n,) like those that will be predicted, which every choice, the errors and the interval are about; the
                others are only learned from. All where left out.

        Raises:
            UsageError: too few samples to judge by, or a number that is none.
        """
        n = len(latency_ms)
        about = np.flatnonzero(np.ones(n, dtype=np.bool_) if judged is None else judged)
        if len(about) < LEAST:
            raise UsageError(f"a latency regression needs {LEAST} measurements or more to judge by, not {len(about)}")
        if not (np.isfinite(latency_ms).all() and (latency_ms > 0).all() and np.isfinite(amounts).all() and (amounts >= 0).all()):
            raise UsageError("latencies must be positive and amounts of work not negative, all of them finite")
        counts = sparse.eye_array(n, format="csr") if counts is None else counts
        system = _System.of(counts, amounts, latency_ms, np.ones(n) if weights is None else weights)
        # Folds go round in the order of latency, so that each holds small and large samples.
        fold = np.full(n, -1)
        fold[about[np.argsort(latency_ms[about], kind="stable")]] = np.arange(len(about)) % FOLDS
        held = [fold == k for k in range(min(FOLDS, len(about)))]

        out_of_fold = [np.empty(n), np.empty(n)]
        logs, likely = system.choose()
        for test in held:
            out_of_fold[0][test] = system.rows[test] @ system.physics(~test)
            prices, coefficients = system.corrected(logs, likely, ~test)
            out_of_fold[1][test] = system.rows[test] @ prices + system.span[test] @ coefficients
        truth = latency_ms[about]
        predicted = [np.maximum(relative[about] * truth, SMALLEST_MS) for relative in out_of_fold]
        errors = [_log_error(each, truth) for each in predicted]

        prices, correction = system.physics(), None
        if keep := errors[1] < errors[0]:
            prices, coefficients = system.corrected(logs, likely)
            correction = system.correction(coefficients)
        sums, error = predicted[keep], errors[keep]

        # The booster learns from what held-out samples leave over: what a fitted sum leaves over is smaller, and of another kind.
        seen = _seen_by_booster(sums, counts[about] @ amounts)
        ratio = np.log(truth / sums)
        boosted = np.empty(len(about))
        for test in (each[about] for each in held):
            boosted[test] = _boosted(_boost(seen[~test], ratio[~test]), seen[test])
        boosted = sums * np.exp(boosted)
        errors.append(_log_error(boosted, truth))
        booster = None
        if errors[2] < _GAIN * error:
            booster, sums = _boost(seen, ratio), boosted
        return cls(float(prices[0]), prices[1:], correction, booster, _spread(np.abs(np.log(sums / truth))), tuple(errors))

    @property
    def error(self) -> float:
        """Cross-validated mean absolute log-ratio with all that was kept."""
        return self.errors[2 if self.booster is not None else 1 if self.correction is not None else 0]

    def parts(self, amounts: Floats) -> Floats:
        """What parts add to the sum, ms (p,); a correction may make the smallest of them negative."""
        priced: Floats = amounts @ self.prices
        return priced if self.correction is None else priced + self.correction.parts(amounts)

    def sums(self, counts: sparse.csr_array | None, amounts: Floats) -> Floats:
        """Milliseconds of samples (n,) as sums over their parts, call included, without the booster."""
        parts = self.parts(amounts)
        return np.maximum(self.call_ms + (parts if counts is None else counts @ parts), SMALLEST_MS)

    def predict(self, counts: sparse.csr_array | None, amounts: Floats) -> Floats:
        """Milliseconds of samples (n,); `counts` and `amounts` as in `fit`."""
        return self.boost(self.sums(counts, amounts), amounts if counts is None else counts @ amounts)

    def boost(self, sums_ms: Floats, totals: Floats) -> Floats:
        """Sums over parts, call included (n,), times what the booster, if there is one, says of them and of their total amounts
        (n, m).
        """
        sums_ms = np.maximum(sums_ms, SMALLEST_MS)
        return sums_ms if self.booster is None else sums_ms * np.exp(_boosted(self.booster, _seen_by_booster(sums_ms, totals)))

    def state(self) -> RegressionState:
        """All of it, for a JSON file."""
        correction = None
        if self.correction is not None:
            fields = {name: np.asarray(value).tolist() for name, value in asdict(self.correction).items()}
            correction = CorrectionState.model_validate(fields)
        return RegressionState(
            call_ms=self.call_ms,
            prices=tuple(self.prices.tolist()),
            correction=correction,
            booster=None if self.booster is None else bytes(self.booster.save_raw("json")).decode(),
            spread=self.spread,
            errors=self.errors,
        )

    @classmethod
    def of(cls, state: RegressionState) -> Regression:
        """Reads what `state` says.

        Raises:
            ValueError: its parts do not fit each other.
            xgboost.core.XGBoostError: the booster is none.
        """
        prices = np.array(state.prices)
        correction = None
        if (c := state.correction) is not None:
            vectors = [np.array(each) for each in (c.prices, c.centre, c.scale)]
            landmarks, coefficients = np.array(c.landmarks), np.array(c.coefficients)
            if any(each.shape != prices.shape for each in vectors) or landmarks.shape != (len(coefficients), len(prices)):
                raise ValueError("the correction does not fit the prices")
            correction = Correction(vectors[0], c.floor_ms, vectors[1], vectors[2], landmarks, coefficients)
        booster = None if state.booster is None else xgboost.Booster(model_file=bytearray(state.booster.encode()))
        return cls(state.call_ms, prices, correction, booster, state.spread, state.errors)


@dataclass(frozen=True)
class _System:
    """Everything in units of the measured latencies, so that least squares are of relative errors.

    Attributes:
        amounts: of parts (p, m).
        rows: one for the call, then total amounts (n, 1 + m).
        weights: of samples, 1 on average (n,).
        rough: prices (m,) that the correction is in proportion to.
        floor_ms: see `Correction`.
        centre: see `Correction`.
        scale: see `Correction`.
        landmarks: places among the parts (q,).
        factor: Cholesky factor of the landmarks' kernel (q, q), lower.
        span: sums over a sample's parts of the functions that the correction consists of (n, q).
        mean_square: length of a row of `span`, squared, on average.
    """

    amounts: Floats
    rows: Floats
    weights: Floats
    rough: Floats
    floor_ms: float
    centre: Floats
    scale: Floats
    landmarks: npt.NDArray[np.int64]
    factor: Floats
    span: Floats
    mean_square: float

    @classmethod
    def of(cls, counts: sparse.csr_array, amounts: Floats, latency_ms: Floats, weights: Floats) -> _System:
        rows = np.column_stack([np.ones(len(latency_ms)), counts @ amounts]) / latency_ms[:, None]
        weights = weights / weights.mean()
        rough = _physics(rows, weights)[1:]
        floor_ms = _FLOOR * float(latency_ms.mean() / counts.sum(axis=1).mean())
        logs = np.log1p(amounts)
        centre, scale = logs.mean(axis=0), logs.std(axis=0)
        scale[scale < 1e-9] = 1
        scale *= _LENGTH * np.sqrt(len(scale))
        landmarks, functions = _pivoted_cholesky(_seen(amounts, centre, scale), amounts @ rough + floor_ms)
        span = (counts @ functions) / latency_ms[:, None]
        mean_square = float((span**2).sum(axis=1).mean())
        return cls(amounts, rows, weights, rough, floor_ms, centre, scale, landmarks, functions[landmarks], span, mean_square)

    def physics(self, among: _Among = slice(None)) -> Floats:
        """Call and prices (1 + m,), learned from some samples."""
        return _physics(self.rows[among], self.weights[among])

    def choose(self) -> tuple[Floats, Floats]:
        """Logarithms of the two variances where they are likeliest, and weights of samples (n,), less for outliers.

        The likelihood is the restricted one: prices are fitted, which leaves less over than there is, so it must not know them.
        """
        prices = self.physics()
        left = 1 - self.rows @ prices
        trend = self.rows[:, prices > 0]
        trend = trend / np.sqrt((trend**2).mean(axis=0))
        open_prices = _OPEN * trend @ trend.T
        kernel = self.span @ self.span.T / self.mean_square
        weights = self.weights
        logs = _likeliest(open_prices, kernel, left, weights, _START)
        for _ in range(2):
            inverse = np.linalg.inv(open_prices + _covariance(kernel, logs, weights))
            # Errors of leaving one out, in closed form (Rasmussen and Williams, equation 5.12).
            errors = np.abs(inverse @ left / np.diag(inverse)) * np.sqrt(self.weights)
            # Of normal errors, the median is 1 / 1.4826 standard deviations.
            limit = max(_OUTLIER * 1.4826 * float(np.median(errors)), 1e-9)
            weights = self.weights * np.minimum(1, limit / np.maximum(errors, 1e-12)) ** 2
            logs = _likeliest(open_prices, kernel, left, weights, logs)
        return logs, weights

    def corrected(self, logs: Floats, weights: Floats, among: _Among = slice(None)) -> tuple[Floats, Floats]:
        """Universal kriging with prices >= 0, learned from some samples: prices (1 + m,), coefficients of the span (q,)."""
        span = self.span[among]
        covariance = _covariance(span @ span.T / self.mean_square, logs, weights[among])
        lower = cholesky(covariance, lower=True)
        white = solve_triangular(lower, np.column_stack([self.rows[among], np.ones(len(span))]), lower=True)
        prices = _nnls(white[:, :-1], white[:, -1])
        dual = solve_triangular(lower, white[:, -1] - white[:, :-1] @ prices, lower=True, trans="T")
        return prices, np.exp(logs[0]) / self.mean_square * (span.T @ dual)

    def correction(self, coefficients: Floats) -> Correction:
        """As a function of any part's amounts; the coefficients are those of the span."""
        landmarks = self.amounts[self.landmarks]
        coefficients = solve_triangular(self.factor, coefficients, trans="T", lower=True)
        coefficients = coefficients * (landmarks @ self.rough + self.floor_ms)
        seen = _seen(landmarks, self.centre, self.scale)
        return Correction(self.rough, self.floor_ms, self.centre, self.scale, seen, coefficients)


_Among = npt.NDArray[np.bool_] | slice

_OPEN = 1.0
"""Variance of prices that are left open, relative to a latency that consists of nothing else."""

_START = np.log(np.array([1e-2, 1e-3]))
_BOUNDS = [(-18.0, 5.0), (-14.0, 0.0)]
"""Logarithms of the variances of parts and of noise (which is 0.1 % or more of a latency)."""


def _covariance(kernel: Floats, logs: Floats, weights: Floats) -> Floats:
    part, noise = np.exp(logs)
    covariance: Floats = part * kernel + np.diag(noise / weights)
    return covariance


def _likeliest(open_prices: Floats, kernel: Floats, left: Floats, weights: Floats, start: Floats) -> Floats:
    """Logarithms of the two variances of the largest likelihood (equations 5.8 and 5.9 of the book)."""
    identity = np.eye(len(left))

    def negative(logs: Floats) -> tuple[float, Floats]:
        lower = cholesky(open_prices + _covariance(kernel, logs, weights), lower=True)
        inverse = cho_solve((lower, True), identity)
        dual = inverse @ left
        slope = (inverse - np.outer(dual, dual)) / 2
        part, noise = np.exp(logs)
        gradient = [part * np.vdot(slope, kernel), noise * (np.diag(slope) / weights).sum()]
        return float(left @ dual / 2 + np.log(np.diag(lower)).sum()), np.array(gradient)

    found: Floats = minimize(negative, start, jac=True, method="L-BFGS-B", bounds=_BOUNDS, options={"maxiter": 40}).x
    return found


def _pivoted_cholesky(seen: Floats, scale: Floats) -> tuple[npt.NDArray[np.int64], Floats]:
    """Landmarks (q,) and columns (p, q) whose product with themselves is nearly the kernel of all parts.

    The next landmark is the part that those before it explain least (Fine and Scheinberg, JMLR 2001).
    """
    most = min(_LANDMARKS, len(seen))
    left, columns, landmarks = scale**2, np.zeros((len(seen), most)), []
    enough = 1e-6 * left.max()
    for j in range(most):
        i = int(np.argmax(left))
        if left[i] <= enough:
            break
        kernel = _matern(seen, seen[i : i + 1])[:, 0] * scale * scale[i]
        columns[:, j] = (kernel - columns[:, :j] @ columns[i, :j]) / np.sqrt(left[i])
        left = np.maximum(left - columns[:, j] ** 2, 0)
        left[i] = 0
        landmarks.append(i)
    return np.array(landmarks, dtype=np.int64), columns[:, : len(landmarks)]


def _seen(amounts: Floats, centre: Floats, scale: Floats) -> Floats:
    """Parts as the kernel sees them: a part that lacks a kind of work lies far from those that have it."""
    return (np.log1p(amounts) - centre) / scale


def _matern(one: Floats, other: Floats) -> Floats:
    """Matern kernel of smoothness 3/2 (equation 4.17 of the book): costs have kinks where caches and vectors end."""
    squares = (one**2).sum(axis=1)[:, None] + (other**2).sum(axis=1) - 2 * one @ other.T
    distance = np.sqrt(3 * np.maximum(squares, 0))
    kernel: Floats = (1 + distance) * np.exp(-distance)
    return kernel


def _physics(rows: Floats, weights: Floats) -> Floats:
    """Call and prices >= 0 with which rows come nearest to one."""
    root = np.sqrt(weights)
    return _nnls(rows * root[:, None], root)


def _nnls(matrix: Floats, target: Floats) -> Floats:
    # Columns differ by nine orders of magnitude, which the solver's tolerance does not bear.
    scale = np.linalg.norm(matrix, axis=0)
    scale[scale == 0] = 1
    prices: Floats = nnls(matrix / scale, target)[0] / scale
    return prices


def _seen_by_booster(sums_ms: Floats, totals: Floats) -> Floats:
    return np.column_stack([np.log(sums_ms), np.log1p(totals)])


def _boost(seen: Floats, ratio: Floats) -> xgboost.Booster:
    return xgboost.train(_XGBOOST, xgboost.DMatrix(seen, ratio, nthread=1), _ROUNDS)


def _boosted(booster: xgboost.Booster, seen: Floats) -> Floats:
    logs: Floats = booster.inplace_predict(seen).astype(np.float64)
    return logs


def _log_error(predicted: Floats, measured: Floats) -> float:
    return float(np.abs(np.log(predicted / measured)).mean())


def _spread(residuals: Floats) -> float:
    """Of n residuals the ceil((n + 1) c)-th smallest covers a new one with probability c."""
    n = len(residuals)
    return float(np.sort(residuals)[min(n, int(np.ceil((n + 1) * COVERAGE))) - 1])
