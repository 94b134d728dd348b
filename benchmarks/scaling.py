"""What the parts of a search cost, and what a cluster takes off them: the table and the constants of docs/scaling.md.

    python benchmarks/scaling.py [--rounds 3] [--workers 2] [--ray-steps 8] [--json scaling.json]

`--rounds 0` leaves out all but Ray.

Steps, evaluations and checkpoints are computed on one thread and given in CPU seconds of it, which other programs on the machine
disturb little; what involves Ray, in wall seconds, which they do disturb: only its ratios are worth reading on a busy machine.
Images and weights are random, since neither changes the time. Medians over rounds, in which everything takes its turn.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from statistics import median

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from safetensors.torch import save_file
from scipy.optimize import nnls

from natdeploy.distributed.engine import Engine, InProcess
from natdeploy.distributed.ray_engine import RayEngine
from natdeploy.hardware.device import host_facts
from natdeploy.space import Arch, SearchSpace, cost, get_space
from natdeploy.supernet import Supernet
from natdeploy.tasks import Classification, ImageSet, Pixels, Splits
from natdeploy.training.adapt import Adapter, AdaptSettings, Lesson
from natdeploy.training.judge import Verdict, judge_arch
from natdeploy.training.loop import TrainSettings
from natdeploy.training.memory import keep_freed_memory

SPACE, CLASSES = "mbv2", 10
WIDTHS = (0.35, 1.0)
CALIBRATION = 64
STEPS = tuple(
    (width, resolution, batch) for width in WIDTHS for resolution, batch in ((96, 16), (96, 32), (96, 64), (128, 32), (192, 16))
)
"""(width, resolution px, images) of the steps that are timed."""
EVALUATIONS = tuple(
    (width, resolution, images)
    for width in WIDTHS
    for resolution, images in ((96, 64), (96, 128), (96, 256), (128, 128), (192, 64))
)
"""(width, resolution px, validation images)."""
RAY_ARCHS = 12


@dataclass(frozen=True)
class Row:
    """One timed thing.

    Attributes:
        part: step, evaluation or checkpoint.
        width: of the supernet.
        resolution: px; 0 where it does not matter.
        images: of a batch, or of the validation split.
        gmacs: multiply-accumulates (1e9) of a forward pass of all the images that were seen.
        cpu_s: median.
        mb: written (1e6 bytes), of a checkpoint.
    """

    part: str
    width: float
    resolution: int
    images: int
    gmacs: float
    cpu_s: float
    mb: float = 0.0


@dataclass(frozen=True)
class RayRow:
    """What a cluster does, in wall seconds.

    Attributes:
        what: is done.
        here_s: in this process.
        one_s: by one worker.
        several_s: by all of them.
    """

    what: str
    here_s: float | None
    one_s: float
    several_s: float


@dataclass(frozen=True)
class Law:
    """CPU seconds = fixed_s + s_per_gmac x GMACs, fitted to relative errors; `error` is the largest of their absolute values.

    One a width: narrow networks move more bytes for a multiplication.
    """

    part: str
    width: float
    fixed_s: float
    s_per_gmac: float
    error: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--ray-steps", type=int, default=8, help="that are timed; more tell more")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()
    rows = single_process(options.rounds) if options.rounds else []
    laws = [law(part, width, rows) for part in ("step", "evaluation") for width in WIDTHS if rows]
    ray_rows = on_ray(options.workers, options.ray_steps)
    show(rows, laws, ray_rows, options.workers)
    if options.json:
        facts = {**host_facts(), "torch": torch.__version__, "load_1min": os.getloadavg()[0], "workers": options.workers}
        parts = {name: [asdict(each) for each in each_of] for name, each_of in (("rows", rows), ("laws", laws), ("ray", ray_rows))}
        options.json.write_text(json.dumps({"machine": facts, **parts}, indent=1), encoding="utf-8")


def space_of(width: float) -> SearchSpace:
    return get_space(SPACE).restrict(widths=(width,))


def arch_of(width: float, resolution: int) -> Arch:
    """The architecture of middling choices: what a search trains and judges lies around it."""
    space = space_of(width)
    middle = (np.asarray(space.lower) + np.asarray(space.upper)) // 2
    genotype = space.repair(middle[None])[0]
    genotype[0] = space.resolutions.index(resolution)
    return space.decode(genotype)


def task_of(validation: int, size: int = 224) -> Classification:
    """Noise in the shape of a data set."""
    count = 128 + CALIBRATION + validation
    rng = np.random.default_rng(0)
    images = torch.from_numpy(rng.integers(0, 256, (count, size, size, 3), dtype=np.uint8)).permute(0, 3, 1, 2)
    labels = tuple((np.arange(count) % CLASSES).tolist())
    paths = tuple(str(number) for number in range(count))
    source = ImageSet(Path("noise"), tuple(str(label) for label in range(CLASSES)), paths, labels, (False,) * count)
    ends = np.cumsum([128, CALIBRATION, validation])
    train, calibration, held = (
        tuple(range(end - part, end)) for end, part in zip(ends, (128, CALIBRATION, validation), strict=True)
    )
    splits = Splits(train, held, calibration, ())
    return Classification(Pixels(source, images, torch.tensor(labels)), splits, (0.5,) * 3, (0.5,) * 3, 0)


def adapter_of(width: float, batch: int, *, shards: int = 1) -> Adapter:
    """The default scheme without its head phase: every step trains one architecture."""
    supernet = Supernet(space_of(width), CLASSES, width=width).to(memory_format=torch.channels_last)
    settings = AdaptSettings(train=TrainSettings(batch_size=batch, shards=shards), head_share=0.0, sampled_share=0.0)
    return Adapter(supernet, settings, total_steps=10**6, seed=0)


def lesson_of(task: Classification, arch: Arch) -> Lesson:
    def sampler(count: int, _: np.random.Generator) -> Sequence[Arch]:
        return [arch] * count

    return Lesson(task, [arch], sampler, largest=arch, smallest=arch)


def gmacs(arch: Arch, width: float, images: int) -> float:
    return float(cost(space_of(width), [arch], CLASSES).macs[0]) * images / 1e9


def cpu_seconds(work: Callable[[], object]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


def single_process(rounds: int) -> list[Row]:
    """Steps, evaluations and checkpoints in turns; the first turn warms up and does not count."""
    turns = [*steps(), *evaluations(), *checkpoints()]
    seconds: list[list[float]] = [[] for _ in turns]
    for turn in range(rounds + 1):
        for times, (_, work) in zip(seconds, turns, strict=True):
            taken = cpu_seconds(work)
            if turn:
                times.append(taken)
    return [Row(**{**asdict(row), "cpu_s": median(times)}) for times, (row, _) in zip(seconds, turns, strict=True)]


def steps() -> Iterator[tuple[Row, Callable[[], object]]]:
    task = task_of(8)
    for width, resolution, batch in STEPS:
        arch, adapter = arch_of(width, resolution), adapter_of(width, batch)
        lesson = lesson_of(task, arch)

        def work(adapter: Adapter = adapter, lesson: Lesson = lesson) -> None:
            adapter.run(adapter.trainer.step + 1, lesson, lambda: None)

        yield Row("step", width, resolution, batch, gmacs(arch, width, batch), 0.0), work


def evaluations() -> Iterator[tuple[Row, Callable[[], object]]]:
    """With images that were resized before, as all but a round's first evaluations find them."""
    for width, resolution, images in EVALUATIONS:
        arch, supernet, task = arch_of(width, resolution), adapter_of(width, 2).trainer.model, task_of(images)
        assert isinstance(supernet, Supernet)

        def work(supernet: Supernet = supernet, arch: Arch = arch, task: Classification = task) -> None:
            assert isinstance(judge_arch(supernet, arch, task, "validation"), Verdict)

        yield Row("evaluation", width, resolution, images, gmacs(arch, width, images + CALIBRATION), 0.0), work


