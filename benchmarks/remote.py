"""What a way to a device costs: the same networks measured here directly and through a device file that leads back to this machine.

    python benchmarks/remote.py --device board.toml [--space mbv2] [--nets 3] [--turns 5]

`board.toml` has `transport = "ssh"` and an address of this machine, such as `you@localhost`; its Python has the same version of the
runtime as this one. Both ways measure in turns, so that a machine that gets slower slows both; the ratio is that of the medians.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from statistics import median

import numpy as np
import torch

from natdeploy.hardware.bench import SUBNETS, Candidate
from natdeploy.hardware.device import parse_target
from natdeploy.hardware.measure import measure
from natdeploy.hardware.runtimes import get_runtime
from natdeploy.latency.plan import plan_subnets
from natdeploy.progress import Silent
from natdeploy.space import get_space
from natdeploy.supernet import Subnet


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", required=True)
    parser.add_argument("--space", default="mbv2")
    parser.add_argument("--nets", type=int, default=3)
    parser.add_argument("--turns", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    named = get_space(options.space)
    space = named.restrict(widths=(named.widths[0],))
    there = parse_target(options.device)
    here = parse_target(f"host/{there.slug}")
    runtime = get_runtime(there.runtime)
    with tempfile.TemporaryDirectory() as folder:
        candidates = []
        for i, arch in enumerate(plan_subnets(space, options.nets, 0, np.random.default_rng(0))[0]):
            shape = (1, 3, arch.resolution, arch.resolution)
            path = Path(folder, f"{i}{runtime.SUFFIX}")
            runtime.convert(Subnet(space, arch, 1000), torch.zeros(shape), path, precision=there.precision, dynamic_size=False)
            candidates.append(Candidate(str(i), path, shape))
        turns = [
            [measure(candidates, candidates[0], target, SUBNETS, seed=turn, progress=Silent()) for target in (here, there)]
            for turn in range(options.turns)
        ]
    local, remote = turns[0]
    names = ("runtime_version", "python", "numpy")
    print(f"{here}: {', '.join(f'{name} {local.environment[name]}' for name in names)}")
    print(f"{there}: {', '.join(f'{name} {remote.environment[name]}' for name in names)}")
    print("net  p50 here  p50 there  there/here  relative, there/here")
    for candidate in candidates:
        p50 = [[result[candidate.id].p50_ms for result in turn] for turn in turns]
        relative = [turn[1][candidate.id].relative / turn[0][candidate.id].relative for turn in turns]
        a, b = (median(column) for column in zip(*p50, strict=True))
        print(f"{candidate.id:3}  {a:5.3f} ms   {b:5.3f} ms  {b / a:10.4f}  {median(relative):20.4f}")


if __name__ == "__main__":
    main()
