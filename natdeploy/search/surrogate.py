"""Models that predict the error of an architecture from its genotype; the data choose which.

NAT, its reproductions and its successors each use another one (RBF ensemble, Gaussian process, boosted trees), and none wins at
every archive size, so all three are cross-validated on the archive and the best ranking wins (adaptive switching, NSGANetV2,
arXiv 2007.10396). Inputs are features (n, f), targets are errors (n,).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
from scipy.interpolate import RBFInterpolator
from scipy.linalg import qr
from scipy.stats import kendalltau
from sklearn.exceptions import ConvergenceWarning
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import DotProduct, Matern, WhiteKernel
from xgboost import XGBRegressor

from natdeploy.search.objectives import Floats
from natdeploy.space import Genotypes, SearchSpace

FOLDS = 5


class Surrogate(Protocol):
    def fit(self, features: Floats, errors: Floats) -> None:
        """Learns from features (n, f) and errors (n,)."""

    def predict(self, features: Floats) -> Floats:
        """Errors (n,) of features (n, f)."""


class RBFEnsemble:
    """Median of cubic radial basis functions with a linear tail, each on a random part of the features (NAT, arXiv 2005.05859).

    A tail needs more samples than features, so a member takes at most half as many features as there are samples; a little
    smoothing keeps it from chasing the noise of a small validation set, which exact interpolation would.
    """

    def __init__(self, rng: np.random.Generator, members: int = 30) -> None:
        self._rng = rng
        self._count = members
        self._members: list[tuple[npt.NDArray[np.int64], RBFInterpolator]] = []

    def fit(self, features: Floats, errors: Floats) -> None:
        varied = np.flatnonzero(np.ptp(features, axis=0))
        most = min(len(varied), len(features) // 2)
        self._members = []
        for _ in range(self._count):
            size = self._rng.integers(max(1, most // 2), most, endpoint=True)
            columns = _independent(features, self._rng.choice(varied, size, replace=False))
            model = RBFInterpolator(features[:, columns], errors, kernel="cubic", degree=1, smoothing=100.0)
            self._members.append((columns, model))

    def predict(self, features: Floats) -> Floats:
        predictions: Floats = np.median([model(features[:, columns]) for columns, model in self._members], axis=0)
        return predictions


class GaussianProcess:
    """A linear trend and a Matérn 5/2 process with noise, all of one length scale, hyper-parameters by maximum likelihood."""

    def fit(self, features: Floats, errors: Floats) -> None:
        trend = 0.01 * DotProduct(sigma_0=0.0, sigma_0_bounds="fixed")
        kernel = trend + 1.0 * Matern(length_scale=features.shape[1] ** 0.5, nu=2.5) + WhiteKernel(0.1)
        self._model = GaussianProcessRegressor(kernel, normalize_y=True, random_state=0)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # a part that explains nothing ends at its bound, which is right
            self._model.fit(features, errors)

    def predict(self, features: Floats) -> Floats:
        predictions: Floats = self._model.predict(features)
        return predictions


class BoostedTrees:
    """XGBoost with trees of two levels: main effects and pairs, all that a few hundred samples can tell."""

    def __init__(self, rng: np.random.Generator) -> None:
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

    def predict(self, features: Floats) -> Floats:
        return np.asarray(self._model.predict(features), dtype=np.float64)


CANDIDATES: Mapping[str, Callable[[np.random.Generator], Surrogate]] = {
    "rbf": RBFEnsemble,
    "gp": lambda _: GaussianProcess(),
    "xgboost": BoostedTrees,
}


@dataclass(frozen=True)
class Fit:
    """The surrogate that won, trained on everything.

    Attributes:
        name: of the winner.
        surrogate: the winner.
        taus: name -> Kendall's tau between errors and predictions of samples left out, for every candidate.
    """

    name: str
    surrogate: Surrogate
    taus: Mapping[str, float]


def fit_best(features: Floats, errors: Floats, rng: np.random.Generator) -> Fit:
    """Trains the candidate that ranks best in cross-validation.

    Args:
        features: (n, f), n >= 10, distinct rows.
        errors: (n,).
        rng: source of chance; the same state gives the same surrogate.
    """
    folds = rng.permutation(len(features)) % FOLDS
    taus = {}
    for name, build in CANDIDATES.items():
        predicted = np.empty(len(errors))
        for fold in range(FOLDS):
            surrogate = build(rng)
            surrogate.fit(features[folds != fold], errors[folds != fold])
            predicted[folds == fold] = surrogate.predict(features[folds == fold])
        taus[name] = kendall(errors, predicted)
    best = max(taus, key=lambda name: taus[name])
    winner = CANDIDATES[best](rng)
    winner.fit(features, errors)
    return Fit(best, winner, taus)


def kendall(first: Floats, second: Floats) -> float:
    """Kendall's tau-b; 0 where one side is constant and so says nothing about order."""
    if np.ptp(first) == 0 or np.ptp(second) == 0:
        return 0.0
    return float(kendalltau(first, second).statistic)


class Features:
    """Genotypes as numbers that errors depend on smoothly.

    The codes themselves, which ascend with expansion and kernel, and for every elastic stage its depth and the sums of its
    expansions and kernels: with few samples what a stage holds in all predicts better than which slot holds it, with many the
    codes add to it.
    Features are scaled to mean 0 and variance 1 over the genotypes given at first; those that are constant there are left out.

    Args:
        space: of the genotypes.
        genotypes: (n, variables) to scale by, the archive.
    """

    def __init__(self, space: SearchSpace, genotypes: Genotypes) -> None:
        self._space = space
        raw = self._raw(genotypes)
        self._kept = np.ptp(raw, axis=0) > 0
        self._mean = raw[:, self._kept].mean(axis=0)
        self._deviation = raw[:, self._kept].std(axis=0)

    def __call__(self, genotypes: Genotypes) -> Floats:
        """Features (n, f) of genotypes (n, variables)."""
        scaled: Floats = (self._raw(genotypes)[:, self._kept] - self._mean) / self._deviation
        return scaled

    def _raw(self, genotypes: Genotypes) -> Floats:
        columns = [*genotypes.T.astype(np.float64), np.log(np.array(self._space.resolutions))[genotypes[:, 0]]]
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
