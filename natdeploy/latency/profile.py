"""What to measure of a space, most informative first, and the measuring itself, which can be interrupted and goes on."""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from natdeploy._version import __version__
from natdeploy.errors import DamagedFileError
from natdeploy.hardware.device import Target
from natdeploy.hardware.measure import BLOCKS, SUBNETS, Candidate, MeasureResult, MeasureSettings, measure
from natdeploy.hardware.runtimes import get_runtime, installed_version
from natdeploy.latency.blocks import block_key, input_shape
from natdeploy.latency.table import BlockRow, Provenance, Role, SubnetRow, Table, Timing
from natdeploy.progress import Progress
from natdeploy.space import Arch, Block, BlockSum, Layer, SearchSpace

JOURNAL = "measurements.jsonl"
"""Everything measured, raw samples included."""

CHUNK = 40
"""Models measured together: an interruption loses no more than these."""

_FOUND = (
    "runtime_version",
    "provider",
    "harness",
    "utc",
    "cpu",
    "cores",
    "memory_mb",
    "os",
    "governor",
    "temperature_c",
    "waiting_counted",
)
"""What the runner finds on the device and a table's provenance takes over."""

_SAMPLED = 4000
"""Architectures among which the subnets of a plan are chosen."""


@dataclass(frozen=True)
class Plan:
    """What to measure.

    Attributes:
        space: whose blocks and architectures these are.
        classes: outputs of the classifier.
        blocks: in the order in which they are worth it.
        fit: architectures that a predictor may learn from.
        test: architectures that only judge it.
        reference: the architecture timed beside all of them.
        seed: of the order of measuring.
    """

    space: SearchSpace
    classes: int
    blocks: tuple[Block, ...]
    fit: tuple[Arch, ...]
    test: tuple[Arch, ...]
    reference: Arch
    seed: int


def make_plan(space: SearchSpace, classes: int, *, blocks: int, fit: int, test: int, seed: int) -> Plan:
    """A plan of so many blocks, fit subnets and test subnets."""
    rng = np.random.default_rng(seed)
    chosen = plan_blocks(space, classes, blocks, rng)
    fit_archs, test_archs = plan_subnets(space, fit, test, rng)
    return Plan(space, classes, tuple(chosen), tuple(fit_archs), tuple(test_archs), reference_arch(space), seed)


def plan_blocks(space: SearchSpace, classes: int, rows: int, rng: np.random.Generator) -> list[Block]:
    """Distinct blocks of the space, at most `rows`.

    Blocks that differ in size alone are a family. Every family comes once, at a random one of its sizes, before any comes twice,
    at the size farthest (as a ratio) from those it has; what every network has comes first: stem, head, mix and classifier.
    """
    families: dict[Block, list[Block]] = defaultdict(list)
    for block in space_blocks(space, classes):
        families[replace(block, size=0)].append(block)
    order = list(families.values())
    order = [order[i] for i in rng.permutation(len(order))]
    order.sort(key=lambda family: family[0].kind == "mbconv")
    chosen: list[Block] = []
    taken: list[list[float]] = [[] for _ in order]
    while len(chosen) < rows and any(order):
        for family, sizes in zip(order, taken, strict=True):
            if not family:
                continue
            if sizes:
                best = max(range(len(family)), key=lambda i: min(abs(np.log(family[i].size) - size) for size in sizes))
            else:
                best = int(rng.integers(len(family)))
            block = family.pop(best)
            sizes.append(float(np.log(block.size)))
            chosen.append(block)
    return chosen[:rows]


def space_blocks(space: SearchSpace, classes: int) -> list[Block]:
    """Every distinct block of the space, sorted."""
    found: list[Block] = []

    def collect(blocks: Sequence[Block]) -> list[float]:
        found.extend(blocks)
        return [0.0] * len(blocks)

    BlockSum(space, collect, classes)
    return found


