"""How good a front a search finds in how many evaluations, on a table of networks that were really trained and timed.

    python benchmarks/search_quality.py --csv accel_nasbench_first2500.csv [--seeds 20] [--first-seed 0] [--json FILE]

The table is Accel-NASBench: 2500 MnasNet-like networks with the accuracy of a real training and the latency of real devices. All
searchers evaluate rows of the table and nothing else; what a searcher knows of a row before it evaluates it is its choices and, for
those that use a model of the error (ours, linas), its latency, which a predictor would give. Scores are shares of the hypervolume
that the whole table has, objectives scaled to 0..1 over the table, reference point 1.05. All begin with 20 random rows.

- ours: the product's own round (features, surrogates, optimism, infill) with the rows that are left in the place of evolution;
- ours with rbf, gp, xgboost: the same with one surrogate, instead of the best in cross-validation;
- random: rows in random order;
- nsga2: uniform crossover and mutation of one choice in 28, children snapped to the nearest row that is left;
- regularised: regularised evolution (Real et al. 2019), tournaments of 5, one choice mutated and snapped likewise;
  a tournament goes by the weighted Chebyshev distance with random weights, which makes it multi-objective;
- linas: a loop like LINAS of Intel's DyNAS-T: ridge regression predicts the error (a support vector machine did worse here), all
  of its predicted front is evaluated, and again.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Mapping
from csv import DictReader
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
from public_tables import read_public
from sklearn.linear_model import Ridge
from threadpoolctl import threadpool_limits

from natdeploy.files import write_atomic
from natdeploy.search import NatSettings
from natdeploy.search.archive import crowding, hypervolume, non_dominated, ranks
from natdeploy.search.evolve import infill
from natdeploy.search.surrogate import CANDIDATES, Scaling, fit_best

Floats = npt.NDArray[np.float64]
Rows = npt.NDArray[np.int64]

PROBLEMS: Mapping[str, tuple[str, ...]] = {
    "error, ZCU102 latency": ("latency_zcu102",),
    "error, VCK190 and A100 latency": ("latency_vck190", "throughput_a100"),
}
MARKS = (50, 100, 200)
POPULATION = NatSettings().initial
"""Rows that every searcher draws at random before it learns anything; the evolutions go on with as many."""


@dataclass(frozen=True)
class Table:
    """Rows that a searcher may evaluate.

    Attributes:
        genomes: choices (n, 28): expansion, kernel, depth, squeeze-and-excitation of seven stages.
        values: (n, m), error first, scaled to 0..1.
    """

    genomes: Rows
    values: Floats

    def features(self) -> Floats:
        """What the product's `Features` takes of a genotype: the choices, and the sums of expansions and kernels in a stage."""
        expansion, kernel, depth, _ = np.moveaxis(self.genomes.reshape(-1, 7, 4), 2, 0)
        return np.hstack([self.genomes, expansion * depth, kernel * depth]).astype(np.float64)

    def share(self, rows: Rows) -> float:
        reference = np.full(self.values.shape[1], 1.05)
        return hypervolume(self.values[rows], reference) / hypervolume(self.values, reference)


def read(path: Path, columns: tuple[str, ...]) -> Table:
    """The table of a CSV, with the error and these latencies as objectives."""
    public = read_public("accel_nasbench", path)
    with path.open(newline="") as file:
        errors = np.array([1 - float(row["val_top1"]) / 100 for row in DictReader(file)])
    values = np.stack([errors, *(public.latency_ms[column] for column in columns)], axis=1)
    return Table(public.genomes, (values - values.min(axis=0)) / np.ptp(values, axis=0))


# ---- searchers: rows of a table in the order in which they are evaluated, `count` in all


def ours(table: Table, count: int, rng: np.random.Generator, settings: NatSettings | None = None) -> Rows:
    settings = settings or NatSettings()
    raw, seen = table.features(), rng.permutation(len(table.values))[: settings.initial]
    names = {} if settings.surrogate == "auto" else {"names": (settings.surrogate,)}
    while len(seen) < count:
        scaling = Scaling(raw[seen])
        fit = fit_best(scaling(raw[seen]), table.values[seen, 0], rng, **names)
        predicted = fit.predict(scaling(raw))
        hoped = np.column_stack([predicted.errors - settings.optimism * predicted.deviation, table.values[:, 1:]])
        left = np.setdiff1d(np.arange(len(raw)), seen)
        chosen = left[infill(hoped[left], hoped[seen], min(settings.infill, count - len(seen)))]
        seen = np.concatenate([seen, chosen])
    return seen


def by_chance(table: Table, count: int, rng: np.random.Generator) -> Rows:
    return rng.permutation(len(table.values))[:count]


