"""Front against front: natdeploy's search beside other ways to networks for one's own images, in the same time, on the same target.

- `conventional`: every seed network fine-tuned at several resolutions; classifier first, then everything, with the same
  augmentation, schedule, weight averaging, input convention and calibration as ours, and from the start with all images but
  the test ones, since it selects nothing. Its networks share `--minutes` times `--conventional-share`.
- `fixed weights`: as once-for-all is used: the supernet of the first seed is trained on architectures drawn from the whole
  space, and then searched without any more training.
- `random`: our loop with random architectures instead of those that surrogate and evolution propose.
- `ours`: from the first seed.
- `single`: from the first seed, for one network instead of a front.
- `gradient`: FNA's way from the first seed, which ends with one network.
- `ours, best seed`: from the seed whose frozen features tell validation images apart best in the same time: logistic regression at
  several resolutions, and the seeds' fronts of validation error and latency compared by hypervolume; classification.

Every way has `--minutes` in all, evaluation included. All networks of a seed of chance are then measured in one interleaved run.
Called again with the same `--out`, it measures the networks that are there once more, on a quieter machine perhaps.

    python benchmarks/transfer.py --data DIR --seed-weights FILE FILE --minutes 7 --seeds 3 --target host --json transfer.json
    python benchmarks/transfer.py --data DIR --seed-weights FILE --task segmentation --head deeplabv3 --config FILE \
        --ways conventional gradient random ours --resolutions 128

`--data cifar10.npz` unpacks JPEG files from `jpeg`, `offset`, `label` and `name` arrays first (`--per-class N` of them).
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any, get_args

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from sklearn.linear_model import LogisticRegression

from natdeploy import pipeline
from natdeploy.cli.config import read_config
from natdeploy.errors import NatdeployError
from natdeploy.files import write_atomic
from natdeploy.hardware.bench import NETS, SUBNETS, Candidate
from natdeploy.hardware.device import parse_target
from natdeploy.hardware.measure import measure
from natdeploy.pipeline.quantise import judge_in_runtime
from natdeploy.pipeline.setting import Setting, prepare
from natdeploy.runtimes import ort
from natdeploy.search.archive import hypervolume
from natdeploy.space import Arch
from natdeploy.supernet import Subnet, calibrate, read_seed
from natdeploy.tasks import METRICS, SplitName, Task, TaskName
from natdeploy.training.judge import BATCH
from natdeploy.training.plain import train_subnet

TIMED_STEPS = 20
LATENCY_SHARE, POINTS = 0.5, 0.02
"""The aim: for every conventional network, ours is as accurate at this share of its latency, or better by so much at no more."""
PROBED = (96, 112, 128, 160)
"""Resolutions at which seeds are compared, px."""

WAYS: Mapping[str, Mapping[str, Any]] = {
    "fixed weights": {
        "schedule": {"warmup": 1.0, "final": 0.0},
        "adapt": {"sampled_share": 1.0},
        "nat": {"distribution": "uniform", "reevaluate": False},
    },
    "random": {"strategy": "random"},
    "single": {"single": True},
    "gradient": {"strategy": "gradient"},
    "ours": {},
    "ours, best seed": {},
}
"""Settings of each way that searches."""


@dataclass(frozen=True)
class Point:
    """One network.

    Attributes:
        way: how it came to be.
        weights: file name of the seed network.
        seed: of chance.
        arch: its text.
        accuracy: the task's metric, 0..1, in ONNX Runtime on the test images.
        p50_ms: of `n` runs.
        n: timed runs.
        unstable: the processes do not agree.
    """

    way: str
    weights: str
    seed: int
    arch: str
    accuracy: float
    p50_ms: float
    n: int
    unstable: bool


@dataclass(frozen=True)
class Net:
    """A network to be measured: where it came from and its ONNX file."""

    way: str
    weights: str
    arch: str
    accuracy: float
    path: Path


class Notes:
    """Progress as lines on standard error."""

    @contextmanager
    def task(self, name: str, total: int, unit: str) -> Iterator[object]:
        start = time.perf_counter()
        yield lambda _: None
        self.note(f"{name}: {total} {unit} in {time.perf_counter() - start:.0f} s")

    def note(self, message: str) -> None:
        print(message, file=sys.stderr, flush=True)


def config_of(
    options: argparse.Namespace, weights: Path, out: Path, *, seed: int, settings: Mapping[str, Any]
) -> pipeline.SearchConfig:
    given = {
        "task": options.task,
        "data": options.data,
        "out": out,
        "target": options.target,
        "space": space_of(weights),
        "seed_weights": weights,
        "constraints": (options.constraint,),
        "minutes": options.minutes,
        "threads": options.threads,
        "seed": seed,
        "tables": options.tables,
        **settings,
    }
    # A file's settings count where none is given here.
    return read_config(options.config, given, {"kind": options.head} if options.head else None)


def space_of(weights: Path) -> str:
    """The shipped space of a seed network."""
    return read_seed(weights).space.name.split("_c")[0]


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
    notes.note(f"conventional, {config.seed_weights}, {resolution} px: {steps} steps in {time.perf_counter() - start:.0f} s")
    return trained


def all_conventional(options: argparse.Namespace, out: Path, seed: int, notes: Notes) -> Iterator[Net]:
    """Every seed network at every resolution."""
    number = len(options.seed_weights) * len(options.resolutions)
    seconds = 60 * options.minutes * options.conventional_share / number
    for weights in options.seed_weights:
        config = config_of(options, weights, out / "conventional", seed=seed, settings={})
        setting = prepare(config, notes)
        for resolution in options.resolutions:
            subnet = conventional(setting, config, resolution, seconds, notes)
            path = out / "conventional" / f"{weights.stem}-{resolution}.onnx"
            path.parent.mkdir(parents=True, exist_ok=True)
            ort.convert(subnet.eval(), torch.zeros(subnet.input_shape), path, dynamic_size=False)
            found = judge_in_runtime(subnet, parse_target("host/onnxruntime"), setting.task, "test")
            yield Net("conventional", weights.name, str(subnet.arch), found.metric, path)


def best_seed(options: argparse.Namespace, out: Path, seed: int, notes: Notes) -> Path:
    """The seed whose frozen features serve a linear classifier best for their latency, by validation images."""
    nets: list[Net] = []
    for weights in options.seed_weights:
        setting = prepare(config_of(options, weights, out, seed=seed, settings={}), notes)
        for resolution in PROBED:
            subnet = setting.supernet.extract(setting.seed_arch(resolution))
            calibrate(subnet, (images for images, _ in setting.task.batches("calibration", resolution, BATCH)))
            path = out / "probed" / f"{weights.stem}-{resolution}.onnx"
            path.parent.mkdir(parents=True, exist_ok=True)
            ort.convert(subnet.eval(), torch.zeros(subnet.input_shape), path, dynamic_size=False)
            nets.append(Net("probe", weights.name, str(subnet.arch), probed(subnet, setting.task), path))
    found = timed(options, nets, seed, notes)
    fronts = {weights: [point for point in found if point.weights == weights.name] for weights in options.seed_weights}
    scores = {weights: volume(front, 1.0, options.reference[1]) for weights, front in fronts.items()}
    for weights, score in scores.items():
        told = ", ".join(f"{100 * point.accuracy:.1f} % at {point.p50_ms:.3f} ms" for point in fronts[weights])
        notes.note(f"linear probes of {weights.name}: {told}; hypervolume {score:.4f}")
    return max(scores, key=lambda weights: scores[weights])


def probed(subnet: Subnet, task: Task) -> float:
    """Share of validation images that a linear classifier of training images' features gets right; the subnet loses its own."""
    subnet.classifier = torch.nn.Identity()  # type: ignore[assignment]
    splits: tuple[SplitName, ...] = ("train", "validation")
    features: list[np.ndarray] = []
    labels: list[np.ndarray] = []
    for split in splits:
        with torch.inference_mode():
            batches = task.batches(split, subnet.arch.resolution, BATCH)
            seen = [(subnet(images).numpy(), targets.numpy()) for images, targets in batches]
        for all_of, part in zip((features, labels), zip(*seen, strict=True), strict=True):
            all_of.append(np.concatenate(part))
    scale = features[0].std(axis=0) + 1e-6
    probe = LogisticRegression(max_iter=2000).fit(features[0] / scale, labels[0])
    return float(probe.score(features[1] / scale, labels[1]))


