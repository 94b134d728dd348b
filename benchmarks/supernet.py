"""Training steps of the supernet beside once-for-all's reference code, in one process, in turns, on the same architectures.

The reference is a checkout of once-for-all (github.com/mit-han-lab/once-for-all), which is not part of natdeploy; without
`--reference` only ours is timed. It is run as it is, and once more with its weights and images in channels_last. A step is forward,
backward and the update of torch's SGD with Nesterov momentum on either side; what `natdeploy search` adds (SharedSGD, clipping,
averaged weights) is not in it.

    python benchmarks/supernet.py --reference DIR --width 1.0 --classes 100 --batch 32 --resolution 128 --json supernet.json
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from natdeploy.space import Arch, SearchSpace, get_space
from natdeploy.supernet import Supernet
from natdeploy.training.memory import keep_freed_memory

RATE = 0.01
WAYS = ("natdeploy", "reference", "reference channels_last")


@dataclass(frozen=True)
class Speed:
    """Of one way: images a second of training (medians over rounds), and milliseconds of an extraction."""

    way: str
    random_images_s: float
    largest_images_s: float
    extract_ms: float


class Ours:
    """The supernet in the memory format in which `natdeploy search` trains it."""

    def __init__(self, options: argparse.Namespace) -> None:
        space = get_space("ofa_mbv3").restrict(widths=(options.width,), resolutions=(options.resolution,))
        self.network = Supernet(space, options.classes, width=options.width, kernel_transforms=True)
        self.network.to(options.device).to(memory_format=torch.channels_last)

    def forward(self, images: Tensor, arch: Arch) -> Tensor:
        return self.network(images.contiguous(memory_format=torch.channels_last), arch)  # type: ignore[no-any-return]

    def extract(self, arch: Arch) -> nn.Module:
        return self.network.extract(arch)


class Reference:
    """Once-for-all's own supernet."""

    def __init__(self, options: argparse.Namespace, *, channels_last: bool) -> None:
        sys.path.insert(0, str(options.reference))
        from ofa.imagenet_classification.elastic_nn.networks import OFAMobileNetV3  # type: ignore[import-not-found]

        self.format = torch.channels_last if channels_last else torch.contiguous_format
        self.network = OFAMobileNetV3(
            n_classes=options.classes,
            dropout_rate=0.0,
            width_mult=options.width,
            ks_list=[3, 5, 7],
            expand_ratio_list=[3, 4, 6],
            depth_list=[2, 3, 4],
        )
        self.network.to(options.device).to(memory_format=self.format)

    def _choose(self, arch: Arch) -> None:
        slots = [list(stage) + [stage[-1]] * (4 - len(stage)) for stage in arch.stages[1:]]
        layers = [layer for stage in slots for layer in stage]
        self.network.set_active_subnet(
            ks=[layer.kernel for layer in layers], e=[int(layer.expansion) for layer in layers], d=list(arch.depths[1:])
        )

    def forward(self, images: Tensor, arch: Arch) -> Tensor:
        self._choose(arch)
        return self.network(images.contiguous(memory_format=self.format))  # type: ignore[no-any-return]

    def extract(self, arch: Arch) -> nn.Module:
        self._choose(arch)
        return self.network.get_active_subnet()  # type: ignore[no-any-return]


def make(way: str, options: argparse.Namespace) -> Ours | Reference:
    return Ours(options) if way == "natdeploy" else Reference(options, channels_last=way != "reference")


def archs_of(space: SearchSpace, options: argparse.Namespace) -> tuple[list[Arch], Arch]:
    """Random architectures, and the largest."""
    space = space.restrict(widths=(options.width,), resolutions=(options.resolution,))
    drawn = space.decode_all(space.sample(options.rounds * options.steps, np.random.default_rng(options.seed)))
    return drawn, space.decode(space.upper)


def stepper(side: Ours | Reference, options: argparse.Namespace) -> Callable[[Arch], None]:
    """What trains one step with an architecture."""
    side.network.train()
    optimizer = torch.optim.SGD(side.network.parameters(), lr=RATE, momentum=0.9, nesterov=True, weight_decay=3e-5)
    images = torch.randn(options.batch, 3, options.resolution, options.resolution, device=options.device)
    labels = torch.randint(options.classes, (options.batch,), device=options.device)
    kind = torch.device(options.device).type

    def step(arch: Arch) -> None:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(kind, enabled=options.autocast, dtype=torch.bfloat16):
            loss = cross_entropy(side.forward(images, arch).float(), labels)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        if kind == "cuda":
            torch.cuda.synchronize()

    return step


