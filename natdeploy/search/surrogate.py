"""Models that predict the error of an architecture from its genotype; the data choose which.

NAT, its reproductions and its successors each use another one (RBF ensemble, Gaussian process, boosted trees), and none wins at
every archive size, so all three are cross-validated on the archive and the best ranking wins (adaptive switching, NSGANetV2,
arXiv 2007.10396). Inputs are features (n, f), targets are errors (n,).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
from scipy.linalg import cho_solve, cholesky, qr, solve, solve_triangular
from scipy.stats import kendalltau, spearmanr
from sklearn.exceptions import ConvergenceWarning
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import DotProduct, Matern, WhiteKernel
from xgboost import XGBRegressor

from natdeploy.errors import UsageError
from natdeploy.search.objectives import Floats
from natdeploy.space import Genotypes, SearchSpace

FOLDS = 5
FEWEST = 10
"""Samples that cross-validation needs."""

SMOOTHING = 100.0
"""Of radial basis functions, in cubes of distances between scaled features."""

EARLIER_GAIN = 2.0
"""Over the number of samples: what tau must gain by earlier searches. Unrelated ones gain less by chance (docs/search.md)."""


class Surrogate(Protocol):
    def fit(self, features: Floats, errors: Floats) -> None:
        """Learns from features (n, f) and errors (n,), hyper-parameters included."""

    def refit(self, features: Floats, errors: Floats) -> Surrogate:
        """A new one that learned from other samples with the same hyper-parameters."""

    def predict(self, features: Floats) -> Prediction:
        """Errors of features (n, f), and how sure they are."""


class Prediction(NamedTuple):
    """Errors (n,), and one standard deviation of each (n,); all zero where a model cannot tell."""

    errors: Floats
    deviation: Floats


class RBFEnsemble:
    """Median of cubic radial basis functions with a linear tail, each on a random part of the features (NAT, arXiv 2005.05859).

    A tail needs more samples than features, so a member takes at most half as many features as there are samples; a little
    smoothing keeps it from chasing the noise of a small validation set, which exact interpolation would. Where the members
    disagree, the ensemble is not sure.
    """

    def __init__(self, rng: np.random.Generator, members: int = 30) -> None:
        self._rng = rng
        self._count = members
        self._members: list[tuple[npt.NDArray[np.int64], _Cubic]] = []

    def fit(self, features: Floats, errors: Floats) -> None:
        varied = np.flatnonzero(np.ptp(features, axis=0))
        most = min(len(varied), len(features) // 2)
        self._members = []
        for _ in range(self._count):
            size = self._rng.integers(max(1, most // 2), most, endpoint=True)
            columns = _independent(features, self._rng.choice(varied, size, replace=False))
            self._members.append((columns, _Cubic(features[:, columns], errors)))

    def refit(self, features: Floats, errors: Floats) -> Surrogate:
        other = RBFEnsemble(self._rng, self._count)
        other.fit(features, errors)
        return other

    def predict(self, features: Floats) -> Prediction:
        all_of_them = np.stack([model(features[:, columns]) for columns, model in self._members])
        return Prediction(np.median(all_of_them, axis=0), all_of_them.std(axis=0))


class _Cubic:
    """Cubic radial basis functions with a linear tail and smoothing, as scipy's RBFInterpolator; it predicts five times faster."""

    def __init__(self, samples: Floats, errors: Floats) -> None:
        self._samples = samples
        tail = self._tail(samples)
        count = tail.shape[1]
        system = np.block([[_cubes(samples, samples) + SMOOTHING * np.eye(len(samples)), tail], [tail.T, np.zeros((count, count))]])
        self._weights = solve(system, np.concatenate([errors, np.zeros(count)]), assume_a="sym")

    def __call__(self, features: Floats) -> Floats:
        predicted: Floats = np.hstack([_cubes(features, self._samples), self._tail(features)]) @ self._weights
        return predicted

    @staticmethod
    def _tail(features: Floats) -> Floats:
        return np.hstack([np.ones((len(features), 1)), features])


