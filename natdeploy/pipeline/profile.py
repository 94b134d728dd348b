"""Latency tables: found, or measured on the target, and what a predictor learned from one is worth."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from importlib import resources
from pathlib import Path

import torch
from platformdirs import user_data_path

from natdeploy.errors import UsageError
from natdeploy.hardware.check import runtime_version
from natdeploy.hardware.device import Target, host_facts, parse_target
from natdeploy.hardware.runtimes import get_runtime, installed_version
from natdeploy.latency.blocks import input_shape, resizes
from natdeploy.latency.journal import Journal
from natdeploy.latency.plan import Plan, make_plan
from natdeploy.latency.predictor import LatencyPredictor, Quality
from natdeploy.latency.profile import profile_table
from natdeploy.latency.table import Table, read_table, strangers, write_table
from natdeploy.pipeline.config import HeadSettings
from natdeploy.pipeline.setting import read_for
from natdeploy.progress import Progress, Silent
from natdeploy.space import Arch, Block, SearchSpace, get_space, space_toml
from natdeploy.space.catalog import SPACES
from natdeploy.supernet import Subnet, build_block

SHIPPED = Path(str(resources.files("natdeploy.latency_tables")))
"""Tables that were measured by us."""

DEFAULT_MINUTES = 6.0
FIT_SUBNETS, TEST_SUBNETS = 30, 20
"""Whole networks to learn from matter most, and the others tell what the predictor is worth."""
LEAST_BLOCKS, MOST_BLOCKS = 60, 300
GOAL = 0.02
"""Mean relative error of held-out networks at which measuring ends: 98 % and more of unseen ones then come within 5 %."""
PATIENCE = 2
"""So many more chunks of blocks must have brought a twentieth of the error; else what is left of it is the machine's noise."""
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
        failures: reason by block or architecture, of what could not be measured.
        measuring_s: that the device was busy, in all.
        converting_s: that this machine wrote model files, in all.
        drifts: by how much the reference's latency changed meanwhile on each device, 0.1 is 10 %.
    """

    folder: Path
    slug: str
    rows: int
    subnets: int
    quality: Quality
    failures: dict[str, str]
    measuring_s: float
    converting_s: float
    drifts: Mapping[str, float]


def tables_folder(tables: Path | None) -> Path:
    """The folder of latency tables: the one given, `$NATDEPLOY_TABLES`, or the user's data folder."""
    chosen = tables or os.environ.get("NATDEPLOY_TABLES")
    return Path(chosen) if chosen else user_data_path("natdeploy") / "latency_tables"


def table_folder(tables: Path, target: Target, space: SearchSpace, classes: int | None = None) -> Path:
    """The folder of one device's table of one space."""
    return tables / target.device.name / space_folder(space, classes)


def space_folder(space: SearchSpace, classes: int | None = None) -> str:
    """Name of a space's folder. Whole networks are part of a table, so it belongs to a space of one width.

    One table serves all resolutions, and any number of classes but where a dense head answers for every pixel. The folder of a
    space that does not ship, or whose channels are a seed's own, carries a digest of its layers, so that another one of the same
    name does not meet its table; with a dense head, a digest of that, the shape of the input and the classes as well.
    """
    name, layers = space.name, space_toml(space.restrict(resolutions=(1,), widths=(1,)))
    if space.dense is not None:
        layers += f"\n{space.dense} {space.output_stride} {space.aspect:.4f} {classes}"
    if name not in SPACES or layers != space_toml(SPACES[name].restrict(resolutions=(1,), widths=(1,))):
        name += f"-{hashlib.sha256(layers.encode()).hexdigest()[:8]}"
    return f"{name}-w{space.widths[0]:g}"