def checkpoints() -> Iterator[tuple[Row, Callable[[], object]]]:
    task = task_of(8)
    for width in WIDTHS:
        adapter = adapter_of(width, 4)
        adapter.run(1, lesson_of(task, space_of(width).decode(space_of(width).upper)), lambda: None)
        tensors = adapter.tensors()
        size = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values()) / 1e6

        def work(tensors: dict[str, torch.Tensor] = tensors) -> None:
            with tempfile.TemporaryDirectory() as folder:
                save_file(tensors, Path(folder, "state.safetensors"))

        yield Row("checkpoint", width, 0, 0, 0.0, 0.0, size), work


def law(part: str, width: float, every: Sequence[Row]) -> Law:
    """Both constants are at least 0."""
    rows = [row for row in every if (row.part, row.width) == (part, width)]
    seconds = np.array([row.cpu_s for row in rows])
    amounts = np.array([[1.0, row.gmacs] for row in rows]) / seconds[:, None]
    (fixed, slope), _ = nnls(amounts, np.ones(len(rows)))
    errors = np.abs(amounts @ np.array([fixed, slope]) - 1)
    return Law(part, width, float(fixed), float(slope), float(errors.max()))


def wall_seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def on_ray(workers: int, steps: int) -> list[RayRow]:
    """A cluster of this machine: its start, judging, and training, with one worker and with several, warm where it can be."""
    task, here = task_of(128), InProcess()
    space = space_of(1.0)
    drawn = space.decode_all(space.sample(RAY_ARCHS, np.random.default_rng(0)))
    found: list[list[float]] = []
    for count in (1, workers):
        begun = time.perf_counter()
        engine = RayEngine("local", workers=count)
        start = time.perf_counter() - begun
        try:
            judging(engine, drawn[:count], task)  # the processes begin, and take the images
            each = wall_seconds(partial(judging, engine, drawn, task))
            training(engine, task, workers, 1)
            one = wall_seconds(partial(training, engine, task, workers, 1))
            several = wall_seconds(partial(training, engine, task, workers, 1 + steps))
        finally:
            engine.close()
        found.append([start, each, one, several - one])
    own = [
        None,
        wall_seconds(lambda: judging(here, drawn, task)),
        None,
        wall_seconds(lambda: training(here, task, workers, steps)),
    ]
    names = ("start", f"{RAY_ARCHS} evaluations", "stretch of one step", f"{steps} further steps")
    return [RayRow(*row) for row in zip(names, own, *found, strict=True)]


