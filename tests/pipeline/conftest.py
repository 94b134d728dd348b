"""A search small enough for a test: a few digits, a small seed, and a latency table made of MACs instead of measurements."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

from natdeploy import pipeline
from natdeploy.hardware.bench import QUICK
from natdeploy.hardware.device import host_facts, parse_target
from natdeploy.latency.plan import make_plan
from natdeploy.latency.table import BlockRow, Provenance, Role, SubnetRow, Table, Timing, write_table
from natdeploy.pipeline import SearchConfig, bundles
from natdeploy.pipeline.config import HeadSettings
from natdeploy.pipeline.correct import FrontMeasurer
from natdeploy.pipeline.problem import Problem
from natdeploy.pipeline.profile import table_folder
from natdeploy.pipeline.setting import Setting
from natdeploy.progress import Silent
from natdeploy.runtimes import ort
from natdeploy.search import NatSettings
from natdeploy.space import Arch, SearchSpace, cost, get_space
from natdeploy.space.catalog import plain_arch
from natdeploy.store import RunStore
from natdeploy.supernet import Subnet, write_seed
from natdeploy.tasks import Task
from natdeploy.training.adapt import AdaptSettings
from natdeploy.training.loop import TrainSettings

CLASSES, IMAGES = 3, 16
SEED_NORM_EPS = 2e-3
"""Another than any default, to be seen wherever it has to arrive."""


class Notes(Silent):
    """Keeps what is noted."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def note(self, message: str) -> None:
        self.lines.append(message)


@pytest.fixture
def notes() -> Notes:
    return Notes()


@pytest.fixture
def nothing_to_learn_from(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ranges of int8 are learned from an image that is all but black, which no quantised net survives."""

    def dark(task: Task, resolution: int, count: int) -> list[torch.Tensor]:
        (image, *_), _ = next(iter(task.batches("calibration", resolution, 1, 1)))
        return [torch.full_like(image[None], 1e-3)]

    monkeypatch.setattr(bundles, "calibration_images", dark)


@pytest.fixture(scope="session")
def to_the_end() -> Callable[[SearchConfig], int]:
    """What runs a search that something breaks off now and then, until it ends, and tells how often it broke off."""

    def run(config: SearchConfig) -> int:
        for breaks in range(20):
            try:
                pipeline.search(config)
            except KeyboardInterrupt:
                continue
            return breaks
        raise AssertionError("it does not end")

    return run


@pytest.fixture
def new_store(tmp_path: Path) -> Iterator[RunStore]:
    """Of a run that has begun and holds nothing yet."""
    with RunStore.create(tmp_path / "store", {}, {}) as store:
        yield store


@pytest.fixture
def front_measurer(new_store: RunStore, notes: Notes) -> Callable[[Problem, Setting], FrontMeasurer]:
    """What measures the front of a problem, quickly, and keeps it in the new store."""

    def make(problem: Problem, setting: Setting) -> FrontMeasurer:
        def extract(arch: Arch) -> Subnet:
            return setting.supernet.extract(arch).eval()

        return FrontMeasurer(problem, setting.space, extract, seed=0, store=new_store, progress=notes, settings=QUICK)

    return make


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A flat folder of classes, PNG files of 32 px."""
    folder = tmp_path_factory.mktemp("digits")
    data = load_digits()
    for label in range(CLASSES):
        (folder / str(label)).mkdir()
        for number, image in enumerate(data.images[data.target == label][:IMAGES]):
            grey = Image.fromarray((image / 16 * 255).astype(np.uint8))
            grey.resize((32, 32), Image.Resampling.BICUBIC).save(folder / str(label) / f"{number:02d}.png")
    return folder


SCENE_CLASSES = ("ground", "thing")


@pytest.fixture(scope="session")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photos of 64 x 32 px with masks: a bright thing on noisy ground, and a column of no class."""
    folder, rng = tmp_path_factory.mktemp("scenes"), np.random.default_rng(0)
    (folder / "classes.txt").write_text("\n".join(SCENE_CLASSES))
    for part in ("images", "masks"):
        (folder / part).mkdir()
    for number in range(24):
        mask = np.zeros((32, 64), dtype=np.uint8)
        top, left = rng.integers(0, 16), rng.integers(0, 40)
        mask[top : top + 16, left : left + 24] = 1
        photo = np.clip(rng.normal(60, 20, (32, 64, 3)) + 120 * mask[..., None], 0, 255).astype(np.uint8)
        mask[:, -1] = 255
        Image.fromarray(photo).save(folder / "images" / f"{number:02d}.png")
        Image.fromarray(mask).save(folder / "masks" / f"{number:02d}.png")
    return folder


SCENE_HEAD = HeadSettings(channels=16, output_stride=4)


@pytest.fixture(scope="session")
def dense_tables(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a table of the demo space with a small head, at the scenes' shape."""
    folder = tmp_path_factory.mktemp("dense tables")
    _write_table(folder, SCENE_HEAD.on(get_space("demo"), 2.0), classes=len(SCENE_CLASSES), macs_per_ms=2e7)
    return folder


@pytest.fixture
def dense_config(scenes: Path, seed_file: Path, dense_tables: Path, tmp_path: Path) -> SearchConfig:
    """A search for segmentation, of seconds."""
    return _dense_config(scenes, seed_file, dense_tables, tmp_path / "run")


@pytest.fixture(scope="module")
def dense_finished(tmp_path_factory: pytest.TempPathFactory, scenes: Path, seed_file: Path, dense_tables: Path) -> SearchConfig:
    """One of them, run to its end, for all tests of a file that only look at it."""
    config = _dense_config(scenes, seed_file, dense_tables, tmp_path_factory.mktemp("finished") / "run")
    pipeline.search(config)
    return config


def _dense_config(data: Path, seed: Path, tables: Path, out: Path) -> SearchConfig:
    return SearchConfig(
        task="segmentation",
        data=data,
        out=out,
        space="demo",
        seed_weights=seed,
        head=SCENE_HEAD,
        constraints=("latency<=1ms",),
        tables=tables,
        schedule={"epochs": 8},
        nat={"initial": 10, "rounds": 1, "infill": 2, "parents": 4, "population": 12, "generations": 4, "measure_every": 0},
        adapt={"train": {"batch_size": 8}},
    )


@pytest.fixture(scope="session")
def seed_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained network of the demo space: what matters here is that the same comes out again."""
    path = tmp_path_factory.mktemp("seed") / "seed.safetensors"
    with torch.random.fork_rng():
        torch.manual_seed(0)
        subnet = Subnet(get_space("demo"), plain_arch(32, 1.0, (1, 2, 3, 2)), CLASSES, norm_eps=SEED_NORM_EPS)
    write_seed(subnet, path, {"input": "RGB, scaled to [-1,1]"})
    return path


@pytest.fixture(scope="session")
def tables(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a table of the demo space."""
    folder = tmp_path_factory.mktemp("tables")
    _write_table(folder, get_space("demo"))
    return folder


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, digits: Path, seed_file: Path, tables: Path) -> SearchConfig:
    """One search, run to its end, for all tests of a file that only look at it."""
    template = SearchConfig(
        data=digits,
        out=tmp_path_factory.mktemp("finished") / "run",
        space="demo",
        seed_weights=seed_file,
        constraints=("latency<=1ms",),
        flip=False,
        tables=tables,
        nat={"initial": 10, "rounds": 2, "infill": 3, "parents": 5, "population": 12, "generations": 4, "measure_every": 0},
        adapt={"train": {"batch_size": 16}},
    )
    pipeline.search(template)
    return template