def _cubes(first: Floats, second: Floats) -> Floats:
    """Third powers of the distances (n, k) between rows."""
    squares: Floats = np.maximum((first**2).sum(axis=1)[:, None] + (second**2).sum(axis=1) - 2 * first @ second.T, 0.0)
    cubes: Floats = squares * np.sqrt(squares)
    return cubes


class GaussianProcess:
    """A linear trend and a Matérn 5/2 process with noise, all of one length scale, hyper-parameters by maximum likelihood."""

    def fit(self, features: Floats, errors: Floats) -> None:
        trend = 0.01 * DotProduct(sigma_0=0.0, sigma_0_bounds="fixed")
        kernel = trend + 1.0 * Matern(length_scale=features.shape[1] ** 0.5, nu=2.5) + WhiteKernel(0.1)
        model = GaussianProcessRegressor(kernel, normalize_y=True, random_state=0)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # a part that explains nothing ends at its bound, which is right
            model.fit(features, errors)
        self._kernel, self._noise = model.kernel_.k1, model.kernel_.k2.noise_level + model.alpha
        self._learn(features, errors)

    def refit(self, features: Floats, errors: Floats) -> Surrogate:
        other = GaussianProcess()
        other._kernel, other._noise = self._kernel, self._noise
        other._learn(features, errors)
        return other

    def _learn(self, features: Floats, errors: Floats) -> None:
        self._samples = features
        self._mean, self._scale = errors.mean(), errors.std() or 1.0
        covariance = self._kernel(features) + self._noise * np.eye(len(features))
        self._factor = cholesky(covariance, lower=True)
        self._weights = cho_solve((self._factor, True), (errors - self._mean) / self._scale)

    def predict(self, features: Floats) -> Prediction:
        """The deviation is of the error itself, without the noise of evaluating it."""
        across = self._kernel(features, self._samples)
        explained = solve_triangular(self._factor, across.T, lower=True)
        variance = np.maximum(self._kernel.diag(features) - (explained**2).sum(axis=0), 0.0)
        return Prediction(self._mean + self._scale * (across @ self._weights), self._scale * np.sqrt(variance))


class BoostedTrees:
    """XGBoost with trees of two levels: main effects and pairs, all that a few hundred samples can tell.

    It does not tell how sure it is.
    """

    def __init__(self, rng: np.random.Generator) -> None:
        self._rng = rng
        self._model = XGBRegressor(
            n_estimators=300,
            learning_rate=0.05,
            max_depth=2,
            subsample=0.8,
            colsample_bytree=0.5,
            n_jobs=1,
            random_state=int(rng.integers(2**31)),
        )

    def fit(self, features: Floats, errors: Floats) -> None:
        self._model.fit(features, errors)

    def refit(self, features: Floats, errors: Floats) -> Surrogate:
        other = BoostedTrees(self._rng)
        other.fit(features, errors)
        return other

    def predict(self, features: Floats) -> Prediction:
        errors = np.asarray(self._model.predict(features), dtype=np.float64)
        return Prediction(errors, np.zeros(len(errors)))


class Informed:
    """Another surrogate, of what is left when earlier searches' predictions are moved and scaled to the errors at hand.

    Other images and weights shift errors and stretch them, but leave much of the order; what they change is learned anew.

    Args:
        base: of what is left.
        earlier: how many of the last features are predictions of earlier searches.
    """

    def __init__(self, base: Surrogate, earlier: int) -> None:
        self._base = base
        self._earlier = earlier

    def fit(self, features: Floats, errors: Floats) -> None:
        self._base.fit(features[:, : -self._earlier], self._left(features, errors))

    def refit(self, features: Floats, errors: Floats) -> Surrogate:
        other = Informed(self._base, self._earlier)
        other._base = self._base.refit(features[:, : -self._earlier], other._left(features, errors))
        return other

    def _left(self, features: Floats, errors: Floats) -> Floats:
        """Errors (n,) less what the trend, which is fitted here, explains."""
        trend = self._trend(features)
        self._weights = np.linalg.lstsq(trend, errors, rcond=None)[0]
        left: Floats = errors - trend @ self._weights
        return left

    def predict(self, features: Floats) -> Prediction:
        left = self._base.predict(features[:, : -self._earlier])
        return Prediction(self._trend(features) @ self._weights + left.errors, left.deviation)

    def _trend(self, features: Floats) -> Floats:
        return np.column_stack([np.ones(len(features)), features[:, -self._earlier :]])