def judging(engine: Engine, archs: Sequence[Arch], task: Classification) -> None:
    supernet = adapter_of(1.0, 2).trainer.model
    assert isinstance(supernet, Supernet)
    assert len(list(engine.judge(supernet, archs, task, "validation"))) == len(archs)


def training(engine: Engine, task: Classification, shards: int, count: int) -> None:
    """Steps of 32 images at 128 px."""
    adapter = adapter_of(1.0, 32, shards=shards)
    engine.train(adapter, count, lesson_of(task, arch_of(1.0, 128)), lambda: None)
    assert adapter.trainer.step == count


def show(rows: Sequence[Row], laws: Sequence[Law], ray_rows: Sequence[RayRow], workers: int) -> None:
    console = Console()
    table = Table("part", "width", "px", "images", "GMACs forward", "MB", "CPU s", title=f"{SPACE}, one thread")
    for row in rows:
        table.add_row(
            row.part,
            f"{row.width:g}",
            str(row.resolution or ""),
            str(row.images or ""),
            f"{row.gmacs:.2f}" if row.gmacs else "",
            f"{row.mb:.0f}" if row.mb else "",
            f"{row.cpu_s:.3f}",
        )
    if rows:
        console.print(table)
    for each in laws:
        console.print(
            f"{each.part}, width {each.width:g}: {each.fixed_s:.3f} s + {each.s_per_gmac:.3f} s x GMACs forward "
            f"(largest error {100 * each.error:.0f} %)"
        )
    table = Table("on Ray, wall s", "in process", "1 worker", f"{workers} workers", title=f"load {os.getloadavg()[0]:.1f}")
    for ray_row in ray_rows:
        own = "" if ray_row.here_s is None else f"{ray_row.here_s:.2f}"
        table.add_row(ray_row.what, own, f"{ray_row.one_s:.2f}", f"{ray_row.several_s:.2f}")
    console.print(table)


if __name__ == "__main__":
    main()