def nets_of(options: argparse.Namespace, seed: int, notes: Notes) -> tuple[list[Net], dict[str, float]]:
    """All ways with one seed of chance, and the seconds of each; what was found in an earlier call is not found again."""
    path = options.out / f"seed{seed}" / "nets.json"
    if path.exists():
        kept = json.loads(path.read_text())
        nets = [Net(**{**each, "path": path.parent / each["path"]}) for each in kept["nets"]]
        notes.note(f"seed {seed}: {len(nets)} networks of an earlier call")
        return nets, kept["seconds"]
    nets, seconds = all_nets(options, path.parent, seed, notes)
    facts = [{**asdict(net), "path": str(net.path.relative_to(path.parent))} for net in nets]
    write_atomic(path, json.dumps({"nets": facts, "seconds": seconds}, indent=2).encode())
    return nets, seconds


def all_nets(options: argparse.Namespace, out: Path, seed: int, notes: Notes) -> tuple[list[Net], dict[str, float]]:
    """The same, found now."""
    nets: list[Net] = []
    seconds: dict[str, float] = {}
    best = best_seed(options, out, seed, notes) if "ours, best seed" in options.ways else options.seed_weights[0]
    for way in options.ways:
        start = time.perf_counter()
        if way == "conventional":
            nets += all_conventional(options, out, seed, notes)
            seconds[way] = time.perf_counter() - start
            continue
        weights = best if way == "ours, best seed" else options.seed_weights[0]
        config = config_of(options, weights, out / way.replace(", ", "-").replace(" ", "-"), seed=seed, settings=WAYS[way])
        notes.note(f"{way}, seed {seed}, from {weights.name}")
        pipeline.search(config, notes)
        archs = {net.id: net.arch for net in pipeline.nets(config.out) if net.role == "front"}
        files = pipeline.export(config.out, "front", max_drop=100.0, progress=notes)
        nets += [Net(way, weights.name, archs[file.id], file.test_accuracy or 0.0, config.out / file.path) for file in files]
        spent = pipeline.report(config.out).seconds
        seconds[way] = sum(part for stage, part in spent.items() if stage not in ("images and weights", "profiling", "test"))
    return nets, seconds