CANDIDATES: Mapping[str, Callable[[np.random.Generator], Surrogate]] = {
    "rbf": RBFEnsemble,
    "gp": lambda _: GaussianProcess(),
    "xgboost": BoostedTrees,
}


@dataclass(frozen=True)
class Fit:
    """The surrogate that won, trained on everything.

    Attributes:
        name: of the winner; `+earlier` where it builds on earlier searches.
        surrogate: the winner.
        taus: name -> Kendall's tau between errors and predictions of samples left out, for all that were tried.
        used: how many of the features it takes.
    """

    name: str
    surrogate: Surrogate
    taus: Mapping[str, float]
    used: int

    def predict(self, features: Floats) -> Prediction:
        """Errors of features (n, f), and how sure they are."""
        return self.surrogate.predict(features[:, : self.used])


def fit_best(
    features: Floats, errors: Floats, rng: np.random.Generator, *, names: Collection[str] = tuple(CANDIDATES), earlier: int = 0
) -> Fit:
    """Trains the candidate that ranks best in cross-validation.

    The best candidate is tried on top of earlier searches as well, and stays there if its tau gains enough by it (`EARLIER_GAIN`).

    Args:
        features: (n, f), n >= 10, distinct rows.
        errors: (n,).
        rng: source of chance; the same state gives the same surrogate.
        names: of the candidates, in order of preference.
        earlier: how many of the last features are predictions of earlier searches.
    """
    folds = rng.permutation(len(features)) % FOLDS
    own = features[:, : features.shape[1] - earlier]
    tried = {name: _try(CANDIDATES[name](rng), own, errors, folds) for name in names}
    best = max(tried, key=lambda name: tried[name].tau)
    if earlier:
        informed = f"{best}+earlier"
        tried[informed] = _try(Informed(CANDIDATES[best](rng), earlier), features, errors, folds)
        if tried[informed].tau >= tried[best].tau + EARLIER_GAIN / len(errors):
            best = informed
    taus = {name: each.tau for name, each in tried.items()}
    return Fit(best, tried[best].surrogate, taus, tried[best].features)


class _Tried(NamedTuple):
    surrogate: Surrogate
    tau: float
    features: int


def _try(surrogate: Surrogate, features: Floats, errors: Floats, folds: npt.NDArray[np.int64]) -> _Tried:
    """Trains on everything; then, with the hyper-parameters found, predicts every fold from the others."""
    surrogate.fit(features, errors)
    predicted = np.empty(len(errors))
    for fold in range(FOLDS):
        left_out = folds == fold
        predicted[left_out] = surrogate.refit(features[~left_out], errors[~left_out]).predict(features[left_out]).errors
    return _Tried(surrogate, kendall(errors, predicted), features.shape[1])


def kendall(first: Floats, second: Floats) -> float:
    """Kendall's tau-b; 0 where one side is constant and so says nothing about order."""
    if np.ptp(first) == 0 or np.ptp(second) == 0:
        return 0.0
    return float(kendalltau(first, second).statistic)


def spearman(first: Floats, second: Floats) -> float:
    """Spearman's rank correlation; 0 where one side is constant and so says nothing about order."""
    if np.ptp(first) == 0 or np.ptp(second) == 0:
        return 0.0
    return float(spearmanr(first, second).statistic)


