"""Front against front: natdeploy's search beside conventional fine-tuning of the same seed, in the same time, on the same target.

The seed network is fine-tuned at several resolutions: classifier first, then everything, with the same augmentation, schedule,
weight averaging, input convention and calibration as ours, and from the start with all images but the test ones, since it selects
nothing. Its runs share the minutes that the search gets in all, evaluation included. All networks are then measured in one
interleaved run.

    python benchmarks/transfer.py --data DIR --seed-weights FILE --minutes 7 --seeds 1 --target host --json transfer.json
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean

import torch
from rich.console import Console
from rich.table import Table

from natdeploy import pipeline
from natdeploy.errors import NatdeployError
from natdeploy.export import export_onnx, runtime_accuracy
from natdeploy.hardware.bench import NETS, Candidate
from natdeploy.hardware.device import parse_target
from natdeploy.hardware.measure import measure
from natdeploy.pipeline.setting import Setting, prepare
from natdeploy.space import Arch
from natdeploy.supernet import Subnet, calibrate
from natdeploy.training.judge import BATCH
from natdeploy.training.plain import train_subnet

TIMED_STEPS = 20
LATENCY_SHARE, POINTS = 0.6, 0.01
"""The aim: for every conventional network, ours is as accurate at this share of its latency, or better by so much at no more."""


@dataclass(frozen=True)
class Point:
    """One network: `way` is `ours` or `conventional`; accuracy 0..1 in ONNX Runtime on the test images; p50 of `n` runs."""

    way: str
    seed: int
    arch: str
    accuracy: float
    p50_ms: float
    n: int
    unstable: bool


class Notes:
    """Progress as lines on standard error."""

    @contextmanager
    def task(self, name: str, total: int, unit: str) -> Iterator[object]:
        start = time.perf_counter()
        yield lambda _: None
        self.note(f"{name}: {total} {unit} in {time.perf_counter() - start:.0f} s")

    def note(self, message: str) -> None:
        print(message, file=sys.stderr, flush=True)


def conventional(setting: Setting, config: pipeline.SearchConfig, resolution: int, seconds: float, notes: Notes) -> Subnet:
    """The seed network, fine-tuned at one resolution for so many seconds."""
    task = setting.final_task()
    arch, settings = setting.seed_arch(resolution), config.adapt.train

    def fresh() -> Subnet:
        return setting.supernet.extract(arch).to(memory_format=torch.channels_last)

    marks: list[float] = []
    train_subnet(fresh(), task, settings, TIMED_STEPS + 1, lambda: marks.append(time.perf_counter()))
    step_s = (marks[-1] - marks[0]) / TIMED_STEPS
    steps = max(1, round(seconds / step_s))
    start = time.perf_counter()
    trained = train_subnet(fresh(), task, settings, steps, lambda: None, head_steps=round(config.adapt.head_share * steps))
    calibrate(trained, (images for images, _ in task.batches("calibration", resolution, BATCH)))
    notes.note(f"conventional at {resolution} px: {steps} steps in {time.perf_counter() - start:.0f} s")
    return trained


def compare(options: argparse.Namespace, seed: int, notes: Notes) -> tuple[list[Point], dict[str, float]]:
    """Both ways with one seed of chance, measured together; and the seconds of each."""
    out = options.out / f"seed{seed}"
    config = pipeline.SearchConfig(
        data=options.data,
        out=out,
        target=options.target,
        seed_weights=options.seed_weights,
        constraints=(options.constraint,),
        minutes=options.minutes,
        threads=options.threads,
        seed=seed,
        tables=options.tables,
    )
    pipeline.search(config, notes)
    nets = [net for net in pipeline.export(out, "front", progress=notes) if net.role == "front"]
    spent = pipeline.report(out).summary["seconds"]
    seconds = {"ours": sum(spent[stage] for stage in ("training", "evaluation", "search"))}
    setting = prepare(config, notes)
    shapes: dict[str, tuple[str, str, float, Path]] = {
        f"ours-{net.id}": ("ours", net.arch, net.runtime_accuracy or 0.0, out / net.files[0]) for net in nets
    }
    start = time.perf_counter()
    for resolution in options.resolutions:
        subnet = conventional(setting, config, resolution, 60 * options.minutes / len(options.resolutions), notes)
        file = export_onnx(subnet, out / "conventional" / f"{resolution}.onnx", {})
        correct, total = runtime_accuracy(file.path, setting.task.batches("test", resolution, BATCH))
        shapes[f"conventional-{resolution}"] = ("conventional", str(subnet.arch), correct / total, file.path)
    seconds["conventional"] = time.perf_counter() - start
    candidates = []
    for name, (_, arch, _, path) in shapes.items():
        side = Arch.parse(arch).resolution
        candidates.append(Candidate(name, path, (1, 3, side, side)))
    target = parse_target(options.target, threads=options.threads)
    result = measure(candidates, candidates[-1], target, NETS, seed=seed, progress=notes)
    points = []
    for name, (way, arch, accuracy, _) in shapes.items():
        found = result[name]
        points.append(Point(way, seed, arch, accuracy, found.p50_ms, found.n, found.unstable))
    return sorted(points, key=lambda point: point.p50_ms), seconds


def verdict(theirs: Point, ours: list[Point]) -> tuple[str, bool]:
    """The best answer to a conventional network: our fastest that is as accurate, and our most accurate that is as fast."""
    as_accurate = min((p for p in ours if p.accuracy >= theirs.accuracy), key=lambda p: p.p50_ms, default=None)
    as_fast = max((p for p in ours if p.p50_ms <= theirs.p50_ms), key=lambda p: p.accuracy, default=None)
    parts, reached = [], False
    if as_accurate is not None:
        share = as_accurate.p50_ms / theirs.p50_ms
        reached |= share <= LATENCY_SHARE
        parts.append(f"{100 * as_accurate.accuracy:.1f} % at {share:.2f} of its latency")
    if as_fast is not None:
        gain = as_fast.accuracy - theirs.accuracy
        reached |= gain >= POINTS
        parts.append(f"{100 * gain:+.1f} points at {as_fast.p50_ms / theirs.p50_ms:.2f}")
    return "; ".join(parts) or "none as accurate and none as fast", reached


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--seed-weights", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=7.0, help="for each way, in all")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--target", default="host")
    parser.add_argument("--constraint", default="latency<=1.5ms")
    parser.add_argument("--resolutions", type=int, nargs="+", default=[96, 128, 160], help="of the conventional networks, px")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--tables", type=Path)
    parser.add_argument("--out", type=Path, default=Path("runs/transfer"))
    parser.add_argument("--json", type=Path, default=Path("transfer.json"))
    options = parser.parse_args()
    notes, console = Notes(), Console()
    points: list[Point] = []
    answers: list[dict[str, object]] = []
    seconds: list[dict[str, float]] = []
    for seed in range(options.seeds):
        found, taken = compare(options, seed, notes)
        points += found
        seconds.append(taken)
        table = Table("way", "px", "test %", "p50 ms", "n", title=f"seed {seed}")
        for point in found:
            mark = "*" if point.unstable else ""
            table.add_row(
                point.way,
                str(Arch.parse(point.arch).resolution),
                f"{100 * point.accuracy:.1f}",
                f"{point.p50_ms:.3f}{mark}",
                str(point.n),
            )
        console.print(table)
        ours = [point for point in found if point.way == "ours"]
        for theirs in (point for point in found if point.way == "conventional"):
            text, reached = verdict(theirs, ours)
            answers.append({"seed": seed, "resolution": Arch.parse(theirs.arch).resolution, "answer": text, "aim_reached": reached})
            console.print(
                f"conventional {Arch.parse(theirs.arch).resolution} px, {100 * theirs.accuracy:.1f} % at {theirs.p50_ms:.3f} ms; "
                f"ours: {text}; aim {'reached' if reached else 'not reached'}"
            )
    peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000
    reached = sum(bool(each["aim_reached"]) for each in answers)
    spent = {way: mean(each[way] for each in seconds) for way in ("ours", "conventional")}
    console.print(
        f"aim reached for {reached} of {len(answers)} conventional networks; training and evaluation: ours {spent['ours']:.0f} s, "
        f"conventional {spent['conventional']:.0f} s; peak memory {peak_mb:.0f} MB"
    )
    facts = {
        "options": {name: str(value) for name, value in vars(options).items()},
        "points": [asdict(point) for point in points],
        "answers": answers,
        "seconds": seconds,
        "peak_memory_mb": peak_mb,
    }
    options.json.write_text(json.dumps(facts, indent=2))
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except NatdeployError as error:
        sys.exit(f"error: {error}")
