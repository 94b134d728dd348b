"""What a round costs beside evaluation and training: fitting surrogates, evolution on them, the choice of new architectures.

    python benchmarks/surrogate_side.py [--archive 340] [--turns 3] [--json FILE]

One core, an archive as large as NAT's last (340), cross-validation of all candidates, 100 generations of 100, 8 new architectures;
on `mbv2` and `ofa_mbv3`, with 2, 3, 4 and 12 objectives. Errors are made up (a smooth function of codes and resolution, noisy):
time does not depend on them. Reference directions are made once in a process and are told apart. The median of the turns is
shown, wall time and in brackets processor time: on a busy machine the latter is what counts.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median

import numpy as np
from threadpoolctl import threadpool_limits

from natdeploy.files import write_atomic
from natdeploy.search import Archive, NatSettings, Objectives
from natdeploy.search.evolve import DIRECTIONS, evolve, infill, reference_directions
from natdeploy.search.feasible import sample_feasible
from natdeploy.search.surrogate import Features, fit_best
from natdeploy.space import BlockSum, Genotypes, SearchSpace, get_space

OBJECTIVES = {
    2: ("error", "latency"),
    3: ("error", "latency", "params"),
    4: ("error", "latency", "params", "macs"),
    12: ("error", "latency", "params", "macs", *(f"latency@{device}" for device in range(8))),
}
STEPS = ("fit", "evolution", "infill")
CLASSES = 12


def problem(space: SearchSpace, names: tuple[str, ...]) -> Objectives:
    """Costs that are sums over blocks, as real ones are."""

    def total(kernels: float) -> BlockSum:
        return BlockSum(space, lambda blocks: [b.macs / 2e8 * b.kernel**kernels + 0.005 for b in blocks], CLASSES)

    cheap = {name: total(0.2 * number) for number, name in enumerate(names[1:])}
    return Objectives(names, cheap)


def made_up_errors(space: SearchSpace, genotypes: Genotypes, rng: np.random.Generator) -> np.ndarray:
    gain = np.log(np.array(space.resolutions)[genotypes[:, 0]] / space.resolutions[0])
    for _, part in space.elastic:
        gain = gain + 0.2 * np.log1p(genotypes[:, part].sum(axis=1))
    return 0.05 + 0.5 * np.exp(-0.6 * gain) + 0.004 * rng.standard_normal(len(genotypes))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--archive", type=int, default=340)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    print(f"{'space':9} objectives  surrogate  " + "".join(f"{step:>20}" for step in (*STEPS, "in all")) + "   directions (once)")
    results = []
    for count, names in OBJECTIVES.items():
        for space in (get_space("mbv2"), get_space("ofa_mbv3")):
            once: dict[str, tuple[float, float]] = {}
            with timed(once, "directions"):
                if count > 2:
                    reference_directions(count, DIRECTIONS)
            turns = [round_of(space, names, options.archive, turn) for turn in range(options.turns)]
            wall, cpu = ({step: median(turn[0][step][kind] for turn in turns) for step in STEPS} for kind in (0, 1))
            cells = [f"{wall[step]:.2f} s ({cpu[step]:.2f})" for step in STEPS]
            cells.append(f"{sum(wall.values()):.2f} s ({sum(cpu.values()):.2f})")
            surrogate = turns[0][1]
            print(
                f"{space.name:9} {count:10}  {surrogate:9}  "
                + "".join(f"{cell:>20}" for cell in cells)
                + f"   {once['directions'][0]:.1f} s",
                flush=True,
            )
            results.append({"space": space.name, "objectives": count, "surrogate": surrogate, "wall_s": wall, "cpu_s": cpu})
    if options.json:
        report = {"archive": options.archive, "turns": options.turns, "settings": NatSettings().model_dump(), "results": results}
        write_atomic(options.json, json.dumps(report, indent=1).encode())


def round_of(space: SearchSpace, names: tuple[str, ...], size: int, seed: int) -> tuple[dict[str, tuple[float, float]], str]:
    """Seconds (wall, processor) of every step, and the surrogate that won."""
    settings, rng = NatSettings(), np.random.default_rng(seed)
    objectives = problem(space, names)
    archive = Archive(space, objectives)
    known = space.lower[None]
    genotypes = np.concatenate([known, sample_feasible(size - 1, space, objectives, (), known=known, rng=rng)])
    archive.add(genotypes, made_up_errors(space, genotypes, rng))
    seconds: dict[str, tuple[float, float]] = {}
    with threadpool_limits(1):
        with timed(seconds, "fit"):
            features = Features(space, genotypes)
            fit = fit_best(features(genotypes), archive.values[:, 0], rng)

        def hope(some: Genotypes) -> np.ndarray:
            predicted = fit.predict(features(some))
            return predicted.errors - settings.optimism * predicted.deviation

        with timed(seconds, "evolution"):
            candidates = evolve(archive, hope, rng, population=settings.population, generations=settings.generations)
        with timed(seconds, "infill"):
            both = np.concatenate([candidates, genotypes])
            values = objectives.values(both, hope(both))
            infill(values[: len(candidates)], values[len(candidates) :], settings.infill)
    return seconds, fit.name


@contextmanager
def timed(seconds: dict[str, tuple[float, float]], step: str) -> Iterator[None]:
    wall, cpu = time.perf_counter(), time.process_time()
    yield
    seconds[step] = time.perf_counter() - wall, time.process_time() - cpu


if __name__ == "__main__":
    main()