class Scaling:
    """Columns (n, f) at mean 0 and variance 1 over a sample; those that are constant there are left out."""

    def __init__(self, sample: Floats) -> None:
        self._kept = np.ptp(sample, axis=0) > 0
        self._mean = sample[:, self._kept].mean(axis=0)
        self._deviation = sample[:, self._kept].std(axis=0)

    def __call__(self, raw: Floats) -> Floats:
        scaled: Floats = (raw[:, self._kept] - self._mean) / self._deviation
        return scaled


ErrorModel = Callable[[Genotypes], Floats]
"""Canonical genotypes (n, variables) -> predicted errors (n,)."""
Knowledge = tuple[Genotypes, Floats]
"""Genotypes (n, variables) and errors (n,) of an earlier search in the same space; NaN where it could not evaluate."""


def learn_earlier(space: SearchSpace, knowledge: Sequence[Knowledge], rng: np.random.Generator) -> list[ErrorModel]:
    """What earlier searches found out, one model each; those that evaluated fewer than ten architectures know nothing.

    Raises:
        UsageError: genotypes that are not of the space, or not as many as errors.
    """
    models: list[ErrorModel] = []
    for genotypes, errors in knowledge:
        if genotypes.shape != (len(errors), space.variables) or not np.array_equal(space.repair(genotypes), genotypes):
            raise UsageError(
                f"an earlier search is not of space {space.name}; give searches of the same space with the same widths"
            )
        known = np.flatnonzero(np.isfinite(errors))
        known = known[np.unique(genotypes[known], axis=0, return_index=True)[1]]
        if len(known) >= FEWEST:
            features = Features(space, genotypes[known])
            fit = fit_best(features(genotypes[known]), errors[known], rng)
            models.append(lambda new, fit=fit, features=features: fit.predict(features(new)).errors)  # type: ignore[misc]
    return models


class Features:
    """Genotypes as numbers that errors depend on smoothly.

    The codes themselves, which ascend with expansion and kernel, and for every elastic stage its depth and the sums of its
    expansions and kernels: with few samples what a stage holds in all predicts better than which slot holds it, with many the
    codes add to it. They are scaled over the genotypes given at first. Predictions of earlier searches follow as they are. Of the
    precision nothing is said: errors are those of the network itself.

    Args:
        space: of the genotypes.
        genotypes: (n, variables) to scale by, the archive.
        earlier: models of earlier searches.
    """

    def __init__(self, space: SearchSpace, genotypes: Genotypes, earlier: Sequence[ErrorModel] = ()) -> None:
        self._space = space
        self._earlier = tuple(earlier)
        self._scaling = Scaling(self._raw(genotypes))

    def __call__(self, genotypes: Genotypes) -> Floats:
        """Features (n, f) of genotypes (n, variables)."""
        return np.column_stack([self._scaling(self._raw(genotypes)), *(model(genotypes) for model in self._earlier)])

    def _raw(self, genotypes: Genotypes) -> Floats:
        codes = genotypes[:, : self._space.arch_variables]
        columns = [*codes.T.astype(np.float64), np.log(np.array(self._space.resolutions))[genotypes[:, 0]]]
        for number, part in self._space.elastic:
            stage, codes = self._space.stages[number], genotypes[:, part]
            expansions = np.array([0, *(choice.expansion for choice in stage.choices)])
            kernels = np.array([0, *(choice.kernel for choice in stage.choices)])
            columns += [(codes > 0).sum(axis=1), expansions[codes].sum(axis=1), kernels[codes].sum(axis=1)]
        return np.stack(columns, axis=1).astype(np.float64)


def _independent(features: Floats, columns: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Those columns that no others explain linearly, without which the tail of an RBF has no unique solution."""
    centred = features[:, columns] - features[:, columns].mean(axis=0)
    triangle, pivots = qr(centred, mode="r", pivoting=True)
    diagonal = np.abs(np.diag(triangle))
    kept: npt.NDArray[np.int64] = columns[np.sort(pivots[diagonal > 1e-8 * diagonal[0]])]
    return kept