def seconds(function: Callable[[Arch], object], archs: Sequence[Arch]) -> float:
    start = time.perf_counter()
    for arch in archs:
        function(arch)
    return time.perf_counter() - start


def compare(ways: Sequence[str], options: argparse.Namespace) -> list[Speed]:
    """Every round gives every way the same architectures, in turn."""
    sides = {way: make(way, options) for way in ways}
    steps = {way: stepper(side, options) for way, side in sides.items()}
    drawn, largest = archs_of(get_space("ofa_mbv3"), options)
    times: dict[str, dict[str, list[float]]] = {way: {"random": [], "largest": [], "extract": []} for way in ways}
    for number in range(-1, options.rounds):
        archs = drawn[max(number, 0) * options.steps :][: options.steps]
        for way in ways:
            found = {
                "random": options.batch * len(archs) / seconds(steps[way], archs),
                "largest": options.batch / seconds(steps[way], [largest]),
                "extract": 1000 * seconds(sides[way].extract, archs) / len(archs),
            }
            if number >= 0:  # the round before the first warms up
                for name, value in found.items():
                    times[way][name].append(value)
    return [Speed(way, *(statistics.median(times[way][name]) for name in ("random", "largest", "extract"))) for way in ways]


def peak_mb(way: str, options: argparse.Namespace) -> float:
    """Memory that two training steps of the largest architecture add to a process of its own, MB."""
    step = stepper(make(way, options), options)
    before = _high_water_mb()
    if options.device != "cpu":
        torch.cuda.reset_peak_memory_stats()
    _, largest = archs_of(get_space("ofa_mbv3"), options)
    step(largest)
    step(largest)
    if options.device != "cpu":
        return torch.cuda.max_memory_allocated() / 1e6
    return _high_water_mb() - before


def _high_water_mb() -> float:
    """Most memory this process has held; unlike getrusage's, the figure does not begin with that of the parent process."""
    status = Path("/proc/self/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1]) / 1000


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reference", type=Path, help="checkout of once-for-all")
    parser.add_argument("--width", type=float, default=1.0)
    parser.add_argument("--classes", type=int, default=100)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--resolution", type=int, default=128, help="px")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=4, help="of a round")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--autocast", action="store_true", help="bfloat16 where torch finds it safe")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, default=Path("supernet.json"))
    parser.add_argument("--peak", choices=WAYS, help="only print the peak memory of one way, MB")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    random.seed(options.seed)
    if options.device == "cpu":
        keep_freed_memory()
    if options.peak:
        print(peak_mb(options.peak, options))
        return 0
    ways = WAYS if options.reference else WAYS[:1]
    found = compare(ways, options)
    peaks = {}
    for way in ways:
        command = [sys.executable, *sys.argv, "--peak", way]
        peaks[way] = float(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()[-1])
    about = f"batch {options.batch}, {options.resolution} px, width {options.width:g}"
    table = Table(title=f"{options.device}, {options.threads} thread(s), {about}")
    for column in ("way", "random, images/s", "largest, images/s", "extract, ms", "peak memory of a step, MB"):
        table.add_column(column)
    for speed in found:
        ratio = "" if speed is found[0] else f" (ours {found[0].random_images_s / speed.random_images_s:.2f} x)"
        most = "" if speed is found[0] else f" (ours {found[0].largest_images_s / speed.largest_images_s:.2f} x)"
        table.add_row(
            speed.way,
            f"{speed.random_images_s:.1f}{ratio}",
            f"{speed.largest_images_s:.1f}{most}",
            f"{speed.extract_ms:.1f}",
            f"{peaks[speed.way]:.0f}",
        )
    Console().print(table)
    facts = {
        "options": {name: str(value) for name, value in vars(options).items()},
        "speeds": [asdict(speed) for speed in found],
        "peak_mb": peaks,
    }
    options.json.write_text(json.dumps(facts, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
