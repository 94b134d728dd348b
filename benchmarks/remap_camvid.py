"""FNA's ablation of remapping, on street scenes: does the supernet need the seed's weights, does the network that it finds?

For every seed of chance, one supernet with the seed's weights and one without are trained for as many steps, and each finds the
best of a few random architectures that are no slower than the seed's as files in ONNX Runtime on this machine. Either of those is
trained for as many steps, once from the seed's weights and once from chance. The seed's own architecture, trained alike from its
weights, stands beside them, and once more with as many steps as supernet and found network have together.

    python benchmarks/remap_camvid.py --data DIR --seed-weights FILE --seeds 3 --json remap_camvid.json
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import mean, stdev

import numpy as np
import torch
from network_latency import latencies
from rich.console import Console
from rich.table import Table
from torch.nn.functional import interpolate

from natdeploy.errors import NatdeployError
from natdeploy.space import Arch, HeadSpec, SearchSpace, get_space
from natdeploy.supernet import Padding, Seed, Subnet, Supernet, calibrate, choose_input, read_seed, remap
from natdeploy.tasks import Segmentation, decode_masks, scan_masks, split_masks
from natdeploy.tasks.masks import CAMVID, CAMVID_VOID
from natdeploy.training.adapt import Adapter, AdaptSettings, Lesson
from natdeploy.training.judge import judge, judge_arch
from natdeploy.training.loop import TrainSettings
from natdeploy.training.memory import keep_freed_memory
from natdeploy.training.plain import train_subnet

OUTPUT_STRIDE = 16
HEAD = HeadSpec("deeplabv3", channels=64)
CHEAPEST = 0.8
"""Least cost of what is found, in multiply-accumulates of the seed's backbone."""


@dataclass(frozen=True)
class Row:
    """One network.

    Attributes:
        way: which weights were remapped.
        seed: of chance.
        arch: what was trained.
        macs: of its backbone, square input of the same height.
        latency_ms: p50 of its ONNX file on one thread of this machine, in turns with the others of the same seed of chance.
        supernet_iou: mean IoU on validation images with the supernet's weights; None where no supernet found it.
        validation_iou: of the trained network.
        test_iou: of the trained network.
        seconds: that its own training took.
    """

    way: str
    seed: int
    arch: str
    macs: int
    latency_ms: float
    supernet_iou: float | None
    validation_iou: float
    test_iou: float
    seconds: float


@dataclass(frozen=True)
class Bench:
    """What all networks have in common."""

    seed: Seed
    space: SearchSpace
    padding: Padding
    task: Segmentation
    options: argparse.Namespace

    def supernet(self, chance: int, *, remapped: bool) -> Supernet:
        supernet = Supernet(
            self.space,
            len(self.task.classes),
            width=self.seed.arch.width,
            padding=self.padding,
            norm_eps=self.seed.norm_eps,
            generator=torch.Generator().manual_seed(chance),
        )
        if remapped:
            remap(self.seed, supernet)
        return supernet.to(memory_format=torch.channels_last)

    def found(self, chance: int, *, remapped: bool) -> tuple[Arch, float]:
        """The best of some architectures with the weights of a supernet that was trained for a while, and its mean IoU."""
        supernet = self.supernet(chance, remapped=remapped)
        settings = AdaptSettings(train=self.train(), sampled_share=1.0, head_share=0.1)
        steps = self.options.supernet_steps
        adapter = Adapter(supernet, settings, total_steps=steps, seed=chance)
        archs = self.fast_archs(self.options.archs, np.random.default_rng([chance, 1]))
        lesson = Lesson(self.task, archs, self.archs, largest=archs[0], smallest=archs[0])
        adapter.run(steps, lesson, lambda: None)
        average = adapter.trainer.average
        assert isinstance(average, Supernet)
        judged = [judge_arch(average, arch, self.task, "validation", self.options.images) for arch in archs]
        worth = [-1.0 if isinstance(each, str) else each.metric for each in judged]
        best = int(np.argmax(worth))
        return archs[best], worth[best]

    def archs(self, count: int, rng: np.random.Generator) -> list[Arch]:
        """Random ones that cost as much as the seed, or a little less."""
        most = macs(self.space, self.seed.arch)
        found: list[Arch] = []
        while len(found) < count:
            drawn = self.space.decode_all(self.space.sample(64, rng))
            found += [arch for arch in drawn if CHEAPEST * most <= macs(self.space, arch) <= most]
        return found[:count]

    def fast_archs(self, count: int, rng: np.random.Generator) -> list[Arch]:
        """The same, no slower than the seed's."""
        supernet, found = self.supernet(0, remapped=False), list[Arch]()
        while len(found) < count:
            drawn = self.archs(count, rng)
            seed_ms, *others = latencies([supernet.extract(arch) for arch in (self.seed.arch, *drawn)])
            found += [arch for arch, ms in zip(drawn, others, strict=True) if ms <= seed_ms]
        return found[:count]

    def trained(self, arch: Arch, chance: int, steps: int, *, remapped: bool) -> Subnet:
        # From a supernet that nobody trained, so the head and what is not remapped begin alike, whatever the way.
        subnet = self.supernet(chance, remapped=False).extract(arch)
        if remapped:
            remap(self.seed, subnet)
        subnet = subnet.to(memory_format=torch.channels_last)
        subnet = train_subnet(subnet, self.task, self.train(), steps, lambda: None)
        calibrate(subnet, (images for images, _ in self.task.batches("calibration", arch.resolution, 32)))
        return subnet

    def train(self) -> TrainSettings:
        return TrainSettings(learning_rate=self.options.learning_rate, batch_size=self.options.batch_size)


