"""Choosing by gradient (FNA) beside evolution (NAT) and chance, and what a step of the logits takes in memory.

    python benchmarks/fna.py strategies --data DIR --seed-weights FILE --minutes 2 --seeds 0 1 --json fna.json
    python benchmarks/fna.py strategies --task segmentation --head lraspp --data DIR --seed-weights FILE --config FILE
    python benchmarks/fna.py memory --resolution 128 --batch-size 32

`strategies`: every strategy gets the same images, seed network, constraint and minutes, one after the other; or with --epochs as
many steps of weights, whatever else the machine does meanwhile. Gradient ends with one network; beside it stands, of each front,
the network of least validation error that is no slower by the same predictor, which is how a user would take one. Test images
decide nothing. Seconds are split as FNA's paper does: until the architectures are chosen, and after.

`memory`: every way of `gradient.memory` in a process of its own: peak beyond the supernet itself, and time of a step.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean, median
from typing import get_args

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.nn.functional import cross_entropy

from natdeploy import pipeline
from natdeploy.cli.config import read_config
from natdeploy.errors import NatdeployError
from natdeploy.pipeline.presets import Strategy
from natdeploy.progress import Silent
from natdeploy.space import BlockSum, get_space
from natdeploy.store import NetRecord
from natdeploy.supernet import Supernet
from natdeploy.tasks import METRICS, SplitName, TaskName
from natdeploy.training.gradient import Chooser, Cost, GradientSettings

CLASSES = 100
MEMORY = ("full", "recompute", "two_path")


@dataclass(frozen=True)
class Point:
    """One network of one run.

    Attributes:
        strategy: that found it.
        seed: of chance.
        arch: its text.
        predicted_ms: by the one predictor.
        validation_accuracy: the task's metric, 0..1.
        test_accuracy: likewise.
        beside: it is the one that stands beside gradient's.
    """

    strategy: str
    seed: int
    arch: str
    predicted_ms: float
    validation_accuracy: float
    test_accuracy: float
    beside: bool


@dataclass(frozen=True)
class Spent:
    """What a run took, in seconds of this machine."""

    strategy: str
    seed: int
    architecture_s: float
    parameters_s: float
    whole_s: float


def strategies(options: argparse.Namespace) -> None:
    points: list[Point] = []
    spent: list[Spent] = []
    for seed in options.seeds:  # seed by seed, so that what disturbs the machine disturbs all strategies
        limit_ms = float("inf")
        for strategy in options.strategies:
            start = time.perf_counter()
            result = run(options, strategy, seed)
            front = [net for net in result.nets if net.role == "front"]
            if strategy == "gradient":
                limit_ms = max(net.predicted_ms or 0.0 for net in front)
            chosen = beside(front, limit_ms)
            points += [point(net, strategy, seed, beside=net is chosen) for net in front]
            points += [point(net, "seed network", seed, beside=False) for net in result.nets if net.role == "baseline"]
            assert result.adaptation is not None
            spent.append(Spent(strategy, seed, **asdict(result.adaptation), whole_s=time.perf_counter() - start))
            print(f"seed {seed}, {strategy}: {len(front)} nets in {spent[-1].whole_s:.0f} s", file=sys.stderr, flush=True)
            options.json.write_text(
                json.dumps(
                    {
                        "options": {name: str(value) for name, value in vars(options).items()},
                        "points": [asdict(each) for each in points],
                        "spent": [asdict(each) for each in spent],
                    },
                    indent=2,
                )
            )
    show(options, points, spent)


def run(options: argparse.Namespace, strategy: str, seed: int) -> pipeline.ReportResult:
    settings = {
        "task": options.task,
        "data": options.data,
        "out": options.out / f"{strategy}-{seed}",
        "target": options.target,
        "seed_weights": options.seed_weights,
        "constraints": (options.constraint,),
        "minutes": None if options.epochs else options.minutes,
        "seed": seed,
        "tables": options.tables,
        "strategy": strategy,
    }
    if options.head:
        settings["head"] = {"kind": options.head}
    if options.epochs:
        settings["schedule"] = {"epochs": options.epochs}
    # A file's settings count where none is given here.
    config = read_config(options.config, settings)
    pipeline.search(config, Silent())
    return pipeline.report(config.out)


def beside(front: Sequence[NetRecord], limit_ms: float) -> NetRecord | None:
    """The net of least validation error within a latency; None where all are slower."""
    within = [net for net in front if (net.predicted_ms or 0.0) <= limit_ms]
    return max(within, key=lambda net: net.validation_accuracy, default=None)


def point(net: NetRecord, strategy: str, seed: int, *, beside: bool) -> Point:
    assert net.predicted_ms is not None and net.final_accuracy is not None
    return Point(strategy, seed, net.arch, net.predicted_ms, net.validation_accuracy, net.final_accuracy, beside)


def show(options: argparse.Namespace, points: Sequence[Point], spent: Sequence[Spent]) -> None:
    table = Table(
        *("strategy", "seed", "nets", "px", "predicted, ms", "validation, %", "test, %", "architecture, s", "parameters, s"),
        title=f"{options.constraint}, {f'{options.epochs:g} epochs' if options.epochs else f'{options.minutes:g} min'} each",
    )
    for each in spent:
        own = [one for one in points if (one.strategy, one.seed) == (each.strategy, each.seed)]
        taken = next((one for one in own if one.beside), None)
        shown = ["-"] * 4
        if taken is not None:
            resolution = taken.arch.partition("-")[0].removeprefix("r")
            shares = (f"{100 * share:.1f}" for share in (taken.validation_accuracy, taken.test_accuracy))
            shown = [resolution, f"{taken.predicted_ms:.3f}", *shares]
        table.add_row(
            each.strategy, str(each.seed), str(len(own)), *shown, f"{each.architecture_s:.0f}", f"{each.parameters_s:.0f}"
        )
    console = Console(width=120)
    console.print(table)
    for strategy in options.strategies:
        taken_all = [one.test_accuracy for one in points if one.strategy == strategy and one.beside]
        if taken_all:
            console.print(
                f"{strategy}: test {METRICS[options.task]} {100 * mean(taken_all):.1f} % on average over {len(taken_all)} seeds"
            )


class Noise:
    """A task of random images, made before they are asked for."""

    classes = tuple(map(str, range(CLASSES)))

    def __init__(self, resolution: int, batch_size: int) -> None:
        generator = torch.Generator().manual_seed(0)
        images = torch.randn(batch_size, 3, resolution, resolution, generator=generator)
        self._batch = images.to(memory_format=torch.channels_last), torch.randint(CLASSES, (batch_size,), generator=generator)

    def train_batch(self, step: int, resolution: int, batch_size: int) -> tuple[Tensor, Tensor]:
        return self._batch

    def batches(
        self, split: SplitName, resolution: int, batch_size: int, limit: int | None = None
    ) -> Iterator[tuple[Tensor, Tensor]]:
        yield self._batch

    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        return cross_entropy(logits, targets)

    def tally(self, logits: Tensor, targets: Tensor) -> Tensor:
        return torch.tensor([0, len(targets)])

    def metric(self, tally: Tensor) -> float:
        return 0.0


@dataclass(frozen=True)
class Step:
    """What a step of the logits takes: peak memory in 10^6 bytes beyond what was held before it, and median seconds."""

    memory: str
    peak_mb: float
    seconds: float


def memory(options: argparse.Namespace) -> None:
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        steps = [pool.apply(measure, (vars(options), name)) for name in MEMORY]
    table = Table("memory", "peak, MB", "a step, s", title=f"{options.space}, width {options.width:g}, {options.batch_size} images")
    for each in steps:
        table.add_row(each.memory, f"{each.peak_mb:.0f}", f"{each.seconds:.2f}")
    Console(width=100).print(table)


def measure(options: dict[str, object], name: str) -> Step:
    """In a fresh process: high-water marks never fall."""
    torch.set_num_threads(1)
    resolution, batch_size, width = (options[key] for key in ("resolution", "batch_size", "width"))
    assert isinstance(resolution, int) and isinstance(batch_size, int) and isinstance(width, float)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    space = get_space(str(options["space"])).restrict(widths=(width,), resolutions=(resolution,))
    supernet = Supernet(space, CLASSES, width=width).to(device).to(memory_format=torch.channels_last)
    fixed, added = BlockSum(space, lambda blocks: [block.macs for block in blocks], CLASSES).terms(0, 0)
    settings = GradientSettings(memory=name, batch_size=batch_size, cost="macs")

    def chooser_of(side: int, images: int) -> Chooser:
        costs = {"macs": Cost(fixed, torch.from_numpy(added), fixed + added.max())}
        return Chooser(supernet, Noise(side, images), resolution, costs, settings, start=0, stop=1000, seed=0)

    chooser_of(32, 2).after(1)  # what torch and its kernels take once, whatever is computed, is no part of a step
    chooser = chooser_of(resolution, batch_size)
    before = held_mb(device)
    forget_peak(device)
    seconds = []
    for number in range(1 + 3):
        start = time.perf_counter()
        chooser.after(number + 1)
        seconds.append(time.perf_counter() - start)
    return Step(name, peak_mb(device) - before, median(seconds[1:]))


def held_mb(device: torch.device) -> float:
    return torch.cuda.memory_allocated() / 1e6 if device.type == "cuda" else status_mb("VmRSS")


def peak_mb(device: torch.device) -> float:
    return torch.cuda.max_memory_allocated() / 1e6 if device.type == "cuda" else status_mb("VmHWM")


def forget_peak(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    else:
        Path("/proc/self/clear_refs").write_text("5")  # proc(5): the high-water mark is set to what is held now


def status_mb(name: str) -> float:
    """Of this process, as Linux counts it, 10^6 bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 / 1e6 for line in lines if line.startswith(f"{name}:"))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(required=True)
    compare = verbs.add_parser("strategies")
    compare.set_defaults(work=strategies)
    compare.add_argument("--data", type=Path, required=True)
    compare.add_argument("--seed-weights", type=Path, required=True)
    # Gradient first: its latency is the bound by which the others' networks are taken.
    compare.add_argument("--strategies", nargs="+", choices=get_args(Strategy), default=["gradient", "evolution", "random"])
    compare.add_argument("--minutes", type=float, default=2.0, help="for each strategy and seed")
    compare.add_argument("--epochs", type=float, help="of weights, instead of minutes")
    compare.add_argument("--seeds", type=int, nargs="+", default=[0], help="of chance")
    compare.add_argument("--target", default="host")
    compare.add_argument("--constraint", default="latency<=0.6ms")
    compare.add_argument("--tables", type=Path)
    compare.add_argument("--task", choices=get_args(TaskName), default="classification")
    compare.add_argument("--head", help="of a dense task")
    compare.add_argument("--config", type=Path, help="TOML of further settings, such as resolutions")
    compare.add_argument("--out", type=Path, default=Path("runs/fna"))
    compare.add_argument("--json", type=Path, default=Path("fna.json"))
    steps = verbs.add_parser("memory")
    steps.set_defaults(work=memory)
    steps.add_argument("--space", default="mbv2")
    steps.add_argument("--width", type=float, default=1.0)
    steps.add_argument("--resolution", type=int, default=128)
    steps.add_argument("--batch-size", type=int, default=32)
    options = parser.parse_args()
    options.work(options)
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except NatdeployError as error:
        sys.exit(f"error: {error}")
