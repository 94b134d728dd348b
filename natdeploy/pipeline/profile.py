"""Latency tables: found, or measured on the target, and what a predictor learned from one is worth."""

from __future__ import annotations

import hashlib
import os
import time
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from platformdirs import user_data_path

from natdeploy.hardware.device import Target, host_facts, parse_target
from natdeploy.hardware.runtimes import get_runtime, installed_version
from natdeploy.latency.blocks import input_shape
from natdeploy.latency.predictor import LatencyPredictor, Quality
from natdeploy.latency.profile import JOURNAL, Plan, make_plan, profile_table
from natdeploy.latency.table import Table, read_table, write_table
from natdeploy.progress import Progress, Silent
from natdeploy.space import Arch, Block, SearchSpace, get_space, space_toml
from natdeploy.space.catalog import SPACES
from natdeploy.supernet import Subnet, build_block

DEFAULT_MINUTES = 3.5
FIT_SUBNETS, TEST_SUBNETS = 36, 24
"""Whole networks to learn from matter most: with 36, 92 to 95 % of unseen ones came within 5 %, with 14 only 85 to 89 %."""
SECONDS_A_BLOCK, SECONDS_A_SUBNET = 0.9, 2.4
"""Measuring and converting on a 2.5 GHz server core; they only decide how many blocks fit a budget of minutes."""
MIN_BLOCKS = 60
CLASSIFIERS = (10, 100, 1000)
"""Class counts whose classifiers every table holds, so that one table serves data sets of any number of classes."""


@dataclass(frozen=True)
class ProfileResult:
    """A measured table.

    Attributes:
        folder: where its files lie.
        slug: beginning of their names.
        rows: blocks.
        subnets: whole networks.
        quality: of the predictor on networks it has not seen.
        seconds: that it took this time.
    """

    folder: Path
    slug: str
    rows: int
    subnets: int
    quality: Quality
    seconds: float


def tables_folder(tables: Path | None) -> Path:
    """The folder of latency tables: the one given, `$NATDEPLOY_TABLES`, or the user's data folder."""
    chosen = tables or os.environ.get("NATDEPLOY_TABLES")
    return Path(chosen) if chosen else user_data_path("natdeploy") / "latency_tables"


def table_folder(tables: Path, target: Target, space: SearchSpace) -> Path:
    """The folder of one device's table of one space. Whole networks are part of a table, so it belongs to a space of one width.

    One table serves all resolutions. The folder of a space that does not ship, or whose channels are a seed's own, carries a digest
    of its layers, so that another one of the same name does not meet its table.
    """
    name, layers = space.name, space_toml(space.restrict(resolutions=(1,), widths=(1,)))
    if name not in SPACES or layers != space_toml(SPACES[name].restrict(resolutions=(1,), widths=(1,))):
        name += f"-{hashlib.sha256(layers.encode()).hexdigest()[:8]}"
    return tables / target.device.name / f"{name}-w{space.widths[0]:g}"


def find_table(tables: Path, target: Target, space: SearchSpace, progress: Progress) -> Table | None:
    """The table of a target, if there is one and it was measured on this machine and this version of the runtime.

    Raises:
        DamagedFileError: its files do not hold what they should.
    """
    folder = table_folder(tables, target, space)
    if not (folder / f"{target.slug}.toml").is_file():
        return None
    table = read_table(folder, target.slug)
    differences = table.provenance.mismatches(host_facts(), installed_version(get_runtime(target.runtime)))
    if differences:
        progress.note(f"the table in {folder} is not used: {'; '.join(differences)}")
        return None
    return table


def measure_table(
    tables: Path, target: Target, space: SearchSpace, *, classes: int, minutes: float, seed: int, progress: Progress
) -> Table:
    """Measures a table and stores it. Interrupted, it goes on where it was the next time.

    Raises:
        DeviceError: the target failed.
    """
    folder = table_folder(tables, target, space)
    runtime = get_runtime(target.runtime)
    # What is asked for is in the name, so a broken measurement of the same kind goes on, and another kind does not meet it.
    workdir = folder / f".{target.slug}-{installed_version(runtime)}-{classes}classes-{minutes:g}min-seed{seed}"

    def convert(block: Block, path: Path) -> None:
        runtime.convert(build_block(block), torch.zeros(input_shape(block)), path, dynamic_size=False)

    def convert_net(arch: Arch, path: Path) -> None:
        example = torch.zeros(1, 3, arch.resolution, arch.resolution)
        runtime.convert(Subnet(space, arch, classes), example, path, dynamic_size=False)

    table = profile_table(_plan(space, classes, minutes, seed), convert, convert_net, target, workdir, progress=progress)
    write_table(folder, target.slug, table)
    # The raw samples stay beside what was made of them.
    (workdir / JOURNAL).replace(folder / f"{target.slug}.{JOURNAL}")
    workdir.rmdir()
    return table


def _plan(space: SearchSpace, classes: int, minutes: float, seed: int) -> Plan:
    """As many blocks as the minutes allow, beside a fixed number of whole networks."""
    left_s = 60 * minutes - (FIT_SUBNETS + TEST_SUBNETS) * SECONDS_A_SUBNET
    plan = make_plan(
        space, classes, blocks=max(MIN_BLOCKS, int(left_s / SECONDS_A_BLOCK)), fit=FIT_SUBNETS, test=TEST_SUBNETS, seed=seed
    )
    known = next(block for block in plan.blocks if block.kind == "classifier")
    others = tuple(replace(known, out_channels=count) for count in CLASSIFIERS if count != classes)
    return replace(plan, blocks=(*others, *plan.blocks))


def profile(
    device: str = "host",
    runtime: str = "onnxruntime",
    *,
    space: str = "mbv2",
    width: float | None = None,
    classes: int = 1000,
    tables: Path | None = None,
    threads: int = 1,
    budget_minutes: float | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> ProfileResult:
    """Measures a space on a device.

    Args:
        device: name or file.
        runtime: what runs the networks.
        space: name of a shipped space, or path of a TOML file.
        width: channel multiplier; the space's first by default. Every width has a table of its own.
        classes: outputs of the classifier of the whole networks.
        tables: folder of tables; the user's own by default.
        threads: of the runtime.
        budget_minutes: more blocks predict better.
        seed: of the choice of blocks and networks.
        progress: is told about the work.

    Raises:
        UsageError: device, runtime or space is unknown.
        DeviceError: the device failed.
    """
    target = parse_target(f"{device}/{runtime}", threads=threads)
    named, folder = get_space(space), tables_folder(tables)
    chosen = named.restrict(widths=(width or named.widths[0],))
    start = time.perf_counter()
    table = measure_table(
        folder,
        target,
        chosen,
        classes=classes,
        minutes=budget_minutes or DEFAULT_MINUTES,
        seed=seed,
        progress=progress or Silent(),
    )
    quality = LatencyPredictor.fit(table, chosen).quality
    seconds = time.perf_counter() - start
    return ProfileResult(table_folder(folder, target, chosen), target.slug, len(table.blocks), len(table.subnets), quality, seconds)