def find_table(tables: Path, target: Target, space: SearchSpace, progress: Progress, classes: int | None = None) -> Table | None:
    """The table of a target, the user's or one that ships. One of this machine must be of this very machine and of the version of
    the runtime that is installed; what changed on another device, profiling there tells.

    Raises:
        DamagedFileError: its files do not hold what they should.
    """
    for folder in (table_folder(tables, target, space, classes), table_folder(SHIPPED, target, space, classes)):
        if not (folder / f"{target.slug}.toml").is_file():
            continue
        table = read_table(folder, target.slug)
        differences = objections(table, target, space, classes)
        if not differences:
            return table
        progress.note(f"the table in {folder} is not used: {'; '.join(differences)}")
    return None


def objections(table: Table, target: Target, space: SearchSpace, classes: int | None = None) -> tuple[str, ...]:
    """In words, why a table does not tell a space's latencies on a target; empty if it does. What it does not know is no reason."""
    p = table.provenance
    asked = {
        "device": (p.device, target.device.name),
        "space": (p.space, space.name),
        "runtime": (p.runtime, target.runtime),
        "delegate": (p.delegate, target.delegate),
        "precision": (p.precision, target.precision),
        "number of threads": (p.threads, target.threads),
        "number of classes": (p.classes, classes if space.dense is not None else p.classes),
    }
    differences = [f"its {name} is {has}, not {wanted}" for name, (has, wanted) in asked.items() if has not in (None, wanted)]
    if target.device.transport == "local":
        differences += p.mismatches(host_facts(), installed_version(get_runtime(target.runtime)))
    if foreign := strangers(table, space):
        differences.append(f"{len(foreign)} of its blocks are not of the space, {foreign[0]} for one")
    return tuple(differences)


def measure_table(
    tables: Path,
    target: Target,
    space: SearchSpace,
    *,
    classes: int,
    minutes: float,
    seed: int,
    progress: Progress,
    prior: Table | None = None,
) -> tuple[Table, Journal, LatencyPredictor]:
    """Measures a table and stores it. Interrupted, or asked again with more minutes, it goes on where it was.

    Args:
        tables: folder of tables.
        target: where.
        space: of one width.
        classes: outputs of the whole networks.
        minutes: of measuring, at most.
        seed: of what is left to chance.
        progress: is told about the work.
        prior: of another target of the space; networks alone are then measured first, and blocks only if those do not suffice.

    Raises:
        DeviceError: the target failed.
        DamagedFileError: what was measured before cannot be read.
    """
    folder, runtime = table_folder(tables, target, space, classes), get_runtime(target.runtime)

    def convert(what: Block | Arch, path: Path) -> None:
        # Latency does not depend on the weights, so they are left at random.
        if isinstance(what, Block):
            module, shape, dynamic = build_block(what), input_shape(what), resizes(what)
        else:
            subnet = Subnet(space, what, classes)
            module, shape, dynamic = subnet, subnet.input_shape, False
        runtime.convert(module, torch.zeros(shape), path, precision=target.precision, dynamic_size=dynamic)

    plan = _plan(space, classes, seed)
    if prior is not None:
        plan = replace(plan, least=0)
    # What cannot stand in one table is in the name: measured again with another version, the old samples stay beside the new.
    version = runtime_version(target.device, target.runtime).replace(" ", "-")
    path = folder / f"{target.slug}.{version}-{classes}classes.measurements.jsonl"

    def complete(table: Table) -> Table:
        return table if prior is None else table.with_prior(prior)

    errors: list[float] = []

    def good_enough(table: Table) -> bool:
        errors.append(LatencyPredictor.fit(complete(table), space).error)
        settled = len(errors) > PATIENCE and errors[-1] > 0.95 * errors[-1 - PATIENCE]
        return errors[-1] <= GOAL or settled

    members = [replace(target, device=device) for device in target.device.members()]
    table, journal = profile_table(plan, convert, members, path, budget_s=60 * minutes, good_enough=good_enough, progress=progress)
    write_table(folder, target.slug, complete(table))
    table = read_table(folder, target.slug)  # rows in the order in which everyone will find them
    predictor = LatencyPredictor.fit(table, space)
    assert predictor.quality is not None
    table = replace(table, provenance=table.provenance.model_copy(update={"quality": asdict(predictor.quality)}))
    write_table(folder, target.slug, table)
    return table, journal, predictor


