"""What it brings to search the precision of each network with it, against quantising the front of a search in fp32 afterwards.

Two comparisons, each by the hypervolume of networks in fp32 and int8 that keep the limit, all of them really quantised and judged
in their runtime. A network of the front in fp32 counts in both precisions.

`fixed`: one supernet is trained for all architectures, then searched in both ways with those weights, the same number of networks
evaluated, latencies of the tables. No clock plays a part, so that nothing but the search makes the difference.

`whole`: both searches as a user runs them, with the same minutes (or the same epochs, where the machine is not alone), test images,
and the networks of both measured on the host in one run, side by side.

    python benchmarks/precision.py --data DIR --seed-weights FILE --constraint "latency<=1.2ms" --minutes 2 --seeds 0 1 2
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from natdeploy import pipeline
from natdeploy.errors import NatdeployError
from natdeploy.hardware.bench import SUBNETS, Candidate
from natdeploy.hardware.device import Target, parse_target
from natdeploy.hardware.measure import measure
from natdeploy.hardware.runtimes import get_runtime
from natdeploy.pipeline.evaluate import ranking_error, ranking_noise
from natdeploy.pipeline.plan import find_or_measure
from natdeploy.pipeline.problem import Problem, first_archs, make_problem, requirements
from natdeploy.pipeline.quantise import CALIBRATION, NATIVE, PrecisionLoss, judge_in_runtime
from natdeploy.pipeline.setting import Setting, prepare
from natdeploy.pipeline.train import CHECKPOINT
from natdeploy.progress import Silent
from natdeploy.search import Archive, NatSettings, Objectives, Scores, parse_constraint, search
from natdeploy.search.archive import hypervolume
from natdeploy.space import Arch
from natdeploy.store import Evaluation, RunStore
from natdeploy.supernet import Subnet
from natdeploy.tasks import SplitName
from natdeploy.training.judge import calibrated_subnet, judge

WAYS: Mapping[str, tuple[str, ...]] = {"quantised afterwards": (), "searched": ("fp32", "int8")}
PRECISIONS = WAYS["searched"]
SIZES = NatSettings(initial=20, rounds=4, infill=5, parents=20, measure_every=2, reevaluate=False)
"""Of a search in fixed weights: as many networks as a few minutes have time for."""
FOR_ALL = {
    "adapt": {"sampled_share": 1.0},
    "nat": {"distribution": "uniform", "initial": 10, "infill": 1, "measure_every": 0},
    "rounds": 1,
}
"""A supernet for all architectures, that no search has led anywhere."""
WIDER = 1.3
"""Latency in fp32 of the architectures that it is trained for, in limits: int8 does not gain more on these networks."""


@dataclass(frozen=True)
class Point:
    """A network in a precision.

    Attributes:
        arch: its text.
        precision: of its file.
        error: 0..1, in its runtime.
        latency_ms: of the table, or measured.
    """

    arch: str
    precision: str
    error: float
    latency_ms: float


def volume(points: Sequence[Point], limit_ms: float, reference: Sequence[float]) -> float:
    """Share of the box below the reference (error, ms) that the points within the limit dominate."""
    values = np.array([[each.error, each.latency_ms] for each in points if each.latency_ms <= limit_ms]).reshape(-1, 2)
    return hypervolume(values / reference, np.ones(2))


def configured(options: argparse.Namespace, name: str, seed: int, **more: Any) -> pipeline.SearchConfig:
    return pipeline.SearchConfig(
        data=options.data,
        out=options.out / f"{name.replace(' ', '-')}-{seed}",
        seed_weights=options.seed_weights,
        seed=seed,
        tables=options.tables,
        **more,
    )


# ---- fixed weights


class Fixed:
    """A supernet whose weights stay as they are, and what is known of networks in them."""

    def __init__(self, options: argparse.Namespace, seed: int) -> None:
        limit = parse_constraint(options.constraint)
        wide = replace(limit, bound=WIDER * limit.bound)
        schedule = {"epochs": options.fixed_epochs, "warmup": 1.0, "final": 0.0, "final_nets": 1}
        config = configured(options, "fixed", seed, constraints=(str(wide),), schedule=schedule, **FOR_ALL)
        pipeline.search(config, Silent())
        self.config = config
        with RunStore.open(config.out) as store:
            self.setting = prepare(config, Silent(), store)
            saved = store.load_checkpoint(CHECKPOINT)
        assert saved is not None
        averaged = {name.removeprefix("average."): value for name, value in saved[0].items() if name.startswith("average.")}
        self.setting.supernet.load_state_dict(averaged)
        self.targets = {each: parse_target("host", precision=each) for each in PRECISIONS}
        self._verdicts: dict[tuple[Arch, str, SplitName], Evaluation] = {}

    def network(self, arch: Arch) -> Subnet:
        return calibrated_subnet(self.setting.supernet, arch, self.setting.task).eval()

    def verdict(self, arch: Arch, precision: str, split: SplitName = "validation") -> Evaluation:
        key = arch, precision, split
        if key not in self._verdicts:
            if precision == NATIVE:
                found = judge(self.network(arch), self.setting.task, split)
                each = Evaluation(0, str(arch), found.correct, found.total, found.loss, found.seconds)
            else:
                each = judge_in_runtime(self.network(arch), self.targets[precision], self.setting.task, split)
            self._verdicts[key] = each
        return self._verdicts[key]

    def evaluate(self, archs: Sequence[Arch], version: int, whole: bool) -> Scores:
        found = [self.verdict(arch, NATIVE) for arch in archs]
        return Scores(np.array([*map(ranking_error, found)]), np.array([*map(ranking_noise, found)]))


def problem_of(options: argparse.Namespace, config: pipeline.SearchConfig, setting: Setting) -> Problem:
    config = config.model_copy(update={"constraints": (options.constraint,)})
    targets, _ = requirements(config)
    found = {name: find_or_measure(config, name, setting, target, Silent()) for name, target in targets.items()}
    return make_problem(config, setting, found)


def search_fixed(fixed: Fixed, problem: Problem, seed: int, store: RunStore) -> Archive:
    """One search in fixed weights; with precisions, their loss is learned as in a search that trains."""
    loss = PrecisionLoss(
        problem.space, fixed.targets, fixed.network, fixed.evaluate, fixed.setting.task, store=store, progress=Silent()
    )

    def learned(archs: Sequence[Arch]) -> Objectives:
        macs = problem.objectives.cheap["macs"]
        ordered = sorted(set(archs), key=lambda arch: float(macs(problem.space.encode(arch)[None])[0]))
        return replace(problem.objectives, loss=loss.learn(ordered, 0)) if problem.space.precisions else problem.objectives

    first = first_archs(fixed.setting, problem, SIZES.initial, seed)
    archive = search(
        problem.space,
        learned(first),
        problem.constraints,
        evaluate=fixed.evaluate,
        adapt=lambda distribution, version: None,
        settings=SIZES,
        seed=seed,
        include=first,
        correct=lambda archive, number: learned([archive.archs[row] for row in archive.front()]),
    )
    judged: set[int] = set()

    def unjudged() -> list[int]:
        quantised = (row for row in archive.front() if problem.space.precision_of(archive.genotypes[row]) not in {None, NATIVE})
        return [row for row in quantised if row not in judged]

    while new := unjudged():
        archive.judged(np.array(new), [ranking_error(fixed.verdict(archive.archs[row], "int8")) for row in new])
        judged.update(new)
    return archive


def compare_fixed(options: argparse.Namespace, seed: int) -> dict[str, Any]:
    """Hypervolumes of both ways in the same weights, and what they cost."""
    fixed = Fixed(options, seed)
    both = problem_of(options, fixed.config.model_copy(update={"precisions": PRECISIONS}), fixed.setting)
    result: dict[str, Any] = {}
    for way, precisions in WAYS.items():
        problem = problem_of(options, fixed.config.model_copy(update={"precisions": precisions}), fixed.setting)
        folder = options.out / f"fixed-{seed}-{'joint' if precisions else 'fp32'}-{time.time_ns()}"
        with RunStore.create(folder, {}, {}) as store:
            archive = search_fixed(fixed, problem, seed, store)
        front = archive.genotypes[archive.front()]
        archs = problem.space.decode_all(front)
        chosen = [(arch, problem.space.precision_of(row)) for arch, row in zip(archs, front, strict=True)]
        if not precisions:
            chosen = [(arch, each) for arch in archs for each in PRECISIONS]
        for split, of in (("validation", ranking_error), ("test", lambda found: 1 - found.accuracy)):
            points = [
                Point(str(arch), each, of(fixed.verdict(arch, each, split)), table_ms(both, arch, each)) for arch, each in chosen
            ]
            result[f"{way}, {split}"] = {
                "hypervolume": volume(points, both.constraints[0].bound, options.reference),
                "evaluated": len(archive.ids),
                "int8": sum(each.precision == "int8" for each in points),
                "points": [vars(each) for each in points],
            }
    return result


def table_ms(problem: Problem, arch: Arch, precision: str) -> float:
    genotype = problem.space.in_precision(problem.space.encode(arch)[None], precision)
    return float(problem.objectives.cheap["latency"](genotype)[0])


# ---- whole searches


def compare_whole(options: argparse.Namespace, seed: int) -> dict[str, Any]:
    """Hypervolumes of both ways as users run them, all networks of both measured in one run."""
    models = options.out / f"models-{seed}"
    models.mkdir(parents=True, exist_ok=True)
    targets = {each: parse_target("host", precision=each) for each in PRECISIONS}
    errors: dict[tuple[str, str, str], float] = {}
    candidates: list[Candidate] = []
    seconds: dict[str, float] = {}
    for way, precisions in WAYS.items():
        amount = {"minutes": options.minutes} if options.epochs is None else {"schedule": {"epochs": options.epochs}}
        config = configured(options, way, seed, precisions=precisions, constraints=(options.constraint,), **amount)
        start = time.perf_counter()
        pipeline.search(config, Silent())
        seconds[way] = time.perf_counter() - start
        with RunStore.open(config.out) as store:
            task = prepare(config, Silent(), store).final_task()
            nets = [net for net in store.nets() if net.role == "front"]
            for net in nets:
                arch = Arch.parse(net.arch)
                subnet = pipeline.load_subnet(store, arch)
                for precision in (net.precision,) if net.precision else PRECISIONS:
                    name = f"{way.replace(' ', '-')}-{arch.id}-{precision}"
                    errors[way, net.arch, precision] = 1 - test_accuracy(subnet, targets[precision], task)
                    candidates.append(written(subnet, targets[precision], task, models / f"{name}.onnx"))
    limit_ms = parse_constraint(options.constraint).bound
    measured = measure(candidates, candidates[0], targets[NATIVE], SUBNETS, seed=seed, progress=Silent())
    points: dict[str, list[Point]] = {way: [] for way in WAYS}
    for ((way, arch, precision), error), candidate in zip(errors.items(), candidates, strict=True):
        points[way].append(Point(arch, precision, error, measured[candidate.id].latency_ms))
    return {
        way: {
            # A prediction that was a little off is not a broken limit.
            "hypervolume": volume(found, 1.1 * limit_ms, options.reference),
            "seconds": seconds[way],
            "int8": sum(each.precision == "int8" for each in found),
            "points": [vars(each) for each in found],
        }
        for way, found in points.items()
    }


def test_accuracy(subnet: Subnet, target: Target, task: Any) -> float:
    if target.precision == NATIVE:
        return judge(subnet, task, "test").metric
    return judge_in_runtime(subnet, target, task, "test").accuracy


def written(subnet: Subnet, target: Target, task: Any, path: Path) -> Candidate:
    """The network as a file of the target's precision."""
    size = subnet.arch.resolution
    images = torch.cat([images for images, _ in task.batches("calibration", size, CALIBRATION)])[:CALIBRATION]
    calibration = list(images.split(1))
    get_runtime(target.runtime).convert(
        subnet, calibration[0], path, precision=target.precision, dynamic_size=False, calibration=calibration
    )
    return Candidate(path.stem, path, (1, 3, size, size))


