"""What each part of a search is worth: the same search with one thing changed, side by side.

Every variant gets the same minutes and the same seeds of chance, from the same seed network. What counts is the hypervolume
of the final front, of test error and predicted latency, below the reference; predicted, because all variants share one predictor,
whose noise then cancels. Differences below the spread over seeds mean nothing.

    python benchmarks/ablations.py --data DIR --seed-weights FILE --minutes 2.5 --seeds 0 1 --json ablations.json
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from natdeploy import pipeline
from natdeploy.errors import NatdeployError
from natdeploy.progress import Silent
from natdeploy.search.archive import hypervolume

SANDWICH = {"scheme": "sandwich", "students": 1}

VARIANTS: Mapping[str, Mapping[str, Any]] = {
    "default": {},
    "no adaptation while searching": {"schedule": {"warmup": 0.35, "final": 0.65}},
    "no training of the front alone": {"schedule": {"warmup": 0.2, "final": 0.0}},
    "better half of the front leads": {"schedule": {"final_leaders": 0.5}},
    "front of 12 at most": {"schedule": {"final_nets": 12}},
    "sampled from all architectures alike": {"nat": {"distribution": "uniform"}},
    "sampled from pairs": {"nat": {"distribution": "pairs"}},
    "archive not evaluated anew": {"nat": {"reevaluate": False}},
    "front not measured": {"nat": {"measure_every": 0}},
    "random proposals": {"strategy": "random"},
    "surrogate rbf": {"nat": {"surrogate": "rbf"}},
    "surrogate gp": {"nat": {"surrogate": "gp"}},
    "surrogate xgboost": {"nat": {"surrogate": "xgboost"}},
    "one student": {"adapt": {"students": 1}},
    "one student, inplace distillation": {"adapt": {"students": 1, "teacher": "inplace"}},
    "one student, averaged teacher": {"adapt": {"students": 1, "teacher": "average"}},
    "sandwich": {"adapt": SANDWICH},
    "sandwich, inplace distillation": {"adapt": {**SANDWICH, "teacher": "inplace"}},
    "sandwich, averaged teacher": {"adapt": {**SANDWICH, "teacher": "average"}},
    "averaged teacher": {"adapt": {"teacher": "average"}},
    "no averaged weights": {"adapt": {"train": {"average": 0.0}}},
    "no label smoothing": {"augmentation": {"label_smoothing": 0.0}},
    "mixup": {"augmentation": {"mixup": 0.2}},
    "cutmix": {"augmentation": {"cutmix": 1.0, "mix_probability": 0.5}},
    "remap: first channels": {"remap": {"width": "first"}},
    "remap: depth by copies": {"remap": {"depth": "copy"}},
}


def volume(result: pipeline.ReportResult, error: float, latency_ms: float) -> float:
    """Share of the box below an error and a latency that the front dominates, 0..1."""
    front = [net for net in result.nets if net.role == "front"]
    values = np.array([[(1 - (net.final_accuracy or 0.0)) / error, (net.predicted_ms or 0.0) / latency_ms] for net in front])
    return hypervolume(values, np.ones(2))


def run(options: argparse.Namespace, name: str, seed: int) -> float:
    """The hypervolume that a variant reaches."""
    out = options.out / f"{name.replace(' ', '-').replace(',', '').replace(':', '')}-{seed}"
    config = pipeline.SearchConfig(
        data=options.data,
        out=out,
        target=options.target,
        seed_weights=options.seed_weights,
        constraints=(options.constraint,),
        minutes=options.minutes,
        seed=seed,
        tables=options.tables,
        **VARIANTS[name],
    )
    pipeline.search(config, Silent())
    return volume(pipeline.report(out), *options.reference)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--seed-weights", type=Path, required=True)
    parser.add_argument("--variants", nargs="+", choices=list(VARIANTS), default=list(VARIANTS))
    parser.add_argument("--minutes", type=float, default=2.5, help="for each variant and seed")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1], help="of chance")
    parser.add_argument("--target", default="host")
    parser.add_argument("--constraint", default="latency<=2ms")
    parser.add_argument("--reference", type=float, nargs=2, default=[0.4, 2.0], help="of the hypervolume: error, ms")
    parser.add_argument("--tables", type=Path)
    parser.add_argument("--out", type=Path, default=Path("runs/ablations"))
    parser.add_argument("--json", type=Path, default=Path("ablations.json"))
    options = parser.parse_args()
    found: dict[str, list[float]] = {name: [] for name in options.variants}
    for seed in options.seeds:  # seed by seed, so that what disturbs the machine disturbs all variants
        for name in options.variants:
            start = time.perf_counter()
            found[name].append(run(options, name, seed))
            print(f"seed {seed}, {name}: {found[name][-1]:.4f} in {time.perf_counter() - start:.0f} s", file=sys.stderr, flush=True)
            options.json.write_text(
                json.dumps({"options": {k: str(v) for k, v in vars(options).items()}, "found": found}, indent=2)
            )
    first = next(iter(found))
    table = Table(
        "variant", "hypervolume", "spread", f"against {first}", title=f"{options.minutes:g} min, {len(options.seeds)} seeds"
    )
    for name, values in found.items():
        spread = f"{stdev(values):.4f}" if len(values) > 1 else "one run"
        gains = [value - base for value, base in zip(values, found[first], strict=True)]
        table.add_row(name, f"{mean(values):.4f}", spread, f"{mean(gains):+.4f}")
    Console(width=100).print(table)
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except NatdeployError as error:
        sys.exit(f"error: {error}")
