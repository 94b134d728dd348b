"""Finding blood cells, or whatever else has boxes: a seed network with a head against one that was found for the images.

    python benchmarks/detection.py --data DIR --seed-weights FILE --minutes 3 --json detection.json

The seed's own architecture is trained with its pretrained weights, for so many minutes. A supernet with the same weights is adapted
for `--supernet-share` of as many minutes, and finds, among random architectures that are no slower as files in ONNX Runtime on this
machine, the one of highest mean average precision on the validation images. That one, with the adapted supernet's weights, trains
for the rest of the minutes: both have learned for as long in the end. `remapped` is the same architecture from the seed's weights
alone, for all of the minutes, as FNA trains what it finds; its search is not counted. Test images decide nothing.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from network_latency import latencies
from rich.console import Console
from rich.table import Table

from natdeploy.errors import NatdeployError
from natdeploy.space import Arch, HeadSpec, SearchSpace, cost, get_space
from natdeploy.supernet import Padding, Seed, Subnet, Supernet, calibrate, choose_input, read_seed, remap
from natdeploy.tasks import Detection, decode_boxes, scan_boxes, split_boxes
from natdeploy.tasks.mean_ap import Found, Precision, mean_precision
from natdeploy.training.adapt import Adapter, AdaptSettings, Lesson
from natdeploy.training.judge import judge_arch
from natdeploy.training.loop import TrainSettings
from natdeploy.training.memory import keep_freed_memory
from natdeploy.training.plain import Finetuner


@dataclass(frozen=True)
class Row:
    """One network.

    Attributes:
        way: how it came about.
        seed: of chance.
        arch: its text.
        macs: multiply-accumulates, head included.
        latency_ms: p50 of its ONNX file on one thread, timed in turns with the others.
        ap: COCO's mean average precision on test images, 0..1.
        ap50: where a box must overlap by half.
        by_class: `ap` of each class.
        steps: that it learned for, the supernet's included.
        seconds: of a processor's time that this took, on one thread: what else the machine does does not count.
    """

    way: str
    seed: int
    arch: str
    macs: int
    latency_ms: float
    ap: float
    ap50: float
    by_class: tuple[float | None, ...]
    steps: int
    seconds: float


@dataclass(frozen=True)
class Bench:
    """What all networks have in common."""

    seed: Seed
    space: SearchSpace
    padding: Padding
    task: Detection
    options: argparse.Namespace

    def supernet(self, chance: int) -> Supernet:
        generator = torch.Generator().manual_seed(chance)
        width, eps = self.seed.arch.width, self.seed.norm_eps
        supernet = Supernet(
            self.space, len(self.task.classes), width=width, padding=self.padding, norm_eps=eps, generator=generator
        )
        remap(self.seed, supernet)
        return supernet.to(memory_format=torch.channels_last)

    def train(self) -> TrainSettings:
        return TrainSettings(learning_rate=self.options.learning_rate, batch_size=self.options.batch_size)

    def steps(self, trainer_step: Callable[[int], None], seconds: float) -> int:
        """How many steps fit into so many seconds, by the time that a few take; those change what they train."""
        trainer_step(2)
        start = time.process_time()
        trainer_step(2 + _PROBED)
        return max(10, round(_PROBED * seconds / (time.process_time() - start)))

    def trained(self, subnet: Subnet, seconds: float, head_share: float) -> tuple[Subnet, int, float]:
        """A network after so many seconds, how many steps they were, and how long it took."""

        def tuner(net: Subnet, steps: int) -> Finetuner:
            return Finetuner(net, self.task, self.train(), steps, head_steps=round(head_share * steps))

        probe = tuner(deepcopy(subnet), 1000)
        steps = self.steps(lambda stop: probe.run(stop, lambda: None), seconds)
        start = time.process_time()
        learned = tuner(subnet, steps)
        learned.run(steps, lambda: None)
        took = time.process_time() - start
        net = learned.average
        calibrate(net, (images for images, _ in self.task.batches("calibration", net.arch.resolution, 32)))
        return net, steps, took

    def adapted(self, chance: int, archs: Sequence[Arch], seconds: float) -> tuple[Supernet, int, float]:
        """A supernet that random ones of some architectures have learned in."""

        def adapter(supernet: Supernet, steps: int) -> tuple[Adapter, Lesson]:
            settings = AdaptSettings(train=self.train(), sampled_share=1.0)
            lesson = Lesson(self.task, [archs[0]], lambda n, rng: [archs[i] for i in rng.integers(len(archs), size=n)], *archs[:2])
            return Adapter(supernet, settings, total_steps=steps, seed=chance), lesson

        probe, lesson = adapter(self.supernet(chance), 1000)
        steps = self.steps(lambda stop: probe.run(stop, lesson, lambda: None), seconds)
        start = time.process_time()
        learned, lesson = adapter(self.supernet(chance), steps)
        learned.run(steps, lesson, lambda: None)
        average = learned.trainer.average
        assert isinstance(average, Supernet)
        return average, steps, time.process_time() - start

    def candidates(self, chance: int) -> list[Arch]:
        """The seed's architecture, and random ones that are no slower, each timed in turns with it."""
        rng, supernet = np.random.default_rng([chance, 1]), self.supernet(chance)
        found: list[Arch] = []
        while len(found) < self.options.archs:
            drawn = self.space.decode_all(self.space.sample(16, rng))
            nets = [supernet.extract(arch) for arch in (self.seed.arch, *drawn)]
            seed_ms, *others = latencies(nets)
            found += [arch for arch, ms in zip(drawn, others, strict=True) if _NEAR * seed_ms <= ms <= seed_ms]
        return [self.seed.arch, *found[: self.options.archs]]

    def judged(self, net: Subnet) -> Precision:
        found = Found()
        with torch.inference_mode():
            for images, targets in self.task.batches("test", net.arch.resolution, 32):
                found += self.task.tally(net(images), targets)
        return mean_precision(found, len(self.task.classes))


