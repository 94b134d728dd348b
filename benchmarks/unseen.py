"""Profiles a target, then measures whole networks it has never seen and compares.

    python benchmarks/unseen.py --target host/openvino --space ofa_mbv3 [--nets 100] [--twice 100] [--budget 10] [--tables DIR]

The networks are measured twice, independently: the first time is the truth, the second stands in for a prediction and shows how
well a perfect predictor could do here (the noise ceiling); --twice says how many of them. Both are cut into groups, and each
group is measured the first and the second time before the next: with --out, an interrupted run goes on there.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from natdeploy import pipeline
from natdeploy.files import write_atomic
from natdeploy.hardware.bench import SUBNETS, Candidate
from natdeploy.hardware.device import parse_target
from natdeploy.hardware.measure import measure
from natdeploy.hardware.runtimes import get_runtime
from natdeploy.latency.plan import plan_subnets, reference_arch
from natdeploy.latency.predictor import LatencyPredictor, judge, quality_text
from natdeploy.latency.table import read_table
from natdeploy.progress import Silent
from natdeploy.space import Arch, SearchSpace, get_space
from natdeploy.supernet import Subnet

PASSES = 4
GROUP = 25


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--target", default="host/onnxruntime")
    parser.add_argument("--space", default="ofa_mbv3")
    parser.add_argument("--nets", type=int, default=100)
    parser.add_argument("--twice", type=int, default=100, help="so many of them")
    parser.add_argument("--budget", type=float, default=10.0, help="minutes of measuring for the profile")
    parser.add_argument("--tables", type=Path, default=Path("latency_tables"))
    parser.add_argument("--out", type=Path, default=None, help="keeps what is measured (JSON)")
    options = parser.parse_args()
    torch.set_num_threads(1)
    target = parse_target(options.target)
    named = get_space(options.space)
    space = named.restrict(widths=(named.widths[0],))
    result = pipeline.profile(
        target.device.name,
        target.slug,
        space=options.space,
        tables=options.tables,
        budget_minutes=options.budget,
    )
    table = read_table(result.folder, result.slug)
    predictor = LatencyPredictor.fit(table, space)
    fit, test = (sum(row.role == role for row in table.subnets) for role in ("fit", "test"))
    print(
        f"{target}, {space.name}: {result.rows} blocks, {fit} nets to learn from and {test} to judge by, measured in "
        f"{result.measuring_s / 60:.1f} min, converted in {result.converting_s / 60:.1f} min; "
        f"the reference drifted by {max(result.drifts.values()):.0%}"
    )
    print(f"its own nets to judge by: {quality_text(result.quality)}", flush=True)
    classes = table.provenance.classes or 0
    archs = unseen(space, options.nets, {row.arch for row in table.subnets})
    first, second, reference = measured(
        space, archs, twice=options.twice, classes=classes, target_text=options.target, out=options.out
    )
    predicted = predictor.predict(space, archs, classes)
    truth = first * (table.provenance.reference_ms or 1.0)
    spread = float(np.log(predicted.high_ms[0] / predicted.latency_ms[0]))
    print(f"prediction:    {quality_text(judge(predicted.latency_ms, truth, spread))}")
    print(f"noise ceiling: {quality_text(judge(second, first[: len(second)], spread))}")
    print(f"range {truth.min():.2f} to {truth.max():.2f} ms; reference {np.min(reference):.3f} to {np.max(reference):.3f} ms")


def unseen(space: SearchSpace, n: int, seen: set[Arch]) -> list[Arch]:
    """Architectures spread over the range of MACs, none of which is in the table."""
    fit, test = plan_subnets(space, n // 2 + 10, n - n // 2 + 10, np.random.default_rng(10_000))
    left = [arch for arch in (*fit, *test) if arch not in seen]
    order = np.random.default_rng(1).permutation(len(left))[:n]
    return [left[i] for i in order]


def measured(
    space: SearchSpace, archs: list[Arch], *, twice: int, classes: int, target_text: str, out: Path | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Latency of all in units of the reference's, that of the first `twice` once more, and the reference's own in ms."""
    target = parse_target(target_text)
    runtime = get_runtime(target.runtime)
    settings = replace(SUBNETS, processes=PASSES)
    kept: dict[str, list[list[float]]] = json.loads(out.read_text()) if out is not None and out.exists() else {}
    reference = reference_arch(space)
    for start in range(0, len(archs), GROUP):
        group = [arch for arch in archs[start : start + GROUP] if str(arch) not in kept]
        if not group:
            continue
        with tempfile.TemporaryDirectory() as folder:
            candidates = []
            for i, arch in enumerate([reference, *group]):
                shape = (1, 3, arch.resolution, arch.resolution)
                path = Path(folder, f"{i}{runtime.SUFFIX}")
                runtime.convert(
                    Subnet(space, arch, classes), torch.zeros(shape), path, precision=target.precision, dynamic_size=False
                )
                candidates.append(Candidate(str(arch), path, shape))
            beside = replace(candidates[0], id="reference")
            times = 2 if start < twice else 1
            results = [measure(candidates[1:], beside, target, settings, seed=n, progress=Silent()) for n in range(times)]
        for arch in group:
            kept[str(arch)] = [[result[str(arch)].relative, result.reference_ms] for result in results]
        if out is not None:
            write_atomic(out, json.dumps(kept).encode())
        print(f"measured {min(start + GROUP, len(archs))} of {len(archs)} unseen nets", flush=True)
    rows = [kept[str(arch)] for arch in archs]
    again = [row[1][0] for row in rows[:twice] if len(row) > 1]
    return np.array([row[0][0] for row in rows]), np.array(again), np.array([each[1] for row in rows for each in row])


if __name__ == "__main__":
    main()
