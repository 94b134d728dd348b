"""How well latencies are predicted.

python benchmarks/latency.py --table accel_nasbench --csv FILE --train 300 --seeds 3

learns from so many random rows of a published table, predicts the others, and stands beside plain XGBoost and ridge regression
from the same rows.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import numpy.typing as npt
import xgboost
from public_tables import SOURCES, Bar, PublicTable, read_public
from sklearn.linear_model import RidgeCV
from sklearn.preprocessing import OneHotEncoder, StandardScaler

from natdeploy.files import write_atomic
from natdeploy.latency.blocks import amounts, parts_of
from natdeploy.latency.predictor import Quality, judge
from natdeploy.latency.regression import Regression, count_parts

Floats = npt.NDArray[np.float64]
Rows = npt.NDArray[np.int64]

OURS = "ours"


Fit = Callable[[Rows, Rows], tuple[Floats, float]]
"""Rows to learn from and rows to predict -> their latency, and half the width of the interval as a log-ratio (0: none)."""


def ways(table: PublicTable, latency_ms: Floats) -> dict[str, Fit]:
    """Ours, and the two usual ones, which see every choice and the work of every stage."""
    samples = [[block for stage in sample for block in stage] for sample in table.samples]
    by_stage = features(table)

    def ours(train: Rows, test: Rows) -> tuple[Floats, float]:
        known, counts = count_parts([samples[i] for i in train])
        parts = parts_of(known)
        regression = Regression.fit(counts, amounts(known, parts, alone=table.alone), latency_ms[train])
        unseen, counts = count_parts([samples[i] for i in test])
        return regression.predict(counts, amounts(unseen, parts, alone=table.alone)), regression.spread

    def boosted(train: Rows, test: Rows) -> tuple[Floats, float]:
        model = xgboost.XGBRegressor(n_estimators=600, max_depth=4, learning_rate=0.05, n_jobs=1, random_state=0)
        model.fit(by_stage[train], np.log(latency_ms[train]))
        return np.exp(model.predict(by_stage[test]).astype(np.float64)), 0.0

    def ridge(train: Rows, test: Rows) -> tuple[Floats, float]:
        scaler = StandardScaler().fit(by_stage[train])
        model = RidgeCV(np.logspace(-4, 4, 17))
        model.fit(scaler.transform(by_stage[train]), latency_ms[train], sample_weight=latency_ms[train] ** -2.0)
        return np.maximum(model.predict(scaler.transform(by_stage[test])), 1e-6), 0.0

    return {OURS: ours, "XGBoost": boosted, "ridge": ridge}


def features(table: PublicTable) -> Floats:
    """Choices, as numbers and one-hot where they are few, and amounts of work of every stage and in all, (n, columns)."""
    distinct = list(dict.fromkeys(block for sample in table.samples for stage in sample for block in stage))
    rows = dict(zip(distinct, amounts(distinct, parts_of(distinct), alone=table.alone), strict=True))
    stages = np.array([[np.sum([rows[block] for block in stage], axis=0) for stage in sample] for sample in table.samples])
    few = [column for column in table.genomes.T if len(np.unique(column)) < 10]
    choices = OneHotEncoder(sparse_output=False).fit_transform(np.column_stack(few))
    return np.hstack([table.genomes, choices, stages.reshape(len(stages), -1), stages.sum(axis=1)])


@dataclass(frozen=True)
class Trial:
    """What one division of the rows gave."""

    quality: Quality
    cpu_s: float


def compare(table: PublicTable, target: str, train: int, seeds: range) -> dict[str, list[Trial]]:
    """Trials of every way, one a seed."""
    latency_ms = table.latency_ms[target]
    fits = ways(table, latency_ms)
    usable = np.flatnonzero(np.isfinite(latency_ms))
    found: dict[str, list[Trial]] = {name: [] for name in fits}
    for seed in seeds:
        order = np.random.default_rng(seed).permutation(usable)
        for name, fit in fits.items():
            start = time.process_time()
            predicted, spread = fit(order[:train], order[train:])
            found[name].append(Trial(judge(predicted, latency_ms[order[train:]], spread), time.process_time() - start))
    return found


ROW = "{:17} {:8} {:>4}  {:18} {:>5} {:>7} {:>8} {:>6} {:>5} {:>5}  {:11} {:8} {}"
HEAD = ("target", "way", "N", "within 5 %", "10 %", "Kendall", "Spearman", "MAPE", "cov.", "CPU s", "bar", "", "best before")


def show(target: str, train: int, found: dict[str, list[Trial]], bar: Bar | None, before: str) -> None:
    for name, trials in found.items():
        m = {each.name: np.mean([getattr(trial.quality, each.name) for trial in trials]) for each in fields(Quality)}
        low, high = (100 * f(trial.quality.within_5 for trial in trials) for f in (min, max))
        cells = [target, name, train, f"{100 * m['within_5']:.1f} ({low:.1f}-{high:.1f})", f"{100 * m['within_10']:.1f}"]
        cells += [f"{m['kendall']:.4f}", f"{m['spearman']:.4f}", f"{100 * m['mape']:.2f}"]
        cells += [f"{100 * m['coverage']:.0f}" if name == OURS else "", f"{np.mean([trial.cpu_s for trial in trials]):.1f}"]
        if name == OURS and bar:
            reached = m["within_5"] >= bar.within_5 and m["within_10"] >= bar.within_10 and m["kendall"] >= bar.kendall
            cells += [f"{100 * bar.within_5:g}/{100 * bar.within_10:g}/{bar.kendall:g}", "reached" if reached else "MISSED"]
        print(ROW.format(*cells, *[""] * (12 - len(cells)), before if name == OURS else ""), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", required=True, choices=tuple(SOURCES))
    parser.add_argument("--csv", type=Path, required=True, help="rows of the table, in its own columns")
    parser.add_argument("--train", type=int, help="rows to learn from (300 networks, 100 blocks)")
    parser.add_argument("--seeds", type=int, default=3, help="random divisions")
    parser.add_argument("--targets", nargs="*", help="columns to predict; all where left out")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    options = parser.parse_args()
    source, table = SOURCES[options.table], read_public(options.table, options.csv)
    train = options.train or source.train
    print(f"{options.table}: {len(table.samples)} rows, {train} to learn from, means of {options.seeds} divisions")
    print("rival: " + source.rival)
    print(ROW.format(*HEAD))
    result = {}
    for target in options.targets or table.latency_ms:
        found = compare(table, target, train, range(options.seeds))
        show(target, train, found, source.bars.get(target), source.before.get(target, ""))
        result[target] = {name: [asdict(each) for each in trials] for name, trials in found.items()}
    if options.out:
        write_atomic(options.out, json.dumps({"table": options.table, "train": train, "targets": result}, indent=1).encode())


if __name__ == "__main__":
    main()