def plan_subnets(space: SearchSpace, fit: int, test: int, rng: np.random.Generator) -> tuple[list[Arch], list[Arch]]:
    """Architectures to learn from and others to judge by.

    Both are spread evenly over the range of log MACs of random depth-balanced architectures, one from each of fit + test equal
    parts of it, so that neither small nor large networks are forgotten. The smallest and the largest go to `fit`.
    """
    genotypes = np.unique(space.sample(_SAMPLED, rng), axis=0)
    macs = np.log(BlockSum(space, lambda blocks: [block.macs for block in blocks], 1)(genotypes))
    order = np.argsort(macs, kind="stable")
    edges = np.linspace(macs[order[0]], macs[order[-1]], fit + test + 1)
    near = np.abs(macs[None, :] - rng.uniform(edges[:-1], edges[1:])[:, None])
    picks: list[int] = []
    for distance in near:
        distance[picks] = np.inf
        picks.append(int(np.argmin(distance)))
    picks[0], picks[-1] = int(order[0]), int(order[-1])
    inner = 1 + rng.permutation(len(picks) - 2)
    fit_places = sorted([0, len(picks) - 1, *inner[: fit - 2].tolist()])
    archs = space.decode_all(genotypes[picks])
    return [archs[i] for i in fit_places], [archs[i] for i in range(len(archs)) if i not in fit_places]