@dataclass(frozen=True)
class Way:
    """What is trained: an architecture, as the supernet found it, for so many steps, from the seed's weights or from chance."""

    name: str
    arch: Arch
    steps: int
    remapped: bool
    supernet_iou: float | None = None


def ways(bench: Bench, chance: int) -> Iterator[Way]:
    options, own = bench.options, bench.seed.arch
    yield Way("the seed's own network", own, options.steps, remapped=True)
    yield Way("the seed's own network, longer", own, options.steps + options.supernet_steps, remapped=True)
    for remapped in (True, False):
        arch, iou = bench.found(chance, remapped=remapped)
        yield Way("both" if remapped else "final only", arch, options.steps, remapped=True, supernet_iou=iou)
        yield Way("supernet only" if remapped else "none", arch, options.steps, remapped=False, supernet_iou=iou)


def rows_of(bench: Bench, chance: int) -> list[Row]:
    """All ways with one seed of chance; their networks are measured together."""
    found: list[tuple[Way, Subnet, float]] = []
    for way in ways(bench, chance):
        start = time.monotonic()
        subnet = bench.trained(way.arch, chance, way.steps, remapped=way.remapped)
        found.append((way, subnet, time.monotonic() - start))
    rows = []
    for (way, subnet, seconds), ms in zip(found, latencies([subnet for _, subnet, _ in found]), strict=True):
        validation, test = (judge(subnet, bench.task, part).metric for part in ("validation", "test"))
        cost = macs(bench.space, way.arch)
        rows.append(Row(way.name, chance, str(way.arch), cost, ms, way.supernet_iou, validation, test, seconds))
        print(f"{way.name}, seed {chance}: test {100 * test:.1f} %, {ms:.3f} ms, {seconds:.0f} s, {way.arch}", flush=True)
    return rows


def macs(space: SearchSpace, arch: Arch) -> int:
    return sum(block.macs for block in space.backbone(arch))


def prepare(options: argparse.Namespace) -> Bench:
    keep_freed_memory()
    torch.set_num_threads(1)
    seed = read_seed(options.seed_weights, get_space("mbv2"))
    seed = replace(seed, arch=replace(seed.arch, resolution=options.resolution))
    data = decode_masks(scan_masks(options.data, CAMVID, void=[CAMVID_VOID]), strict=True)
    splits = split_masks(data, 0)
    photos = data.images[list(splits.train[:: max(1, len(splits.train) // 32)][:32])]
    side = min(data.size)
    convention = choose_input(seed, interpolate(photos[..., :side, :side].float() / 255, (options.resolution,) * 2))
    task = Segmentation(data, splits, convention.mean, convention.std, 0)
    space = seed.space.restrict(resolutions=[options.resolution], widths=[seed.arch.width])
    space = replace(space, output_stride=OUTPUT_STRIDE, dense=HEAD)
    return Bench(seed, space, convention.padding, task, options)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--seed-weights", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--resolution", type=int, default=128, help="height of the input, px")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--learning-rate", type=float, default=0.05)
    parser.add_argument("--steps", type=int, default=150, help="of every network")
    parser.add_argument("--supernet-steps", type=int, default=100)
    parser.add_argument("--archs", type=int, default=8, help="that a supernet chooses from")
    parser.add_argument("--images", type=int, default=48, help="for validation, by which it chooses")
    parser.add_argument("--json", type=Path, default=Path("remap_camvid.json"))
    options = parser.parse_args()
    try:
        bench = prepare(options)
    except NatdeployError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    rows: list[Row] = []

    for chance in range(options.seeds):
        rows += rows_of(bench, chance)
        height, width = bench.task.input_size(options.resolution)
        setup = {name: str(value) for name, value in vars(options).items()} | {"input": [height, width], "padding": bench.padding}
        setup |= {
            "seed_macs": macs(bench.space, bench.seed.arch),
            "torch": torch.__version__,
            "images": len(bench.task.data.source),
        }
        options.json.write_text(json.dumps({"setup": setup, "rows": [asdict(each) for each in rows]}, indent=1) + "\n")
    table = Table("remapped", "mean IoU on test, %", "each", "p50, ms", "MMACs of the backbone", box=None)
    for way in dict.fromkeys(row.way for row in rows):
        own = [row for row in rows if row.way == way]
        ious = [100 * row.test_iou for row in own]
        spread = f" +- {stdev(ious):.1f}" if len(ious) > 1 else ""
        each = ", ".join(f"{iou:.1f}" for iou in ious)
        costs = f"{mean(row.latency_ms for row in own):.3f}", f"{mean(row.macs for row in own) / 1e6:.1f}"
        table.add_row(way, f"{mean(ious):.1f}{spread}", each, *costs)
    Console().print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
