"""How fast architectures of a space are drawn, coded and costed, on one core.

python benchmarks/space.py --space ofa_mbv3 --n 100000
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np

from natdeploy.files import write_atomic
from natdeploy.space import cost, get_space

REPEATS = 5


def per_second(work: Callable[[], object], n: int) -> float:
    """Architectures a second in the fastest of some repeats, the first of which warms up."""
    seconds = []
    for _ in range(1 + REPEATS):
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    return n / min(seconds[1:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--space", default="ofa_mbv3", help="name, or path of a .toml file")
    parser.add_argument("--n", type=int, default=100_000, help="architectures; a tenth of them as objects")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    options = parser.parse_args()
    space, n = get_space(options.space), options.n
    rng = np.random.default_rng(0)

    start = time.perf_counter()
    cost(space, space.sample(1, rng))
    build_s = time.perf_counter() - start
    genotypes = space.sample(n, rng)
    few = genotypes[: max(1, n // 10)]
    archs = space.decode_all(few)
    rates = {
        "cost of genotypes (params, MACs, activation bytes)": per_second(lambda: cost(space, genotypes), n),
        "cost of architectures": per_second(lambda: cost(space, archs), len(few)),
        "decode": per_second(lambda: space.decode_all(few), len(few)),
        "encode": per_second(lambda: space.encode_all(archs), len(few)),
        "sample, balanced": per_second(lambda: space.sample(n, rng), n),
        "sample, uniform": per_second(lambda: space.sample(n, rng, balanced=False), n),
        "repair": per_second(lambda: space.repair(genotypes), n),
        "mutate": per_second(lambda: space.mutate(genotypes, rng, 0.1), n),
    }
    print(f"{space.name}: {space.size:.3g} architectures; look-ups built in {1000 * build_s:.0f} ms, once")
    for name, rate in rates.items():
        print(f"{name:52}{rate:>14,.0f} /s")
    if options.out:
        result = {"space": space.name, "n": n, "build_s": build_s, "per_second": rates}
        write_atomic(options.out, json.dumps(result, indent=1).encode())


if __name__ == "__main__":
    main()