def timed(options: argparse.Namespace, nets: Sequence[Net], seed: int, notes: Notes) -> list[Point]:
    """All networks, measured together. One that several ways trained has the mean of its times: to a runtime it is the same."""
    candidates = [Candidate(str(number), net.path, input_shape(net.path)) for number, net in enumerate(nets)]
    target = parse_target(options.target, threads=options.threads)
    settings = SUBNETS if options.short_measuring else NETS
    result = measure(candidates, candidates[0], target, settings, seed=seed, progress=notes)
    times: dict[tuple[str, str], list[float]] = {}
    for number, net in enumerate(nets):
        times.setdefault((net.weights, net.arch), []).append(result[str(number)].typical_ms)
    points = []
    for number, net in enumerate(nets):
        found, p50_ms = result[str(number)], mean(times[net.weights, net.arch])
        points.append(Point(net.way, net.weights, seed, net.arch, net.accuracy, p50_ms, found.n, found.unstable))
    return sorted(points, key=lambda point: point.p50_ms)


def input_shape(path: Path) -> tuple[int, ...]:
    """Of the one input of a file whose sizes are fixed."""
    ((_, shape, _),) = ort.read_inputs(path)
    assert shape is not None
    return tuple(size or 1 for size in shape)


def volume(points: Sequence[Point], error: float, latency_ms: float) -> float:
    """Share of the box below an error and a latency that networks dominate, 0..1."""
    values = np.array([[(1 - point.accuracy) / error, point.p50_ms / latency_ms] for point in points]).reshape(-1, 2)
    return hypervolume(values, np.ones(2))


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


def unpack(path: Path, folder: Path, per_class: int | None) -> Path:
    """Writes the JPEG files of an archive, and of its sibling `test.npz`, as an image folder."""
    for part, file in (("train", path), ("test", path.with_name("test.npz"))):
        arrays = np.load(file, allow_pickle=False)
        jpeg, offset, label, names = arrays["jpeg"], arrays["offset"], arrays["label"], arrays["name"]
        written: dict[int, int] = {}
        for number, kind in enumerate(label.tolist()):
            if per_class is None or written.get(kind, 0) < per_class:
                written[kind] = written.get(kind, 0) + 1
                image = folder / part / str(names[kind]) / f"{number:05d}.jpg"
                image.parent.mkdir(parents=True, exist_ok=True)
                image.write_bytes(jpeg[offset[number] : offset[number + 1]].tobytes())
    return folder


