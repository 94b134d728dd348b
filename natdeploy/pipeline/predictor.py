"""What predicts latency in a search: a table's predictor, or, where the user allows it, a specification sheet's estimate."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol
from urllib.parse import quote

from natdeploy.errors import DeviceError, NatdeployError, UsageError
from natdeploy.hardware.device import Target, device_of
from natdeploy.latency.blocks import Floats
from natdeploy.latency.estimate import Estimate
from natdeploy.latency.predictor import LatencyPredictor, Prediction, Quality
from natdeploy.latency.table import Table, read_table
from natdeploy.pipeline.profile import find_table, objections, space_folder, tables_folder
from natdeploy.pipeline.tables import table_file
from natdeploy.progress import Progress
from natdeploy.space import Arch, Genotypes, SearchSpace, get_space, plain_space

PREDICTOR, ESTIMATE = "predictor", "estimate"
"""In a run folder, one of the two for every target, with the ending .json."""


class Predictor(Protocol):
    """Latency of architectures on one target, fast enough to ask for whole populations."""

    @property
    def quality(self) -> Quality | None:
        """On networks that it has not seen; None where nobody knows."""

    def total(self, space: SearchSpace, classes: int) -> Callable[[Genotypes], Floats]:
        """The function from genotypes (n, variables) to milliseconds (n,)."""

    def terms(self, space: SearchSpace, classes: int, resolution: int, width: float) -> tuple[float, Floats]:
        """Milliseconds of what is fixed at a resolution and width, and what each code of each slot adds, (slots, codes)."""

    def predict(self, space: SearchSpace, archs: Sequence[Arch], classes: int) -> Prediction:
        """Of architectures, with an interval."""

    def save(self, path: Path) -> None:
        """Writes a file."""


def find_predictor(
    target: Target,
    space: SearchSpace,
    *,
    classes: int | None = None,
    tables: Path | None,
    table: Path | None,
    allow_estimate: bool,
    progress: Progress,
) -> Predictor | None:
    """What predicts latencies of a space of one width on a target; None where there is nothing.

    Args:
        target: device, runtime, precision and threads.
        space: of one width.
        classes: that a dense head tells apart; other networks may have any number.
        tables: folder of tables; the user's own by default.
        table: a file of the one table to use.
        allow_estimate: take the specification sheet where there is no table.
        progress: is told why a table is not used.

    Raises:
        UsageError: the table is of something else, or the device's file lacks a figure for an estimate.
        DamagedFileError: a table's files do not hold what they should.
    """
    if table is not None:
        found: Table | None = _given(table, target, space, classes)
    else:
        found = find_table(tables_folder(tables), target, space, progress, classes)
    if found is not None:
        return LatencyPredictor.fit(found, space)
    if not allow_estimate:
        return None
    estimate = Estimate.of(target)
    progress.note(f"there is no latency table of {target}; all latencies are {estimate.text}")
    return estimate


def _given(path: Path, target: Target, space: SearchSpace, classes: int | None) -> Table:
    place = table_file(path)
    table = read_table(place.folder, place.slug)
    if reasons := objections(table, target, space, classes):
        raise UsageError(f"{path} does not tell latencies of {space.name} on {target}: {'; '.join(reasons)}")
    return table


def estimated(predictor: Predictor) -> str | None:
    """Where its numbers come from, if they are an estimate and have to be marked as one."""
    return predictor.text if isinstance(predictor, Estimate) else None


def save_predictor(predictor: Predictor, folder: Path, label: str = "") -> None:
    """Keeps it in a run folder; `label` tells several apart."""
    predictor.save(_file(folder, ESTIMATE if isinstance(predictor, Estimate) else PREDICTOR, label))


def load_predictor(folder: Path, label: str = "") -> Predictor:
    """What `save_predictor` kept.

    Raises:
        DamagedFileError: nothing is there, or something else.
    """
    estimate = _file(folder, ESTIMATE, label)
    return Estimate.load(estimate) if estimate.exists() else LatencyPredictor.load(_file(folder, PREDICTOR, label))


def _file(folder: Path, kind: str, label: str) -> Path:
    """Labels are texts of targets, which may be paths of device files."""
    return folder / f"{kind}{quote(label, safe='@')}.json"


def no_table(
    text: str,
    target: Target,
    space: str,
    chosen: SearchSpace,
    classes: int,
    *,
    tables: Path | None,
    seed_weights: Path | None,
    own: bool = True,
) -> NatdeployError:
    """Says that a target was never measured, and with which command it will be.

    Args:
        text: of the target, as the user wrote it.
        target: that it means.
        space: as the user named it.
        chosen: what it means, of one width.
        classes: outputs of the classifier.
        tables: folder of tables, if the user gave one.
        seed_weights: whose channels the space may have.
        own: it is what was asked for, and not one target more: those are neither given a table by hand nor estimated.
    """
    runtime = target.slug.split("-")[0]
    width = chosen.widths[0]
    command = ["natdeploy", "profile", "--device", device_of(text), "--runtime", runtime]
    command += ["--precision", target.precision, "--threads", str(target.threads), "--space", space]
    if space_folder(get_space(space).restrict(widths=(width,))) == space_folder(plain_space(chosen)):
        command += ["--width", f"{width:g}"]
    else:
        command += ["--seed-weights", str(seed_weights)]
    command += ["--classes", str(classes)]
    if chosen.dense is not None:
        command += ["--head", chosen.dense.kind, "--head-channels", str(chosen.dense.channels)]
        command += ["--output-stride", str(chosen.output_stride), "--aspect", f"{chosen.aspect:.4f}"]
    command += ["--tables", str(tables)] if tables else []
    here = target.device.transport == "local"
    advice = "measure it" if here else "attach the device and measure it"
    others = " (or name a table with --table FILE, or take the specification sheet with --allow-estimate)" if own else ""
    return (UsageError if here else DeviceError)(
        f"there is no latency table of {target} for {chosen.name} at width {width:g}; {advice}: {shlex.join(command)}{others}"
    )