_PROBED = 6
_NEAR = 0.6
"""Of the seed's latency: what is much faster is not what is asked for."""


def prepare(options: argparse.Namespace) -> Bench:
    keep_freed_memory()
    torch.set_num_threads(1)
    seed = read_seed(options.seed_weights, get_space("mbv2"))
    seed = replace(seed, arch=replace(seed.arch, resolution=options.resolution))
    data = decode_boxes(scan_boxes(options.data), 3 * options.resolution // 2)
    task = Detection(data, split_boxes(data, 0), (0.0,) * 3, (1.0,) * 3, 0, head=options.head)
    convention = choose_input(seed, task.photos(32, options.resolution))
    resolutions = [each for each in seed.space.resolutions if 0.75 <= each / options.resolution <= 1.25]
    space = seed.space.restrict(resolutions=resolutions, widths=[seed.arch.width])
    space = replace(space, dense=HeadSpec(options.head, options.channels))
    return Bench(seed, space, convention.padding, task.with_input(convention.mean, convention.std), options)


def rows_of(bench: Bench, chance: int) -> list[Row]:
    seconds, share = 60 * bench.options.minutes, bench.options.supernet_share
    nets: list[tuple[str, Subnet, int, float]] = []
    nets.append(("the seed's own network", *bench.trained(bench.supernet(chance).extract(bench.seed.arch), seconds, _HEAD_SHARE)))
    archs = bench.candidates(chance)
    supernet, steps, took = bench.adapted(chance, archs, share * seconds)
    verdicts = [judge_arch(supernet, arch, bench.task, "validation") for arch in archs]
    worth = [-1.0 if isinstance(each, str) else each.metric for each in verdicts]
    best = archs[int(np.argmax(worth))]
    net, more, longer = bench.trained(supernet.extract(best), (1 - share) * seconds, 0.0)
    nets.append(("found, from the adapted supernet", net, steps + more, took + longer))
    nets.append(("found, remapped from the seed", *bench.trained(bench.supernet(chance).extract(best), seconds, _HEAD_SHARE)))
    times = latencies([net for _, net, _, _ in nets])
    result = []
    for (way, net, count, spent), ms in zip(nets, times, strict=True):
        precision = bench.judged(net)
        macs = int(cost(bench.space, [net.arch], len(bench.task.classes)).macs[0])
        result.append(Row(way, chance, str(net.arch), macs, ms, precision.ap, precision.ap50, precision.by_class, count, spent))
        print(f"{way}, seed {chance}: AP {100 * precision.ap:.1f} %, {ms:.2f} ms, {count} steps in {spent:.0f} s", flush=True)
    return result


_HEAD_SHARE = 0.08


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--seed-weights", type=Path, required=True)
    parser.add_argument("--head", choices=("ssdlite", "retinanet"), default="ssdlite")
    parser.add_argument("--channels", type=int, default=128, help="of the head")
    parser.add_argument("--resolution", type=int, default=160, help="of the seed's input, px; others have a quarter more or less")
    parser.add_argument("--minutes", type=float, default=3.0, help="of learning, of every network")
    parser.add_argument("--supernet-share", type=float, default=0.4)
    parser.add_argument("--archs", type=int, default=16, help="that the supernet chooses from")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--learning-rate", type=float, default=0.05)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--json", type=Path, default=Path("detection.json"))
    options = parser.parse_args()
    rows: list[Row] = []
    try:
        bench = prepare(options)
        for chance in options.seeds:
            rows += rows_of(bench, chance)
            setup = {name: str(value) for name, value in vars(options).items()} | {"padding": bench.padding}
            setup |= {"torch": torch.__version__, "onnxruntime": onnxruntime.__version__, "images": len(bench.task.data.source)}
            options.json.write_text(json.dumps({"setup": setup, "rows": [asdict(each) for each in rows]}, indent=1) + "\n")
    except NatdeployError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    table = Table("network", "seed", "AP, %", "AP50, %", "p50, ms", "MMACs", "steps", "learned, s", box=None)
    for row in rows:
        table.add_row(
            *(row.way, str(row.seed), f"{100 * row.ap:.1f}", f"{100 * row.ap50:.1f}", f"{row.latency_ms:.2f}"),
            *(f"{row.macs / 1e6:.1f}", str(row.steps), f"{row.seconds:.0f}"),
        )
    Console().print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
