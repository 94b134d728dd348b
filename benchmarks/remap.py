"""What every remapping rule costs on a real MobileNetV2, before any training.

The seed is remapped into networks that are narrower, deeper or of larger kernels than itself. How often is a network's first guess,
of the seed's own classes, that of the seed, on real photos? Once with the statistics of the seed's BatchNorm on either side, once
with statistics from other photos on either side. Those change the seed's own guesses as well; how much is printed below the table.
Changes of one layer are made in every stage in turn, at its end, and averaged.

    python benchmarks/remap.py --data DIR --seed-weights FILE --images 128 --json remap.json
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import mean
from typing import get_args

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from natdeploy.errors import NatdeployError
from natdeploy.space import Arch, Layer, get_space
from natdeploy.supernet import Padding, RemapRules, Seed, Subnet, calibrate, choose_input, read_seed, remap
from natdeploy.supernet.remap import WidthRule
from natdeploy.tasks import Classification, SplitName, decode, scan_images, split
from natdeploy.training.memory import keep_freed_memory

NARROW, DEEPEST, BATCH = 3, 5, 64
CALIBRATION = 64
"""Photos for the statistics."""


@dataclass(frozen=True)
class Row:
    """One way to change the seed; agreements of top-1 with the seed in 0..1, of every network changed that way.

    Attributes:
        before: with the seed's statistics in both.
        after: both calibrated on the same photos.
    """

    change: str
    rule: str
    before: list[float]
    after: list[float]


@dataclass(frozen=True)
class Bench:
    """The seed, and the photos as it wants them, (n, 3, r, r)."""

    seed: Seed
    padding: Padding
    images: Tensor
    calibration: Tensor

    def row(self, expected: tuple[Tensor, Tensor], change: str, rule: str, archs: Sequence[Arch], rules: RemapRules) -> Row:
        """`expected` holds the seed's guesses before and after calibration."""
        found = [self.guesses(arch, rules) for arch in archs]
        before, after = ([agreement(guesses[which], expected[which]) for guesses in found] for which in (0, 1))
        return Row(change, rule, before, after)

    def guesses(self, arch: Arch, rules: RemapRules) -> tuple[Tensor, Tensor]:
        """Top-1 of every photo before and after calibration, (n,) each."""
        stages = (replace(stage, max_depth=max(stage.max_depth, DEEPEST)) for stage in self.seed.space.stages)
        space = replace(self.seed.space, stages=tuple(stages))
        torch.manual_seed(0)  # for the initial values of what the seed has nothing for
        network = Subnet(space, arch, self.seed.classes, self.padding, self.seed.norm_eps).eval()
        remap(self.seed, network, rules)
        network = network.to(memory_format=torch.channels_last)
        before = top1(network, self.images)
        calibrate(network, torch.split(self.calibration, BATCH))
        return before, top1(network, self.images)


@torch.inference_mode()
def top1(network: Subnet, images: Tensor) -> Tensor:
    return torch.cat([network(batch).argmax(1) for batch in torch.split(images, BATCH)])


def agreement(guesses: Tensor, expected: Tensor) -> float:
    return float((guesses == expected).double().mean())


def changed(arch: Arch, layers: dict[tuple[int, int], Layer]) -> Arch:
    """With other layers at some (stage, place)."""
    stages = (
        tuple(layers.get((number, place), layer) for place, layer in enumerate(stage)) for number, stage in enumerate(arch.stages)
    )
    return replace(arch, stages=tuple(stages))


def rows(bench: Bench, expected: tuple[Tensor, Tensor]) -> Iterator[Row]:
    seed = bench.seed.arch
    elastic = {
        (number, place): layer
        for number, stage in enumerate(seed.stages)
        for place, layer in enumerate(stage)
        if layer.expansion > NARROW
    }
    narrow = {at: Layer(layer.kernel, NARROW) for at, layer in elastic.items()}
    ends = {at[0]: at for at in elastic}.values()
    singles = [changed(seed, {at: narrow[at]}) for at in ends]
    for rule in get_args(WidthRule):
        rules = RemapRules(width=rule)
        yield bench.row(expected, f"expansion {NARROW}, one layer", rule, singles, rules)
        yield bench.row(expected, f"expansion {NARROW}, all layers", rule, [changed(seed, narrow)], rules)
    for kernel in (5, 7):
        grown = changed(seed, {at: Layer(kernel, layer.expansion) for at, layer in elastic.items()})
        for rules in (RemapRules(kernel="centre"), RemapRules(kernel="dilated")):
            yield bench.row(expected, f"kernel {kernel}, all layers", rules.kernel, [grown], rules)
    deeper = [
        replace(seed, stages=tuple((*stage, stage[-1]) if at == number else stage for at, stage in enumerate(seed.stages)))
        for number, stage in enumerate(seed.stages)
        if len(stage) > 1
    ]
    for rules in (RemapRules(depth="identity"), RemapRules(depth="copy")):
        yield bench.row(expected, "one layer more", rules.depth, deeper, rules)


def prepare(options: argparse.Namespace) -> Bench:
    keep_freed_memory()
    torch.set_num_threads(1)
    seed = read_seed(options.seed_weights, get_space(options.space))
    seed = replace(seed, arch=replace(seed.arch, resolution=options.resolution))
    pixels = decode(scan_images(options.data), options.resolution)
    splits = split(pixels.source, 0)
    photos = pixels.images[list(splits.train[:: max(1, len(splits.train) // 32)][:32])].float() / 255
    convention = choose_input(seed, photos)
    task = Classification(pixels, splits, convention.mean, convention.std, 0)

    def some(name: SplitName, count: int) -> Tensor:
        """Evenly chosen ones of a split."""
        images = torch.cat([batch for batch, _ in task.batches(name, options.resolution, BATCH)])
        chosen = torch.linspace(0, len(images) - 1, min(count, len(images))).long()
        return images[chosen].contiguous(memory_format=torch.channels_last)

    return Bench(seed, convention.padding, some("test", options.images), some("train", CALIBRATION))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--seed-weights", type=Path, required=True)
    parser.add_argument("--space", default="mbv2")
    parser.add_argument("--images", type=int, default=128)
    parser.add_argument("--resolution", type=int, default=128)
    parser.add_argument("--json", type=Path, default=Path("remap.json"))
    options = parser.parse_args()
    start = time.process_time()
    try:
        bench = prepare(options)
    except NatdeployError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    expected = bench.guesses(bench.seed.arch, RemapRules())
    table = Table("change", "rule", "nets", "agreement, %", "calibrated, %", box=None)
    found = []
    for row in rows(bench, expected):
        table.add_row(row.change, row.rule, str(len(row.before)), f"{100 * mean(row.before):.1f}", f"{100 * mean(row.after):.1f}")
        found.append(row)
        print(f"{time.process_time() - start:.0f} s of CPU: {row.change}, {row.rule}", file=sys.stderr)
    Console().print(table)
    own = agreement(*expected)
    print(f"the seed, calibrated, agrees with itself in {100 * own:.1f} %; {len(bench.images)} photos of {options.resolution} px")
    setup = {"images": len(bench.images), "calibration": len(bench.calibration), "resolution": options.resolution}
    setup |= {"seed_calibrated": own, "padding": bench.padding, "seed": bench.seed.source, "torch": torch.__version__}
    options.json.write_text(json.dumps({"setup": setup, "rows": [asdict(row) for row in found]}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