@pytest.fixture(scope="session")
def made_up_table() -> Callable[..., None]:
    """What writes a table of a space into a folder of tables."""
    return _write_table


def _write_table(
    folder: Path, space: SearchSpace, precision: str = "fp32", macs_per_ms: float = 5e6, classes: int = CLASSES
) -> None:
    """A table that says it was measured here, whose latencies are those of so many MACs."""
    target = parse_target("host", precision=precision)
    plan = make_plan(space, classes, blocks=60, least=60, fit=14, test=24, seed=0)

    def timing(macs: float) -> Timing:
        return Timing(0.002 + macs / macs_per_ms, 0.002 + macs / macs_per_ms, 100, 3, False)

    roles: list[tuple[Role, object]] = [*(("fit", arch) for arch in plan.fit), *(("test", arch) for arch in plan.test)]
    subnets = tuple(SubnetRow(arch, role, timing(float(cost(space, [arch], classes).macs[0]))) for role, arch in roles)
    facts = host_facts()
    provenance = Provenance(
        device="host",
        runtime=ort.NAME,
        runtime_version=ort.version(),
        provider=ort.PROVIDER,
        precision=precision,
        threads=1,
        batch=1,
        space=space.name,
        classes=classes,
        reference=str(plan.reference),
        reference_ms=1.0,
        harness="made up for a test",
        tool_version="0",
        utc=datetime.now(UTC).isoformat(),
        measured_s=0.0,
        block_settings={},
        subnet_settings={},
        **{name: facts[name] for name in ("cpu", "cores", "memory_mb", "os", "governor", "temperature_c", "waiting_counted")},
    )
    blocks = tuple(BlockRow(block, timing(block.macs)) for block in plan.blocks)
    write_table(table_folder(folder, target, space, classes), target.slug, Table(blocks, subnets, provenance))


@pytest.fixture
def config(digits: Path, seed_file: Path, tables: Path, tmp_path: Path) -> SearchConfig:
    """A search of seconds."""
    return SearchConfig(
        data=digits,
        out=tmp_path / "run",
        space="demo",
        seed_weights=seed_file,
        constraints=("latency<=1ms",),
        flip=False,
        tables=tables,
        nat=NatSettings(initial=10, rounds=2, infill=3, parents=5, population=12, generations=4, measure_every=0),
        adapt=AdaptSettings(train=TrainSettings(batch_size=16)),
    )