def show(found: Sequence[Point], seed: int, metric: str, console: Console) -> None:
    table = Table("way", "seed network", "px", "test %", "p50 ms", "n", title=f"seed {seed}, {metric}")
    for point in found:
        mark = "*" if point.unstable else ""
        side = str(Arch.parse(point.arch).resolution)
        table.add_row(point.way, point.weights, side, f"{100 * point.accuracy:.1f}", f"{point.p50_ms:.3f}{mark}", str(point.n))
    console.print(table)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--seed-weights", type=Path, required=True, nargs="+", help="the first is that of the ways with one seed")
    parser.add_argument("--ways", nargs="+", choices=["conventional", *WAYS], default=["conventional", *WAYS])
    parser.add_argument("--minutes", type=float, default=7.0, help="for each way, in all")
    parser.add_argument("--conventional-share", type=float, default=1.0, help="of the minutes, for all conventional networks")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="of chance")
    parser.add_argument("--target", default="host")
    parser.add_argument("--constraint", default="latency<=2ms")
    parser.add_argument("--resolutions", type=int, nargs="+", default=[96, 128], help="of the conventional networks, px")
    parser.add_argument("--reference", type=float, nargs=2, default=[0.3, 3.0], help="of the hypervolume: error, ms")
    parser.add_argument("--task", choices=get_args(TaskName), default="classification")
    parser.add_argument("--head", help="of a dense task")
    parser.add_argument("--config", type=Path, help="TOML of further settings, such as resolutions")
    parser.add_argument("--per-class", type=int, help="training and test images of a class to unpack, for --data FILE.npz")
    parser.add_argument("--short-measuring", action="store_true", help="time networks as for a latency table: a fifth of the time")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--tables", type=Path)
    parser.add_argument("--out", type=Path, default=Path("runs/transfer"))
    parser.add_argument("--json", type=Path, default=Path("transfer.json"))
    options = parser.parse_args()
    if options.data.suffix == ".npz":
        options.data = unpack(options.data, options.out / "images", options.per_class)
    notes, console = Notes(), Console(width=100)
    points: list[Point] = []
    answers: list[dict[str, object]] = []
    seconds: list[dict[str, float]] = []
    volumes: list[dict[str, float]] = []
    for seed in options.seeds:
        nets, taken = nets_of(options, seed, notes)
        found = timed(options, nets, seed, notes)
        points += found
        seconds.append(taken)
        show(found, seed, METRICS[options.task], console)
        volumes.append({way: volume([p for p in found if p.way == way], *options.reference) for way in options.ways})
        ours = [point for point in found if point.way.startswith(("ours", "gradient"))]
        for theirs in (point for point in found if point.way == "conventional"):
            text, reached = verdict(theirs, ours)
            answers.append({**asdict(theirs), "answer": text, "aim_reached": reached})
            console.print(
                f"{theirs.weights} at {Arch.parse(theirs.arch).resolution} px, {100 * theirs.accuracy:.1f} % at "
                f"{theirs.p50_ms:.3f} ms; ours: {text}; aim {'reached' if reached else 'not reached'}"
            )
        options.json.write_text(
            json.dumps(
                {
                    "options": {name: str(value) for name, value in vars(options).items()},
                    "points": [asdict(point) for point in points],
                    "answers": answers,
                    "hypervolumes": volumes,
                    "seconds": seconds,
                    "peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000,
                },
                indent=2,
            )
        )
    box = f"reference {options.reference[0]:.0%}, {options.reference[1]:g} ms"
    summary = Table("way", "hypervolume", "spread", "seconds", title=box)
    for way in options.ways:
        each = [found[way] for found in volumes]
        spread = f"{stdev(each):.4f}" if len(each) > 1 else "one run"
        summary.add_row(way, f"{mean(each):.4f}", spread, f"{mean(taken[way] for taken in seconds):.0f}")
    console.print(summary)
    if answers:
        reached = sum(bool(each["aim_reached"]) for each in answers)
        console.print(f"aim reached for {reached} of {len(answers)} conventional networks")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except NatdeployError as error:
        sys.exit(f"error: {error}")