def reference_arch(space: SearchSpace) -> Arch:
    """The architecture that measurements are compared with: middle resolution and depth, smallest choices."""
    depths = [(stage.min_depth + stage.max_depth) // 2 for stage in space.stages]
    stages = tuple(
        (Layer(stage.kernels[0], stage.expansions[-1]),) * depth for stage, depth in zip(space.stages, depths, strict=True)
    )
    return Arch(space.resolutions[(len(space.resolutions) - 1) // 3], space.widths[0], stages)


def profile_table(
    plan: Plan,
    convert: Callable[[Block, Path], None],
    convert_net: Callable[[Arch, Path], None],
    target: Target,
    workdir: Path,
    *,
    progress: Progress,
    block_settings: MeasureSettings = BLOCKS,
    subnet_settings: MeasureSettings = SUBNETS,
) -> Table:
    """Measures a plan.

    Args:
        plan: what.
        convert: writes the file of a block for the target's runtime.
        convert_net: writes the file of a whole network.
        target: where.
        workdir: keeps what is measured, raw samples included; called again with the same folder, the function goes on there.
        progress: gets the steps.
        block_settings: how long a block is measured.
        subnet_settings: how long a whole network is measured.

    Raises:
        DeviceError: the target failed.
        DamagedFileError: `workdir` holds something else than an earlier part of this measurement.
    """
    workdir.mkdir(parents=True, exist_ok=True)
    journal = _Journal(workdir / JOURNAL, _signature(plan, target))
    space, reference, archs = plan.space, plan.reference, [*plan.fit, *plan.test]
    # Every chunk holds networks of all sizes and both roles, so what differs between chunks cannot pass for a property of them.
    archs = [archs[i] for i in np.random.default_rng(plan.seed).permutation(len(archs))]
    blocks = [_Item(block_key(block), input_shape(block), partial(convert, block)) for block in plan.blocks]
    nets = [_Item(str(arch), (1, 3, arch.resolution, arch.resolution), partial(convert_net, arch)) for arch in archs]
    todo = [
        (settings, chunk)
        for settings, items in ((subnet_settings, nets), (block_settings, blocks))
        for chunk in _chunks([item for item in items if item.id not in journal.rows])
    ]
    steps = sum(settings.processes * (settings.slices + 1) * len(chunk) for settings, chunk in todo)
    with progress.task(f"measuring {space.name} on {target}", steps, "steps") as advance, tempfile.TemporaryDirectory() as folder:
        suffix = get_runtime(target.runtime).SUFFIX
        beside = Candidate("reference", Path(folder) / f"reference{suffix}", (1, 3, reference.resolution, reference.resolution))
        if todo:
            convert_net(reference, beside.model)
        for settings, chunk in todo:
            start = time.monotonic()
            candidates = [Candidate(item.id, Path(folder) / f"{i}{suffix}", item.shape) for i, item in enumerate(chunk)]
            for item, candidate in zip(chunk, candidates, strict=True):
                item.write(candidate.model)
            result = measure(candidates, beside, target, settings, seed=plan.seed, progress=_Part(advance))
            journal.add(result, time.monotonic() - start)
    return Table(
        tuple(journal.block(block) for block in plan.blocks),
        tuple(journal.subnet(arch, role) for role, arch in _roles(plan)),
        _provenance(plan, target, journal, block_settings, subnet_settings),
    )


@dataclass(frozen=True)
class _Item:
    """A model that is still to be converted."""

    id: str
    shape: tuple[int, ...]
    write: Callable[[Path], None]


class _Part:
    """Progress of a measurement that is a part of a longer task."""

    def __init__(self, advance: Callable[[int], None]) -> None:
        self._advance = advance

    @contextmanager
    def task(self, name: str, total: int, unit: str) -> Iterator[Callable[[int], None]]:
        yield self._advance

    def note(self, message: str) -> None:
        pass


class _Journal:
    """What is measured so far: one line a chunk, after a line that says of what."""

    def __init__(self, path: Path, signature: str) -> None:
        self._path = path
        self.rows: dict[str, dict[str, Any]] = {}
        self.chunks: list[dict[str, Any]] = []
        # A kill in the midst of writing leaves a last line without its end; the chunk is measured again.
        text = path.read_text() if path.exists() else ""
        lines = text[: text.rfind("\n") + 1].splitlines()
        if lines and lines[0] != signature:
            raise DamagedFileError(f"{path} belongs to another measurement; give another folder or remove the file")
        try:
            for line in lines[1:]:
                self._take(json.loads(line))
        except (ValueError, KeyError, TypeError) as error:
            raise DamagedFileError(f"{path} is damaged; remove it to measure again") from error
        temporary = path.with_suffix(".tmp")
        temporary.write_text("".join(f"{line}\n" for line in (lines or [signature])))
        temporary.replace(path)

    def add(self, result: MeasureResult, seconds: float) -> None:
        rows = [asdict(measurement) | {"reference_ms": result.reference_ms} for measurement in result.measurements]
        chunk = {"reference_ms": result.reference_ms, "seconds": seconds, "environment": result.environment, "rows": rows}
        with self._path.open("a") as file:
            file.write(json.dumps(chunk) + "\n")
            file.flush()
            os.fsync(file.fileno())
        self._take(chunk)

    def _take(self, chunk: dict[str, Any]) -> None:
        self.rows |= {row["id"]: row for row in chunk.pop("rows")}
        self.chunks.append(chunk)

    @property
    def reference_ms(self) -> float:
        """The reference's latency over all chunks, which turns relative latencies into milliseconds."""
        return float(median([chunk["reference_ms"] for chunk in self.chunks]))

    def block(self, block: Block) -> BlockRow:
        """Blocks are short: their floor is steadier than their ratio to a reference that is much longer."""
        row = self.rows[block_key(block)]
        return BlockRow(block, self._timing(row, row["floor_ms"] * self.reference_ms / row["reference_ms"]))

    def subnet(self, arch: Arch, role: Role) -> SubnetRow:
        row = self.rows[str(arch)]
        return SubnetRow(arch, role, self._timing(row, row["relative"] * self.reference_ms))

    @staticmethod
    def _timing(row: Mapping[str, Any], latency_ms: float) -> Timing:
        return Timing(latency_ms, row["p50_ms"], row["n"], len(row["process_p50_ms"]), row["unstable"])


def _roles(plan: Plan) -> list[tuple[Role, Arch]]:
    return [*(("fit", arch) for arch in plan.fit), *(("test", arch) for arch in plan.test)]


def _chunks(items: Sequence[_Item]) -> list[Sequence[_Item]]:
    return [items[start : start + CHUNK] for start in range(0, len(items), CHUNK)]


def _signature(plan: Plan, target: Target) -> str:
    """Latencies with the same signature may stand in one table."""
    runtime = installed_version(get_runtime(target.runtime))
    return json.dumps(
        {"target": str(target), "runtime_version": runtime, "classes": plan.classes, "reference": str(plan.reference)}
    )


def _provenance(
    plan: Plan, target: Target, journal: _Journal, block_settings: MeasureSettings, subnet_settings: MeasureSettings
) -> Provenance:
    found = journal.chunks[0]["environment"]
    return Provenance(
        device=target.device.name,
        runtime=target.runtime,
        precision=target.precision,
        threads=target.threads,
        batch=1,
        space=plan.space.name,
        classes=plan.classes,
        reference=str(plan.reference),
        reference_ms=journal.reference_ms,
        tool_version=__version__,
        measured_s=sum(chunk["seconds"] for chunk in journal.chunks),
        block_settings=asdict(block_settings),
        subnet_settings=asdict(subnet_settings),
        **{name: found[name] for name in _FOUND},
    )