PARTS: Mapping[str, Callable[[argparse.Namespace, int], dict[str, Any]]] = {"fixed": compare_fixed, "whole": compare_whole}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--seed-weights", type=Path, required=True)
    parser.add_argument("--constraint", default="latency<=1.2ms")
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--minutes", type=float, default=2.0, help="of each whole search")
    parser.add_argument("--epochs", type=float, help="of each whole search, instead of minutes")
    parser.add_argument("--fixed-epochs", type=float, default=12, help="of training the supernet whose weights are then fixed")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="of chance")
    parser.add_argument("--reference", type=float, nargs=2, default=[0.5, 1.5], help="of the hypervolume: error, ms")
    parser.add_argument("--tables", type=Path)
    parser.add_argument("--out", type=Path, default=Path("runs/precision"))
    parser.add_argument("--json", type=Path, default=Path("precision.json"))
    options = parser.parse_args()
    found: dict[str, dict[int, Any]] = {part: {} for part in options.parts}
    for seed in options.seeds:
        for part in options.parts:
            start = time.perf_counter()
            found[part][seed] = PARTS[part](options, seed)
            told = ", ".join(f"{name} {each['hypervolume']:.4f}" for name, each in found[part][seed].items())
            print(f"{part}, seed {seed}: {told} in {time.perf_counter() - start:.0f} s", file=sys.stderr, flush=True)
            options.json.write_text(
                json.dumps({"options": {k: str(v) for k, v in vars(options).items()}, "found": found}, indent=1)
            )
    table = Table("part", "way", *(f"seed {seed}" for seed in options.seeds), "mean", title="hypervolume")
    for part, by_seed in found.items():
        for name in by_seed[options.seeds[0]]:
            values = [by_seed[seed][name]["hypervolume"] for seed in options.seeds]
            table.add_row(part, name, *(f"{each:.4f}" for each in values), f"{mean(values):.4f}")
    Console(width=120).print(table)
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except NatdeployError as error:
        sys.exit(f"error: {error}")