def nsga2(table: Table, count: int, rng: np.random.Generator) -> Rows:
    seen = rng.permutation(len(table.values))[:POPULATION]
    parents = seen
    while len(seen) < count:
        rank, spacing = ranks(table.values[parents]), np.zeros(len(parents))
        for front in range(rank.max() + 1):
            spacing[rank == front] = crowding(table.values[parents[rank == front]])
        parents = parents[np.lexsort((-spacing, rank))][:POPULATION]  # best first, so a tournament is a minimum of two draws
        children = seen[:0]
        while len(children) < min(POPULATION, count - len(seen)):
            first, second = table.genomes[parents[rng.integers(len(parents), size=(2, 2)).min(axis=1)]]
            child = np.where(rng.random(28) < 0.5, first, second) if rng.random() < 0.9 else first
            child = np.where(rng.random(28) < 1 / 28, table.genomes[rng.integers(len(table.genomes)), :], child)
            children = np.append(children, _nearest(table, child, np.append(seen, children), rng))
        seen, parents = np.append(seen, children), np.append(parents, children)
    return seen


def regularised(table: Table, count: int, rng: np.random.Generator) -> Rows:
    seen = rng.permutation(len(table.values))[:POPULATION]
    while len(seen) < count:
        alive = seen[-POPULATION:]
        some = rng.choice(alive, 5, replace=False)
        low, span = table.values[seen].min(axis=0), np.ptp(table.values[seen], axis=0)
        weights = rng.dirichlet(np.ones(len(low)))
        parent = some[(weights * (table.values[some] - low) / span).max(axis=1).argmin()]
        child = table.genomes[parent].copy()
        variable = rng.integers(28)
        child[variable] = rng.choice(np.setdiff1d(table.genomes[:, variable], child[variable]))
        seen = np.append(seen, _nearest(table, child, seen, rng))
    return seen


def linas(table: Table, count: int, rng: np.random.Generator) -> Rows:
    raw, seen = table.features(), rng.permutation(len(table.values))[:POPULATION]
    while len(seen) < count:
        scaling = Scaling(raw[seen])
        model = Ridge(alpha=1.0).fit(scaling(raw[seen]), table.values[seen, 0])
        predicted = np.column_stack([model.predict(scaling(raw)), table.values[:, 1:]])
        left = np.setdiff1d(np.arange(len(raw)), seen)
        seen = np.append(seen, rng.permutation(left[non_dominated(predicted[left])]))
    return seen[:count]


def _nearest(table: Table, child: Rows, seen: Rows, rng: np.random.Generator) -> int:
    """The row that differs least from a child and is not seen, choices scaled to their range; equals are decided by chance."""
    span = np.maximum(np.ptp(table.genomes, axis=0), 1)
    distance = (np.abs(table.genomes - child) / span).sum(axis=1) + 1e-9 * rng.random(len(table.genomes))
    distance[seen] = np.inf
    return int(distance.argmin())


SEARCHERS: Mapping[str, Callable[[Table, int, np.random.Generator], Rows]] = {
    "ours": ours,
    **{f"ours with {each}": partial(ours, settings=NatSettings(surrogate=each)) for each in CANDIDATES},
    "random": by_chance,
    "nsga2": nsga2,
    "regularised": regularised,
    "linas": linas,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--csv", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--searcher", action="append", choices=SEARCHERS, help="one of them, may be repeated; default all")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    seeds = range(options.first_seed, options.first_seed + options.seeds)
    results = []
    for problem, columns in PROBLEMS.items():
        table = read(options.csv, columns)
        print(
            f"{problem}: share of the hypervolume of {len(table.values)} networks, mean (least) and deviation of {len(seeds)} seeds"
        )
        print(f"{'searcher':18} " + "".join(f"{mark:>26} evaluated" for mark in MARKS))
        for name in options.searcher or SEARCHERS:
            start = time.perf_counter()
            with threadpool_limits(1):
                found = [SEARCHERS[name](table, max(MARKS), np.random.default_rng([seed, 0])) for seed in seeds]
            assert all(len(np.unique(rows)) == max(MARKS) for rows in found), "a row is evaluated once"
            shares = np.array([[table.share(rows[:mark]) for mark in MARKS] for rows in found])
            cells = [f"{s.mean():.4f} ({s.min():.4f}) +-{s.std():.4f}" for s in shares.T]
            print(f"{name:18} " + "".join(f"{cell:>36}" for cell in cells) + f"   {time.perf_counter() - start:.0f} s", flush=True)
            results.append({"problem": problem, "searcher": name, "marks": list(MARKS), "shares": shares.tolist()})
    if options.json:
        report = {"seeds": list(seeds), "settings": NatSettings().model_dump(), "results": results}
        write_atomic(options.json, json.dumps(report, indent=1).encode())


if __name__ == "__main__":
    main()