def _prior(tables: Path, source: str, space: SearchSpace, classes: int, *, precision: str | None, threads: int | None) -> Table:
    """The table of another target, whatever machine it is of."""
    target = parse_target(source) if "-" in source else parse_target(source, precision=precision, threads=threads)
    for root in (tables, SHIPPED):
        folder = table_folder(root, target, space, classes)
        if (folder / f"{target.slug}.toml").is_file():
            return read_table(folder, target.slug)
    raise UsageError(f"there is no table of {target} and {space.name}; `natdeploy tables list` says which there are")


def _plan(space: SearchSpace, classes: int, seed: int) -> Plan:
    plan = make_plan(space, classes, blocks=MOST_BLOCKS, least=LEAST_BLOCKS, fit=FIT_SUBNETS, test=TEST_SUBNETS, seed=seed)
    known = next((block for block in plan.blocks if block.kind == "classifier"), None)
    if known is None:  # a dense head's cost is its classes', and its table is for these alone
        return plan
    others = tuple(replace(known, out_channels=count) for count in CLASSIFIERS if count != classes)
    return replace(plan, blocks=(*others, *plan.blocks))


def profile(
    device: str = "host",
    runtime: str | None = None,
    *,
    space: str = "mbv2",
    width: float | None = None,
    seed_weights: Path | None = None,
    classes: int = 1000,
    head: HeadSettings | None = None,
    aspect: float = 1.0,
    tables: Path | None = None,
    precision: str | None = None,
    threads: int | None = None,
    budget_minutes: float | None = None,
    source: str | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> ProfileResult:
    """Measures a space on a device.

    Args:
        device: name or file.
        runtime: what runs the networks, optionally with a delegate: `onnxruntime+cuda`; the device's first by default.
        space: name of a shipped space, or path of a TOML file.
        width: channel multiplier; the space's first by default. Every width has a table of its own.
        seed_weights: pretrained network from which a search will start; the space then has its width and channels.
        classes: outputs of the classifier of the whole networks.
        head: of a dense task, in place of the classifier.
        aspect: width of its images to their height.
        tables: folder of tables; the user's own by default.
        precision: that numbers are computed in; the runtime's first by default.
        threads: of the runtime; the device's by default.
        budget_minutes: of measuring, at most; it ends earlier when more rows would not help.
        source: target of whose table of this space blocks are taken over, such as `host/onnxruntime`: how this target differs,
            a few networks tell, and few blocks or none have to be measured.
        seed: of the choice of blocks and networks.
        progress: is told about the work.

    Raises:
        UsageError: device, runtime or space is unknown.
        WeightsError: the seed weights hold no network that is known.
        DeviceError: the device failed.
    """
    target = parse_target(device if runtime is None else f"{device}/{runtime}", precision=precision, threads=threads)
    target.device.require_address()
    named, folder = get_space(space), tables_folder(tables)
    if seed_weights is not None and width is not None:
        raise UsageError("the width is that of the seed weights; give one of the two")
    chosen = named.restrict(widths=(width or named.widths[0],)) if seed_weights is None else read_for(seed_weights, named)[1]
    if head is not None:
        chosen = head.on(chosen, aspect)
    prior = None if source is None else _prior(folder, source, chosen, classes, precision=precision, threads=threads)
    table, journal, predictor = measure_table(
        folder,
        target,
        chosen,
        classes=classes,
        minutes=budget_minutes or DEFAULT_MINUTES,
        seed=seed,
        progress=progress or Silent(),
        prior=prior,
    )
    assert predictor.quality is not None  # a measured table has networks to judge by
    return ProfileResult(
        folder=table_folder(folder, target, chosen, classes),
        slug=target.slug,
        rows=len(table.blocks),
        subnets=len(table.subnets),
        quality=predictor.quality,
        failures=dict(table.failures),
        measuring_s=journal.measuring_s,
        converting_s=journal.converting_s,
        drifts=dict(journal.drifts),
    )
